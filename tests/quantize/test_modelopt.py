"""nvidia-modelopt's candidates: what is done with its files, and what is said where it is not installed."""

import importlib.util
from dataclasses import replace

import numpy as np
import onnx
import onnx.parser
import pytest

from tsexport.calibration.arrays import ArrayDataset
from tsexport.errors import ExportError, MissingDependencyError
from tsexport.exporters.onnx_file import describe_onnx
from tsexport.exporters.qdq_rules import check_rules
from tsexport.quantize import modelopt_quantizer
from tsexport.quantize.candidates import build_candidate
from tsexport.quantize.modelopt_quantizer import PIP_COMMAND, bring_to_opset17, require_modelopt
from tsexport.quantize.tensorrt_recipes import MODELOPT_ENTROPY, MODELOPT_MINMAX
from tsexport.runtimes.comparison import relative_rms
from tsexport.runtimes.registry import load
from tsexport.runtimes.simulation import simulate
from tsexport.types import ModelSpec, TensorSpec

INSTALLED = importlib.util.find_spec("modelopt") is not None
SHAPE = ("batch", 4, 32)
SPEC = ModelSpec(
    "small", "test", "unknown", (TensorSpec("x", "float32", SHAPE),), (TensorSpec("y", "float32", ("batch", 32)),)
)
F32, S8 = np.float32, np.int8


def noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def parse(body, constants, opset):
    text = (
        f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[batch, 4, 32] x) => (float[batch, 32] y) {{ {body} }}'
    )
    made = onnx.parser.parse_model(text)
    made.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    onnx.checker.check_model(made, full_check=True)
    return made


WRITTEN = """
    xq = QuantizeLinear<saturate=1>(x, s, z)  xd = DequantizeLinear(xq, s, z)
    wq = QuantizeLinear<axis=1, saturate=1>(w, sw, zw)  wd = DequantizeLinear<axis=1>(wq, sw, zw)
    h = MatMul(xd, wd)
    hq = QuantizeLinear<saturate=1>(h, s, z)  hd = DequantizeLinear(hq, s, z)
    n = LayerNormalization<axis=-1>(hd, one, zero)
    y = ReduceMean<keepdims=0>(n, axes)
"""
"""As modelopt writes it, in opset 19: axes as an input, float8's attribute, a pair in front of a normalization."""
CONSTANTS = {
    "s": np.array(0.04, F32),
    "z": np.array(0, S8),
    "w": noise(1, 32, 32),
    "sw": np.full(32, 0.03, F32),
    "zw": np.zeros(32, S8),
    "one": np.ones(32, F32),
    "zero": np.zeros(32, F32),
    "axes": np.array([1]),
}


def answer(model, folder, feeds):
    path = folder / "model.onnx"
    onnx.save(model, path)
    opset = model.opset_import[0].version
    one = describe_onnx((path,), SPEC, ("a test",), name="small", precision="int8", opset=opset)
    with simulate(one, "onnxruntime", 1) as session:
        return session.run(feeds)["y"]


def test_bringing_to_opset_17_is_exact(tmp_path):
    """But for the pair in front of the normalization, which is taken away on purpose."""
    constants = {name: array for name, array in CONSTANTS.items() if name not in ("one", "zero")}
    body = "\n".join(line for line in WRITTEN.splitlines() if "hq" not in line and "Layer" not in line)
    model = parse(body.replace("ReduceMean<keepdims=0>(n,", "ReduceMean<keepdims=0>(h,"), constants, 19)
    feeds = {"x": noise(2, 5, 4, 32)}
    before = answer(model, tmp_path, feeds)
    steps = bring_to_opset17(model)
    assert steps == ("axes of reductions made attributes (1)",)
    assert model.opset_import[0].version == 17
    onnx.checker.check_model(model, full_check=True)
    assert np.array_equal(before, answer(model, tmp_path, feeds))


def test_a_normalization_reads_what_stood_before_its_pair(tmp_path):
    model = parse(WRITTEN, CONSTANTS, 19)
    assert {violation.rule for violation in check_rules(model)} >= {"float-normalization", "opset"}
    steps = bring_to_opset17(model)
    assert steps[1:] == ("pairs taken from in front of what stays in floating point (1)",)
    onnx.checker.check_model(model, full_check=True)
    assert check_rules(model) == ()
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) == 2
    assert {one.name for one in model.graph.initializer} == set(CONSTANTS) - {"axes"}
    body = "h = MatMul(x, w)  n = LayerNormalization<axis=-1>(h, one, zero)  y = ReduceMean<axes=[1], keepdims=0>(n)"
    plain = parse(body, {name: CONSTANTS[name] for name in ("w", "one", "zero")}, 17)
    feeds = {"x": noise(2, 5, 4, 32)}
    assert relative_rms(answer(plain, tmp_path, feeds), answer(model, tmp_path, feeds)) < 0.03


def test_scales_of_another_type_are_refused():
    """fp16 scales are legal from opset 19 on, and rounding them to fp32 and back would still need a Cast."""
    body = "h = Cast<to=10>(x)  q = QuantizeLinear(h, s, z)  d = DequantizeLinear(q, s, z)  c = Cast<to=1>(d)"
    constants = {"s": np.array(0.03, np.float16), "z": np.array(0, S8), "axes": np.array([1])}
    model = parse(f"{body}  y = ReduceMean<keepdims=0>(c, axes)", constants, 19)
    with pytest.raises(ExportError) as raised:
        bring_to_opset17(model)
    assert "has a scale of type FLOAT16; opset 17 takes FLOAT alone" in raised.value.message


@pytest.fixture
def fp32(tmp_path):
    """Return the fp32 sources of two products with a residual and a normalization."""
    from tsexport.exporters.onnx_file import finish_onnx
    from tsexport.quantize.sources import Fp32Sources

    body = """
        h = MatMul(x, w)  b = Add(h, bias)  r = Relu(b)  k = MatMul(r, v)  a = Add(k, x)
        n = LayerNormalization<axis=-1>(a, one, zero)  y = ReduceMean<axes=[1], keepdims=0>(n)
    """
    constants = {"w": noise(1, 32, 32), "v": noise(3, 32, 32), "bias": noise(4, 32)}
    model = parse(body, constants | {name: CONSTANTS[name] for name in ("one", "zero")}, 17)
    return Fp32Sources(finish_onnx(model, SPEC, tmp_path / "fp32.onnx", ("onnx.parser",)), None)


@pytest.fixture
def windows():
    return ArrayDataset({"x": noise(5, 48, 4, 32)})


@pytest.mark.skipif(INSTALLED, reason="nvidia-modelopt is installed here")
@pytest.mark.parametrize("recipe", [MODELOPT_ENTROPY, MODELOPT_MINMAX], ids=lambda recipe: recipe.name)
def test_where_it_is_missing_the_candidate_has_the_pip_command(fp32, windows, tmp_path, recipe):
    built = build_candidate(recipe, fp32, SPEC, windows, tmp_path / "out")
    assert built.artifact is None
    assert built.reason.startswith("nvidia-modelopt is not installed here (modelopt")
    assert built.reason.endswith(f"cannot be imported); {PIP_COMMAND}")


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(modelopt_quantizer, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(MissingDependencyError) as raised:
        require_modelopt()
    assert raised.value.message == "nvidia-modelopt is not installed here (no_such_package cannot be imported)"
    assert raised.value.next_step == PIP_COMMAND


def test_a_process_that_fails_is_the_reason(fp32, tmp_path, monkeypatch):
    """Its own requirements are not looked at here: the process ends with what it cannot import or read."""
    monkeypatch.setattr(modelopt_quantizer, "PACKAGES", ())
    wrong = ArrayDataset({"x": noise(5, 16, 4, 31)})
    built = build_candidate(MODELOPT_MINMAX, fp32, SPEC, wrong, tmp_path / "out")
    assert built.artifact is None
    assert built.reason.startswith("nvidia-modelopt ended with exit code 1: ")


def test_a_process_that_does_not_finish_is_the_reason(fp32, windows, tmp_path, monkeypatch):
    monkeypatch.setattr(modelopt_quantizer, "PACKAGES", ())
    monkeypatch.setattr(modelopt_quantizer, "TIMEOUT_SECONDS", 0.01)
    built = build_candidate(MODELOPT_MINMAX, fp32, SPEC, windows, tmp_path / "out")
    assert built.reason == "nvidia-modelopt did not finish in 0.01 s"


needs_modelopt = pytest.mark.skipif(not INSTALLED, reason=f"nvidia-modelopt is not installed: {PIP_COMMAND}")


@needs_modelopt
@pytest.mark.parametrize("recipe", [MODELOPT_ENTROPY, MODELOPT_MINMAX], ids=lambda recipe: recipe.name)
def test_it_builds_an_artifact_that_holds_the_rules(fp32, windows, tmp_path, recipe):
    built = build_candidate(recipe, fp32, SPEC, windows, tmp_path / "out")
    assert built.reason == ""
    artifact = built.artifact
    assert (artifact.name, artifact.opset) == (f"int8-{recipe.name}", 17)
    assert any("nvidia-modelopt 0.47" in step for step in artifact.provenance)
    model = onnx.load(artifact.path)
    assert check_rules(model) == ()
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) >= 4
    feeds = {"x": noise(9, 8, 4, 32)}
    with load(fp32.onnx, "onnxruntime", threads=1) as session:
        exact = session.run(feeds)["y"]
    with simulate(artifact, "onnxruntime", 1) as session:
        assert 1e-4 < relative_rms(exact, session.run(feeds)["y"]) < 0.05


@needs_modelopt
def test_named_layers_stay_in_floating_point(fp32, windows, tmp_path):
    """The first product, whose input is quantized all the same: the residual Add reads it."""
    recipe = replace(MODELOPT_MINMAX, float_layers=("node_0",))  # the text names no node: they get their places
    built = build_candidate(recipe, fp32, SPEC, windows, tmp_path / "out")
    assert built.reason == ""
    model = onnx.load(built.artifact.path)
    pairs = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert [bool({*node.input} & pairs) for node in products] == [False, True]
