"""Observers: from what was seen of a tensor to the range that 8 bits cover, and to scale and zero point.

With counts c(x) of bins at x (see `calibration.histograms`), N values in all and q_r the rounding of range r to 8 bits:

- min-max: all that was seen.
- percentile p: of N values the share p stays within; each end gives way by (1 - p) / 2, a symmetric range by 1 - p of
  |x|.  An end is the outer edge of the bin that the value of that rank lies in, so at most one bin further out.
- mse: the range r with the least sum of c(x) (x - q_r(x))^2 among ranges that shrink towards 0.  Both ends shrink by
  one factor first, then each by its own, twice around; factors are 2^(-i/6) down to 1/256, refined by 16 steps between
  the neighbours of the best.
- entropy: the threshold T on |x| with the least Kullback-Leibler divergence of P from Q, where P are the counts below T
  with all beyond T added to the last bin, and Q the counts below T summed in 128 groups (256 where an affine range lies
  on one side of 0), each spread evenly over its bins that hold anything.  Values in the bin of 0 are not weighed by
  their number but by that of the next bin: a zero is exact under every T.  Method: S. Migacz, "8-bit inference with
  TensorRT", GTC 2017.

S8 symmetric is scale = amax / 127 and zero point 0; U8 symmetric is the same with zero point 128; affine is scale =
(high - low) / 255 with low <= 0 <= high, and the zero point that 0 falls on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tsexport.calibration.histograms import Counts
from tsexport.calibration.table import Observer
from tsexport.types import Array

Integer = Literal["s8", "u8"]
Errors = Callable[[Array | float, Array | float], Array]
"""From lows and highs of ranges to the error of each."""
ENTROPY_LEVELS = 128
ENTROPY_STEP = 8
"""Thresholds are tried at every eighth bin, at most 512 of them."""
_COARSE = 2.0 ** (-np.arange(49) / 6)
_REFINED = np.linspace(0, 1, 16)
_LEAST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Quantization:
    """value = scale (q - zero_point); `scale` is a float32 above 0."""

    scale: float
    zero_point: int


def quantization_of(low: float, high: float, integer: Integer, *, symmetric: bool) -> Quantization:
    """Return scale and zero point of a range; 0 is always representable exactly.

    A range of nothing but 0 gets the scale 1.
    """
    if symmetric:
        amax = max(abs(low), abs(high))
        return Quantization(_scale(amax / 127), 0 if integer == "s8" else 128)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = _scale(high / 255 - low / 255)
    least = 0 if integer == "u8" else -128
    return Quantization(scale, least + int(np.clip(np.rint(-low / scale), 0, 255)))


def _scale(exact: float) -> float:
    """Return the scale as float32 holds it, a normal number."""
    return float(np.float32(max(exact, _LEAST_SCALE))) if exact > 0 else 1.0


def range_of(seen: Counts, observer: Observer) -> tuple[float, float]:
    """Return (low, high) of one channel, low <= high; (-amax, amax) where the observer is symmetric."""
    if observer.method == "minmax":
        low, high = seen.minimum, seen.maximum
    elif observer.method == "percentile":
        low, high = _percentile(seen, (observer.percentile or 100.0) / 100, observer.symmetric)
    elif observer.method == "mse":
        low, high = _least_squares(seen, observer.symmetric)
    else:
        low, high = _entropy(seen, observer.symmetric)
    if observer.symmetric:
        amax = max(abs(low), abs(high))
        return 0.0 - amax, amax
    return low, high


def _within(seen: Counts, low: float, high: float) -> tuple[float, float]:
    """Return a range that reaches no further than what was seen."""
    return max(low, seen.minimum), min(high, seen.maximum)


def _percentile(seen: Counts, share: float, symmetric: bool) -> tuple[float, float]:
    total = int(seen.counts.sum())
    if symmetric:
        magnitudes = seen.magnitudes
        amax = (_bin_of_rank(magnitudes.counts, share * total) + 1) * magnitudes.width
        return _within(seen, -amax, amax)
    cut = (1 - share) / 2
    low = (seen.first + _bin_of_rank(seen.counts, cut * total)) * seen.width
    high = (seen.first + _bin_of_rank(seen.counts, (1 - cut) * total) + 1) * seen.width
    return _within(seen, low, high)


def _bin_of_rank(counts: Array, rank: float) -> int:
    """Return the bin that holds the value of a rank; ranks between two values count as the upper one."""
    return int(np.searchsorted(np.cumsum(counts), max(1.0, float(np.ceil(rank * (1 - 1e-12))))))


def _least_squares(seen: Counts, symmetric: bool) -> tuple[float, float]:
    filled = np.flatnonzero(seen.counts)
    values, counts = seen.centers[filled], seen.counts[filled].astype(np.float64)
    low, high = min(seen.minimum, 0.0), max(seen.maximum, 0.0)
    if low == high:
        return seen.minimum, seen.maximum

    def error(lows: Array | float, highs: Array | float) -> Array:
        ends = np.broadcast_arrays(lows, highs)
        return squared_error(values, counts, *ends, symmetric=symmetric)

    if symmetric:
        amax = max(-low, high)
        best = _best_factor(lambda factors: error(-factors * amax, factors * amax))
        return _within(seen, -best * amax, best * amax)
    both = _best_factor(lambda factors: error(factors * low, factors * high))
    found_low, found_high = both * low, both * high
    for _ in range(2 if low < 0 < high else 0):
        found_high = high * _best_factor(_error_of_high(error, found_low, high))
        found_low = low * _best_factor(_error_of_low(error, low, found_high))
    return _within(seen, found_low, found_high)


def _error_of_high(error: Errors, low: float, high: float) -> Callable[[Array], Array]:
    return lambda factors: error(low, factors * high)


def _error_of_low(error: Errors, low: float, high: float) -> Callable[[Array], Array]:
    return lambda factors: error(factors * low, high)


def _best_factor(error: Callable[[Array], Array]) -> float:
    """Return the factor in (0, 1] with the least error; the largest where several have it."""
    coarse = int(np.argmin(error(_COARSE)))
    upper, lower = _COARSE[max(0, coarse - 1)], _COARSE[min(len(_COARSE) - 1, coarse + 1)]
    fine = np.concatenate([[_COARSE[coarse]], upper + (lower - upper) * _REFINED])
    errors = error(fine)
    return float(fine[errors == errors.min()].max())


def squared_error(values: Array, counts: Array, lows: Array, highs: Array, *, symmetric: bool) -> Array:
    """Return, for each range (lows[i], highs[i]), the sum of counts (x - q(x))^2 over values x; all in float64."""
    if symmetric:
        scales, points, least, most = highs / 127, np.zeros_like(highs), -127, 127
    else:
        scales = (highs - lows) / 255
        points, least, most = np.rint(-lows / scales), 0, 255
    scales, points = scales[:, None], points[:, None]
    rounded = (np.clip(np.rint(values / scales) + points, least, most) - points) * scales
    return np.asarray(np.square(values - rounded) @ counts)


def _entropy(seen: Counts, symmetric: bool) -> tuple[float, float]:
    one_sided = not symmetric and (seen.minimum >= 0 or seen.maximum <= 0)
    magnitudes = seen.magnitudes
    bins = entropy_bins(magnitudes.counts, 2 * ENTROPY_LEVELS if one_sided else ENTROPY_LEVELS)
    threshold = bins * magnitudes.width
    return _within(seen, -threshold, threshold)


def entropy_bins(magnitudes: Array, levels: int) -> int:
    """Return after how many bins of |x| the threshold with the least divergence lies: all of them where there are no
    more bins than levels."""
    counts = magnitudes.astype(np.float64)
    if len(counts) <= levels:
        return len(counts)
    counts[0] = counts[1]
    beyond = counts.sum() - np.cumsum(counts)
    tried = [*range(levels, len(counts), ENTROPY_STEP), len(counts)]
    divergences = [_divergence(counts[:bins], beyond[bins - 1], levels) for bins in tried]
    return int(tried[int(np.argmin(divergences))])


def _divergence(kept: Array, beyond: float, levels: int) -> float:
    """Return the Kullback-Leibler divergence of clipped counts from what 8 bits keep of them; infinite where that is
    nothing."""
    clipped = kept.copy()
    clipped[-1] += beyond
    filled = clipped > 0
    group = np.arange(len(kept)) * levels // len(kept)
    totals = np.bincount(group, weights=kept, minlength=levels)
    sharing = np.bincount(group, weights=filled, minlength=levels)
    spread = (totals / np.maximum(sharing, 1))[group][filled]
    exact = clipped[filled]
    if not len(exact) or (spread <= 0).any():
        return float("inf")
    exact, spread = exact / exact.sum(), spread / spread.sum()
    return float(np.sum(exact * np.log(exact / spread)))
