"""dlinear: trend and remainder of the past, each mapped linearly to the future, and added.

The trend is a moving average over `kernel` steps (25), the series' ends replicated so that its length stays; the
remainder is what is left.  Source: Zeng et al. 2023, "Are Transformers Effective for Time Series Forecasting?", the
model named DLinear.  The defaults are those of the public ETTh1 336 -> 96 checkpoints.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from tsexport.errors import ConfigurationError
from tsexport.models.definition import require_positive
from tsexport.types import BATCH, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Sizes; with `individual` each channel has weights of its own.  `kernel` is odd, 3 or more."""

    context_length: int = 336
    horizon: int = 96
    channels: int = 7
    kernel: int = 25
    individual: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "context_length", "horizon", "channels")
        if self.kernel < 3 or self.kernel % 2 == 0:
            raise ConfigurationError(f"kernel is {self.kernel}; a centred moving average needs an odd number from 3 on")

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("series", "float32", (BATCH, self.context_length, self.channels)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("forecast", "float32", (BATCH, self.horizon, self.channels)),)


@cache
def network() -> "type[nn.Module]":
    """Return the class DLinear (defined here so that reading a Config needs no torch)."""
    import torch
    from torch import nn

    class DLinear(nn.Module):
        """series [batch, context_length, channels] -> forecast [batch, horizon, channels]."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            self.kernel, self.side = config.kernel, config.kernel // 2
            # The checkpoints' names.
            self.Linear_Seasonal = self.maps(config)
            self.Linear_Trend = self.maps(config)

        @staticmethod
        def maps(config: Config) -> nn.Module:
            if not config.individual:
                return nn.Linear(config.context_length, config.horizon)
            return nn.ModuleList(nn.Linear(config.context_length, config.horizon) for _ in range(config.channels))

        @staticmethod
        def project(maps: nn.Module, part: "Tensor") -> "Tensor":
            if isinstance(maps, nn.ModuleList):
                return torch.stack([layer(part[:, c]) for c, layer in enumerate(maps)], dim=1)
            return maps(part)  # type: ignore[no-any-return]

        def forward(self, series: "Tensor") -> "Tensor":
            past = series.transpose(1, 2)  # [batch, channels, context_length]
            first, last = past[:, :, :1].expand(-1, -1, self.side), past[:, :, -1:].expand(-1, -1, self.side)
            padded = torch.cat([first, past, last], dim=2)
            trend = nn.functional.avg_pool1d(padded, self.kernel, stride=1)  # [batch, channels, context_length]
            future = self.project(self.Linear_Seasonal, past - trend) + self.project(self.Linear_Trend, trend)
            return future.transpose(1, 2)

    return DLinear


def build(config: Config) -> "nn.Module":
    """Return the model with freshly initialised weights, in training mode."""
    return network()(config)
