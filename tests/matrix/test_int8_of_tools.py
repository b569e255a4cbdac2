"""Candidates of the tools beside ONNX Runtime's quantizer and NNCF on real models: what they build and how far off."""

import importlib.util
from collections import Counter

import onnx
import pytest

from tsexport.calibration.arrays import ArrayDataset
from tsexport.quantize.candidates import build_candidate
from tsexport.quantize.cpu_recipes import (
    DYNAMIC_ATTENTION_S8,
    DYNAMIC_ATTENTION_U8,
    DYNAMIC_S8,
    DYNAMIC_U8,
    INC_STATIC,
    OPENVINO_DYNAMIC,
)
from tsexport.quantize.sources import Fp32Sources
from tsexport.runtimes.comparison import relative_rms
from tsexport.runtimes.registry import load
from tsexport.targets import host_cpu

VNNI = host_cpu().instruction_set in ("avx512-vnni", "amx")
FUSION_ERROR = 1e-3
"""Attention as one operator against the same weights in many: sums in another order, and what then rounds otherwise."""

# Relative RMS error of the first output that is allowed, about twice what was found.
ERROR_BOUNDS = {
    ("patchtst-cpu", "dynamic-attention-s8"): 0.025,
    ("patchtst-cpu", "dynamic-attention-u8"): 0.025,
    ("patchtst-cpu", "openvino-dynamic"): 0.006,
    ("patchtst-cpu", "inc-static"): 0.03,
    ("unet-small", "inc-static"): 0.05,
}


def answer(artifact, runtime, feeds):
    with load(artifact, runtime, threads=1) as session:
        return next(iter(session.run(feeds).values()))


def built(quantized, name, recipe):
    result = quantized(name, recipe)
    assert result.artifact is not None, result.reason
    return result.artifact


def error_of(one, artifact, runtime):
    expected = next(iter(one.source.run(one.real).values()))
    return relative_rms(expected, answer(artifact, runtime, one.real))


@pytest.mark.parametrize(
    ("recipe", "plain"),
    [(DYNAMIC_ATTENTION_S8, DYNAMIC_S8), (DYNAMIC_ATTENTION_U8, DYNAMIC_U8)],
    ids=["s8", "u8"],
)
def test_attention_with_its_projection_is_one_operator(exported, quantized, recipe, plain):
    one, artifact = exported("patchtst-cpu"), built(quantized, "patchtst-cpu", recipe)
    kinds = Counter(node.op_type for node in onnx.load(artifact.path).graph.node)
    assert kinds["QAttention"] == 3  # one a layer
    assert kinds["MatMulInteger"] == 11  # of 14, three projections are inside
    assert not {"Softmax", "MatMul", "Split"} & set(kinds)
    same = relative_rms(
        answer(built(quantized, "patchtst-cpu", plain), "onnxruntime", one.real),
        answer(artifact, "onnxruntime", one.real),
    )
    print(f"{recipe.name}: {same:.5f} from {plain.name}")
    assert same < FUSION_ERROR
    if recipe.weights == "u8" or VNNI:
        assert error_of(one, artifact, "onnxruntime") < ERROR_BOUNDS["patchtst-cpu", recipe.name]


@pytest.mark.skipif(not VNNI, reason="OpenVINO has kernels for it on AVX512-VNNI and AMX alone")
def test_openvinos_dynamic_int8_holds(exported, quantized):
    one, artifact = exported("patchtst-cpu"), built(quantized, "patchtst-cpu", OPENVINO_DYNAMIC)
    error = error_of(one, artifact, "openvino")
    print(f"openvino-dynamic: {error:.4f}")
    assert 0 < error < ERROR_BOUNDS["patchtst-cpu", "openvino-dynamic"]
    assert one.artifact("openvino").size_bytes > 3 * artifact.size_bytes


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("neural_compressor") is None, reason="the extra quantize is not installed")
@pytest.mark.parametrize(("name", "products"), [("patchtst-cpu", 14), ("unet-small", 11)])
def test_what_intel_neural_compressor_converts_holds(exported, name, products, tmp_path):
    one = exported(name)
    sources = Fp32Sources(one.artifact("onnx"), one.artifact("openvino"), lambda: one.source.module)
    calibration = ArrayDataset((one.case.calibration or one.case.real)())
    result = build_candidate(INC_STATIC, sources, one.source.spec, calibration, tmp_path)
    assert result.artifact is not None, result.reason
    kinds = Counter(node.op_type for node in onnx.load(result.artifact.path).graph.node)
    assert kinds["DequantizeLinear"] >= 2 * products - 2
    assert one.artifact("onnx").size_bytes > 2.5 * result.artifact.size_bytes
    for runtime in result.artifact.runtimes:
        if runtime == "openvino" or VNNI:
            error = error_of(one, result.artifact, runtime)
            print(f"{name} inc-static on {runtime}: {error:.4f}")
            assert 0 < error < ERROR_BOUNDS[name, "inc-static"]
