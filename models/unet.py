"""unet: the next hour's weather from this hour's, 13 channels on a regional grid of 64x64, by 2-D convolutions.

Each level is two 3x3 convolutions with BatchNorm and ReLU.  Going down, the maximum over 2x2 points halves the grid;
going up, a transposed 2x2 convolution of stride 2 doubles it and halves the channels, and the level of the same grid on
the way down is joined to it.  A 1x1 convolution gives the field.

Source: Ronneberger et al. 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation", with the grid's size
kept by zero padding, three levels, and BatchNorm.  The sizes are ours: the documents name a U-Net without defining one,
and this is the convolutional case of the weather models, without spectral layers.

Channels in order: temperature, dew point, U wind, V wind, sea-level pressure, precipitation, solar radiation, thermal
radiation, cloud cover, Z500, T850, RH700, W500; each standardised.  The grid is flat: its edges see zeros beyond them.
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
    """Sizes; `widths` are the channels of the levels, finest first.  Each level but the last halves the grid."""

    channels: int = 13
    latitudes: int = 64
    longitudes: int = 64
    widths: tuple[int, ...] = (32, 64, 128)

    def __post_init__(self) -> None:
        require_positive(self, "channels", "latitudes", "longitudes", "widths")
        parts = 2 ** (len(self.widths) - 1)
        for name in ("latitudes", "longitudes"):
            if getattr(self, name) % parts:
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)}; {len(self.widths)} levels halve it {len(self.widths) - 1} times",
                    next_step=f"Choose a multiple of {parts}, or fewer widths.",
                )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("state", "float32", (BATCH, self.channels, self.latitudes, self.longitudes)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("field", "float32", (BATCH, self.channels, self.latitudes, self.longitudes)),)


@cache
def network() -> "type[nn.Module]":
    """Return the class UNet (defined here so that reading a Config needs no torch)."""
    import torch
    from torch import nn

    def level(inputs: int, outputs: int) -> nn.Sequential:
        """[batch, inputs, latitudes, longitudes] -> [batch, outputs, latitudes, longitudes]."""
        return nn.Sequential(
            *(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()),
            *(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()),
        )

    class UNet(nn.Module):
        """state [batch, channels, latitudes, longitudes] -> field [batch, channels, latitudes, longitudes]."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            widths = config.widths
            finer, coarser = widths[:-1], widths[1:]
            self.down = nn.ModuleList(level(a, b) for a, b in zip((config.channels, *finer), widths, strict=True))
            self.pool = nn.MaxPool2d(2)
            pairs = tuple(reversed(tuple(zip(finer, coarser, strict=True))))
            self.rise = nn.ModuleList(nn.ConvTranspose2d(wide, slim, 2, stride=2) for slim, wide in pairs)
            self.up = nn.ModuleList(level(2 * slim, slim) for slim, _ in pairs)
            self.head = nn.Conv2d(widths[0], config.channels, 1)

        def forward(self, state: "Tensor") -> "Tensor":
            field = self.down[0](state)  # [batch, widths[0], latitudes, longitudes]
            skips = []
            for down in self.down[1:]:
                skips.append(field)
                field = down(self.pool(field))  # half the grid
            for rise, up in zip(self.rise, self.up, strict=True):
                field = up(torch.cat([skips.pop(), rise(field)], dim=1))  # twice the grid
            return self.head(field)  # type: ignore[no-any-return]

    return UNet


def build(config: Config) -> "nn.Module":
    """Return the model with freshly initialised weights, in training mode."""
    return network()(config)
