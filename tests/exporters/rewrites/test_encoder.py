"""The encoder rewrite: equal to torch's layer, applied only where it may be."""

import numpy as np
import pytest
import torch
from torch import nn

from tsexport.exporters.rewrites.encoder import EncoderAsMatrixProducts, PlainEncoder
from tsexport.exporters.rewrites.modules import rewrite_module

STEPS, WIDTH = 6, 16
REWRITES = (EncoderAsMatrixProducts(),)


def probes(width: int = WIDTH) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [{"x": generator.standard_normal((batch, STEPS, width)).astype(np.float32)} for batch in (1, 3)]


def encoder(*, layers: int = 2, norm: bool = False, **settings: object) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 32, 0.1, batch_first=True, **settings)
    # Nested tensors belong to padding masks, and warn where norm_first rules them out.
    return nn.TransformerEncoder(
        layer, layers, norm=nn.LayerNorm(WIDTH) if norm else None, enable_nested_tensor=False
    ).eval()


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_replacement_is_equal(norm_first, activation, norm, bias):
    module = encoder(norm_first=norm_first, activation=activation, norm=norm, bias=bias)
    rewritten, (applied,) = rewrite_module(module, probes(), REWRITES)
    assert applied.kept
    assert applied.changes == 1
    assert isinstance(rewritten, PlainEncoder)
    assert applied.max_abs_error < 1e-5


def test_the_module_given_is_left_untouched():
    module = nn.Sequential(nn.Linear(WIDTH, WIDTH), encoder(), nn.Linear(WIDTH, 2)).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    rewritten, _ = rewrite_module(module, probes(), REWRITES)
    assert rewritten is not module
    assert isinstance(module[1], nn.TransformerEncoder)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_single_layer_is_replaced_too():
    torch.manual_seed(0)
    module = nn.Sequential(nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True), nn.Linear(WIDTH, 1)).eval()
    rewritten, (applied,) = rewrite_module(module, probes(), REWRITES)
    assert applied.kept
    assert isinstance(rewritten[0], PlainEncoder)


class Masked(nn.Module):
    """An encoder that is called with a mask, and so must be left as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(STEPS)
        result: torch.Tensor = self.encoder(x, mask=mask)
        return result


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(Masked(), id="called with a mask"),
        pytest.param(
            nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 4, 32), 1, enable_nested_tensor=False),
            id="batch second",
        ),
        pytest.param(nn.Linear(WIDTH, 2), id="no encoder"),
    ],
)
def test_what_does_not_fit_is_left_as_it_is(module):
    rewritten, applied = rewrite_module(module.eval(), probes(), REWRITES)
    assert rewritten is module
    assert applied == ()


def test_a_replacement_that_departs_is_taken_back(monkeypatch):
    # The proof itself is what is tested: the replacement is made wrong, and must not be kept.
    original = PlainEncoder.forward
    monkeypatch.setattr(PlainEncoder, "forward", lambda self, x: original(self, x) * 1.01)
    module = encoder()
    rewritten, (applied,) = rewrite_module(module, probes(), REWRITES)
    assert rewritten is module
    assert not applied.kept
    assert "departs" in applied.reason
