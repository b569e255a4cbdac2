"""lstm: 3 classes from 60 bars of 26 features, by stacked LSTM layers (see `tsexport.models.recurrent`).

A layer has 4 (hidden (inputs + hidden) + 2 hidden) parameters, inputs being the features or the layer below's width.

Source: Hochreiter and Schmidhuber 1997, "Long Short-Term Memory", in torch's form (two bias vectors a layer, no
peepholes).
"""

from typing import TYPE_CHECKING

from tsexport.models.recurrent import Config, network

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Config", "build"]


def build(config: Config) -> "nn.Module":
    """Return the model with freshly initialised weights, in training mode."""
    return network("LSTM")(config)
