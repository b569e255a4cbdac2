"""Synthetic weather from a seed, with numpy only: hourly fields that a grid model can learn to step forward.

It stands for no atmosphere.  The fields f_t [channels, latitudes, longitudes] of unit variance follow, hour by hour,

    f_(t+1)(y, x) = C exp(d D) f_t(y, x - u) + noise

u shifts them along the longitudes, D is the Laplacian (over 4 pi^2) that damps what is small, and C, one orthogonal
matrix everywhere, mixes the channels.  What a model must learn is local and linear: a shift by a few grid points or a
part of one, a mixing and a slight smoothing.  The noise, 2.4 % of the variance, is what nobody can predict.

The fields are sums of modes, cos or sin(2 pi m x) sin(pi n y), m = 1..5 and n = 1..4, with x in 0..1 around a circle of
latitude and y in 0..1 from edge to edge: periodic in longitude, zero at both edges, so of one value at each pole.  In
modes the formula needs no grid, and has no error of discretisation: for a complex amplitude a [channels] of mode (m, n)

    a_(t+1) = r exp(-2 pi i m u) C a_t + s (1 - r^2)^(1/2) e_t,    r = exp(-d k), s^2 ~ 1/k, k = m^2 + (n/2)^2

so that every amplitude keeps its variance s^2.  The same hours come out on a grid of any size.  Values are rounded to
1/1024, which hides the last-bit differences between one CPU and another.

The amplitudes of all hours take 8 MB at 13 channels; fields are made when they are read, one batch at a time.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from tsexport.calibration.datasets import Batch, digest_of, index_batches, read_range
from tsexport.calibration.series import SplitName
from tsexport.types import Array

SEED = 2026
"""Fixed, since the seed draws the mixing of the channels too: a checkpoint is trained on one weather."""
HOURS = 2_000
ZONAL_WAVES = 5
MERIDIONAL_WAVES = 4
SHIFT = 1 / 40
"""u: the part of a circle of latitude that the fields move in an hour."""
DAMPING = 0.002
COUPLING = 0.3
STEPS_PER_UNIT = 1024


@dataclass(frozen=True)
class WeatherHours:
    """A dataset of one input, the fields of an hour [channels, latitudes, longitudes]; the target is the next hour's.

    The samples are those whose hour and next hour both lie in `first`..`stop` of `HOURS`, the hours of `split`.
    """

    input_name: str
    channels: int
    latitudes: int
    longitudes: int
    split: SplitName
    first: int
    stop: int

    @property
    def names(self) -> tuple[str, ...]:
        return (self.input_name,)

    @property
    def count(self) -> int:
        return self.stop - self.first - 1

    @property
    def has_target(self) -> bool:
        return True

    @cached_property
    def digest(self) -> str:
        # The amplitudes hold everything that fields are made of; rounded, as fields are.
        rounded = np.round(amplitudes(self.channels) * STEPS_PER_UNIT).view(np.float64).astype(np.int64)
        return digest_of({**asdict(self), "amplitudes": rounded.sum(axis=(1, 2)).tolist()})

    def ids(self, indices: Iterable[int]) -> tuple[str, ...]:
        """Name samples by split and hour: "test:001702"."""
        return tuple(f"{self.split}:{self.first + int(index):06d}" for index in indices)

    def read(self, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
        for part in index_batches(indices, batch_size, self.count):
            hours = self.first + part
            yield Batch({self.input_name: self._fields(hours)}, self._fields(hours + 1), self.ids(part))

    def batches(self, batch_size: int, *, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        return read_range(self, batch_size, start, stop)

    def _fields(self, hours: Array) -> NDArray[np.float32]:
        return fields(hours, self.channels, self.latitudes, self.longitudes)


def fields(hours: Array, channels: int, latitudes: int, longitudes: int) -> NDArray[np.float32]:
    """Return the fields of some hours, [hours, channels, latitudes, longitudes]."""
    chosen = amplitudes(channels)[hours]  # [hours, channels, modes]
    parts = np.concatenate((chosen.real, chosen.imag), axis=2)
    values = (parts.reshape(-1, parts.shape[2]) @ mode_fields(latitudes, longitudes)) * STEPS_PER_UNIT
    rounded = np.round(values).astype(np.float32) / np.float32(STEPS_PER_UNIT)
    return rounded.reshape(len(hours), channels, latitudes, longitudes)


@cache
def amplitudes(channels: int) -> NDArray[np.complex128]:
    """Return the amplitudes of all hours, [HOURS, channels, modes]."""
    mixing_numbers, numbers = (np.random.default_rng([SEED, part]) for part in range(2))
    zonal, meridional = modes()
    scale_squared = zonal**2 + (meridional / 2) ** 2
    spread = scale_squared**-0.5
    # Over the grid the mean square of a mode is half its amplitude's variance.
    spread *= np.sqrt(2 / np.square(spread).sum())
    kept = np.exp(-DAMPING * scale_squared)
    step = kept * np.exp(-2j * np.pi * SHIFT * zonal)
    mixing = mixing_matrix(mixing_numbers, channels)
    drawn = numbers.standard_normal((HOURS, 2, channels, len(zonal)))
    noise = spread * (drawn[:, 0] + 1j * drawn[:, 1])
    noise[1:] *= np.sqrt(1 - kept**2)
    result = noise.astype(np.complex128)
    for hour in range(1, HOURS):
        result[hour] += step * (mixing @ result[hour - 1])
    return result


def mixing_matrix(numbers: np.random.Generator, channels: int) -> NDArray[np.float64]:
    """Return C [channels, channels]: orthogonal, near the identity, by Cayley's formula from a random skew matrix."""
    drawn = COUPLING / np.sqrt(channels) * np.tril(numbers.standard_normal((channels, channels)), -1)
    half = (drawn - drawn.T) / 2
    return np.linalg.solve(np.eye(channels) - half, np.eye(channels) + half)


def modes() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return m and n of each mode."""
    zonal, meridional = np.mgrid[1 : ZONAL_WAVES + 1, 1 : MERIDIONAL_WAVES + 1]
    return zonal.ravel(), meridional.ravel()


@cache
def mode_fields(latitudes: int, longitudes: int) -> NDArray[np.float64]:
    """Return what the real and then the imaginary parts of all amplitudes multiply, [2 modes, grid points]."""
    zonal, meridional = modes()
    around = 2 * np.pi * zonal[:, None] * np.arange(longitudes) / longitudes
    across = np.sin(np.pi * meridional[:, None] * (np.arange(latitudes) + 0.5) / latitudes)
    both = [across[:, :, None] * wave[:, None, :] for wave in (np.cos(around), -np.sin(around))]
    return np.concatenate(both).reshape(2 * len(zonal), latitudes * longitudes)
