"""Static recipes take their ranges from our tables: the observer decides, layers stay in float, tables are kept."""

from dataclasses import replace

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from tsexport.calibration.activations import model_digest
from tsexport.calibration.arrays import ArrayDataset
from tsexport.calibration.table import Observer, calibrate
from tsexport.calibration.table_files import matching_table, read_tables
from tsexport.errors import CalibrationTableError
from tsexport.quantize.candidates import build_candidate, tables_beside
from tsexport.quantize.cpu_recipes import DYNAMIC_U8, STATIC_S8S8, STATIC_U8S8, STATIC_U8S8_REDUCED
from tsexport.quantize.onnxruntime_quantizer import observed_tensors, quantize_onnx

OBSERVERS = [Observer(), Observer("percentile", 99.0), Observer("mse"), Observer("entropy")]
LSTM = """<ir_version: 8, opset_import: ["" : 17]> g (float[batch, 5, 4] x) => (float[batch, 5, 3] y)
    <float[1, 12, 4] w, float[1, 12, 3] r, float[3, 3] v> {
    t = Transpose<perm=[1, 0, 2]>(x)  [cell] h, a, b = LSTM<hidden_size=3>(t, w, r)
    s = Squeeze(h, one)  u = Transpose<perm=[1, 0, 2]>(s)  [head] y = MatMul(u, v)
}"""


def activations(model):
    """(scale, zero point, dtype) of each quantized activation."""
    values = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    return {
        node.input[0].removesuffix("_QuantizeLinear_Input"): (
            float(values[node.input[1]]),
            int(values[node.input[2]]),
            values[node.input[2]].dtype.name,
        )
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in values
    }


def operators(model):
    return [node.op_type for node in model.graph.node]


def floats(model):
    """Names of the MatMuls that take no dequantized value."""
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and "DequantizeLinear" not in {made_by.get(name) for name in node.input}
    ]


class Reader(CalibrationDataReader):
    def __init__(self, windows):
        self.left = [{"x": windows}]

    def get_next(self):
        return self.left.pop() if self.left else None


def test_min_max_gives_what_onnxruntimes_own_calibrator_gives(sources, bodies, windows, tmp_path):
    source = sources(bodies["two products"]).onnx.path
    ours = quantize_onnx(source, replace(STATIC_U8S8, observer=None), ArrayDataset({"x": windows}))
    quantize_static(
        source, tmp_path / "theirs.onnx", Reader(windows), quant_format=QuantFormat.QDQ, per_channel=True,
        op_types_to_quantize=["MatMul", "Conv"], activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    theirs = onnx.load(tmp_path / "theirs.onnx")
    assert operators(ours) == operators(theirs)
    expected = activations(theirs)
    assert len(expected) == 4
    for name, (scale, zero_point, dtype) in activations(ours).items():
        assert scale == pytest.approx(expected[name][0], rel=1e-6)
        assert (zero_point, dtype) == expected[name][1:]


@pytest.mark.parametrize("observer", OBSERVERS, ids=str)
def test_the_observer_decides_the_scales(sources, bodies, windows, observer):
    source = sources(bodies["two products"]).onnx.path
    windows[0, 0] = 40.0
    dataset = ArrayDataset({"x": windows})
    found = activations(quantize_onnx(source, replace(STATIC_U8S8, observer=observer), dataset))
    table = calibrate(source, dataset, tuple(found), observer)
    for name, (scale, _, dtype) in found.items():
        one = table.range_of(name)
        assert scale == pytest.approx((max(one.high, 0) - min(one.low, 0)) / 255, rel=1e-5)
        assert dtype == "uint8"
    assert (found["x"][0] < 20 / 255) == (observer.method in ("percentile", "entropy"))


def test_symmetric_s8_has_zero_points_of_0(sources, bodies, windows):
    source = sources(bodies["two products"]).onnx.path
    recipe = replace(STATIC_S8S8, observer=Observer("mse", symmetric=True))
    found = activations(quantize_onnx(source, recipe, ArrayDataset({"x": windows})))
    assert {one[1:] for one in found.values()} == {(0, "int8")}


def named(model):
    for index, node in enumerate(model.graph.node):
        node.name = f"/layers.{index}/{node.op_type}"
    return model


@pytest.mark.parametrize("recipe", [DYNAMIC_U8, STATIC_U8S8_REDUCED, STATIC_U8S8], ids=lambda recipe: recipe.name)
def test_layers_stay_in_float(graph, bodies, windows, tmp_path, recipe):
    onnx.save(named(graph(bodies["two products"])), path := tmp_path / "named.onnx")
    dataset = ArrayDataset({"x": windows})
    assert floats(quantize_onnx(path, recipe, dataset)) == []
    kept = replace(recipe, float_layers=("/layers.0/MatMul",))
    assert floats(quantize_onnx(path, kept, dataset)) == ["/layers.0/MatMul"]
    unknown = replace(recipe, float_layers=("/layers.0/Matmul",))
    with pytest.raises(ValueError, match=r"float_layers names '/layers.0/Matmul', and the graph has no such node"):
        quantize_onnx(path, unknown, dataset)


def test_recurrent_layers_stay_in_float(tmp_path):
    model = onnx.parser.parse_model(LSTM)
    generator = np.random.default_rng(0)
    arrays = {"w": (1, 12, 4), "r": (1, 12, 3), "v": (3, 3)}
    del model.graph.initializer[:]
    for name, shape in arrays.items():
        value = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
    onnx.save(model, path := tmp_path / "lstm.onnx")
    dataset = ArrayDataset({"x": np.zeros((32, 5, 4), np.float32)})
    assert "DynamicQuantizeLSTM" in operators(quantize_onnx(path, DYNAMIC_U8, dataset))
    kept = operators(quantize_onnx(path, replace(DYNAMIC_U8, float_layers=("cell",)), dataset))
    assert "LSTM" in kept
    assert "MatMulInteger" in kept


def test_layers_in_float_take_the_same_table(graph, bodies, windows, tmp_path):
    """One pass over the windows serves every choice of layers."""
    onnx.save(model := named(graph(bodies["two products"])), path := tmp_path / "named.onnx")
    assert observed_tensors(model) == ("x", "a", "h", "y")
    asked = []

    def counting(model, dataset, tensors, observer):
        asked.append((tuple(tensors), observer))
        return calibrate(model, dataset, tensors, observer)

    for layers in ((), ("/layers.0/MatMul",)):
        quantize_onnx(path, replace(STATIC_U8S8, float_layers=layers), ArrayDataset({"x": windows}), counting)
    assert asked[0] == asked[1] == (("x", "a", "h", "y"), Observer("mse"))


def test_the_table_stands_beside_the_artifact(sources, bodies, spec, windows, tmp_path):
    fp32, dataset = sources(bodies["two products"]), ArrayDataset({"x": windows})
    recipe = STATIC_U8S8
    built = build_candidate(recipe, fp32, spec, dataset, tmp_path / "out")
    (table,) = read_tables(tables_beside(built.artifact.path))
    assert table.observer == Observer("mse")
    assert table.model_sha256 == fp32.onnx.sha256 == model_digest(fp32.onnx.path)
    assert table.data_sha256 == dataset.digest
    dynamic = build_candidate(DYNAMIC_U8, fp32, spec, dataset, tmp_path / "out")
    assert not tables_beside(dynamic.artifact.path).exists()

    def given(model, dataset, tensors, observer):
        return matching_table(
            (table,),
            model_sha256=model_digest(model),
            data_sha256=dataset.digest,
            tensors=tensors,
            observer=observer,
        )

    again = build_candidate(recipe, fp32, spec, dataset, tmp_path / "again", given)
    assert again.artifact.sha256 == built.artifact.sha256
    with pytest.raises(CalibrationTableError, match="was made with another observer"):
        build_candidate(replace(recipe, observer=Observer()), fp32, spec, dataset, tmp_path / "other", given)
    other = ArrayDataset({"x": windows[:40]})
    with pytest.raises(CalibrationTableError, match="was made with other data"):
        build_candidate(recipe, fp32, spec, other, tmp_path / "other", given)


def test_activations_that_overflow_give_the_reason(sources, spec, tmp_path):
    fp32 = sources("{ e = Exp(x)  a = MatMul(e, w)  y = Relu(a) }")
    windows = np.full((40, 32), 100.0, np.float32)
    built = build_candidate(STATIC_U8S8, fp32, spec, ArrayDataset({"x": windows}), tmp_path / "out")
    assert built.artifact is None
    assert built.reason.startswith("the tensor 'e' held NaN or infinity in 512 of 512 values while it was calibrated")
