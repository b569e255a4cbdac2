"""Coverage: multiply-accumulates by hand, and what each runtime made of them."""

import numpy as np
import onnx
import onnx.parser
import pytest

from tsexport.calibration.arrays import ArrayDataset
from tsexport.exporters.onnx_file import finish_onnx
from tsexport.exporters.openvino import export_openvino
from tsexport.quantize.candidates import build_candidate
from tsexport.quantize.coverage import cover
from tsexport.quantize.cpu_recipes import DYNAMIC_U8, NNCF_MIXED, STATIC_U8S8
from tsexport.quantize.sources import Fp32Sources
from tsexport.types import ModelSpec, TensorSpec

WIDTH = 32
PRODUCT = WIDTH * WIDTH


@pytest.fixture
def one(windows):
    return {"x": windows[:1]}


def candidate(recipe, sources, spec, windows, folder):
    built = build_candidate(recipe, sources, spec, ArrayDataset({"x": windows}), folder)
    assert built.artifact is not None, built.reason
    return built.artifact


def test_fp32_has_no_integers_and_no_conversions(sources, bodies, one):
    fp32 = sources(bodies["two products"])
    for artifact, runtime in ((fp32.onnx, "onnxruntime"), (fp32.onnx, "openvino"), (fp32.openvino, "openvino")):
        coverage = cover(artifact, runtime, one)
        assert (coverage.macs, coverage.int8_macs, coverage.conversions) == (2 * PRODUCT, 0, 0), runtime
        assert coverage.weight_bytes == 2 * PRODUCT * 4
        assert coverage.int8_share == 0.0
        assert 0 < coverage.operators <= 3


def test_dynamic_products_are_all_in_integers(sources, bodies, spec, windows, one, tmp_path):
    artifact = candidate(DYNAMIC_U8, sources(bodies["two products"]), spec, windows, tmp_path / "out")
    coverage = cover(artifact, "onnxruntime", one)
    assert (coverage.macs, coverage.int8_macs) == (2 * PRODUCT, 2 * PRODUCT)
    assert coverage.int8_share == 1.0
    assert coverage.weight_bytes < 2 * PRODUCT * 1.1


@pytest.mark.parametrize("left", [(), ("second",)])
def test_a_layer_left_in_floating_point_is_not_counted_as_integers(spec, windows, one, tmp_path, graph, left):
    from dataclasses import replace

    model = graph("{ [first] a = MatMul(x, w)  h = Relu(a)  [second] y = MatMul(h, v) }")
    onnx_artifact = finish_onnx(model, spec, tmp_path / "small.onnx", ())
    recipe = replace(STATIC_U8S8, float_layers=left)
    artifact = candidate(recipe, Fp32Sources(onnx_artifact, None), spec, windows, tmp_path / "out")
    coverage = cover(artifact, "onnxruntime", one)
    assert (coverage.macs, coverage.int8_macs) == (2 * PRODUCT, (2 - len(left)) * PRODUCT)
    assert coverage.conversions >= 2  # into integers, and back


@pytest.fixture
def convolutions(tmp_path):
    """Two convolutions and a transposed one: 16 * 32 * (8 * 3), 16 * 32 * (16 * 3) and 16 * 32 * (4 * 2) products."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[batch, 8, 32] x) => (float[batch, 4, 64] y) '
        "{ [one] a = Conv<pads = [1, 1]>(x, w0)  b = Relu(a)  [two] c = Conv<pads = [1, 1]>(b, w1) "
        "[three] y = ConvTranspose<strides = [2]>(c, w2) }"
    )
    generator = np.random.default_rng(0)
    for index, shape in enumerate([(16, 8, 3), (16, 16, 3), (16, 4, 2)]):
        array = (generator.standard_normal(shape) / 5).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"w{index}"))
    spec = ModelSpec(
        "conv",
        "test",
        "unknown",
        (TensorSpec("x", "float32", ("batch", 8, 32)),),
        (TensorSpec("y", "float32", ("batch", 4, 64)),),
    )
    made = finish_onnx(model, spec, tmp_path / "conv.onnx", ())
    windows = generator.standard_normal((24, 8, 32)).astype(np.float32)
    return Fp32Sources(made, export_openvino(made, tmp_path / "conv.xml")), spec, windows


CONVOLUTIONS = (16 * 32 * 8 * 3, 16 * 32 * 16 * 3, 16 * 32 * 4 * 2)


def test_convolutions_in_fp32(convolutions):
    sources, _, windows = convolutions
    for artifact, runtime in ((sources.onnx, "onnxruntime"), (sources.openvino, "openvino")):
        coverage = cover(artifact, runtime, {"x": windows[:1]})
        assert (coverage.macs, coverage.int8_macs) == (sum(CONVOLUTIONS), 0), runtime


def test_convolutions_in_integers(convolutions, tmp_path):
    sources, spec, windows = convolutions
    for recipe, runtime in ((STATIC_U8S8, "onnxruntime"), (NNCF_MIXED, "openvino")):
        artifact = candidate(recipe, sources, spec, windows, tmp_path / recipe.name)
        coverage = cover(artifact, runtime, {"x": windows[:1]})
        assert coverage.macs == sum(CONVOLUTIONS), runtime
        assert sum(CONVOLUTIONS[:2]) <= coverage.int8_macs <= sum(CONVOLUTIONS)
        assert 0 < coverage.conversions < coverage.operators
        assert coverage.weight_bytes < sources.onnx.size_bytes


@pytest.mark.parametrize("operator", ["LSTM", "GRU"])
def test_recurrent_layers(tmp_path, operator):
    """Both runtimes count every step: 5 * (4 or 3 gates) * 6 * (10 + 6)."""
    gates = {"LSTM": 4, "GRU": 3}[operator]
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[batch, 5, 10] x) => (float[5, 1, batch, 6] y) '
        f"{{ t = Transpose<perm = [1, 0, 2]>(x)  [it] y = {operator}<hidden_size = 6>(t, w, r) }}"
    )
    generator = np.random.default_rng(0)
    for name, shape in (("w", (1, 6 * gates, 10)), ("r", (1, 6 * gates, 6))):
        array = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "recurrent.onnx")
    from tsexport.types import Artifact

    path = tmp_path / "recurrent.onnx"
    inputs = (TensorSpec("x", "float32", ("batch", 5, 10)),)
    artifact = Artifact("r", path, "onnx", "fp32", inputs, (), (path,), "", path.stat().st_size)
    expected = 5 * gates * 6 * (10 + 6)
    feeds = {"x": np.ones((1, 5, 10), np.float32)}
    assert cover(artifact, "onnxruntime", feeds).macs == expected
    assert cover(artifact, "openvino", feeds).macs == expected


def test_a_large_model_is_counted_as_it_stands(sources, bodies, one, tmp_path):
    """Its weights lie in a second file; the optimized graph is not written."""
    from dataclasses import replace

    fp32 = sources(bodies["two products"]).onnx
    model = onnx.load(fp32.path)
    path = tmp_path / "large" / "model.onnx"
    path.parent.mkdir()
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    large = replace(fp32, path=path, files=(path, path.with_name("model.data")))
    coverage = cover(large, "onnxruntime", one)
    assert (coverage.macs, coverage.int8_macs, coverage.operators) == (2 * PRODUCT, 0, 3)
    assert coverage.weight_bytes == 2 * PRODUCT * 4
