"""Exact simulation of whole artifacts: what the reference evaluator answers, and this CPU where nothing saturates."""

import sys
from dataclasses import replace

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import onnx.version_converter
import pytest

from tsexport.errors import MissingDependencyError, UsageError
from tsexport.quantize.cpu_recipes import (
    DYNAMIC_S8,
    DYNAMIC_S8_REDUCED,
    DYNAMIC_U8,
    NNCF_MIXED,
    NNCF_MIXED_REDUCED,
    OPENVINO_BF16,
    STATIC_S8S8,
    STATIC_U8S8,
    STATIC_U8S8_REDUCED,
)
from tsexport.runtimes.comparison import relative_rms
from tsexport.runtimes.registry import load
from tsexport.runtimes.simulation import AS_WRITTEN, load_for, simulate
from tsexport.targets import host_cpu, parse_target
from tsexport.types import Artifact, ModelSpec, TensorSpec, files_sha256

FLIPPED_ROUNDING = 2e-3
"""Relative RMS that a few activations make which lie halfway between two integers and are rounded the other way."""


WIDTH = 32
SPEC = ModelSpec(
    "small", "test", "unknown", (TensorSpec("x", "float32", ("batch", WIDTH)),),
    (TensorSpec("y", "float32", ("batch", WIDTH)),),
)  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return a function from a recipe to its artifact of a small model, and windows it was not calibrated on."""
    from tsexport.calibration.arrays import ArrayDataset
    from tsexport.exporters.onnx_file import finish_onnx
    from tsexport.exporters.openvino import export_openvino
    from tsexport.quantize.candidates import build_candidate
    from tsexport.quantize.sources import Fp32Sources

    folder, draw = tmp_path_factory.mktemp("simulated"), np.random.default_rng(1)
    w, v = (draw.standard_normal((WIDTH, WIDTH)).astype("f4") for _ in range(2))
    # Of an activation that flattens out, such as Tanh, many values would lie halfway between two integers.
    signature = f"g (float[batch, {WIDTH}] x) => (float[batch, {WIDTH}] y)"
    text = f"{signature} {{ a = MatMul(x, w) h = LeakyRelu(a) y = MatMul(h, v) }}"
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> ' + text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(one, name) for one, name in ((w, "w"), (v, "v")))
    fp32 = finish_onnx(model, SPEC, folder / "onnx-fp32.onnx", ())
    sources = Fp32Sources(fp32, export_openvino(fp32, folder / "openvino-fp32.xml"))
    windows, others = (draw.standard_normal((64, WIDTH)).astype("f4") for _ in range(2))

    def make(recipe):
        out = folder / recipe.name
        out.mkdir(exist_ok=True)
        made = build_candidate(recipe, sources, SPEC, ArrayDataset({"x": windows}), out)
        assert made.artifact is not None, made.reason
        return made.artifact, {"x": others}

    return make


def simulated(artifact, runtime, feeds):
    with simulate(artifact, runtime, 1) as session:
        assert session.inputs == artifact.inputs
        return session.run(feeds)["y"]


def test_openvino_computes_fakequantize_as_it_is_written(built):
    """Constant int8 weights would otherwise have their activations quantized at run time, in groups."""
    artifact, feeds = built(STATIC_U8S8)
    expected = simulated(artifact, "onnxruntime", feeds)
    in_openvino = replace(artifact, options=AS_WRITTEN["openvino"])
    assert relative_rms(expected, native(in_openvino, "openvino", feeds)) < FLIPPED_ROUNDING
    grouped = replace(artifact, options=(("LP_TRANSFORMS_MODE", "NO"),))
    print(f"with activations in groups: {relative_rms(expected, native(grouped, 'openvino', feeds)):.4f}")


def native(artifact, runtime, feeds):
    with load(artifact, runtime, threads=1) as session:
        return session.run(feeds)["y"]


@pytest.mark.parametrize("recipe", [STATIC_U8S8, STATIC_S8S8, STATIC_U8S8_REDUCED], ids=lambda one: one.name)
def test_qdq_is_what_the_reference_evaluator_answers(built, recipe):
    artifact, feeds = built(recipe)
    model = onnx.version_converter.convert_version(onnx.load(artifact.path), 21)  # it has no Q/DQ of opset 17
    expected = onnx.reference.ReferenceEvaluator(model).run(None, feeds)[0]
    for runtime in recipe.runtimes:
        assert relative_rms(expected, simulated(artifact, runtime, feeds)) < FLIPPED_ROUNDING


@pytest.mark.parametrize("recipe", [DYNAMIC_U8, DYNAMIC_S8, DYNAMIC_S8_REDUCED], ids=lambda one: one.name)
def test_dynamic_activations_are_what_the_reference_evaluator_answers(built, recipe):
    artifact, feeds = built(recipe)
    assert "MatMulInteger" in {node.op_type for node in onnx.load(artifact.path).graph.node}
    expected = onnx.reference.ReferenceEvaluator(onnx.load(artifact.path)).run(None, feeds)[0]
    assert relative_rms(expected, simulated(artifact, "onnxruntime", feeds)) < FLIPPED_ROUNDING


@pytest.mark.parametrize("recipe", [STATIC_U8S8, STATIC_S8S8, DYNAMIC_S8, NNCF_MIXED], ids=lambda one: one.name)
def test_full_range_is_what_a_cpu_with_vnni_answers(built, recipe):
    if not host_cpu().vnni:
        pytest.skip(f"{host_cpu().model} has no VNNI, and saturates")
    artifact, feeds = built(recipe)
    for runtime in recipe.runtimes:
        assert relative_rms(native(artifact, runtime, feeds), simulated(artifact, runtime, feeds)) < FLIPPED_ROUNDING


@pytest.mark.parametrize("recipe", [DYNAMIC_U8, STATIC_U8S8_REDUCED, NNCF_MIXED_REDUCED], ids=lambda one: one.name)
def test_what_does_not_saturate_is_what_any_cpu_answers(built, recipe):
    artifact, feeds = built(recipe)
    for runtime in recipe.runtimes:
        assert relative_rms(native(artifact, runtime, feeds), simulated(artifact, runtime, feeds)) < FLIPPED_ROUNDING


def test_a_simulated_session_takes_any_batch_and_leaves_nothing_behind(built, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    artifact, feeds = built(DYNAMIC_U8)
    with simulate(artifact, "onnxruntime", 1) as session:
        for batch in (1, 2, 5, 7, 11, 13):
            assert session.run({"x": feeds["x"][:batch]})["y"].shape == (batch, WIDTH)
        assert list(tmp_path.iterdir())
    del session
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_loaded_leaves_nothing_behind(built, tmp_path, monkeypatch):
    artifact, _ = built(DYNAMIC_U8)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(UsageError, match="has no input 'z'"):
        simulate(replace(artifact, inputs=(TensorSpec("z", "float32", ("batch", WIDTH)),)), "onnxruntime", 1)
    assert not list(tmp_path.iterdir())


def test_a_runtime_that_cannot_simulate_is_named(built):
    artifact, _ = built(DYNAMIC_U8)
    with pytest.raises(UsageError, match="is int8, and tract cannot simulate it; allowed are onnxruntime, openvino"):
        simulate(artifact, "tract", 1)


def test_bf16_of_openvino_cannot_be_simulated(built):
    artifact, _ = built(OPENVINO_BF16)
    with pytest.raises(UsageError, match="is bf16 in OpenVINO, which cannot be simulated") as caught:
        simulate(artifact, "openvino", 1)
    assert "a machine that has bf16" in caught.value.next_step


@pytest.mark.parametrize(
    "option", [("DYNAMIC_QUANTIZATION_GROUP_SIZE", "128"), ("INFERENCE_PRECISION_HINT", "bf16")], ids=lambda one: one[0]
)
def test_what_openvino_decides_at_run_time_is_refused(built, option):
    artifact, _ = built(NNCF_MIXED)
    with pytest.raises(UsageError, match="int8-nncf-mixed has OpenVINO quantize activations in groups") as caught:
        simulate(replace(artifact, options=(*artifact.options, option)), "openvino", 1)
    assert caught.value.next_step == "build on a machine of the target's kind"


def narrow(folder, precision, border="float"):
    """Return an artifact whose one product is in bf16 or fp16, and the numbers of its weight."""
    code = 16 if precision == "bf16" else 10
    text = (
        f"g ({border}[batch, 4] x) => (float[batch, 4] y) {{ a = Cast <to = {code}> (x) b = Cast <to = {code}> (w) "
        f"p = MatMul (a, b) y = Cast <to = 1> (p) }}"
    )
    w = np.random.default_rng(5).standard_normal((4, 4)).astype("f4")
    path = folder / f"{precision}.onnx"
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> ' + text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    onnx.save(model, path)
    inputs, outputs = (TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("y", "float32", ("batch", 4)),)
    return Artifact(
        f"{precision}-small", path, "onnx", precision, inputs, outputs, (path,), files_sha256((path,)),
        path.stat().st_size, opset=17, runtimes=("onnxruntime",),
    ), w  # fmt: skip


@pytest.mark.parametrize(("precision", "bits"), [("bf16", 8), ("fp16", 11)])
def test_narrow_floats_are_rounded_where_the_graph_rounds(tmp_path, precision, bits):
    def rounded(values):
        """To `bits` significant bits, to nearest even."""
        mantissa, exponent = np.frexp(values.astype("f8"))
        return np.ldexp(np.round(mantissa * 2**bits) / 2**bits, exponent)

    artifact, w = narrow(tmp_path, precision)
    x = np.random.default_rng(6).standard_normal((3, 4)).astype("f4")
    expected = rounded(rounded(x) @ rounded(w))
    with simulate(artifact, "onnxruntime", 1) as session:
        np.testing.assert_allclose(session.run({"x": x})["y"], expected, rtol=0, atol=0)


def test_a_narrow_border_is_refused(tmp_path):
    artifact, _ = narrow(tmp_path, "bf16", border="bfloat16")
    with pytest.raises(UsageError, match="bf16-small cannot be simulated in bf16: x would no longer"):
        simulate(artifact, "onnxruntime", 1)


def test_bf16_of_a_gpu_is_simulated_where_a_bundle_is_opened(tmp_path):
    artifact, _ = narrow(tmp_path, "bf16")
    x = np.ones((2, 4), "f4")
    with simulate(artifact, "onnxruntime", 1) as session:
        expected = session.run({"x": x})["y"]
    with load_for(parse_target("a100-bf16"), artifact, "onnxruntime", 1) as session:
        np.testing.assert_array_equal(session.run({"x": x})["y"], expected)


def test_what_a_cpu_target_ships_runs_as_it_is(built):
    artifact, feeds = built(DYNAMIC_U8)
    with load_for(parse_target("cpu4-int8"), artifact, "onnxruntime", 1) as session:
        np.testing.assert_array_equal(session.run(feeds)["y"], native(artifact, "onnxruntime", feeds))


def test_simulating_without_onnx_names_the_pip_command(built, monkeypatch):
    artifact, _ = built(DYNAMIC_U8)
    monkeypatch.setitem(sys.modules, "onnx", None)  # what `import` sees where the package is not installed
    with pytest.raises(MissingDependencyError, match="int8-dynamic-u8 needs onnx") as caught:
        simulate(artifact, "onnxruntime", 1)
    assert caught.value.next_step == 'pip install "tsexport[build]"'


def test_fp32_runs_as_it_is(built):
    artifact, feeds = built(DYNAMIC_U8)
    fp32 = replace(artifact, precision="fp32")
    np.testing.assert_array_equal(simulated(fp32, "onnxruntime", feeds), native(artifact, "onnxruntime", feeds))
