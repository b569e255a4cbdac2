"""Every INT8 recipe on real models: what it builds, how far its answers are off, and that it is the same each time.

Full-range S8 weights saturate on CPUs without VNNI, so the recipes' numerics are taken from the exact simulation, which
no CPU changes.
"""

from collections import Counter

import numpy as np
import onnx
import onnx.reference
import pytest
from exceptions import reason_against
from onnx.reference.op_run import OpRun

from tsexport.calibration.arrays import ArrayDataset
from tsexport.errors import UsageError
from tsexport.quantize.candidates import build_candidate
from tsexport.quantize.cpu_recipes import (
    DYNAMIC_S8,
    DYNAMIC_S8_REDUCED,
    DYNAMIC_U8,
    NNCF_MIXED,
    NNCF_MIXED_REDUCED,
    STATIC_U8S8,
    STATIC_U8S8_REDUCED,
    WITH_VNNI,
    WITHOUT_VNNI,
)
from tsexport.quantize.sources import Fp32Sources
from tsexport.runtimes.comparison import relative_rms
from tsexport.runtimes.registry import load
from tsexport.runtimes.simulation import simulate
from tsexport.targets import host_cpu

# those of other tools stand in test_int8_of_tools.py
RECIPES = {recipe.name: recipe for recipe in (*WITHOUT_VNNI, *WITH_VNNI) if recipe.tool in ("onnxruntime", "nncf")}
MODELS = ("patchtst-cpu", "cnn")
EVALUATED = 8

# Relative RMS error of the worst output that is allowed, about twice what was found.
ERROR_BOUNDS = {
    ("patchtst-cpu", "dynamic-u8"): 0.025,
    ("patchtst-cpu", "dynamic-s8-reduced"): 0.04,
    ("patchtst-cpu", "dynamic-s8"): 0.025,
    ("patchtst-cpu", "static-u8s8-reduced"): 0.05,
    ("patchtst-cpu", "static-u8s8"): 0.035,
    ("patchtst-cpu", "nncf-mixed-reduced"): 0.035,
    ("patchtst-cpu", "nncf-mixed"): 0.03,
    ("patchtst-cpu", "nncf-products-reduced"): 0.04,
    ("patchtst-cpu", "nncf-products"): 0.03,
    ("cnn", "dynamic-u8"): 0.015,
    ("cnn", "dynamic-s8-reduced"): 0.02,
    ("cnn", "dynamic-s8"): 0.015,
    ("cnn", "static-u8s8-reduced"): 0.025,
    ("cnn", "static-u8s8"): 0.015,
    ("cnn", "nncf-mixed-reduced"): 0.01,
    ("cnn", "nncf-mixed"): 0.01,
    ("cnn", "nncf-products-reduced"): 0.015,
    ("cnn", "nncf-products"): 0.015,
}
# What saturation makes of patchtst-cpu where it happens: an error far beyond the bounds.
SATURATED_ERROR = 0.1
SATURATING = (DYNAMIC_S8, STATIC_U8S8, NNCF_MIXED)
SAFE = (DYNAMIC_U8, DYNAMIC_S8_REDUCED, STATIC_U8S8_REDUCED, NNCF_MIXED_REDUCED)


def built(quantized, name, recipe):
    result = quantized(name, recipe)
    assert result.artifact is not None, result.reason
    return result.artifact


def graph_operators(artifact):
    return Counter(node.op_type for node in onnx.load(artifact.path).graph.node)


def emulated(artifact, recipe, feeds):
    """Return the first output, from an evaluation that does not depend on the CPU's integer instructions."""
    with simulate(artifact, recipe.runtimes[0], 1) as session:
        return next(iter(session.run(feeds).values()))


def error_of(one, answer):
    expected = one.source.run(one.real)
    return relative_rms(next(iter(expected.values())), answer)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_error_without_saturation(exported, quantized, name, recipe):
    one = exported(name)
    error = error_of(one, emulated(built(quantized, name, recipe), recipe, one.real))
    print(f"{name} {recipe.name}: {error:.4f}")
    assert 0 < error < ERROR_BOUNDS[name, recipe.name]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("recipe", SAFE, ids=lambda recipe: recipe.name)
def test_error_on_this_cpu(exported, quantized, name, recipe):
    """What is offered to CPUs without VNNI holds everywhere, on every runtime that it is offered to."""
    one, artifact = exported(name), built(quantized, name, recipe)
    for runtime in artifact.runtimes:
        with load(artifact, runtime, threads=1) as session:
            error = error_of(one, next(iter(session.run(one.real).values())))
        print(f"{name} {recipe.name} on {runtime}: {error:.4f}")
        assert error < ERROR_BOUNDS[name, recipe.name]


class SaturatingMatMulInteger(OpRun):
    """MatMulInteger as vpmaddubsw computes it: products of U8 and S8 are summed in pairs, in 16 bits, and saturate.

    For U8 weights the kernels widen to 16 bits first, and nothing saturates.
    """

    op_domain = ""

    def _run(self, a, b, a_zero_point, b_zero_point):
        wide_a, wide_b = a.astype(np.int32), b.astype(np.int32)
        pairs = wide_a.shape[-1] // 2
        products = (wide_a[..., None] * wide_b)[..., : 2 * pairs, :]  # [..., k, n]
        sums = products[..., 0::2, :] + products[..., 1::2, :]
        if b.dtype == np.int8:
            sums = np.clip(sums, -(2**15), 2**15 - 1)
        raw = sums.sum(axis=-2) + wide_a[..., 2 * pairs :] @ wide_b[2 * pairs :]
        # (a - za)(b - zb), with what the zero points contribute computed exactly
        za, zb, length = a_zero_point.astype(np.int32), b_zero_point.astype(np.int32), wide_a.shape[-1]
        corrections = za * wide_b.sum(0) + zb * wide_a.sum(-1, keepdims=True) - length * za * zb
        return ((raw - corrections).astype(np.int32),)


SaturatingMatMulInteger.__name__ = "MatMulInteger"  # by which the evaluator knows it


def saturated(artifact, feeds):
    evaluator = onnx.reference.ReferenceEvaluator(onnx.load(artifact.path), new_ops=[SaturatingMatMulInteger])
    return evaluator.run(None, dict(feeds))[0]


def test_the_careless_recipe_is_wrong_where_dot_products_saturate(exported, quantized):
    one = exported("patchtst-cpu")
    errors = {
        recipe.name: error_of(one, saturated(built(quantized, "patchtst-cpu", recipe), one.real))
        for recipe in (DYNAMIC_S8, DYNAMIC_S8_REDUCED, DYNAMIC_U8)
    }
    print(errors)
    assert errors["dynamic-s8"] > SATURATED_ERROR
    assert errors["dynamic-s8-reduced"] < ERROR_BOUNDS["patchtst-cpu", "dynamic-s8-reduced"]
    assert errors["dynamic-u8"] < ERROR_BOUNDS["patchtst-cpu", "dynamic-u8"]


def test_the_emulation_is_what_this_cpu_does(exported, quantized):
    if host_cpu().instruction_set != "avx2":
        pytest.skip(f"nothing saturates on {host_cpu().instruction_set}")
    one, artifact = exported("patchtst-cpu"), built(quantized, "patchtst-cpu", DYNAMIC_S8)
    with load(artifact, "onnxruntime", threads=1) as session:
        native = session.run(one.real)["forecast"]
    assert relative_rms(saturated(artifact, one.real), native) < 0.001


@pytest.mark.parametrize("recipe", SATURATING, ids=lambda recipe: recipe.name)
def test_full_range_saturates_without_vnni(exported, quantized, recipe):
    cpu = host_cpu()
    if cpu.instruction_set != "avx2":
        pytest.skip(f"nothing saturates on {cpu.instruction_set}")
    one, artifact = exported("patchtst-cpu"), built(quantized, "patchtst-cpu", recipe)
    for runtime in artifact.runtimes:
        with load(artifact, runtime, threads=1) as session:
            error = error_of(one, next(iter(session.run(one.real).values())))
        print(f"{recipe.name} on {runtime}: {error:.4f}")
        assert error > SATURATED_ERROR


@pytest.mark.parametrize("recipe", SATURATING, ids=lambda recipe: recipe.name)
def test_full_range_holds_with_vnni(exported, quantized, recipe):
    cpu = host_cpu()
    if not cpu.vnni:
        pytest.skip(f"{cpu.model} has no VNNI")
    one, artifact = exported("patchtst-cpu"), built(quantized, "patchtst-cpu", recipe)
    for runtime in artifact.runtimes:
        with load(artifact, runtime, threads=1) as session:
            error = error_of(one, next(iter(session.run(one.real).values())))
        assert error < ERROR_BOUNDS["patchtst-cpu", recipe.name]


@pytest.mark.parametrize("recipe", [DYNAMIC_U8, DYNAMIC_S8_REDUCED, DYNAMIC_S8], ids=lambda recipe: recipe.name)
def test_all_constant_products_are_quantized_and_no_other(quantized, recipe):
    found = graph_operators(built(quantized, "patchtst-cpu", recipe))
    assert found["MatMulInteger"] == 14  # embedding, head, and four in each of three layers
    assert found["MatMul"] == 6  # queries by keys and attention by values, in each layer


@pytest.mark.parametrize("recipe", [STATIC_U8S8, STATIC_U8S8_REDUCED], ids=lambda recipe: recipe.name)
def test_attention_stays_in_float(quantized, recipe):
    model = onnx.load(built(quantized, "patchtst-cpu", recipe).path)
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    inputs = [[made_by.get(name) for name in node.input] for node in model.graph.node if node.op_type == "MatMul"]
    assert len(inputs) == 20
    assert sum(kinds == ["DequantizeLinear"] * 2 for kinds in inputs) == 14
    assert sum("DequantizeLinear" not in kinds for kinds in inputs) == 6


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_files_are_three_times_smaller(exported, quantized, recipe):
    one, artifact = exported("patchtst-cpu"), built(quantized, "patchtst-cpu", recipe)
    fp32 = one.artifact(recipe.format)
    print(f"{recipe.name}: {fp32.size_bytes / artifact.size_bytes:.2f} times smaller")
    assert artifact.size_bytes * 3 <= fp32.size_bytes


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_artifact_says_what_it_is(quantized, recipe):
    artifact = built(quantized, "patchtst-cpu", recipe)
    assert artifact.precision == "int8"
    assert artifact.format == recipe.format
    assert artifact.runtimes == recipe.runtimes
    assert not [runtime for runtime in artifact.runtimes if reason_against("int8", runtime, "patchtst-cpu")]
    assert recipe.summary in artifact.provenance[-1]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_same_recipe_gives_the_same_bytes(exported, recipe, tmp_path):
    one = exported("patchtst-cpu-small")
    sources = Fp32Sources(one.artifact("onnx"), one.artifact("openvino"))
    windows = ArrayDataset({"features": np.random.default_rng(2).random((32, 48, 3)).astype(np.float32)})
    first, again = (
        build_candidate(recipe, sources, one.source.spec, windows, tmp_path / part).artifact for part in ("a", "b")
    )
    assert first is not None
    assert again is not None
    assert first.files != again.files
    assert [path.read_bytes() for path in first.files] == [path.read_bytes() for path in again.files]
    assert first.sha256 == again.sha256


@pytest.mark.parametrize("recipe", [DYNAMIC_S8_REDUCED, DYNAMIC_U8, DYNAMIC_S8], ids=lambda recipe: recipe.name)
def test_an_lstm_is_quantized_by_an_operator_of_onnxruntimes_own(exported, quantized, recipe):
    one, artifact = exported("lstm"), built(quantized, "lstm", recipe)
    model = onnx.load(artifact.path)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 17, "com.microsoft": 1}
    found = graph_operators(artifact)
    assert (found["DynamicQuantizeLSTM"], found["LSTM"]) == (3, 0)
    assert artifact.runtimes == ("onnxruntime",)
    assert artifact.size_bytes * 3 <= one.artifact("onnx").size_bytes
    with load(artifact, "onnxruntime", threads=1) as session:
        error = error_of(one, session.run(one.real)[one.source.spec.outputs[0].name])
    print(f"lstm {recipe.name}: {error:.4f}")
    assert 0 < error < (0.04 if recipe is DYNAMIC_S8 else 0.02)


def test_tract_lacks_that_operator(quantized):
    with pytest.raises(UsageError, match=r"tract cannot load .*DynamicQuantizeLSTM"):
        load(built(quantized, "lstm", DYNAMIC_S8_REDUCED), "tract", threads=1)
