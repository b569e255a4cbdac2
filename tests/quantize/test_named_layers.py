"""hrm-27m keeps FiLM and Q-head in fp32, whole and in parts, and its bf16 errs as torch's own does."""

import copy
from functools import cache

import onnx
import pytest
import torch

from tsexport.calibration.arrays import ArrayDataset
from tsexport.exporters.conversion import convert_to_onnx
from tsexport.exporters.rewrites.proofs import answer
from tsexport.models.definition import fp32_layers_of
from tsexport.models.registry import list_entries
from tsexport.models.sources import identify, open_source
from tsexport.quantize.candidates import build_candidate
from tsexport.quantize.islands import in_layer
from tsexport.quantize.sources import Fp32Sources
from tsexport.quantize.tensorrt_recipes import TENSORRT_IN_BF16, TENSORRT_IN_FP16
from tsexport.runtimes.bf16_rounding import simulate_bf16
from tsexport.runtimes.comparison import relative_rms
from tsexport.types import random_feeds

SMALL = {
    **{"days": 6, "daily_features": 4, "minutes": 12, "minute_features": 5, "h_width": 24, "h_layers": 1, "h_heads": 2},
    **{"h_feed_forward": 24, "l_width": 40, "l_layers": 1, "l_heads": 2, "l_feed_forward": 160},
}
FLOAT = onnx.TensorProto.FLOAT
AS_TORCH = 2.0
"""How many times torch's own error in bf16 ours may be: both round as often, in other places."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a function from a component and a number of segments to source, feeds and fp32 graph, each made once."""

    @cache
    def export(component, segments):
        source = open_source(identify("hrm-27m", settings={**SMALL, "segments": segments}, component=component))
        feeds = random_feeds(source.spec.inputs, 6, 3)
        path = tmp_path_factory.mktemp("hrm") / "model.onnx"
        return source, feeds, convert_to_onnx(source.module, None, source.spec, feeds, path).artifact

    return export


@pytest.fixture
def built(exported, tmp_path):
    """Return a function that also takes a recipe, to source, feeds and artifact."""

    def build(recipe, component=None, segments=1):
        source, feeds, fp32 = exported(component, segments)
        result = build_candidate(recipe, Fp32Sources(fp32, None), source.spec, ArrayDataset(feeds), tmp_path)
        assert result.reason == ""
        return source, feeds, result.artifact

    return build


@pytest.mark.parametrize("recipe", [TENSORRT_IN_FP16, TENSORRT_IN_BF16], ids=lambda one: one.precision)
@pytest.mark.parametrize(
    ("component", "segments", "products"),
    [(None, 1, 2), (None, 2, 3), ("conditioning-heads", 1, 2), ("h-module", 1, 0)],
    ids=["whole", "two segments", "heads", "h-module"],
)
def test_film_and_q_head_are_fp32(built, recipe, component, segments, products):
    source, _, artifact = built(recipe, component, segments)
    assert source.spec.fp32_layers == ("film", "q_head")
    graph = onnx.shape_inference.infer_shapes(onnx.load(artifact.path)).graph
    types = {one.name: one.type.tensor_type.elem_type for one in (*graph.input, *graph.value_info, *graph.output)}
    types |= {one.name: one.data_type for one in graph.initializer}
    named = [node for node in graph.node if in_layer(node.name, source.spec.fp32_layers)]
    assert sum(node.op_type == "MatMul" for node in named) == products
    for node in named:
        if node.op_type == "Cast":
            continue  # at the border
        assert {types[name] for name in (*node.input, *node.output)} == {FLOAT}, node.name
    others = [node for node in graph.node if node.op_type == "MatMul" and node not in named]
    assert any(types[node.output[0]] != FLOAT for node in others)


def test_no_other_registered_model_names_layers():
    named = {entry.name: fp32_layers_of(entry.definition()) for entry in list_entries()}
    assert {name: layers for name, layers in named.items() if layers} == {"hrm-27m": ("film", "q_head")}


def in_torch(module, feeds):
    """Answer in bfloat16 with FiLM and Q-head in fp32, by torch alone."""
    narrow = copy.deepcopy(module).to(torch.bfloat16)
    for layer in (narrow.conditioning.film, narrow.conditioning.q_head):
        layer.float()
        layer.register_forward_pre_hook(lambda layer, given: tuple(one.float() for one in given))
    narrow.conditioning.film.register_forward_hook(lambda layer, given, answer: answer.bfloat16())
    with torch.no_grad():
        answers = narrow(*(torch.from_numpy(array).bfloat16() for array in feeds.values()))
    return [one.float().numpy() for one in answers]


def test_the_error_in_bf16_is_that_of_torch(built):
    source, feeds, artifact = built(TENSORRT_IN_BF16)
    expected = source.run(feeds)
    simulated = answer(simulate_bf16(onnx.load(artifact.path)), feeds)
    for (name, wanted), torch_answer in zip(expected.items(), in_torch(source.module, feeds), strict=True):
        ours, theirs = relative_rms(wanted, simulated[name]), relative_rms(wanted, torch_answer)
        assert 1e-4 < ours < AS_TORCH * theirs, (name, ours, theirs)
        assert relative_rms(torch_answer, simulated[name]) < ours + theirs
