"""linear: every future step as a linear map of the past, one map for all channels or one per channel.

Source: Zeng et al. 2023, "Are Transformers Effective for Time Series Forecasting?", the model named Linear.  The
defaults are those of the public ETTh1 336 -> 96 checkpoints.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from tsexport.models.definition import require_positive
from tsexport.types import BATCH, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Sizes; with `individual` each channel has weights of its own."""

    context_length: int = 336
    horizon: int = 96
    channels: int = 7
    individual: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "context_length", "horizon", "channels")

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("series", "float32", (BATCH, self.context_length, self.channels)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("forecast", "float32", (BATCH, self.horizon, self.channels)),)


@cache
def network() -> "type[nn.Module]":
    """Return the class Linear (defined here so that reading a Config needs no torch)."""
    import torch
    from torch import nn

    class Linear(nn.Module):
        """series [batch, context_length, channels] -> forecast [batch, horizon, channels]."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            self.Linear: nn.Module
            if config.individual:
                maps = [nn.Linear(config.context_length, config.horizon) for _ in range(config.channels)]
                self.Linear = nn.ModuleList(maps)
            else:
                self.Linear = nn.Linear(config.context_length, config.horizon)

        def forward(self, series: "Tensor") -> "Tensor":
            past = series.transpose(1, 2)  # [batch, channels, context_length]
            if isinstance(self.Linear, nn.ModuleList):
                future = torch.stack([layer(past[:, c]) for c, layer in enumerate(self.Linear)], dim=1)
            else:
                future = self.Linear(past)  # [batch, channels, horizon]
            return future.transpose(1, 2)

    return Linear


def build(config: Config) -> "nn.Module":
    """Return the model with freshly initialised weights, in training mode."""
    return network()(config)
