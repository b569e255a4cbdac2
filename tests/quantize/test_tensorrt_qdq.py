"""Q/DQ pairs for TensorRT: where they are placed, what they compute, and that they never break a rule."""

from dataclasses import replace

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsexport.calibration.arrays import ArrayDataset
from tsexport.calibration.table import CalibrationTable, Observer, TensorRange, calibrate
from tsexport.errors import DataError
from tsexport.exporters.device_rewrites import rewrite_for_device
from tsexport.exporters.onnx_file import describe_onnx
from tsexport.exporters.qdq_rules import check_rules
from tsexport.quantize import tensorrt_qdq
from tsexport.quantize.candidates import build_candidate
from tsexport.quantize.onnxruntime_quantizer import NothingQuantizedError
from tsexport.quantize.recipes import recipes_for
from tsexport.quantize.tensorrt_qdq import (
    activation_scale,
    insert_pairs,
    place_pairs,
    quantize_tensorrt,
    weight_scale,
)
from tsexport.quantize.tensorrt_recipes import (
    TENSORRT_ATTENTION,
    TENSORRT_ENTROPY,
    TENSORRT_INT8,
    TENSORRT_INT8_BEFORE_AMPERE,
    TENSORRT_MINMAX,
    TENSORRT_MSE,
    TENSORRT_PERCENTILE,
)
from tsexport.runtimes.comparison import relative_rms
from tsexport.runtimes.simulation import simulate
from tsexport.targets import host_cpu, parse_target
from tsexport.types import ModelSpec, TensorSpec

F32 = np.float32
GENERATOR = np.random.default_rng(11)


def noise(*shape, scale=1.0):
    return (GENERATOR.standard_normal(shape) * scale).astype(F32)


CONSTANTS = {
    "w": noise(8, 8) * np.geomspace(0.1, 3, 8).astype(F32),  # channels of unlike size
    "v": noise(8, 8),
    "column": noise(8, 1),
    "stack": noise(2, 8, 8),
    "kernel": noise(6, 8, 1, 3),
    "turned": noise(8, 6, 1, 3),
    "grouped": noise(8, 2, 1, 3),
    "solid": noise(6, 8, 1, 1, 1),
    "bias": noise(8),
    "bias6": noise(6),
    "mask": np.triu(np.full((8, 8), -1e4, F32), 1),
    "two": np.array(2.0, F32),
    "epsilon": np.array(1e-5, F32),
}
ROWS = "(float[batch, 8, 8] x, float[batch, 8, 8] r) => (float[batch, 8, 8] y)"
FLAT = "(float[batch, 8] x) => (float[batch, 8] y)"
IMAGE = "(float[batch, 8, 1, 9] x) => (float[batch, 6, 1, 9] y)"


def parse(signature: str, body: str) -> onnx.ModelProto:
    """Return an fp32 model; nodes are called after their outputs."""
    made = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {signature} {{ {body} }}')
    used = {name for node in made.graph.node for name in node.input}
    made.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in CONSTANTS.items() if name in used
    )
    for node in made.graph.node:
        node.name = f"make_{node.output[0]}"
    onnx.checker.check_model(made, full_check=True)
    return made


def placed(model: onnx.ModelProto, **choices):
    """Return {activation: nodes that read it quantized} and {weight: its axis}."""
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True)).graph
    placement = place_pairs(graph, **choices)
    activations = {v.name: [f"{r.node.op_type} {r.index}" for r in reads] for v, reads in placement.activations.items()}
    return activations, {value.name: axis for value, axis in placement.weights}


SQUARE = "m = ReduceMean<axes=[-1]>(h)  c = Sub(h, m)  q = Mul(c, c)  n = ReduceMean<axes=[-1]>(q)  e = Add(n, epsilon)"
PLACES = {
    "product": (ROWS, "h = MatMul(x, w)  y = Add(h, r)", {}, {"x": ["MatMul 0"], "r": ["Add 1"]}, {"w": 1}),
    "bias and residual": (
        ROWS,
        "h = MatMul(x, w)  b = Add(bias, h)  y = Add(r, b)",
        {},
        {"x": ["MatMul 0"], "r": ["Add 0"]},
        {"w": 1},
    ),
    "one pair for two readers": (
        ROWS,
        "h = MatMul(x, w)  b = Add(h, bias)  y = Add(x, b)",
        {},
        {"x": ["MatMul 0", "Add 0"]},
        {"w": 1},
    ),
    "the later layer adds": (
        ROWS,
        "h = MatMul(x, w)  k = MatMul(r, v)  y = Add(k, h)",
        {},
        {"x": ["MatMul 0"], "r": ["MatMul 0"], "h": ["Add 1"]},
        {"w": 1, "v": 1},
    ),
    "an operand that is broadcast is no residual": (
        ROWS,
        "h = MatMul(x, w)  m = ReduceMean<axes=[1]>(r)  y = Add(h, m)",
        {},
        {"x": ["MatMul 0"]},
        {"w": 1},
    ),
    "nothing is added to float": (ROWS, "y = Add(x, r)", {}, {}, {}),
    "Gemm": (FLAT, "y = Gemm(x, w, bias)", {}, {"x": ["Gemm 0"]}, {"w": 1}),
    "Gemm with transB": (FLAT, "y = Gemm<transB=1>(x, w, bias)", {}, {"x": ["Gemm 0"]}, {"w": 0}),
    "convolution": (IMAGE, "y = Conv<pads=[0,1,0,1]>(x, kernel, bias6)", {}, {"x": ["Conv 0"]}, {"kernel": 0}),
    "transposed": (
        IMAGE,
        "y = ConvTranspose<pads=[0,1,0,1]>(x, turned, bias6)",
        {},
        {"x": ["ConvTranspose 0"]},
        {"turned": 1},
    ),
    "transposed in groups has one scale": (
        "(float[batch, 8, 1, 9] x) => (float[batch, 8, 1, 9] y)",
        "y = ConvTranspose<group=4, pads=[0,1,0,1]>(x, grouped)",
        {},
        {"x": ["ConvTranspose 0"]},
        {"grouped": None},
    ),
    "a constant on the left has one scale": (ROWS, "y = MatMul(w, x)", {}, {"x": ["MatMul 1"]}, {"w": None}),
    "a stack of weights has one scale": (
        "(float[batch, 2, 8, 8] x) => (float[batch, 2, 8, 8] y)",
        "y = MatMul(x, stack)",
        {},
        {"x": ["MatMul 0"]},
        {"stack": None},
    ),
    "a column is a vector": ("(float[batch, 8, 8] x) => (float[batch, 8, 1] y)", "y = MatMul(x, column)", {}, {}, {}),
    "one row is a vector": ("(float[1, 8] x) => (float[1, 8] y)", "y = MatMul(x, w)", {}, {}, {}),
    "a row of each window is none": (
        "(float[batch, 1, 8] x) => (float[batch, 1, 8] y)",
        "y = MatMul(x, w)",
        {},
        {"x": ["MatMul 0"]},
        {"w": 1},
    ),
    "a row by each window's matrix is": (
        "(float[batch, 1, 8] x, float[batch, 8, 8] r) => (float[batch, 1, 8] y)",
        "y = MatMul(x, r)",
        {"attention_products": True},
        {},
        {},
    ),
    "attention": (
        ROWS,
        "o = MatMul(x, r)  a = Add(o, mask)  f = Softmax<axis=-1>(a)  y = MatMul(f, x)",
        {},
        {},
        {},
    ),
    "attention with its products": (
        ROWS,
        "o = MatMul(x, r)  a = Add(o, mask)  f = Softmax<axis=-1>(a)  y = MatMul(f, x)",
        {"attention_products": True},
        {"x": ["MatMul 0", "MatMul 1"], "r": ["MatMul 1"], "f": ["MatMul 0"]},
        {},
    ),
    "a computed mask is no residual": (
        ROWS,
        "o = MatMul(x, w)  k = Mul(r, two)  a = Add(o, k)  f = Softmax<axis=-1>(a)  y = MatMul(f, v)",
        {},
        {"x": ["MatMul 0"], "f": ["MatMul 0"]},
        {"w": 1, "v": 1},
    ),
    "a written-out normalization": (
        ROWS,
        f"h = MatMul(x, w)  {SQUARE} d = Sqrt(e)  l = Div(c, d)  g = MatMul(l, v)  y = Add(g, h)",
        {},
        {"x": ["MatMul 0"], "l": ["MatMul 0"], "h": ["Add 1"]},
        {"w": 1, "v": 1},
    ),
    "a layer in floating point": (
        ROWS,
        "h = MatMul(x, w)  k = MatMul(h, v)  y = Add(k, r)",
        {"float_layers": ("make_k",)},
        {"x": ["MatMul 0"]},
        {"w": 1},
    ),
    "a residual in floating point": (
        ROWS,
        "h = MatMul(x, w)  y = Add(h, r)",
        {"float_layers": ("make_y",)},
        {"x": ["MatMul 0"]},
        {"w": 1},
    ),
    "no kernel for transposed convolutions": (
        IMAGE,
        "h = ConvTranspose<pads=[0,1,0,1]>(x, turned)  y = Relu(h)",
        {"every_kernel": False},
        {},
        {},
    ),
    "no kernel for three dimensions": (
        "(float[batch, 8, 2, 2, 2] x) => (float[batch, 6, 2, 2, 2] y)",
        "y = Conv(x, solid)",
        {"every_kernel": False},
        {},
        {},
    ),
    "a kernel for two": (
        IMAGE,
        "y = Conv<pads=[0,1,0,1]>(x, kernel)",
        {"every_kernel": False},
        {"x": ["Conv 0"]},
        {"kernel": 0},
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_where_pairs_are_placed(name):
    signature, body, choices, activations, weights = PLACES[name]
    assert placed(parse(signature, body), **choices) == (activations, weights)


# --- what a pair computes --------------------------------------------------------------------------------------------


def fake(array, scale, axis=None):
    """Return what a pair makes of an array, in float64, by numpy alone."""
    if axis is not None:
        scale = np.reshape(scale, [-1 if place == axis else 1 for place in range(array.ndim)])
    return np.clip(np.round(array.astype(F32) / scale), -128, 127).astype(np.float64) * scale


def scales_of(array, axis=None):
    amax = np.abs(array) if axis is None else np.moveaxis(np.abs(array), axis, 0).reshape(array.shape[axis], -1)
    return (amax.max(axis=None if axis is None else 1).astype(np.float64) / 127).astype(F32)


def convolve(x, w):
    """Return the correlation along the last axis of x [n, c, 1, t] with w [m, c, 1, 3], padded by 1."""
    padded = np.pad(x[:, :, 0], ((0, 0), (0, 0), (1, 1)))
    windows = np.stack([padded[..., k : k + x.shape[-1]] for k in range(3)], axis=-1)
    return np.einsum("nctk,mck->nmt", windows, w[:, :, 0])[:, :, None]


def product_with_residual(feeds):
    x, r = feeds["x"], feeds["r"]
    h = fake(x, scales_of(x)) @ fake(CONSTANTS["w"], scales_of(CONSTANTS["w"], 1), 1) + CONSTANTS["bias"]
    return h + fake(r, scales_of(r))


def gemm_with_transposed_weight(feeds):
    x, w = feeds["x"], CONSTANTS["w"]
    return fake(x, scales_of(x)) @ fake(w, scales_of(w, 0), 0).T + CONSTANTS["bias"]


def convolution(feeds):
    x, w = feeds["x"], CONSTANTS["kernel"]
    return convolve(fake(x, scales_of(x)), fake(w, scales_of(w, 0), 0)) + CONSTANTS["bias6"][:, None, None]


def transposed_convolution(feeds):
    x, w = feeds["x"], CONSTANTS["turned"]
    return convolve(fake(x, scales_of(x)), fake(w, scales_of(w, 1), 1).swapaxes(0, 1)[..., ::-1])


def attention(feeds):
    x, r = (fake(feeds[name], scales_of(feeds[name])) for name in ("x", "r"))
    scores = x @ r + CONSTANTS["mask"]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return fake(weights, scales_of(weights.astype(F32))) @ x


REFERENCES = {
    "product with residual": (ROWS, PLACES["bias and residual"][1], product_with_residual),
    "Gemm with transB": (FLAT, PLACES["Gemm with transB"][1], gemm_with_transposed_weight),
    "convolution": (IMAGE, PLACES["convolution"][1], convolution),
    "transposed convolution": (IMAGE, "y = ConvTranspose<pads=[0,1,0,1]>(x, turned)", transposed_convolution),
    "attention": (ROWS, PLACES["attention"][1], attention),
}


def spec_of(model):
    def tensors(values):
        for value in values:
            dims = value.type.tensor_type.shape.dim
            yield TensorSpec(value.name, "float32", tuple(d.dim_value or d.dim_param for d in dims))

    return ModelSpec("small", "test", "unknown", tuple(tensors(model.graph.input)), tuple(tensors(model.graph.output)))


def windows_of(model, count=16):
    generator = np.random.default_rng(5)
    return {one.name: generator.standard_normal((count, *one.shape[1:])).astype(F32) for one in spec_of(model).inputs}


def answer(model, feeds, folder):
    """Answer by exact simulation: every pair in floating point, no integer kernel."""
    path = folder / "simulated.onnx"
    onnx.save(model, path)
    one = describe_onnx((path,), spec_of(model), ("a test",), name="small", precision="int8", opset=17)
    with simulate(one, "onnxruntime", 1) as session:
        return session.run(feeds)["y"]


def quantized(model, folder, recipe, feeds):
    path = folder / "fp32.onnx"
    onnx.save(model, path)
    return quantize_tensorrt(path, recipe, ArrayDataset(feeds))


ROUNDING = 2e-6
"""Relative RMS between fp32 sums of a few dozen terms and the same in float64."""


@pytest.mark.parametrize("name", REFERENCES)
def test_pairs_compute_what_numpy_does(tmp_path, name):
    signature, body, reference = REFERENCES[name]
    model = parse(signature, body)
    feeds = windows_of(model)
    recipe = replace(TENSORRT_MINMAX, attention_products=name == "attention")
    made = quantized(model, tmp_path, recipe, feeds)
    assert check_rules(made) == ()
    found, exact = answer(made, feeds, tmp_path), answer(model, feeds, tmp_path)
    assert relative_rms(reference(feeds), found) < ROUNDING
    assert 1e-3 < relative_rms(exact, found) < 0.03  # it is quantized, and to 8 bits


@pytest.mark.parametrize("recipe", [TENSORRT_ENTROPY, TENSORRT_PERCENTILE, TENSORRT_MSE], ids=lambda r: r.name)
def test_the_observer_of_the_recipe_decides_the_scale(tmp_path, recipe):
    """On values of a long tail each of these clips a part of it; min-max keeps all of it."""
    model = parse(ROWS, "h = MatMul(x, w)  y = Add(h, r)")
    generator = np.random.default_rng(8)
    feeds = {name: generator.laplace(size=(200, 8, 8)).astype(F32) for name in ("x", "r")}
    made = quantized(model, tmp_path, recipe, feeds)
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    ranges = calibrate(tmp_path / "fp32.onnx", ArrayDataset(feeds), ("x", "r"), recipe.observer)
    for name in ("x", "r"):
        assert found[f"{name}_scale"] == F32(ranges.range_of(name).amax / 127)
        assert found[f"{name}_scale"] < np.abs(feeds[name]).max() / 127


def test_scales_of_weights():
    weight = np.array([[1.0, -2.54], [0.0, 1.27], [0.0, 0.0]], F32)
    assert weight_scale(weight, 1) == pytest.approx([1 / 127, 0.02])
    assert weight_scale(weight, None) == pytest.approx(0.02)
    assert weight_scale(weight, None).shape == ()
    zeros = weight_scale(weight, 0)[2]
    assert zeros > 0
    assert np.isfinite(F32(1) / zeros)


def table(ranges):
    rows = tuple(TensorRange(name, low, high) for name, (low, high) in ranges.items())
    return CalibrationTable("0" * 64, "0" * 64, ("0",), Observer(symmetric=True), "a test", rows)


def test_scales_of_activations():
    ranges = table({"a": (-2.54, 1.0), "zero": (0.0, 0.0), "huge": (-1e39, 1.0)})
    assert activation_scale(ranges, "a") == F32(0.02)
    assert 0 < activation_scale(ranges, "zero") < 1e-30
    with pytest.raises(DataError) as raised:
        activation_scale(ranges, "huge")
    assert raised.value.message == (
        "calibration gives the tensor 'huge' the largest magnitude 1e+39; it must be a finite fp32 number"
    )
    assert "infinite or missing values" in raised.value.next_step


def test_a_channel_and_an_activation_of_zeros_are_harmless(tmp_path, monkeypatch):
    monkeypatch.setitem(CONSTANTS, "w", np.concatenate([CONSTANTS["v"][:, :7], np.zeros((8, 1), F32)], axis=1))
    model = parse(ROWS, "h = MatMul(x, w)  y = Add(h, r)")
    feeds = windows_of(model)
    feeds["r"][:] = 0
    found = answer(quantized(model, tmp_path, TENSORRT_MINMAX, feeds), feeds, tmp_path)
    assert np.isfinite(found).all()
    assert not found[..., 7].any()


# --- the file --------------------------------------------------------------------------------------------------------


def test_names_that_are_taken_are_left_alone(tmp_path):
    model = parse(ROWS, "x_scale = Relu(x)  x_quantized = MatMul(x, w)  h = Add(x_scale, x_quantized)  y = Add(h, r)")
    feeds = windows_of(model)
    made = quantized(model, tmp_path, TENSORRT_MINMAX, feeds)
    onnx.checker.check_model(made, full_check=True)
    assert relative_rms(answer(model, feeds, tmp_path), answer(made, feeds, tmp_path)) < 0.02


def test_a_weight_of_a_constant_node_becomes_an_initializer(tmp_path):
    model = parse(ROWS, "h = MatMul(x, w)  y = Add(h, r)")
    node = onnx.helper.make_node("Constant", [], ["w"], value=model.graph.initializer.pop(0), name="make_w")
    model.graph.node.insert(0, node)
    made = quantized(model, tmp_path, TENSORRT_MINMAX, windows_of(model))
    assert "w_weight" in {one.name for one in made.graph.initializer}
    assert check_rules(made) == ()


def test_a_weight_of_two_layers_has_one_pair_for_each_axis(tmp_path):
    model = parse(FLAT, "a = MatMul(x, w)  b = MatMul(a, w)  y = Gemm<transB=1>(b, w)")
    made = quantized(model, tmp_path, TENSORRT_MINMAX, windows_of(model))
    pairs = [node.name for node in made.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "w"]
    assert sorted(pairs) == ["w_axis0_quantize", "w_axis1_quantize"]
    assert check_rules(made) == ()


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    model = parse(ROWS, PLACES["bias and residual"][1])
    files = [quantized(model, tmp_path, TENSORRT_MSE, windows_of(model)).SerializeToString() for _ in range(2)]
    assert files[0] == files[1]


def built(model, folder, recipe):
    from tsexport.exporters.onnx_file import finish_onnx
    from tsexport.quantize.sources import Fp32Sources

    source = finish_onnx(model, spec_of(model), folder / "fp32.onnx", ("onnx.parser",))
    calibration = ArrayDataset(windows_of(model))
    return build_candidate(recipe, Fp32Sources(source, None), spec_of(model), calibration, folder / "out")


OWN = [recipe for recipe in (*TENSORRT_INT8, *TENSORRT_INT8_BEFORE_AMPERE) if recipe.tool == "tensorrt-qdq"]


@pytest.mark.parametrize("recipe", OWN, ids=lambda recipe: recipe.name)
def test_every_recipe_builds_an_artifact(tmp_path, recipe):
    body = "o = MatMul(x, r)  f = Softmax<axis=-1>(o)  h = MatMul(f, x)  b = MatMul(h, w)  y = Add(b, r)"
    candidate = built(parse(ROWS, body), tmp_path, recipe)
    assert candidate.reason == ""
    artifact = candidate.artifact
    assert (artifact.name, artifact.precision, artifact.opset) == (f"int8-{recipe.name}", "int8", 17)
    assert recipe.summary in artifact.provenance[-1]
    model = onnx.load(artifact.path)
    assert check_rules(model, every_kernel=recipe.every_kernel) == ()
    pairs = sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
    # h, w and r; with attention's products x and f as well
    assert pairs == (5 if recipe.attention_products else 3)
    assert not model.graph.value_info


@pytest.mark.parametrize(
    ("body", "recipe", "reason"),
    [
        ("y = Add(x, r)", TENSORRT_MINMAX, "no Conv, ConvTranspose, Gemm or MatMul that TensorRT computes in INT8"),
        ("y = MatMul(x, r)", TENSORRT_MINMAX, "no Conv, ConvTranspose, Gemm or MatMul that TensorRT computes in INT8"),
        ("h = MatMul(x, w)  y = Add(h, r)", TENSORRT_ATTENTION, "no product of two activations"),
        (
            "h = MatMul(x, w)  y = Add(h, r)",
            replace(TENSORRT_MINMAX, float_layers=("make_z",)),
            "float_layers names 'make_z', and the graph has no such node",
        ),
    ],
    ids=["no layer", "no weights", "no attention", "unknown layer"],
)
def test_what_cannot_be_quantized_is_listed_with_the_reason(tmp_path, body, recipe, reason):
    candidate = built(parse(ROWS, body), tmp_path, recipe)
    assert candidate.artifact is None
    assert reason in candidate.reason


def test_a_graph_that_breaks_a_rule_fails_the_candidate(tmp_path, monkeypatch):
    """What guards against a fault of the quantizer itself: here it is made to forget a residual operand."""
    monkeypatch.setattr(tensorrt_qdq, "residual_operand", lambda *_: None)
    candidate = built(parse(ROWS, "h = MatMul(x, w)  y = Add(h, r)"), tmp_path, TENSORRT_MINMAX)
    assert candidate.artifact is None
    assert candidate.reason == (
        "the Q/DQ pairs break TensorRT's rules: residual: node 'make_y' adds 'r' to what a quantized layer gives, "
        "without a pair; allowed is a pair in front of the residual operand"
    )


def test_one_table_serves_every_choice_of_layers(tmp_path):
    """The search takes layers back to floating point; what was calibrated once stays enough."""
    model = parse(ROWS, "h = MatMul(x, w)  k = MatMul(r, v)  y = Add(k, h)")
    asked = []

    def remember(path, dataset, tensors, observer):
        asked.append(tensors)
        return table({name: (-1.0, 1.0) for name in tensors})

    path = tmp_path / "fp32.onnx"
    onnx.save(model, path)
    for layers in ((), ("make_k",), ("make_h",), ("make_y",)):
        recipe = replace(TENSORRT_MINMAX, float_layers=layers)
        made = quantize_tensorrt(path, recipe, ArrayDataset(windows_of(model)), remember)
        assert check_rules(made, float_layers=layers) == ()
    assert len(set(asked)) == 1


@pytest.mark.parametrize(
    ("target", "device", "every_kernel", "attention"),
    [
        ("jetson-int8", "@jetpack-6.2", True, True),
        ("jetson-int8", "agx-orin@jetpack-5.1.1", True, True),
        ("jetson-int8", "xavier-nx@jetpack-5.1", False, False),
        ("t4-int8", "host", False, False),
        ("a100-int8", "@tensorrt-8.5", True, True),
        ("h100-int8", "host", True, True),
    ],
)
def test_the_recipes_of_a_target(target, device, every_kernel, attention):
    """GPUs before compute capability 8.0 lack kernels."""
    recipes = recipes_for(parse_target(target, device), host_cpu())
    assert {recipe.every_kernel for recipe in recipes} == {every_kernel}
    assert {recipe.attention_products for recipe in recipes} == ({True, False} if attention else {False})
    assert {recipe.observer.method for recipe in recipes} == {"minmax", "entropy", "percentile", "mse"}
    assert {recipe.tool for recipe in recipes} == {"tensorrt-qdq", "modelopt"}
    assert len({recipe.name for recipe in recipes}) == len(recipes)


def test_a_normalization_that_is_written_out_stays_in_floating_point(tmp_path):
    """The constants of the normalization stay in floating point, and its input has no pair."""
    body = "n = LayerNormalization<axis=-1>(x, bias, bias)  h = MatMul(n, w)  y = Add(h, n)"
    model = parse(ROWS, body)
    feeds = windows_of(model)
    plain = quantized(model, tmp_path, TENSORRT_MINMAX, feeds)
    written = quantized(rewrite_for_device(model, (feeds,), "8.5")[0], tmp_path, TENSORRT_MINMAX, feeds)
    assert not any(node.op_type == "LayerNormalization" for node in written.graph.node)
    assert check_rules(written) == ()
    pairs = [[n.input[0] for n in one.graph.node if n.op_type == "QuantizeLinear"] for one in (plain, written)]
    assert pairs == [["n", "w"], ["n", "w"]]
    assert relative_rms(answer(plain, feeds, tmp_path), answer(written, feeds, tmp_path)) < 1e-3


# --- any graph -------------------------------------------------------------------------------------------------------

STEPS = (
    "MatMul({a}, w)",
    "MatMul({a}, v)",
    "MatMul(w, {a})",
    "MatMul({a}, {b})",
    "Add({a}, {b})",
    "Add({a}, bias)",
    "Mul({a}, two)",
    "Relu({a})",
    "Softmax<axis=-1>({a})",
    "LayerNormalization<axis=-1>({a}, bias, bias)",
    "Conv<pads=[1,1]>({a}, narrow)",
    "ConvTranspose<pads=[1,1]>({a}, narrow)",
    "ConvTranspose<pads=[1,1], group=8>({a}, single)",
    "NORMALIZE",
    "COLUMN",
    "MASK",
)
CONSTANTS |= {"narrow": noise(8, 8, 3), "single": noise(8, 1, 3)}


def written_out(step: str, a: str, b: str, name: str) -> str:
    """Return the text of one step, whose result is `name`."""
    if step == "NORMALIZE":
        return (
            f"{name}m = ReduceMean<axes=[-1]>({a})  {name}c = Sub({a}, {name}m)  {name}q = Pow({name}c, two)  "
            f"{name}n = ReduceMean<axes=[-1]>({name}q)  {name}e = Add({name}n, epsilon)  {name}d = Sqrt({name}e)  "
            f"{name} = Div({name}c, {name}d)"
        )
    if step == "COLUMN":
        return f"{name}v = MatMul({a}, column)  {name} = Add({b}, {name}v)"
    if step == "MASK":
        return f"{name}o = MatMul({a}, {b})  {name}a = Add({name}o, mask)  {name} = Softmax<axis=-1>({name}a)"
    return f"{name} = {step.format(a=a, b=b)}"


@st.composite
def graphs(draw):
    """Return the body of a graph whose values are all [batch, 8, 8]."""
    values, lines = ["x", "r"], []
    for number in range(draw(st.integers(1, 10))):
        step = draw(st.sampled_from(STEPS))
        a, b = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        name = f"t{number}"
        lines.append(written_out(step, a, b, name))
        values.append(name)
    return "  ".join([*lines, f"y = Add({values[-1]}, {draw(st.sampled_from(values))})"])


@given(graphs(), st.booleans(), st.booleans(), st.data())
def test_no_graph_makes_the_quantizer_break_a_rule(body, products, every_kernel, data):
    model = parse(ROWS, body)
    names = [node.name for node in model.graph.node]
    float_layers = frozenset(data.draw(st.lists(st.sampled_from(names), max_size=3)))
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))
    placement = place_pairs(
        inferred.graph, float_layers=float_layers, attention_products=products, every_kernel=every_kernel
    )
    magnitudes = st.floats(0, 2.0**100, width=32)
    ranges = {name: (-data.draw(magnitudes), data.draw(magnitudes)) for name in placement.tensors}
    layers = {node.name for node in placement.layers}
    insert_pairs(inferred.graph, placement, table(ranges))
    made = ir.to_proto(inferred)
    onnx.checker.check_model(made, full_check=True)
    assert check_rules(made, float_layers=float_layers, every_kernel=every_kernel) == ()
    assert not layers & float_layers
    # taking the pairs out again gives the graph as it was
    behind = {n.output[0]: n.input[0] for n in made.graph.node if n.op_type.endswith("tizeLinear")}
    kept = [node for node in made.graph.node if not node.op_type.endswith("tizeLinear")]
    for node in (*kept, *model.graph.node):
        node.ClearField("domain")  # "" may be written or not
        node.input[:] = [behind.get(behind.get(name, name), name) for name in node.input]
    assert [n.SerializeToString() for n in kept] == [n.SerializeToString() for n in model.graph.node]


def test_nothing_is_quantized_without_layers(tmp_path):
    path = tmp_path / "fp32.onnx"
    onnx.save(parse(ROWS, "y = Add(x, r)"), path)
    with pytest.raises(NothingQuantizedError):
        quantize_tensorrt(path, TENSORRT_MINMAX, ArrayDataset({"x": noise(4, 8, 8), "r": noise(4, 8, 8)}))
