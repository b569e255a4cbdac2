"""The classifier that `lstm` and `gru` share: stacked recurrent layers, and classes from the last hidden state.

    h_1..h_T = recurrent layers over the steps, zero state before the first one
    logits   = W h_T + b                              (h_T of the last layer)

Source: the sizes are those published in the Model Infrastructure Requirements Guide, whose memory table gives steps,
width and number of layers for 26 features; a linear layer on the last hidden state is the plain reading of "3 classes
from 60 bars".  Dropout acts between layers while training, and there is none behind the last one.

Limits: the steps are computed one after the other, so latency grows with their number and threads bring nothing at
batch 1.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Literal

from tsexport.models.definition import Sizes, require_classes, require_dropout, require_positive
from tsexport.types import BATCH, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Sizes; `hidden` is the width of a layer's state, and the defaults are those of the size "medium"."""

    SIZES: ClassVar[Sizes] = {
        "small": {"context_length": 60, "hidden": 64, "layers": 2},
        "medium": {"context_length": 60, "hidden": 128, "layers": 2},
        "large": {"context_length": 120, "hidden": 256, "layers": 4},
    }

    context_length: int = 60
    channels: int = 26
    classes: int = 3
    hidden: int = 128
    layers: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        require_positive(self, "context_length", "channels", "hidden", "layers")
        require_classes(self.classes)
        require_dropout(self.dropout)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("features", "float32", (BATCH, self.context_length, self.channels)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("logits", "float32", (BATCH, self.classes)),)


@cache
def network(cell: Literal["LSTM", "GRU"]) -> "type[nn.Module]":
    """Return the class RecurrentClassifier of a cell (defined here so that reading a Config needs no torch)."""
    from torch import nn

    layers = {"LSTM": nn.LSTM, "GRU": nn.GRU}[cell]

    class RecurrentClassifier(nn.Module):
        """features [batch, context_length, channels] -> logits [batch, classes]."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            # torch warns of dropout with a single layer: there is nothing between layers to drop.
            dropout = config.dropout if config.layers > 1 else 0.0
            self.recurrent = layers(config.channels, config.hidden, config.layers, batch_first=True, dropout=dropout)
            self.head = nn.Linear(config.hidden, config.classes)

        def forward(self, features: "Tensor") -> "Tensor":
            states, _ = self.recurrent(features)  # [batch, context_length, hidden]
            return self.head(states[:, -1])  # type: ignore[no-any-return]  # [batch, classes]

    return RecurrentClassifier
