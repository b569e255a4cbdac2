"""nhits: stacks of MLPs that look at the past at several rates, and answer at several rates.

Each channel is forecast on its own with shared weights.  The forecast starts at the last value.  One after the other,
each stack takes what is left of the past, pools it (the largest value of every `pooling` steps), passes it through
`layers` hidden layers of `width` units with ReLU, and maps the result to a backcast, which is taken off the past, and
to horizon // downsampling knots, which are interpolated to the horizon and added to the forecast:

    theta = MLP(max_pool(past)),   past <- past - theta[:context],   forecast <- forecast + theta[context:] B

B [knots, horizon] is linear interpolation between the centres of `horizon / knots` steps, constant beyond the outermost
(torch's `interpolate` without aligned corners), written out as a constant matrix: a product runs in every runtime.

Source: Challu et al. 2023, "N-HiTS: Neural Hierarchical Interpolation for Time Series Forecasting", one block a stack
and no exogenous inputs.  Names and order of the weights are those of the authors' repository (cchallu/n-hits), where
the past runs from the newest value to the oldest.  context_length is 5 horizons, `layers` 2 and `width` 512, as in the
authors' experiments; pooling 2/2/1 with downsampling 4/2/1 are the defaults of their later library, neuralforecast.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, cast

from tsexport.errors import ConfigurationError
from tsexport.models.definition import require_positive
from tsexport.types import BATCH, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Sizes; `pooling` and `downsampling` have one number for each stack."""

    context_length: int = 480
    horizon: int = 96
    channels: int = 7
    pooling: tuple[int, ...] = (2, 2, 1)
    downsampling: tuple[int, ...] = (4, 2, 1)
    layers: int = 2
    width: int = 512

    def __post_init__(self) -> None:
        require_positive(self, "context_length", "horizon", "channels", "layers", "width")
        for name, values in (("pooling", self.pooling), ("downsampling", self.downsampling)):
            if not values or min(values) < 1:
                raise ConfigurationError(f"{name} is {list(values)}; it must be one number from 1 on for each stack")
        if len(self.pooling) != len(self.downsampling):
            raise ConfigurationError(
                f"pooling {list(self.pooling)} and downsampling {list(self.downsampling)} are of different lengths",
                next_step="Give both one number for each stack.",
            )
        if max(self.pooling) > self.context_length:
            raise ConfigurationError(
                f"pooling is {list(self.pooling)}, longer than context_length {self.context_length}",
                next_step="Choose every number of pooling at most context_length.",
            )

    @property
    def knots(self) -> tuple[int, ...]:
        """Values between which each stack's forecast is interpolated."""
        return tuple(max(self.horizon // rate, 1) for rate in self.downsampling)

    @property
    def pooled_lengths(self) -> tuple[int, ...]:
        """Values that each stack sees of the past; the oldest may stand for fewer steps than the others."""
        return tuple(-(-self.context_length // kernel) for kernel in self.pooling)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("series", "float32", (BATCH, self.context_length, self.channels)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("forecast", "float32", (BATCH, self.horizon, self.channels)),)


@cache
def network() -> "type[nn.Module]":
    """Return the class NHiTS (defined here so that reading a Config needs no torch)."""
    import torch
    from torch import nn

    def interpolation(knots: int, horizon: int) -> "Tensor":
        """Return [knots, horizon]: a row of knots times it is interpolated linearly."""
        places = ((torch.arange(horizon) + 0.5) * (knots / horizon) - 0.5).clamp(0, knots - 1)
        return (1 - (torch.arange(knots)[:, None] - places).abs()).clamp(min=0)

    class Block(nn.Module):
        """Past [rows, context_length], newest first -> (backcast [rows, context_length], forecast [rows, horizon])."""

        basis: "Tensor"

        def __init__(self, config: Config, stack: int) -> None:
            super().__init__()
            self.context_length, self.pooling = config.context_length, config.pooling[stack]
            self.pooled = config.pooled_lengths[stack]
            knots = config.knots[stack]
            sizes = pairwise((self.pooled, *[config.width] * config.layers))
            hidden = [part for size in sizes for part in (nn.Linear(*size), nn.ReLU())]
            self.layers = nn.Sequential(*hidden, nn.Linear(config.width, config.context_length + knots))
            self.interpolated = knots != config.horizon
            self.register_buffer("basis", interpolation(knots, config.horizon), persistent=False)

        def hidden(self, past: "Tensor") -> "Tensor":
            if self.pooling > 1:
                # Repeating the oldest value changes no maximum: pooling then needs no shorter window.
                missing = self.pooled * self.pooling - self.context_length
                if missing:
                    past = torch.cat([past, past[:, -1:].expand(-1, missing)], dim=1)
                past = nn.functional.max_pool1d(past.unsqueeze(1), self.pooling).squeeze(1)
            for layer in list(self.layers)[:-1]:
                past = layer(past)
            return past

        def spread(self, knots: "Tensor") -> "Tensor":
            return knots @ self.basis if self.interpolated else knots

        def forward(self, past: "Tensor") -> "tuple[Tensor, Tensor]":
            theta = self.layers[-1](self.hidden(past))
            return theta[:, : self.context_length], self.spread(theta[:, self.context_length :])

        def forecast(self, past: "Tensor") -> "Tensor":
            """The forecast alone, for the last stack: nobody reads its backcast, and it is not computed."""
            first = self.context_length
            weight, bias = (part[first:] for part in self.layers[-1].parameters())
            return self.spread(nn.functional.linear(self.hidden(past), weight, bias))

    class NHiTS(nn.Module):
        """series [batch, context_length, channels] -> forecast [batch, horizon, channels]."""

        newest_first: "Tensor"

        def __init__(self, config: Config) -> None:
            super().__init__()
            self.context_length, self.horizon, self.channels = config.context_length, config.horizon, config.channels
            self.blocks = nn.ModuleList(Block(config, stack) for stack in range(len(config.pooling)))
            self.register_buffer("newest_first", torch.arange(config.context_length).flip(0), persistent=False)

        def forward(self, series: "Tensor") -> "Tensor":
            rows = series.transpose(1, 2).reshape(-1, self.context_length)  # [batch * channels, context_length]
            forecast, past = rows[:, -1:], rows.index_select(1, self.newest_first)
            *earlier, last = self.blocks
            for block in earlier:
                backcast, part = block(past)
                past, forecast = past - backcast, forecast + part
            forecast = forecast + cast(Block, last).forecast(past)  # [batch * channels, horizon]
            return forecast.reshape(-1, self.channels, self.horizon).transpose(1, 2)

    return NHiTS


def build(config: Config) -> "nn.Module":
    """Return the model with freshly initialised weights, in training mode."""
    return network()(config)
