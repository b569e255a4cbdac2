"""Labelled market rows in the shapes that families of models take, by split, as (X, y, sample weights).

    tabular            X [n, features]                            row i answers for row i
    sequence           X [n, seq_len, features]                   rows i - seq_len .. i - 1 answer for row i
    multi-resolution   X {timeframe: [n, steps, 5]}               the minutes before row i, as OHLCV bars of each length
    stack              X [n, timeframes, max_steps, 5]            the same in one array, padded with zeros in front

y and weights are [n, ...] and [n]; `rows` says which row each sample answers for.  No sample sees its own row or later
ones in the last three, and none reaches out of its split: a sequence's n is the split's rows less `seq_len`.

Multi-resolution: the last `minutes` one-minute bars are grouped back from the newest, so that every bar is whole and
none is still open: with 15 minutes, 15 bars of 1min, 3 of 5min and 1 of 15min.  Open is the first's, high the highest,
low the lowest, close the last's, volume the sum.  Samples whose minutes have a gap are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tsexport.calibration.series import SplitName, Splits
from tsexport.calibration.synthetic import Bars
from tsexport.errors import ConfigurationError, DataError, did_you_mean
from tsexport.types import Array

TIMEFRAMES: Mapping[str, int] = {"1min": 1, "5min": 5, "15min": 15, "30min": 30, "1h": 60}
"""Minutes of each timeframe."""
DEFAULT_TIMEFRAMES = ("1min", "5min", "15min")
DEFAULT_MINUTES = 15
OHLCV = ("open", "high", "low", "close", "volume")

X = TypeVar("X", Array, Mapping[str, Array])


@dataclass(frozen=True)
class Samples(Generic[X]):
    """What a split hands out: inputs, labels [n, ...], weights [n], and the rows [n] that they answer for."""

    x: X
    y: Array
    weights: NDArray[np.float64]
    rows: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """Features [rows, F] with a label [rows, ...] and a weight [rows] for each row, oldest first, cut into splits.

    Raises:
        DataError: no rows, features of another rank, other numbers of labels or weights, or weights that are negative
            or not finite.
    """

    features: Array
    labels: Array
    weights: NDArray[np.float64]
    splits: Splits

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or not len(self.features):
            raise DataError(
                f"features have shape {list(self.features.shape)}; expected [rows, features], 1 row or more"
            )
        _require_labels(len(self.features), self.labels, self.weights)

    def tabular(self, split: SplitName) -> Samples[Array]:
        """Return the rows of a split as they are.

        Raises:
            ConfigurationError: the split is not configured.
            DataError: it has no rows.
        """
        begin, end = _rows_of(self.splits, split, len(self.features), needed=1, what="tabular samples")
        return _samples(self.features[begin:end], self.labels, self.weights, np.arange(begin, end))

    def sequence(self, split: SplitName, seq_len: int) -> Samples[Array]:
        """Return for each row of a split, from its `seq_len`-th on, the `seq_len` rows before it.

        Raises:
            ConfigurationError: `seq_len` below 1, or the split is not configured.
            DataError: the split has too few rows for one sample.
        """
        if seq_len < 1:
            raise ConfigurationError(f"seq_len is {seq_len}; it must be 1 or more")
        what = f"a sequence of seq_len {seq_len} and the row behind it"
        begin, end = _rows_of(self.splits, split, len(self.features), needed=seq_len + 1, what=what)
        rows = np.arange(begin + seq_len, end)
        return _samples(self.features[_before(rows, seq_len)], self.labels, self.weights, rows)


@dataclass(frozen=True, eq=False)
class LabelledMinutes:
    """One-minute bars with a label [rows, ...] and a weight [rows] for each, oldest first, cut into splits.

    Raises:
        DataError: no bars, other numbers of labels or weights, weights that are negative or not finite, or bars whose
            time does not rise by at least a minute from one to the next.
    """

    bars: Bars
    labels: Array
    weights: NDArray[np.float64]
    splits: Splits

    def __post_init__(self) -> None:
        if not len(self.bars):
            raise DataError("there are no bars")
        _require_labels(len(self.bars), self.labels, self.weights)
        close = np.diff(self.bars.time) < np.timedelta64(1, "m")
        if close.any():
            row = int(np.argmax(close)) + 1
            raise DataError(
                f"bar {row} (the first is 0) is at {self.bars.time[row]} and the one before it at "
                f"{self.bars.time[row - 1]}; one-minute bars are needed, in order",
                next_step="Sort the bars, one instrument at a time, and resample what is finer than a minute.",
            )

    def multi_resolution(
        self, split: SplitName, timeframes: Sequence[str] = DEFAULT_TIMEFRAMES, minutes: int = DEFAULT_MINUTES
    ) -> Samples[Mapping[str, Array]]:
        """Return for each row of a split, as far as the `minutes` before it have no gap, those minutes by timeframe.

        Raises:
            ConfigurationError: an unknown timeframe, none or one twice, or one that does not divide `minutes`; or the
                split is not configured.
            DataError: the split has too few rows for one sample, or none without a gap.
        """
        _check_timeframes(timeframes, minutes)
        what = f"{minutes} minutes and the row behind them"
        begin, end = _rows_of(self.splits, split, len(self.bars), needed=minutes + 1, what=what)
        rows = np.arange(begin + minutes, end)
        rows = rows[self.bars.time[rows] - self.bars.time[rows - minutes] == np.timedelta64(minutes, "m")]
        if not len(rows):
            raise DataError(
                f"no row of the split {split!r} has {minutes} minutes without a gap before it",
                next_step="Fill the gaps, or ask for fewer minutes.",
            )
        windows = np.stack([getattr(self.bars, name) for name in OHLCV], axis=1)[_before(rows, minutes)]
        x = {name: resampled(windows, TIMEFRAMES[name]) for name in timeframes}
        return _samples(x, self.labels, self.weights, rows)

    def stack(
        self, split: SplitName, timeframes: Sequence[str] = DEFAULT_TIMEFRAMES, minutes: int = DEFAULT_MINUTES
    ) -> Samples[Array]:
        """Return what `multi_resolution` does as one array [n, timeframes, max_steps, 5] (see `stacked`)."""
        samples = self.multi_resolution(split, timeframes, minutes)
        return Samples(stacked(samples.x), samples.y, samples.weights, samples.rows)


def resampled(windows: Array, minutes: int) -> Array:
    """Return OHLCV windows [n, steps, 5] as bars of `minutes` steps each, [n, steps / minutes, 5].

    Raises:
        DataError: another shape, or steps that `minutes` does not divide.
    """
    if windows.ndim != 3 or windows.shape[2] != len(OHLCV) or minutes < 1 or windows.shape[1] % minutes:
        raise DataError(
            f"windows of shape {list(windows.shape)} cannot become bars of {minutes} steps; expected [n, steps, 5], "
            f"steps a multiple of it"
        )
    groups = windows.reshape(len(windows), -1, minutes, len(OHLCV))
    columns = (
        groups[:, :, 0, 0],
        groups[:, :, :, 1].max(axis=2),
        groups[:, :, :, 2].min(axis=2),
        groups[:, :, -1, 3],
        groups[:, :, :, 4].sum(axis=2),
    )
    return np.stack(columns, axis=-1)


def stacked(by_timeframe: Mapping[str, Array]) -> Array:
    """Return [n, timeframes, max_steps, features]: each timeframe's steps at the end, zeros in front of them.

    Raises:
        DataError: nothing, or timeframes with other numbers of samples or features.
    """
    shapes = {(array.shape[0], array.shape[2]) for array in by_timeframe.values()}
    if len(shapes) != 1:
        given = ", ".join(f"{name} {list(array.shape)}" for name, array in by_timeframe.items()) or "nothing"
        raise DataError(f"timeframes of one number of samples and features can be stacked; given: {given}")
    most = max(array.shape[1] for array in by_timeframe.values())
    padded = [np.pad(array, ((0, 0), (most - array.shape[1], 0), (0, 0))) for array in by_timeframe.values()]
    return np.stack(padded, axis=1)


def _require_labels(rows: int, labels: Array, weights: NDArray[np.float64]) -> None:
    if labels.shape[:1] != (rows,) or weights.shape != (rows,):
        raise DataError(
            f"there are {rows} rows, labels of shape {list(labels.shape)} and weights of shape {list(weights.shape)}",
            next_step="Give one label and one weight for each row; numpy.ones(rows) weighs all alike.",
        )
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise DataError("sample weights must be finite numbers, 0 or more")


def _rows_of(splits: Splits, split: SplitName, rows: int, *, needed: int, what: str) -> tuple[int, int]:
    if split not in splits.given:
        raise ConfigurationError(
            f"the split {split!r} is not configured; split names {', '.join(splits.given)}",
            next_step=f"Add {split} to the splits.",
        )
    begin, end = splits.rows(split, rows)
    end = min(end, rows)
    if end - begin < needed:
        raise DataError(
            f"the split {split!r} has {max(end - begin, 0)} rows, and {what} take {needed}",
            next_step="Give more rows, a larger split, or a shorter past.",
        )
    return begin, end


def _before(rows: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """Return the `count` rows before each of `rows`, [n, count], oldest first."""
    return rows[:, None] + np.arange(-count, 0)


def _samples(x: X, labels: Array, weights: NDArray[np.float64], rows: NDArray[np.intp]) -> Samples[X]:
    return Samples(x, labels[rows], weights[rows], rows)


def _check_timeframes(timeframes: Sequence[str], minutes: int) -> None:
    if not timeframes or len(set(timeframes)) < len(timeframes):
        raise ConfigurationError(f"timeframes are {list(timeframes)}; name one or more, each once")
    for name in timeframes:
        if name not in TIMEFRAMES:
            raise ConfigurationError(
                f"there is no timeframe {name!r}{did_you_mean(name, TIMEFRAMES)}; there are {', '.join(TIMEFRAMES)}"
            )
        if minutes < 1 or minutes % TIMEFRAMES[name]:
            raise ConfigurationError(
                f"{minutes} minutes are no whole number of bars of {name}",
                next_step=f"Choose minutes as a multiple of {TIMEFRAMES[name]}, or leave {name} out.",
            )
