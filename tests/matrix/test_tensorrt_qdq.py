"""Q/DQ for TensorRT of the reference models: held to the rules, within an error bound in exact simulation."""

from collections import Counter

import onnx
import pytest

from tsexport.exporters.device_check import check_onnx
from tsexport.exporters.qdq_rules import check_rules
from tsexport.quantize.tensorrt_recipes import (
    TENSORRT_ATTENTION,
    TENSORRT_INT8_BEFORE_AMPERE,
    TENSORRT_MINMAX,
    TENSORRT_MSE,
)
from tsexport.runtimes.comparison import relative_rms
from tsexport.runtimes.simulation import simulate

T4_MINMAX = TENSORRT_INT8_BEFORE_AMPERE[0]
BOUNDS = [
    # case, recipe, largest relative RMS of an output, layers quantized, of
    ("patchtst-cpu", TENSORRT_MINMAX, 0.01, 13, 20),
    ("patchtst-cpu", TENSORRT_MSE, 0.01, 13, 20),
    ("patchtst-cpu", TENSORRT_ATTENTION, 0.01, 19, 20),
    ("inception-time-small", TENSORRT_MINMAX, 0.02, 21, 21),
    ("unet-small", TENSORRT_MINMAX, 0.01, 13, 13),
    ("unet-small", TENSORRT_MSE, 0.01, 13, 13),
    ("unet-small", T4_MINMAX, 0.01, 11, 13),
    ("inception-time-small", TENSORRT_MSE, 0.02, 21, 21),
]
"""The bounds are two to three times what was measured, and a fifth or less of the 5 % that a build allows."""


@pytest.mark.parametrize(
    ("case", "recipe", "bound", "layers", "of"), BOUNDS, ids=[f"{row[0]}-{row[1].name}" for row in BOUNDS]
)
def test_error_in_exact_simulation(exported, quantized, case, recipe, bound, layers, of):
    one = exported(case)
    built = quantized(case, recipe)
    assert built.reason == ""
    model = onnx.load(built.artifact.path)
    assert check_rules(model, every_kernel=recipe.every_kernel) == ()
    device = check_onnx(built.artifact.path, tensorrt="10.3", precision="int8", compute_capability="8.7")
    assert device.accepted
    assert not [one for one in device.findings if one.kind == "Q/DQ"]
    counts = Counter(node.op_type for node in model.graph.node)
    assert sum(counts[name] for name in ("Conv", "ConvTranspose", "Gemm", "MatMul")) == of
    pairs = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    compute = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    assert sum({*node.input[:2]} <= pairs for node in compute) == layers
    with simulate(built.artifact, "onnxruntime", 1) as session:
        found = session.run(one.real)
    expected = one.source.run(one.real)
    worst = max(relative_rms(expected[name], found[name]) for name in expected)
    assert 1e-4 < worst < bound
