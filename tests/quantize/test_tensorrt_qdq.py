"""Q/DQ pairs for TensorRT: where they are placed, what they compute, and the scales of both."""

from dataclasses import replace

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from qdq_graphs import CONSTANTS, F32, FLAT, IMAGE, PLACES, ROWS, answer, parse, quantized, table, windows_of

from tsexport.calibration.arrays import ArrayDataset
from tsexport.calibration.table import calibrate
from tsexport.errors import DataError
from tsexport.exporters.qdq_rules import check_rules
from tsexport.quantize.tensorrt_qdq import activation_scale, place_pairs, weight_scale
from tsexport.quantize.tensorrt_recipes import TENSORRT_ENTROPY, TENSORRT_MINMAX, TENSORRT_MSE, TENSORRT_PERCENTILE
from tsexport.runtimes.comparison import relative_rms


def placed(model: onnx.ModelProto, **choices):
    """Return {activation: nodes that read it quantized} and {weight: its axis}."""
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True)).graph
    placement = place_pairs(graph, **choices)
    activations = {v.name: [f"{r.node.op_type} {r.index}" for r in reads] for v, reads in placement.activations.items()}
    return activations, {value.name: axis for value, axis in placement.weights}


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
