"""The refit: layers as rows, normal equations against numpy, and how much of an error it takes back."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tsexport.quantize.pruning import Pruned, outputs_of, prune
from tsexport.quantize.pruning_importance import gram_matrices
from tsexport.quantize.refit import refit
from tsexport.quantize.refit_layers import Unfit, form_of

_spec = importlib.util.spec_from_file_location("pruning_nets", Path(__file__).parent / "pruning_nets.py")
nets = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(nets)

DOUBLE = 1e-9
"""Of the values: float64 sums in another order."""
HALF = 0.5


def smooth(*shape, seed=0, batches=6):
    """Return batches of windows that few causes make, as real series are made."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(3, math.prod(shape[1:]), generator=torch.Generator().manual_seed(99))
    return [
        (torch.tanh(torch.randn(shape[0], 3, generator=generator) @ causes).reshape(shape),) for _ in range(batches)
    ]


def error(module, other, windows):
    pairs = [(outputs_of(module, one)[0], outputs_of(other, one)[0]) for one in windows]
    apart = sum(float((a - b).square().sum()) for a, b in pairs)
    return math.sqrt(apart / sum(float(a.square().sum()) for a, _ in pairs))


CASES = {"Branches": (16, 5, 20), "Grid": (8, 3, 8, 8), "Encoder": (16, 6, 8)}


@pytest.mark.parametrize("name", CASES)
def test_refit_takes_back_half_of_the_error(name):
    module = nets.seeded(getattr(nets, name))
    windows, unseen = smooth(*CASES[name]), smooth(*CASES[name], seed=5, batches=2)
    pruned = prune(module, windows[0], 0.4, gram_matrices(module, windows, len(windows), 0))
    before = error(module, pruned.module, unseen)
    done = refit(module, pruned, lambda: windows, len(windows), 0)
    assert error(module, pruned.module, unseen) <= HALF * before
    assert all(one.after <= one.before for one in done)
    assert any(one.before > 0 for one in done)


def test_refit_gives_the_same_weights_twice():
    module, windows = nets.seeded(nets.Branches), smooth(8, 5, 20)
    states = []
    for _ in range(2):
        pruned = prune(module, windows[0], 0.4)
        refit(module, pruned, lambda: windows, len(windows), 0)
        states.append(pruned.module.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_nothing_removed_is_nothing_refitted():
    module, windows = nets.seeded(nets.Branches), smooth(8, 5, 20, batches=2)
    pruned = Pruned(nets.seeded(nets.Branches))
    assert refit(module, pruned, lambda: windows, len(windows), 0) == ()


def test_a_linear_layer_is_solved_as_numpy_solves_it():
    """Two layers; the second one loses inputs, and its weights and bias are those of numpy's least squares."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3)).eval().requires_grad_(False)
    windows = [(torch.randn(64, 6, generator=torch.Generator().manual_seed(seed)),) for seed in range(64)]
    pruned = prune(module, windows[0], 0.5)
    refit(module, pruned, lambda: windows, len(windows), 0)
    rows = np.concatenate([torch.relu(pruned.module[0](one)).numpy().astype(np.float64) for (one,) in windows])
    answers = np.concatenate([module(one).numpy().astype(np.float64) for (one,) in windows])
    beside = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    solved = np.linalg.lstsq(beside, answers, rcond=None)[0]
    np.testing.assert_allclose(pruned.module[2].weight.numpy().T, solved[:-1], atol=2e-3)  # the ridge, and fp32
    np.testing.assert_allclose(pruned.module[2].bias.numpy(), solved[-1], atol=2e-3)


def test_a_constant_goes_into_the_batchnorm_behind():
    torch.manual_seed(0)
    layers = [nn.Conv1d(4, 32, 3, padding=1), nn.ReLU(), nn.Conv1d(32, 8, 3, padding=1, bias=False), nn.BatchNorm1d(8)]
    module = nn.Sequential(*layers).eval().requires_grad_(False)
    windows = smooth(8, 4, 20)
    pruned = prune(module, windows[0], 0.5)
    before = pruned.module[3].running_mean.clone()
    refit(module, pruned, lambda: windows, len(windows), 0)
    assert pruned.module[2].bias is None
    assert not torch.equal(before, pruned.module[3].running_mean)
    whole = torch.cat([outputs_of(module, one)[0] for one in windows]).mean(dim=(0, 2))
    ours = torch.cat([outputs_of(pruned.module, one)[0] for one in windows]).mean(dim=(0, 2))
    torch.testing.assert_close(ours, whole, atol=0.02, rtol=0)  # drawn positions, not all


def test_a_batchnorm_that_no_layer_feeds_is_estimated_anew():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv1d(4, 32, 1), nn.Conv1d(32, 32, 1)
            self.norm, self.head = nn.BatchNorm1d(32), nn.Conv1d(32, 2, 1)

        def forward(self, series):
            return self.head(self.norm(torch.relu(self.second(torch.relu(self.first(series))))))

    module, windows = nets.seeded(Around), smooth(8, 4, 20)
    pruned = prune(module, windows[0], 0.5)
    before = pruned.module.norm.running_mean.clone()
    refit(module, pruned, lambda: windows, len(windows), 0)
    assert not torch.equal(before, pruned.module.norm.running_mean)


LAYERS = {
    "linear": (nn.Linear(5, 4), (3, 7, 5)),
    "padded": (nn.Conv1d(3, 4, 5, padding=2), (2, 3, 11)),
    "strided": (nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 9, 7)),
    "dilated": (nn.Conv1d(3, 4, 3, dilation=2), (2, 3, 12)),
    "same": (nn.Conv1d(3, 4, 5, padding="same"), (2, 3, 12)),
    "valid": (nn.Conv2d(3, 4, (2, 3), padding="valid"), (2, 3, 6, 6)),
    "transposed": (nn.ConvTranspose2d(3, 4, 2, stride=2), (2, 3, 4, 5)),
    "transposed in one dimension": (nn.ConvTranspose1d(3, 4, 3, stride=3), (2, 3, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_weights_are_the_answers(name):
    layer, shape = LAYERS[name]
    layer = layer.double().requires_grad_(False)
    inputs = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    outputs = layer(inputs)
    form = form_of(layer)
    index = torch.arange(form.count(layer, inputs, outputs))
    answers = form.answers(layer, outputs, index, None)
    rebuilt = form.rows(layer, inputs, outputs, index) @ form.weight(layer) + form.spread(layer, layer.bias)
    torch.testing.assert_close(rebuilt, answers, atol=DOUBLE, rtol=0)
    assert answers.numel() == outputs.numel()
    some = form.answers(layer, outputs, index, [0, 3])
    assert some.numel() == outputs.numel() // 2
    before = layer.weight.clone()
    form.set_weight(layer, form.weight(layer).clone())
    assert torch.equal(before, layer.weight)
    torch.testing.assert_close(form.gather(layer, form.spread(layer, layer.bias)), layer.bias, atol=DOUBLE, rtol=0)


UNFIT = {
    "in groups": nn.Conv1d(4, 4, 3, groups=2),
    "pads with circular": nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"),
    "three dimensions": nn.Conv3d(2, 2, 3),
    "overlapping": nn.ConvTranspose2d(2, 2, 3, stride=2),
    "no linear map": nn.ReLU(),
}


@pytest.mark.parametrize("reason", UNFIT)
def test_layers_that_are_not_refitted(reason):
    form = form_of(UNFIT[reason])
    assert isinstance(form, Unfit)
    assert reason in form.reason


def test_a_convolution_with_a_forward_of_its_own():
    class Own(nn.Conv1d):
        def forward(self, series):
            return super().forward(series) * 2

    assert "a forward of its own" in form_of(Own(2, 2, 3)).reason


@settings(max_examples=5)
@given(fraction=st.floats(0.1, 0.8), seed=st.integers(0, 100))
def test_no_layer_gets_worse_on_its_rows(fraction, seed):
    module, windows = nets.seeded(nets.Grid), smooth(4, 3, 8, 8, seed=seed, batches=3)
    pruned = prune(module, windows[0], fraction)
    for one in refit(module, pruned, lambda: windows, len(windows), seed):
        assert one.after <= one.before
        assert one.before < math.inf
