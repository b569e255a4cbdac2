"""patchtst-cpu: one value from 128 bars of 8 market features.

A window [batch, 128, 8] is cut into 8 patches of 16 steps.  Each patch is flattened step by step to 128 values,
embedded, normalised, and passed through a post-norm `nn.TransformerEncoder`; the mean over patches is projected to one
value.

Source: the PatchTST-CPU document the project was created from, whose checkpoints use the state-dict prefixes
`patch_embedding.`, `layer_norm.`, `transformer.` and `output_proj.`.  As published the model has no positional
information: with a mean over patches it cannot tell their order.  That stays the default, since checkpoints depend on
it; `positional_encoding = true` adds one learned vector per patch (`positions`, [1, patches, width]).

Feature order: close, high, low, volume, volatility, rsi, macd, momentum, min-max scaled per window.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from tsexport.errors import ConfigurationError
from tsexport.models.definition import require_divisible, require_positive
from tsexport.types import BATCH, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Sizes; the defaults are those of the checkpoints in the field."""

    context_length: int = 128
    channels: int = 8
    horizon: int = 1
    patch_length: int = 16
    layers: int = 3
    width: int = 128
    heads: int = 4
    feed_forward: int = 512
    dropout: float = 0.1
    positional_encoding: bool = False

    def __post_init__(self) -> None:
        require_positive(
            self, "context_length", "channels", "horizon", "patch_length", "layers", "width", "heads", "feed_forward"
        )
        require_divisible({"context_length": self.context_length, "patch_length": self.patch_length})
        require_divisible({"width": self.width, "heads": self.heads})
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"dropout is {self.dropout}; it must be at least 0 and below 1")

    @property
    def patches(self) -> int:
        return self.context_length // self.patch_length

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("features", "float32", (BATCH, self.context_length, self.channels)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("forecast", "float32", (BATCH, self.horizon)),)


@cache
def network() -> "type[nn.Module]":
    """Return the class PatchTSTCPU (defined here so that reading a Config needs no torch)."""
    import torch
    from torch import nn

    class PatchTSTCPU(nn.Module):
        """features [batch, context_length, channels] -> forecast [batch, horizon]."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            patch_values = config.patch_length * config.channels
            self.patches, self.patch_values = config.patches, patch_values
            self.patch_embedding = nn.Linear(patch_values, config.width)
            self.layer_norm = nn.LayerNorm(config.width)
            if config.positional_encoding:
                self.positions = nn.Parameter(0.02 * torch.randn(1, config.patches, config.width))
            else:
                self.register_parameter("positions", None)
            layer = nn.TransformerEncoderLayer(
                config.width, config.heads, config.feed_forward, config.dropout, activation="relu", batch_first=True
            )
            self.transformer = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
            self.output_proj = nn.Linear(config.width, config.horizon)

        def forward(self, features: "Tensor") -> "Tensor":
            patches = features.reshape(-1, self.patches, self.patch_values)  # [batch, patches, steps * channels]
            tokens = self.layer_norm(self.patch_embedding(patches))  # [batch, patches, width]
            if self.positions is not None:
                tokens = tokens + self.positions
            tokens = self.transformer(tokens)
            return self.output_proj(tokens.mean(dim=1))  # type: ignore[no-any-return]  # [batch, horizon]

    return PatchTSTCPU


def build(config: Config) -> "nn.Module":
    """Return the model with freshly initialised weights, in training mode."""
    return network()(config)
