"""tcn: 3 classes from 60 bars of 26 features, by dilated causal convolutions.

Residual blocks with dilations 1, 2, 4, ... 32.  A block is two causal convolutions, each followed by ReLU and dropout,
added to its input (through a 1x1 convolution where the widths differ) and passed through ReLU once more.  A causal
convolution sees the step itself and those before it: the series is padded with zeros on the left alone.  The classes
are a linear map of the last step, which sees 1 + 2 (kernel - 1) (1 + 2 + ... + 32) = 253 steps back.

Source: Bai et al. 2018, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence
Modeling".  The paper keeps weights normalised (length and direction apart) while it trains; here they are plain, which
computes the same functions with one parameter less for each filter.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from tsexport.models.definition import require_classes, require_dropout, require_positive
from tsexport.types import BATCH, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Sizes; there is one block for each of `dilations`, all `filters` wide."""

    context_length: int = 60
    channels: int = 26
    classes: int = 3
    filters: int = 64
    kernel: int = 3
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    dropout: float = 0.1

    def __post_init__(self) -> None:
        require_positive(self, "context_length", "channels", "filters", "kernel", "dilations")
        require_classes(self.classes)
        require_dropout(self.dropout)

    @property
    def receptive_field(self) -> int:
        """Steps that the last one sees, itself included."""
        return 1 + 2 * (self.kernel - 1) * sum(self.dilations)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("features", "float32", (BATCH, self.context_length, self.channels)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("logits", "float32", (BATCH, self.classes)),)


@cache
def network() -> "type[nn.Module]":
    """Return the class TCN (defined here so that reading a Config needs no torch)."""
    from torch import nn

    class CausalConv(nn.Module):
        """[batch, inputs, time] -> [batch, filters, time]; step t sees t, t - dilation, t - 2 dilation, ..."""

        def __init__(self, inputs: int, config: Config, dilation: int) -> None:
            super().__init__()
            self.before = (config.kernel - 1) * dilation
            self.conv = nn.Conv1d(inputs, config.filters, config.kernel, dilation=dilation)

        def forward(self, series: "Tensor") -> "Tensor":
            return self.conv(nn.functional.pad(series, (self.before, 0)))  # type: ignore[no-any-return]

    class Block(nn.Module):
        """Two causal convolutions with a residual: [batch, inputs, time] -> [batch, filters, time]."""

        def __init__(self, inputs: int, config: Config, dilation: int) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                *(CausalConv(inputs, config, dilation), nn.ReLU(), nn.Dropout(config.dropout)),
                *(CausalConv(config.filters, config, dilation), nn.ReLU(), nn.Dropout(config.dropout)),
            )
            self.shortcut = nn.Identity() if inputs == config.filters else nn.Conv1d(inputs, config.filters, 1)

        def forward(self, series: "Tensor") -> "Tensor":
            return nn.functional.relu(self.layers(series) + self.shortcut(series))

    class TCN(nn.Module):
        """features [batch, context_length, channels] -> logits [batch, classes]."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            widths = (config.channels, *[config.filters] * len(config.dilations))
            self.blocks = nn.Sequential(
                *(Block(inputs, config, d) for inputs, d in zip(widths[:-1], config.dilations, strict=True))
            )
            self.head = nn.Linear(config.filters, config.classes)

        def forward(self, features: "Tensor") -> "Tensor":
            series = self.blocks(features.transpose(1, 2))  # [batch, filters, context_length]
            return self.head(series[:, :, -1])  # type: ignore[no-any-return]  # [batch, classes]

    return TCN


def build(config: Config) -> "nn.Module":
    """Return the model with freshly initialised weights, in training mode."""
    return network()(config)
