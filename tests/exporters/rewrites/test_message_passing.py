"""Message passing without scattering: equal to a scatter for any graph, little padded, on every runtime."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tsexport.exporters.checks import check_parity, feed_sets
from tsexport.exporters.conversion import convert_to_onnx, convert_to_openvino, convert_to_torchscript
from tsexport.exporters.rewrites.message_passing import (
    GatheredInteraction,
    GatherMessages,
    SumByReceiver,
    bucket_receivers,
)
from tsexport.exporters.rewrites.modules import rewrite_module
from tsexport.models import weather_gnn
from tsexport.models.icosphere import Edges, grid_points, grid_to_mesh_edges, icosphere
from tsexport.models.interaction import interaction
from tsexport.runtimes.comparison import TOLERANCES
from tsexport.types import ModelSpec, TensorSpec, random_feeds

ATOL = 2e-6
"""Sums of some ten terms of about unit size, in another order."""
NODES, WIDTH = 7, 8
REPEATED = ((0, 1), (0, 1), (0, 1), (2, 1), (1, 0), (1, 0), (6, 6))
"""Three edges from 0 to 1, two from 1 to 0, one from a node to itself; 2 to 5 hear nothing."""
STAR = tuple((sender, 3) for sender in range(NODES)) * 9 + ((0, 1), (1, 0), (2, 4))
"""One node with 63 edges among nodes with one or none."""


def edges_of(pairs):
    senders, receivers = (np.array(side, dtype=np.int64) for side in zip(*pairs, strict=True))
    return Edges(senders, receivers, np.zeros((len(pairs), 4), np.float32))


class Net(nn.Module):
    """x [batch, NODES, WIDTH] -> the same, by two steps on one graph with edges that learn."""

    def __init__(self, pairs):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = (interaction()(WIDTH, edges_of(pairs)) for _ in range(2))
        self.edges = nn.Parameter(torch.randn(1, len(pairs), WIDTH))

    def forward(self, x):
        x, edges = self.first(x, x, self.edges)
        return self.second(x, x, edges)[0]


def probes():
    generator = np.random.default_rng(0)
    return [{"x": generator.standard_normal((batch, NODES, WIDTH)).astype(np.float32)} for batch in (1, 3)]


# ---------------------------------------------------------------- the sum


@given(receivers=st.lists(st.integers(0, 11), min_size=1, max_size=60), more=st.integers(0, 3))
def test_the_sum_is_index_add_for_any_receivers(receivers, more):
    count = max(receivers) + 1 + more
    messages = torch.randn(2, len(receivers), 3, generator=torch.Generator().manual_seed(len(receivers)))
    expected = torch.zeros(2, count, 3).index_add(1, torch.tensor(receivers), messages)
    actual = SumByReceiver(np.array(receivers), count, 3)(messages)
    assert torch.allclose(actual, expected, rtol=0, atol=ATOL)


@given(receivers=st.lists(st.integers(0, 30), min_size=1, max_size=200), more=st.integers(0, 3))
def test_every_edge_counts_once_for_its_receiver(receivers, more):
    count = max(receivers) + 1 + more
    buckets = bucket_receivers(np.array(receivers), count)
    assert sorted(np.concatenate([bucket.receivers for bucket in buckets])) == list(range(count))
    counted = np.concatenate([bucket.messages[bucket.counts] for bucket in buckets])
    assert sorted(counted) == list(range(len(receivers)))
    for bucket in buckets:
        for receiver, messages, counts in zip(bucket.receivers, bucket.messages, bucket.counts, strict=True):
            assert {receivers[edge] for edge in messages[counts]} <= {receiver}


def test_a_few_receivers_with_very_many_neighbours_do_not_pad_the_others():
    """The two mesh points at the poles hear 64 grid points each, most others four."""
    edges = grid_to_mesh_edges(icosphere(3), grid_points(32, 64))
    padded = sum(bucket.messages.size for bucket in bucket_receivers(edges.receivers, 642))
    assert np.bincount(edges.receivers).max() == 64
    assert padded < 1.2 * len(edges.receivers)
    assert 12 * len(edges.receivers) < 642 * 64  # what the largest degree for all would take


def test_receivers_of_one_degree_that_are_sorted_need_no_gather():
    (bucket,) = bucket_receivers(np.repeat(np.arange(5), 3), 5)
    assert bucket.is_run
    (bucket,) = bucket_receivers(np.tile(np.arange(5), 3), 5)
    assert not bucket.is_run


# ---------------------------------------------------------------- the rewrite


@pytest.mark.parametrize("pairs", [REPEATED, STAR], ids=["repeated edges and isolated nodes", "one hub"])
def test_the_replacement_is_equal(pairs):
    module = Net(pairs).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    rewritten, (applied,) = rewrite_module(module, probes(), (GatherMessages(),))
    assert applied.kept
    assert applied.changes == 2
    assert applied.max_abs_error < ATOL
    assert isinstance(rewritten.first, GatheredInteraction)
    assert isinstance(module.first, interaction())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_replacement_that_departs_is_taken_back(monkeypatch):
    # The proof itself is what is tested: the replacement is made wrong, and must not be kept.
    original = SumByReceiver.forward
    monkeypatch.setattr(SumByReceiver, "forward", lambda self, messages: original(self, messages) * 1.01)
    module = Net(REPEATED).eval()
    rewritten, (applied,) = rewrite_module(module, probes(), (GatherMessages(),))
    assert rewritten is module
    assert not applied.kept


def test_a_module_without_message_passing_is_left_as_it_is():
    module = nn.Linear(WIDTH, 2).eval()
    assert rewrite_module(module, probes(), (GatherMessages(),)) == (module, ())


@dataclass(frozen=True)
class Source:
    module: nn.Module
    spec: ModelSpec

    def run(self, feeds):
        with torch.no_grad():
            return {"y": self.module(torch.from_numpy(feeds["x"])).numpy()}


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("pairs", [REPEATED, STAR], ids=["repeated edges and isolated nodes", "one hub"])
def test_every_runtime_answers_as_the_module(pairs, tmp_path):
    module = Net(pairs).eval()
    shape = ("batch", NODES, WIDTH)
    spec = ModelSpec(
        *("net", "gnn", "unknown"), (TensorSpec("x", "float32", shape),), (TensorSpec("y", "float32", shape),)
    )
    onnx_made = convert_to_onnx(module, None, spec, None, tmp_path / "m.onnx")
    made = {
        "onnxruntime": onnx_made,
        "tract": onnx_made,
        "torchscript": convert_to_torchscript(module, spec, None, tmp_path / "m.pt"),
        "openvino": convert_to_openvino(onnx_made.artifact, tmp_path / "m.xml"),
    }
    for runtime, converted in made.items():
        sets = feed_sets(spec.inputs, random_feeds(spec.inputs, 4, 7))
        results = check_parity(
            Source(module, spec), converted.artifact, runtime, sets, TOLERANCES["fp32-export"], scaled=True
        )
        assert all(parity.passed for parity in results), runtime


def test_the_exported_graph_scatters_nothing_and_computes_no_shapes(tmp_path):
    import onnx

    config = weather_gnn.Config(channels=2, latitudes=4, longitudes=8, mesh_level=1, width=8, steps=1)
    torch.manual_seed(0)
    spec = ModelSpec("weather-gnn", "gnn", "forecast", config.inputs, config.outputs)
    made = convert_to_onnx(weather_gnn.build(config).eval(), None, spec, None, tmp_path / "m.onnx")
    kinds = {node.op_type for node in onnx.load(made.artifact.path).graph.node}
    assert not {"ScatterElements", "ScatterND", "Shape", "Expand", "ConstantOfShape"} & kinds
