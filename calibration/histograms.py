"""Histograms of streams: one pass, a fixed number of bins, and the same result however the stream is cut.

The bins lie on a dyadic grid: bin i of width w = 2^k holds the values in [i w, (i + 1) w), so 0 is always an edge.
k is the smallest exponent with which floor(max / w) - floor(min / w) + 1 bins are at most `bins`.  Where the range
grows, k grows, and bin i goes into bin floor(i / 2^d), exactly.  So counts and k depend on the values alone, not on
their order: merging the histograms of two parts gives the histogram of the whole, bit by bit.  About half of the bins
or more are in use for any range.  Memory is channels x bins counts of 8 bytes.

Limits: k is at least the exponent of the largest magnitude less 40 (a range far from 0 is no finer than that), and at
least -150, below float32's smallest number, where 0 alone is.
"""

from dataclasses import dataclass

import numpy as np

from tsexport.errors import DataError
from tsexport.types import Array

BINS = 4096
"""For one range a tensor: at least 8 bins for each step of 8 bits."""
BINS_PER_CHANNEL = 1024
_FINEST = -150
_BELOW_MAGNITUDE = 40
_BLOCK_VALUES = 2**20
"""Values are counted so many at once: the temporary arrays are of 8 bytes a value."""


@dataclass(frozen=True)
class Counts:
    """The histogram of one channel: `counts[i]` values lie in [(first + i) width, (first + i + 1) width).

    `minimum` and `maximum` are exact.
    """

    minimum: float
    maximum: float
    width: float
    first: int
    counts: Array

    @property
    def centers(self) -> Array:
        """The middle of each bin; no further out than what was seen."""
        middles = (self.first + np.arange(len(self.counts)) + 0.5) * self.width
        return np.asarray(np.clip(middles, self.minimum, self.maximum))

    @property
    def magnitudes(self) -> "Magnitudes":
        """The histogram of |x| from 0 on, at most `BINS` bins: where the range lies far from 0 they are wider.

        Of the bins below 0, [-(i + 1) width, -i width) goes into bin i: values on an edge count to the bin inside.
        """
        at = self.first + np.arange(len(self.counts))
        absolute = np.where(at >= 0, at, -1 - at)
        coarser = max(0, (int(absolute.max()) // BINS).bit_length())
        counts = np.bincount(absolute >> coarser, weights=self.counts).astype(np.int64)
        return Magnitudes(self.width * 2.0**coarser, counts)


@dataclass(frozen=True)
class Magnitudes:
    """`counts[i]` values have a magnitude in [i width, (i + 1) width)."""

    width: float
    counts: Array


class Histograms:
    """The histograms of one tensor, one for each channel along an axis, or one alone.

    Args:
        name: of the tensor, for messages.
        axis: counted from 1 (0 is the batch), or None for one histogram.
        bins: of each histogram.
    """

    def __init__(self, name: str, axis: int | None = None, bins: int | None = None) -> None:
        self.name, self.axis = name, axis
        self.bins = bins or (BINS if axis is None else BINS_PER_CHANNEL)
        self._values = 0
        self._minimum: Array = np.empty(0)
        self._maximum: Array = np.empty(0)
        self._exponent: Array = np.empty(0, np.int64)
        self._first: Array = np.empty(0, np.int64)
        self._counts: Array = np.empty((0, self.bins), np.int64)

    @property
    def channels(self) -> tuple[Counts, ...]:
        """What was counted so far.

        Raises:
            DataError: nothing was.
        """
        if not self._values:
            raise DataError(f"the tensor {self.name!r} held no values in the calibration windows")
        last = np.floor(np.ldexp(self._maximum, -self._exponent)).astype(np.int64)
        return tuple(
            Counts(
                float(self._minimum[c]),
                float(self._maximum[c]),
                float(np.ldexp(1.0, self._exponent[c])),
                int(self._first[c]),
                self._counts[c, : int(last[c] - self._first[c]) + 1].copy(),
            )
            for c in range(len(self._first))
        )

    def update(self, tensor: Array) -> None:
        """Add the values of a tensor, [batch, ...]; an empty one changes nothing.

        Raises:
            DataError: NaN or infinity, no floating-point numbers, no such axis, or another number of channels.
        """
        rows = by_channel(self.name, tensor, self.axis)
        if not rows.size:
            return
        minimum, maximum = extremes(self.name, rows)
        self._cover(minimum, maximum)
        step = max(1, _BLOCK_VALUES // len(rows))
        offsets = np.arange(len(rows), dtype=np.int64)[:, None] * self.bins - self._first[:, None]
        for start in range(0, rows.shape[1], step):
            scaled = rows[:, start : start + step] * np.ldexp(1.0, -self._exponent)[:, None]
            at = np.floor(scaled, out=scaled).astype(np.int64) + offsets
            self._counts += np.bincount(at.ravel(), minlength=self._counts.size).reshape(self._counts.shape)
        self._values += rows.size

    def merge(self, other: "Histograms") -> None:
        """Add what another histogram of the same tensor, axis and bins counted."""
        if (other.name, other.axis, other.bins) != (self.name, self.axis, self.bins):
            raise ValueError(f"histograms of {self.name!r} and {other.name!r} count differently")
        if not other._values:
            return
        self._cover(other._minimum, other._maximum)
        moved = _regrouped(other._counts, other._first, other._exponent, self._first, self._exponent)
        self._counts += moved
        self._values += other._values

    def _cover(self, minimum: Array, maximum: Array) -> None:
        """Widen the range to hold new extremes, one a channel."""
        if not self._values:
            self._counts = np.zeros((len(minimum), self.bins), np.int64)
            self._minimum, self._maximum = minimum, maximum
            self._exponent = _exponents(minimum, maximum, self.bins)
            self._first = np.floor(np.ldexp(minimum, -self._exponent)).astype(np.int64)
            return
        if len(minimum) != len(self._minimum):
            raise DataError(
                f"the tensor {self.name!r} had {len(self._minimum)} channels on axis {self.axis}, and has "
                f"{len(minimum)} now; ranges per channel need a fixed number",
                next_step="observe it per tensor, or along another axis",
            )
        self._minimum, self._maximum = np.minimum(self._minimum, minimum), np.maximum(self._maximum, maximum)
        exponent = _exponents(self._minimum, self._maximum, self.bins)
        first = np.floor(np.ldexp(self._minimum, -exponent)).astype(np.int64)
        if (exponent != self._exponent).any() or (first != self._first).any():
            self._counts = _regrouped(self._counts, self._first, self._exponent, first, exponent)
            self._exponent, self._first = exponent, first


def by_channel(name: str, tensor: Array, axis: int | None) -> Array:
    """Return a tensor's values as [channels, values], [1, values] without an axis.

    Raises:
        DataError: it holds no floating-point numbers, or has no such axis.
    """
    if tensor.dtype.kind != "f":
        raise DataError(
            f"the tensor {name!r} holds {tensor.dtype}; ranges are taken of floating-point tensors",
            next_step="leave it out of the tensors that are observed",
        )
    if axis is None:
        return np.asarray(tensor.reshape(1, -1))
    if axis >= tensor.ndim:
        raise DataError(
            f"the tensor {name!r} has the shape {list(tensor.shape)}, and the observer's axis is {axis}",
            next_step=f"allowed are axes from 1 to {tensor.ndim - 1}" if tensor.ndim > 1 else "observe it per tensor",
        )
    return np.asarray(np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1))


def extremes(name: str, rows: Array) -> tuple[Array, Array]:
    """Return minimum and maximum of each row as float64; -0 is 0.

    Raises:
        DataError: NaN or infinity.
    """
    minimum, maximum = rows.min(axis=1).astype(np.float64) + 0.0, rows.max(axis=1).astype(np.float64) + 0.0
    if not (np.isfinite(minimum).all() and np.isfinite(maximum).all()):
        bad = rows.size - int(np.isfinite(rows).sum())
        raise DataError(
            f"the tensor {name!r} held NaN or infinity in {bad} of {rows.size} values while it was calibrated; it has "
            f"no range",
            next_step="look for gaps and overflows in the calibration windows, or leave the layer in floating point",
        )
    return minimum, maximum


def _exponents(minimum: Array, maximum: Array, bins: int) -> Array:
    """Return, for each channel, the smallest k whose grid of 2^k holds the range in `bins` bins."""
    _, magnitude = np.frexp(np.maximum(np.abs(minimum), np.abs(maximum)))
    _, span = np.frexp(maximum / bins - minimum / bins)
    zero = (minimum == 0) & (maximum == 0)
    k = np.maximum(np.where(maximum > minimum, span - 1, _FINEST), magnitude - _BELOW_MAGNITUDE)
    k = np.maximum(np.where(zero, _FINEST, k), _FINEST).astype(np.int64)
    while True:
        last, first = np.floor(np.ldexp(maximum, -k)), np.floor(np.ldexp(minimum, -k))
        wide = last - first + 1 > bins
        if not wide.any():
            return np.asarray(k)
        k = k + wide


def _regrouped(counts: Array, first: Array, exponent: Array, new_first: Array, new_exponent: Array) -> Array:
    """Return counts on a coarser grid, or on the same one from another first bin on."""
    channels, bins = counts.shape
    at = (first[:, None] + np.arange(bins)) >> (new_exponent - exponent)[:, None]
    position = at - new_first[:, None] + np.arange(channels, dtype=np.int64)[:, None] * bins
    filled = counts > 0
    moved = np.zeros(counts.size, np.int64)
    np.add.at(moved, position[filled], counts[filled])
    return np.asarray(moved.reshape(counts.shape))
