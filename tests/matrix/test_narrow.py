"""Every registered model in fp16, and in bf16 where opset 17 allows it: builds, is valid, and holds its tolerance.

Graphs for TensorRT are answered by their simulation, which rounds where they do; OpenVINO's bf16 is answered by
OpenVINO on machines that have bf16.
"""

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from cases import CASES
from exceptions import reason_against
from onnx_ir.passes import common

from tsexport.models.registry import list_entries
from tsexport.quantize.cpu_recipes import OPENVINO_BF16
from tsexport.quantize.tensorrt_recipes import TENSORRT_IN_BF16, TENSORRT_IN_FP16
from tsexport.runtimes.bf16_rounding import simulate_bf16
from tsexport.runtimes.comparison import relative_rms
from tsexport.runtimes.registry import load
from tsexport.targets import host_cpu

FIRST_CASE = {case.model: case.name for case in reversed(CASES)}
RECIPES = (TENSORRT_IN_FP16, TENSORRT_IN_BF16, OPENVINO_BF16)
SLOW = frozenset({"sfno-hybrid", "sfno-edge"})
"""Over five seconds to export and to run through."""


@dataclass(frozen=True)
class Limit:
    """The largest relative RMS of the worst output on real windows, with the reason for its size."""

    name: str
    relative_rms: float
    reason: str


LIMITS = {
    "fp16": Limit(
        "fp16", 2e-3, "11 bits round by 2^-11 = 5e-4 at most; a few layers of it were seen to stay below 9e-4"
    ),
    "bf16": Limit("bf16", 2e-2, "8 bits round by 2^-8 = 4e-3 at most; a few layers of it were seen to stay below 1e-2"),
}


def parameters():
    for entry in list_entries():
        for recipe in RECIPES:
            marks = [pytest.mark.slow] if entry.name in SLOW else []
            yield pytest.param(entry.name, recipe, marks=marks, id=f"{entry.name}-{recipe.name}")


def answers_of(artifact, feeds):
    """Return what an artifact answers here: by OpenVINO, or by the simulation of its graph."""
    if artifact.format == "openvino":
        with load(artifact, "openvino", threads=1) as session:
            return session.run(feeds)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = simulate_bf16(onnx.load(artifact.path)).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


@pytest.mark.parametrize(("model", "recipe"), list(parameters()))
def test_a_model_holds_its_tolerance(exported, quantized, model, recipe):
    if recipe is OPENVINO_BF16 and not host_cpu().bf16:
        pytest.skip("this CPU has no bf16")
    name, limit = FIRST_CASE[model], LIMITS[recipe.precision]
    reason = reason_against(recipe.precision, recipe.runtimes[0], name)
    one, built = exported(name), quantized(name, recipe)
    if built.artifact is None:
        assert reason, f"{recipe.name} of {name}, and no exception says why: {built.reason}"
        return
    assert not reason, f"{name} is listed as one that cannot work in {recipe.name}, and it was built"
    found, expected = answers_of(built.artifact, one.real), one.source.run(one.real)
    errors = {output: relative_rms(expected[output], found[output]) for output in expected}
    assert max(errors.values()) <= limit.relative_rms, (errors, limit)


@pytest.mark.parametrize(("model", "recipe"), [one for one in parameters() if one.values[1] is not OPENVINO_BF16])
def test_the_graph_is_valid_and_sorted(exported, quantized, model, recipe):
    built = quantized(FIRST_CASE[model], recipe)
    if built.artifact is None:
        return  # the test above wants a reason
    proto = onnx.load(built.artifact.path)
    onnx.checker.check_model(proto, full_check=True)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 17)]
    assert not common.TopologicalSortPass()(ir.from_proto(proto)).modified
    spec = exported(FIRST_CASE[model]).source.spec
    assert (built.artifact.inputs, built.artifact.outputs) == (spec.inputs, spec.outputs)
    for value in (*proto.graph.input, *proto.graph.output):
        assert value.type.tensor_type.elem_type in (
            onnx.TensorProto.FLOAT,
            onnx.TensorProto.INT64,
            onnx.TensorProto.BOOL,
        )


@pytest.mark.parametrize("recipe", [TENSORRT_IN_FP16, TENSORRT_IN_BF16], ids=lambda recipe: recipe.name)
def test_quantiles_do_not_cross(exported, quantized, recipe):
    one = exported("migt-tvdt")
    found = answers_of(quantized("migt-tvdt", recipe).artifact, one.real)
    (quantiles,) = found.values()
    assert (np.diff(quantiles, axis=-1) >= 0).all()
