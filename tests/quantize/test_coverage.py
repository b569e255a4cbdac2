"""Coverage: multiply-accumulates by hand, and what each runtime made of them."""

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from tsexport.calibration.arrays import ArrayDataset
from tsexport.exporters.onnx_file import finish_onnx
from tsexport.exporters.openvino import export_openvino
from tsexport.quantize.candidates import build_candidate
from tsexport.quantize.coverage import GROUPS, cover
from tsexport.quantize.cpu_recipes import DYNAMIC_U8, NNCF_MIXED, NNCF_PRODUCTS, STATIC_U8S8
from tsexport.quantize.openvino_dynamic import compress
from tsexport.quantize.operations import operations
from tsexport.quantize.sources import Fp32Sources
from tsexport.targets import host_cpu
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


WIDE = 256
"""Wide enough for OpenVINO to keep weights in int8."""
_HEAD = '<ir_version: 8, opset_import: ["" : 17]> g '


def artifact_of(body, weights, shape, folder):
    """Return a graph from x to y, both [batch, *shape], as an IR and its spec; w, v, b, c are drawn."""
    sizes = ", ".join(map(str, shape))
    model = onnx.parser.parse_model(f"{_HEAD}(float[batch, {sizes}] x) => (float[batch, {sizes}] y) {body}")
    draw = np.random.default_rng(1)
    for name, size in weights.items():
        array = (draw.standard_normal(size) / 16).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    tensors = [(TensorSpec(name, "float32", ("batch", *shape)),) for name in "xy"]
    spec = ModelSpec("m", "test", "unknown", *tensors)
    made = finish_onnx(model, spec, folder / "m.onnx", ())
    return Fp32Sources(made, export_openvino(made, folder / "m.xml")), spec


BIASED = "{ a = MatMul(x, w)  d = Add(a, b)  h = Relu(d)  e = MatMul(h, v)  y = Add(e, c) }"
BIASED_WEIGHTS = {"w": (WIDE, WIDE), "v": (WIDE, WIDE), "b": (WIDE,), "c": (WIDE,)}
BIASED_MACS = 2 * 8 * WIDE * WIDE


def test_products_whose_names_openvino_drops_are_counted(tmp_path):
    """A product that is fused with its bias bears the bias's name, and by name it would be no product of integers."""
    sources, spec = artifact_of(BIASED, BIASED_WEIGHTS, (8, WIDE), tmp_path)
    windows = np.random.default_rng(2).standard_normal((16, 8, WIDE)).astype(np.float32)
    artifact = candidate(NNCF_PRODUCTS, sources, spec, windows, tmp_path / "out")
    coverage = cover(artifact, "openvino", {"x": windows[:1]})
    assert (coverage.macs, coverage.int8_macs, coverage.unknown_macs) == (BIASED_MACS, BIASED_MACS, 0)
    assert coverage.int8_share == 1.0


def test_what_openvino_quantizes_at_run_time_is_not_known(tmp_path):
    """Stored in int8 is not computed in int8; with groups switched off it surely is not."""
    from dataclasses import replace

    from tsexport.exporters.artifacts import describe
    from tsexport.exporters.openvino import write_ir

    sources, spec = artifact_of(BIASED, BIASED_WEIGHTS, (8, WIDE), tmp_path)
    files = write_ir(compress(sources.openvino.path), tmp_path / "compressed.xml", sources.openvino)
    stored = describe(files, "openvino", spec, (), name="m", precision="int8", runtimes=("openvino",))
    for size, unknown in (("128", BIASED_MACS), ("0", 0)):
        coverage = cover(replace(stored, options=((GROUPS, size),)), "openvino", {})
        assert (coverage.macs, coverage.int8_macs) == (BIASED_MACS, 0)
        if host_cpu().vnni or not unknown:  # elsewhere the weights may be converted beforehand
            assert coverage.unknown_macs == unknown
    assert coverage.int8_share == 0.0


@pytest.mark.parametrize(
    ("body", "weights", "shape", "macs"),
    [
        ("{ t = Transpose<perm=[0, 2, 1]>(x)  s = MatMul(x, t)  y = MatMul(s, x) }", {}, (6, 40), 2 * 6 * 6 * 40),
        ("{ y = Conv<group=4, pads=[1, 1]>(x, w) }", {"w": (8, 2, 3)}, (8, 32), 8 * 32 * 2 * 3),
        (
            "{ a = ConvTranspose<group=2, strides=[2]>(x, w)  y = MaxPool<kernel_shape=[2], strides=[2]>(a) }",
            {"w": (8, 4, 2)},
            (8, 32),
            8 * 32 * 4 * 2,
        ),
    ],
    ids=["two activations", "grouped", "grouped, transposed"],
)
def test_products_in_openvino_by_hand(tmp_path, body, weights, shape, macs):
    sources, _ = artifact_of(body, weights, shape, tmp_path)
    coverage = cover(sources.openvino, "openvino", {})
    assert (coverage.macs, coverage.int8_macs, coverage.unknown_macs) == (macs, 0, 0)


def test_an_attention_in_integers_attends_in_floating_point():
    """QAttention: x [1, 6, 8] is projected by [8, 24] in integers; scores and their mean of the values are floats."""
    tokens, width = 6, 8
    body = "{ y = com.microsoft.QAttention<num_heads=2>(x, w, b, s, s, , z, z) }"
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g '
        f"(uint8[batch, {tokens}, {width}] x) => (float[batch, {tokens}, {width}] y) {body}"
    )
    draw = np.random.default_rng(3)
    constants = {
        "w": draw.integers(0, 255, (width, 3 * width)).astype(np.uint8),
        "b": np.zeros(3 * width, np.float32),
        "s": np.array(0.02, np.float32),
        "z": np.array(128, np.uint8),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    feeds = {"x": draw.integers(0, 255, (1, tokens, width)).astype(np.uint8)}
    (one,) = operations(model, feeds, onnxruntime.SessionOptions())
    projected = tokens * width * 3 * width
    assert (one.macs, one.int8_macs) == (projected + 2 * tokens**2 * width, projected)
