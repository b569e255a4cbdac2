"""Structured pruning: what goes really goes, answers prove it, and what stays says why."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tsexport.models import itransformer, registry
from tsexport.quantize.pruning import apply, outputs_of, prune
from tsexport.quantize.pruning_allocation import Offer, allocate, offer_of
from tsexport.quantize.pruning_costs import flops_of, flops_of_layers, parameters_of
from tsexport.quantize.pruning_importance import gram_matrices, reader_of, removal_order
from tsexport.quantize.pruning_widths import kept_heads, kept_width, least_important, segments

_spec = importlib.util.spec_from_file_location("pruning_nets", Path(__file__).parent / "pruning_nets.py")
nets = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(nets)

SHAPES = {"Branches": (4, 5, 20), "Grid": (4, 3, 8, 8), "Encoder": (4, 6, 8)}
ROUNDING = 1e-5
"""The pruned model sums fewer zeros, in another order: fp32 rounds that at 1e-7 of the values."""


def inputs_of(name, seed=1):
    return (torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(seed)),)


def reason_of(pruned, layer):
    return next(one.reason for one in pruned.left if one.layer == layer)


def test_branches_lose_channels_in_step():
    module = nets.seeded(nets.Branches)
    pruned = prune(module, inputs_of("Branches"), 0.3)
    small = pruned.module
    assert small.first[0].weight.shape == (24, 5, 3)
    assert small.first[1].running_mean.shape == (24,)
    assert small.left.weight.shape == (24, 24, 3)
    assert small.right.weight.shape == (8, 24, 1)
    assert small.around.weight.shape == (32, 24, 1)
    assert small.head.weight.shape == (3, 32)
    assert parameters_of(small) < 0.65 * parameters_of(module)
    assert flops_of(small, inputs_of("Branches")) < 0.65 * flops_of(module, inputs_of("Branches"))
    assert module.first[0].weight.shape == (32, 5, 3)  # the given one is as it was


def test_grid_and_its_transposed_convolution():
    small = prune(nets.seeded(nets.Grid), inputs_of("Grid"), 0.5).module
    assert [tuple(one.weight.shape[:2]) for one in small.layers if hasattr(one, "weight")] == [
        (16, 3),
        (16, 16),
        (16, 8),
        (3, 8),
    ]
    assert outputs_of(small, inputs_of("Grid"))[0].shape == (4, 3, 8, 8)


def test_heads_and_feed_forward_units_go():
    pruned = prune(nets.seeded(nets.Encoder), inputs_of("Encoder"), 0.3)
    layer = pruned.module.layers.layers[0]
    assert layer.self_attn.qkv.weight.shape == (72, 32)
    assert layer.self_attn.out_proj.weight.shape == (32, 24)
    assert layer.linear1.weight.shape == (48, 32)
    assert layer.linear2.weight.shape == (32, 48)
    assert {one.kind for one in pruned.removals} == {"heads", "channels"}
    assert "normalises over its channels" in " ".join(one.reason for one in pruned.left)


def test_attention_without_any_head_removed_is_torchs():
    module = nets.seeded(nets.Encoder)
    attention = nets.seeded(nets.Encoder)
    from tsexport.quantize.pruning_heads import slimmed

    slimmed(attention, "layers.layers.0.self_attn")
    for one, other in zip(
        outputs_of(module, inputs_of("Encoder")), outputs_of(attention, inputs_of("Encoder")), strict=True
    ):
        torch.testing.assert_close(one, other, atol=ROUNDING, rtol=0)


def test_own_attention_says_where_its_heads_are():
    config = itransformer.Config(context_length=16, horizon=4, channels=3, width=32, heads=4, feed_forward=64)
    module = nets.seeded(lambda: itransformer.build(config))
    pruned = prune(module, (torch.randn(2, 16, 3),), 0.3)
    attention = pruned.module.encoder.attn_layers[0].attention
    assert attention.head_layout.heads == 3
    assert attention.query_projection.weight.shape == (24, 32)
    assert pruned.module.encoder.attn_layers[1].conv1.weight.shape == (48, 32, 1)


@pytest.mark.parametrize("name", SHAPES)
def test_removed_is_as_if_silenced(name):
    """The proof itself, from the records alone: zeros in what reads the channels give the same answers."""
    module = nets.seeded(getattr(nets, name))
    pruned = prune(module, inputs_of(name), 0.3)
    again = apply(module, inputs_of(name), pruned.removals)
    assert again.kept == pruned.kept
    for one, other in zip(
        outputs_of(pruned.module, inputs_of(name, 7)), outputs_of(again.module, inputs_of(name, 7)), strict=True
    ):
        assert torch.equal(one, other)


@settings(max_examples=8)
@given(fraction=st.floats(0.05, 0.9))
def test_every_width_is_a_multiple_of_eight(fraction):
    module = nets.seeded(nets.Branches)
    pruned = prune(module, inputs_of("Branches"), fraction)
    assert outputs_of(pruned.module, inputs_of("Branches"))[0].shape == (4, 3)
    for one in pruned.removals:
        assert one.after % 8 == 0
        assert 8 <= one.after < one.before
        assert len(one.removed) == one.before - one.after
    assert parameters_of(pruned.module) <= parameters_of(module)
    assert all(one.reason for one in pruned.left)


def test_same_inputs_same_weights():
    module, inputs = nets.seeded(nets.Branches), inputs_of("Branches")
    grams = [gram_matrices(module, [inputs], 1, seed=3) for _ in range(2)]
    first, second = (prune(module, inputs, 0.3, one) for one in grams)
    assert first.removals == second.removals
    assert first.left == second.left
    for one, other in zip(first.module.state_dict().values(), second.module.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_wrong_graph_is_found_out():
    """torch-pruning takes a flip for an operation that keeps channels where they are."""
    pruned = prune(nets.seeded(nets.WrongOrder), (torch.randn(4, 6),), 0.3)
    assert [one.layer for one in pruned.removals] == ["sound"]
    assert "the graph is wrong here" in reason_of(pruned, "first")
    assert pruned.module.first.weight.shape == (32, 24)


def test_a_width_written_into_the_forward():
    pruned = prune(nets.seeded(nets.WrittenIn), (torch.randn(4, 6),), 0.3)
    assert not pruned.removals
    assert "the model does not run without some of them: mat1 and mat2" in reason_of(pruned, "first")


def test_reasons_for_what_is_left():
    pruned = prune(nets.seeded(nets.OwnWeights), (torch.randn(3, 5, 6),), 0.3)
    assert not pruned.removals
    assert reason_of(pruned, "") == "OwnWeights holds position itself, and no rule says how to cut that"
    assert reason_of(pruned, "recurrent") == "the units of a recurrent state feed back into themselves"
    assert "does not reach it: it is not called as a layer" in reason_of(pruned, "uncalled")
    assert "no layer reads its channels: they are the model's outputs" in reason_of(pruned, "head")
    grouped = prune(nets.seeded(nets.Grouped), (torch.randn(2, 4, 9),), 0.3)
    assert reason_of(grouped, "layers.0") == "layers.1 is a grouped convolution"
    assert "8 channels: no multiple of 8 below it is near enough" in reason_of(grouped, "layers.3")


def test_attentions_that_cannot_be_replaced():
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, kdim=8, vdim=8, batch_first=True)

        def forward(self, tokens, memory):
            return self.attention(tokens, memory, memory)[0]

    pruned = prune(nets.seeded(Asks), (torch.randn(2, 3, 16), torch.randn(2, 4, 8)), 0.3)
    assert reason_of(pruned, "attention") == "its keys or values are of another width than its queries"


def test_linear_models_have_nothing_to_remove():
    for name in ("linear", "dlinear"):
        entry = registry.get_entry(name)
        config = entry.definition().Config(context_length=24, horizon=8, channels=3)
        pruned = prune(entry.definition().build(config).eval(), (torch.randn(2, 24, 3),), 0.3)
        assert not pruned.removals
        assert pruned.left


@given(width=st.integers(1, 600), fraction=st.floats(0.01, 0.99))
def test_kept_widths(width, fraction):
    kept = kept_width(width, fraction)
    assert 1 <= kept <= width
    assert kept == width or (kept % 8 == 0 and (abs(kept - width * (1 - fraction)) <= 4 or kept == 8))


@given(heads=st.integers(1, 16), width=st.integers(1, 80), fraction=st.floats(0.01, 0.99))
def test_kept_heads(heads, width, fraction):
    kept = kept_heads(heads, width, fraction)
    assert 1 <= kept <= heads
    assert kept == heads or kept * width % 8 == 0


def test_widths_of_the_documents():
    assert [kept_width(width, 0.3) for width in (8, 16, 26, 32, 64, 128, 512)] == [8, 8, 16, 24, 48, 88, 360]
    assert [kept_heads(heads, width, 0.3) for heads, width in ((4, 32), (8, 68), (2, 16), (1, 64))] == [3, 6, 1, 1]


def test_segments_follow_the_layers():
    assert segments(6, {"all": range(6), "first": [0, 1], "rest": [2, 3, 4, 5]}) == ((0, 1), (2, 3, 4, 5))
    assert least_important([0.5, 0.1, 0.1, 0.9], [0, 1, 2, 3], 2) == (1, 2)
    assert least_important([1.0, 1.0, 1.0], [0, 1, 2], 1) == (2,)


def test_costs_are_what_least_squares_loses():
    """Taken one after the other, a channel costs what the best fit with the others misses: against numpy's lstsq."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((400, 8)) @ generator.standard_normal((8, 8))
    layer = nn.Linear(8, 3, bias=False)
    gram = torch.from_numpy(rows.T @ rows / len(rows))
    reader = reader_of(layer, list(range(8)), gram, list(range(8)))
    answers = rows @ layer.weight.detach().double().numpy().T
    order = removal_order([reader], [list(range(8))], [4])
    gone, total = [], 0.0
    for channel, cost in order:
        gone.append(channel)
        total += cost
        left = [one for one in range(8) if one not in gone]
        fit = rows[:, left] @ np.linalg.lstsq(rows[:, left], answers, rcond=None)[0]
        missed = np.square(answers - fit).sum() / np.square(answers).sum()
        assert total == pytest.approx(missed, rel=0.2, abs=2e-3)  # the ridge is 1e-3 of the mean of the diagonal


def test_a_channel_that_another_repeats_goes_first():
    rows = torch.randn(200, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows[:, 3] = rows[:, 0]
    layer = nn.Linear(4, 2, bias=False)
    layer.weight.data = torch.tensor([[5.0, 1.0, 1.0, 5.0], [0.0, 1.0, -1.0, 0.0]])
    reader = reader_of(layer, [0, 1, 2, 3], rows.T @ rows / 200, [0, 1, 2, 3])
    assert removal_order([reader], [[0, 1, 2, 3]], [1])[0][0] in (0, 3)


def test_the_cheapest_channels_go_first():
    cheap = Offer(64, ((0,), (8,), (16,), (24,)), (0.0, 0.01, 0.02, 0.5))
    dear = Offer(64, ((0,), (8,), (16,)), (0.0, 0.3, 0.9))
    assert allocate({"cheap": cheap, "dear": dear}, 0.125) == {"cheap": (16,), "dear": (0,)}
    assert allocate({"cheap": cheap, "dear": dear}, 0.9) == {"cheap": (24,), "dear": (16,)}
    assert allocate({}, 0.3) == {}


def test_what_carries_much_arithmetic_goes_first_where_it_is_missed_little_more():
    coarse = Offer(64, ((0,), (16,)), (0.0, 0.10), flops=100.0)
    fine = Offer(64, ((0,), (16,)), (0.0, 0.19), flops=400.0)  # four times the work, less than twice the cost
    dear = Offer(64, ((0,), (16,)), (0.0, 0.21), flops=400.0)
    assert allocate({"coarse": coarse, "fine": fine}, 0.1) == {"coarse": (0,), "fine": (16,)}
    assert allocate({"coarse": coarse, "dear": dear}, 0.1) == {"coarse": (16,), "dear": (0,)}


@pytest.mark.parametrize(
    ("width", "fraction", "gone"),
    [
        (32, 0.3, (0, 16)),
        (64, 0.3, (0, 16, 32)),
        (128, 0.3, (0, 16, 32, 48, 64)),
        (64, 0.1, (0, 8)),  # no multiple of 16 is near enough
        (16, 0.5, (0, 8)),
        (64, 0.8, (0, 16, 32, 48)),  # 16 stay: half of an even share alone would be 6
        (8, 0.3, (0,)),
    ],
)
def test_channels_are_offered_in_blocks_that_kernels_compute(width, fraction, gone):
    rows = torch.randn(300, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reader = reader_of(nn.Linear(width, 4), list(range(width)), rows.T @ rows / 300, list(range(width)))
    offer = offer_of([reader], [list(range(width))], fraction)
    assert tuple(one for (one,) in offer.gone) == gone
    assert offer.costs[0] == 0.0
    assert list(offer.costs) == sorted(offer.costs)


def test_floating_point_operations_by_layer():
    module = nn.Sequential(nn.Conv1d(3, 8, 5), nn.ReLU(), nn.Conv1d(8, 4, 1)).eval()
    inputs = (torch.zeros(2, 3, 20),)
    layers = flops_of_layers(module, inputs)
    assert layers == {"0": 2 * 2 * 16 * 8 * 3 * 5, "1": 0, "2": 2 * 2 * 16 * 4 * 8}
    assert sum(layers.values()) == flops_of(module, inputs)
