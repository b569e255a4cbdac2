"""resnet1d: 3 classes from 60 bars of 5 features, by residual blocks of 1-D convolutions.

A block is three convolutions with BatchNorm (kernels 8, 5, 3; ReLU behind the first two), added to its input and passed
through ReLU.  The input goes through BatchNorm, and before it through a 1x1 convolution where the widths differ.  Three
blocks of 64, 128 and 128 filters, the mean over time, and a linear map to the classes.

Source: Wang et al. 2017, "Time Series Classification from Scratch with Deep Neural Networks: A Strong Baseline".
Convolutions are those of `tsexport.models.same_conv`: without a bias, and the even kernel sees one step more after the
current one than before it.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from tsexport.models.definition import require_classes, require_positive
from tsexport.models.same_conv import same_conv
from tsexport.types import BATCH, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Sizes; there is one block for each of `filters`, with one convolution for each of `kernels`."""

    context_length: int = 60
    channels: int = 5
    classes: int = 3
    filters: tuple[int, ...] = (64, 128, 128)
    kernels: tuple[int, ...] = (8, 5, 3)

    def __post_init__(self) -> None:
        require_positive(self, "context_length", "channels", "filters", "kernels")
        require_classes(self.classes)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("features", "float32", (BATCH, self.context_length, self.channels)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("logits", "float32", (BATCH, self.classes)),)


@cache
def network() -> "type[nn.Module]":
    """Return the class ResNet1d (defined here so that reading a Config needs no torch)."""
    from torch import nn

    SameConv = same_conv()

    class Block(nn.Module):
        """Convolutions with a residual: [batch, inputs, time] -> [batch, outputs, time]."""

        def __init__(self, inputs: int, outputs: int, kernels: tuple[int, ...]) -> None:
            super().__init__()
            layers: list[nn.Module] = []
            for index, kernel in enumerate(kernels):
                layers += [SameConv(outputs if index else inputs, outputs, kernel), nn.ReLU()]
            self.layers = nn.Sequential(*layers[:-1])
            self.shortcut = nn.BatchNorm1d(outputs) if inputs == outputs else SameConv(inputs, outputs, 1)

        def forward(self, series: "Tensor") -> "Tensor":
            return nn.functional.relu(self.layers(series) + self.shortcut(series))

    class ResNet1d(nn.Module):
        """features [batch, context_length, channels] -> logits [batch, classes]."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            widths = (config.channels, *config.filters)
            self.blocks = nn.Sequential(*(Block(a, b, config.kernels) for a, b in pairwise(widths)))
            self.head = nn.Linear(widths[-1], config.classes)

        def forward(self, features: "Tensor") -> "Tensor":
            series = self.blocks(features.transpose(1, 2))  # [batch, filters, context_length]
            return self.head(series.mean(dim=2))  # type: ignore[no-any-return]  # [batch, classes]

    return ResNet1d


def build(config: Config) -> "nn.Module":
    """Return the model with freshly initialised weights, in training mode."""
    return network()(config)
