"""inception-time: 3 classes from 60 bars of 5 features, by convolutions of several lengths side by side.

An inception module narrows its input to `bottleneck` channels with a 1x1 convolution, runs one convolution of `filters`
filters for each of `kernels` over it, and beside them a maximum over 3 steps of the module's input with a 1x1
convolution of `filters` filters; their results stand one behind the other, followed by BatchNorm and ReLU.  Behind
every third module the input of the three (through a 1x1 convolution and BatchNorm) is added before ReLU.  At the end
come the mean over time and a linear map to the classes.

Source: Fawaz et al. 2020, "InceptionTime: Finding AlexNet for Time Series Classification", one network of its ensemble
of five.  The sizes are those published in the Model Infrastructure Requirements Guide, whose "blocks" are modules here.
What follows from them:

- small has 2 blocks and so no residual connection; medium (4) has one behind the third block and a fourth block behind
  it; large (8) has two, behind the third and the sixth, and two blocks behind them.
- An input of `bottleneck` channels or fewer is not narrowed: 5 features go straight into the first module.
- The Guide's kernels are 3, 5, 8, 11 and 23 without the pooling branch: `kernels=3,5,8,11,23`, `pooling=false`.

BatchNorm keeps statistics for each channel, so that of the joined branches is that of each branch.  It is written that
way: each one then folds into its convolution, as it could not behind a Concat.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from tsexport.models.definition import Sizes, require_classes, require_positive
from tsexport.models.same_conv import same_conv
from tsexport.types import BATCH, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

BLOCKS_PER_RESIDUAL = 3
POOLED_STEPS = 3


@dataclass(frozen=True)
class Config:
    """Sizes; a block's output has `filters` channels for each of `kernels`, and as many more with `pooling`."""

    SIZES: ClassVar[Sizes] = {
        "small": {"context_length": 60, "filters": 32, "blocks": 2},
        "medium": {"context_length": 60, "filters": 128, "blocks": 4},
        "large": {"context_length": 120, "filters": 256, "blocks": 8},
    }

    context_length: int = 60
    channels: int = 5
    classes: int = 3
    filters: int = 128
    blocks: int = 4
    kernels: tuple[int, ...] = (39, 19, 9)
    pooling: bool = True
    bottleneck: int = 32

    def __post_init__(self) -> None:
        require_positive(self, "context_length", "channels", "filters", "blocks", "kernels", "bottleneck")
        require_classes(self.classes)

    @property
    def width(self) -> int:
        """Channels between the blocks."""
        return self.filters * (len(self.kernels) + self.pooling)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("features", "float32", (BATCH, self.context_length, self.channels)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("logits", "float32", (BATCH, self.classes)),)


@cache
def network() -> "type[nn.Module]":
    """Return the class InceptionTime (defined here so that reading a Config needs no torch)."""
    import torch
    from torch import nn

    SameConv = same_conv()

    class Module(nn.Module):
        """An inception module before its ReLU: [batch, inputs, time] -> [batch, width, time]."""

        def __init__(self, inputs: int, config: Config) -> None:
            super().__init__()
            narrow = inputs > config.bottleneck
            self.bottleneck = nn.Conv1d(inputs, config.bottleneck, 1, bias=False) if narrow else nn.Identity()
            seen = config.bottleneck if narrow else inputs
            self.branches = nn.ModuleList(SameConv(seen, config.filters, kernel) for kernel in config.kernels)
            self.pool = nn.MaxPool1d(POOLED_STEPS, stride=1, padding=POOLED_STEPS // 2) if config.pooling else None
            self.pooled = SameConv(inputs, config.filters, 1) if config.pooling else None

        def forward(self, series: "Tensor") -> "Tensor":
            narrowed = self.bottleneck(series)
            parts = [branch(narrowed) for branch in self.branches]
            if self.pool is not None and self.pooled is not None:
                parts.append(self.pooled(self.pool(series)))
            return torch.cat(parts, dim=1)

    class InceptionTime(nn.Module):
        """features [batch, context_length, channels] -> logits [batch, classes]."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            widths = (config.channels, *[config.width] * config.blocks)
            self.blocks = nn.ModuleList(Module(inputs, config) for inputs in widths[:-1])
            self.shortcuts = nn.ModuleList(
                SameConv(widths[first], config.width, 1)
                for first in range(0, config.blocks - BLOCKS_PER_RESIDUAL + 1, BLOCKS_PER_RESIDUAL)
            )
            self.head = nn.Linear(config.width, config.classes)

        def forward(self, features: "Tensor") -> "Tensor":
            series = features.transpose(1, 2)  # [batch, channels, context_length]
            before = series
            for number, module in enumerate(self.blocks, start=1):
                series = module(series)  # [batch, width, context_length]
                if number % BLOCKS_PER_RESIDUAL == 0:
                    series = series + self.shortcuts[number // BLOCKS_PER_RESIDUAL - 1](before)
                series = nn.functional.relu(series)
                if number % BLOCKS_PER_RESIDUAL == 0:
                    before = series
            return self.head(series.mean(dim=2))  # type: ignore[no-any-return]  # [batch, classes]

    return InceptionTime


def build(config: Config) -> "nn.Module":
    """Return the model with freshly initialised weights, in training mode."""
    return network()(config)
