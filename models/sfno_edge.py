"""sfno-edge: sfno-hybrid for edge devices, the documents' "Lightweight Edge Model".

The documents name it without a definition; the sizes are ours: 32/64/128 channels, 16 modes, one spectral block a
level, 4 transformer layers.  `size=test` is for tests: a grid of 64x64, 16/32/64 channels, 8 modes, 2 layers.  The
network, its source and its limits stand in `tsexport.models.sfno`.
"""

from dataclasses import dataclass
from typing import ClassVar

from tsexport.models import sfno
from tsexport.models.definition import Sizes
from tsexport.models.sfno import NARROWING, build

__all__ = ["NARROWING", "Config", "build"]


@dataclass(frozen=True)
class Config(sfno.Config):
    """As `tsexport.models.sfno.Config`, with the sizes of the small model."""

    SIZES: ClassVar[Sizes] = {
        "test": {
            **{"latitudes": 64, "longitudes": 64, "widths": (16, 32, 64), "modes": 8},
            **{"layers": 2, "feed_forward": 256},
        },
    }

    widths: tuple[int, ...] = (32, 64, 128)
    modes: int = 16
    blocks: int = 1
    layers: int = 4
    feed_forward: int = 512
