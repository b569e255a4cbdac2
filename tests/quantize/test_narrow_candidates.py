"""Candidates in fp16 and bf16: what is built, what calibration finds, and the reasons for what is not built."""

import numpy as np
import onnx
import pytest
from narrow_graphs import LAYER_NORM, WIDTH, W, X, conv, graph, types_of

from tsexport.calibration.arrays import ArrayDataset
from tsexport.exporters.onnx_file import finish_onnx
from tsexport.exporters.rewrites.proofs import answer
from tsexport.quantize.candidates import build_candidate
from tsexport.quantize.islands import RANGE
from tsexport.quantize.sources import Fp32Sources
from tsexport.quantize.tensorrt_recipes import TENSORRT_IN_BF16, TENSORRT_IN_FP16
from tsexport.runtimes.bf16_rounding import simulate_bf16
from tsexport.types import ModelSpec, TensorSpec

RANGES = {"eye": np.eye(WIDTH, dtype=np.float32), "big": np.float32(12_000)}
SPEC = ModelSpec(
    "small",
    "test",
    "unknown",
    (TensorSpec("x", "float32", ("batch", WIDTH)),),
    (TensorSpec("y", "float32", ("batch", WIDTH)),),
)


@pytest.fixture
def build(tmp_path):
    """Return a function from a recipe, a graph and windows to what became of them."""

    def make(recipe, model, windows=X, spec=SPEC):
        source = finish_onnx(model, spec, tmp_path / "fp32.onnx", ("made by a test",))
        return build_candidate(recipe, Fp32Sources(source, None), spec, ArrayDataset({"x": windows}), tmp_path / "out")

    return make


@pytest.mark.parametrize("recipe", [TENSORRT_IN_FP16, TENSORRT_IN_BF16], ids=lambda one: one.name)
def test_a_candidate_is_described(build, recipe):
    built = build(recipe, graph(LAYER_NORM))
    artifact = built.artifact
    assert built.reason == ""
    assert (artifact.name, artifact.precision, artifact.opset) == (recipe.name, recipe.precision, 17)
    assert (artifact.inputs, artifact.outputs) == (SPEC.inputs, SPEC.outputs)
    assert f"cast to {recipe.precision}: {recipe.summary}" in artifact.provenance
    assert artifact.size_bytes < 0.7 * (2 * W.nbytes)
    again = build(recipe, graph(LAYER_NORM))
    assert again.artifact.sha256 == artifact.sha256


def test_what_calibration_finds_near_the_limit_stays_and_is_told(build):
    """24,000 is below 65504, but by less than the headroom."""
    model = graph("{ a = MatMul(x, eye)  b = Mul(a, big)  r = Div(b, big)  y = MatMul(r, w) }", **RANGES)
    windows = np.zeros((4, WIDTH), np.float32)
    windows[2, 0] = -2.0
    built = build(TENSORRT_IN_FP16, model, windows)
    told = [line for line in built.artifact.provenance if "too little room" in line]
    assert told == [
        "caveat: in fp32 since calibration left too little room to the type's limits (a factor of 4): b reaches 2.4e+04"
    ]
    types = types_of(onnx.load(built.artifact.path))
    assert (types["b"], types["a"]) == (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    assert any(RANGE in line for line in built.artifact.provenance)
    assert not any(RANGE in line for line in build(TENSORRT_IN_BF16, model, windows).artifact.provenance)


def test_what_calibration_finds_too_small_stays(build):
    model = graph("{ a = MatMul(x, eye)  b = Div(a, big)  r = Mul(b, big)  y = MatMul(r, w) }", **RANGES)
    windows = np.full((4, WIDTH), 1e-3, np.float32)
    built = build(TENSORRT_IN_FP16, model, windows)
    assert any("b reaches 8.33e-08" in line for line in built.artifact.provenance)
    assert types_of(onnx.load(built.artifact.path))["b"] == onnx.TensorProto.FLOAT


def test_nan_on_calibration_data_is_refused_by_name(build):
    model = graph("{ a = MatMul(x, w)  l = Log(a)  r = Relu(l)  y = MatMul(r, w) }")
    built = build(TENSORRT_IN_FP16, model)
    assert built.artifact is None
    assert built.reason == "the tensor l holds NaN on calibration data: it cannot be cast to a narrow type"


def test_a_model_of_convolutions_gets_a_reason_and_no_bf16(build):
    shape = ("batch", 2, 8)
    spec = ModelSpec("c", "test", "unknown", (TensorSpec("x", "float32", shape),), (TensorSpec("y", "float32", shape),))
    built = build(TENSORRT_IN_BF16, conv(), np.ones((3, 2, 8), np.float32), spec)
    assert built.artifact is None
    assert built.reason.startswith(
        "bf16 could not build it: opset 17 has no bf16 for the products of this graph (Conv)"
    )


def test_weights_in_a_second_file_are_cast_too(build, tmp_path, monkeypatch):
    """As of a model beyond what one protobuf holds; here the limit is lowered."""
    body = "{ a = MatMul(x, w)  h = LayerNormalization(a, one, zero)  b = MatMul(h, w)  y = Add(b, level) }"
    model = graph(body, level=np.ones((1, WIDTH), np.float32))
    small = build(TENSORRT_IN_FP16, model).artifact
    monkeypatch.setattr("tsexport.exporters.onnx_external.THRESHOLD_BYTES", 2000)
    monkeypatch.setattr("tsexport.exporters.onnx_external.INLINE_BYTES", 64)
    built = build(TENSORRT_IN_FP16, model)
    assert built.reason == ""
    assert [path.name for path in built.artifact.files] == ["tensorrt-fp16.onnx", "tensorrt-fp16.data"]
    loaded = [onnx.load(one.path) for one in (small, built.artifact)]
    before, after = (answer(simulate_bf16(one), {"x": X})["y"] for one in loaded)
    np.testing.assert_array_equal(before, after)
