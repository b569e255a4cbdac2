"""gru: 3 classes from 60 bars of 26 features, by stacked GRU layers (see `tsexport.models.recurrent`).

A layer has 3 (hidden (inputs + hidden) + 2 hidden) parameters, inputs being the features or the layer below's width.

Source: Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder", in torch's form (two bias vectors
a layer, and the reset gate acts behind the recurrent product).
"""

from typing import TYPE_CHECKING

from tsexport.models.recurrent import Config, network

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Config", "build"]


def build(config: Config) -> "nn.Module":
    """Return the model with freshly initialised weights, in training mode."""
    return network("GRU")(config)
