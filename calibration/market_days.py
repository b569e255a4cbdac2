"""Trading days as `migt-tvdt` takes them: padded to one length, with a mask of what is valid and a calendar.

    bars      [days, 288, features] float32   a day's rows first, zeros behind them
    valid     [days, 288] bool                True where a bar is, False where it is padding
    calendar  [days, 288, 4] int64            minute of the day 0..1439, weekday 0..6 (Monday is 0), day of the month
                                              1..31, day of the year 1..366; zeros in padding

Bars stand next to each other also where the market paused: the calendar says when each one was.

Reference days (`reference_days`): the bars of `market_ohlcv`, one every 5 minutes.  A sample is a day up to some bar of
it, all of it every third time; the target is `target_variable` so many bars behind the last seen as `horizons` says.
They stand for nobody's market, and the model that answers them is untrained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tsexport.calibration.arrays import ArrayDataset
from tsexport.calibration.calendars import calendar_numbers
from tsexport.calibration.migt_features import MIGT_FEATURES, migt_feature_names, migt_features
from tsexport.calibration.series import SPLITS, SeriesConfig, SplitName
from tsexport.calibration.synthetic import MINUTES_PER_DAY, market_ohlcv
from tsexport.errors import DataError
from tsexport.types import Array

BARS_PER_DAY = 288
"""A day of 24 hours in bars of 5 minutes."""
CALENDAR = ("minute_of_day", "weekday", "day_of_month", "day_of_year")

SAMPLES_PER_SPLIT = 64
"""One sample through the default size takes seconds on one core."""
WARM_UP_DAYS = 6
"""Days before the first sample, so that the longest history of an indicator (5 earlier days) is there."""
REFERENCE_SOURCE = "the reference market days"


@dataclass(frozen=True)
class MarketDays:
    """Padded days, oldest first; see the module for shapes."""

    bars: NDArray[np.float32]
    valid: NDArray[np.bool_]
    calendar: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.valid)


def calendar_of(time: NDArray[np.datetime64]) -> NDArray[np.int64]:
    """Return the calendar [rows, 4] of times, in the order of CALENDAR."""
    given = calendar_numbers(time)
    return np.stack((given.minute_of_day, given.weekday, given.day_of_month + 1, given.day_of_year + 1), axis=-1)


def market_days(features: Array, time: NDArray[np.datetime64], bars_per_day: int = BARS_PER_DAY) -> MarketDays:
    """Cut rows [rows, features], oldest first, at midnight into days, and pad each to `bars_per_day`.

    Raises:
        DataError: no rows, another number of times than of rows, time that goes backwards, or a day of more bars.
    """
    if not len(features) or len(features) != len(time):
        raise DataError(
            f"there are {len(features)} rows of features and {len(time)} times; expected as many, 1 or more"
        )
    if (np.diff(time) < np.timedelta64(0, "m")).any():
        row = int(np.argmax(np.diff(time) < np.timedelta64(0, "m"))) + 1
        raise DataError(f"time goes backwards at row {row} (the first is 0)", next_step="Sort the rows by time.")
    dates = time.astype("datetime64[D]")
    names, first, counts = np.unique(dates, return_index=True, return_counts=True)
    if counts.max() > bars_per_day:
        raise DataError(
            f"{names[np.argmax(counts)]} has {counts.max()} bars, and a day holds {bars_per_day}",
            next_step="Resample to longer bars: 288 a day are bars of 5 minutes.",
        )
    return _padded(features, calendar_of(time), first, counts, bars_per_day)


def has_reference_days(config: Mapping[str, Any]) -> bool:
    """Return whether `reference_days` can serve a configuration of `migt-tvdt`."""
    return bool(config["context_length"] <= BARS_PER_DAY and config["n_variables"] <= len(MIGT_FEATURES))


def reference_days(
    config: Mapping[str, Any], seed: int, split: SplitName, names: Sequence[str]
) -> tuple[ArrayDataset, str]:
    """Return the samples of one split of the reference days for `migt-tvdt`, and what they are.

    A model of fewer variables than 24 sees the first ones; one of 25 also sees `macd_signal`.  Of a shorter context the
    first bars of a day are taken.

    Args:
        config: the model's configuration, for which `has_reference_days` is true.
        seed: of bars and of where days end.
        split: each has days of its own.
        names: of the inputs for bars, valid and calendar.
    """
    cut = _reference_cut(config, seed, split)
    days = _padded(cut.features, calendar_of(cut.time), cut.first, cut.counts, config["context_length"])
    arrays: tuple[Array, ...] = (days.bars, days.valid, days.calendar)
    return ArrayDataset(dict(zip(names, arrays, strict=True)), cut.target, prefix=split), REFERENCE_SOURCE


def raw_reference_days(
    config: Mapping[str, Any], seed: int, split: SplitName, names: Sequence[str]
) -> tuple[ArrayDataset, str]:
    """Return what `reference_days` does for a graph that makes mask and calendar: bars, NaN behind them, and minutes.

    `names` are of the inputs for bars and minutes since 1970; those of padding go on behind the last bar.
    """
    cut = _reference_cut(config, seed, split)
    rows = cut.first[:, None] + np.arange(config["context_length"])
    valid = np.arange(config["context_length"]) < cut.counts[:, None]
    bars = np.where(valid[:, :, None], cut.features[rows], np.nan).astype(np.float32)
    minutes = cut.time[rows].astype("datetime64[m]").astype(np.int64)
    feeds: dict[str, Array] = dict(zip(names, (bars, minutes), strict=True))
    return ArrayDataset(feeds, cut.target, prefix=split), REFERENCE_SOURCE


def days_rule(config: Mapping[str, Any]) -> SeriesConfig:
    """Return how `migt-tvdt` takes its bars: as they are, since it normalises them itself."""
    columns = migt_feature_names(_dropped(config["n_variables"]))[: config["n_variables"]]
    return SeriesConfig(config["context_length"], max(config["horizons"]), columns=columns, scaling="none")


@dataclass(frozen=True)
class _Cut:
    """Rows of the reference bars, with the first row and the number of rows of each sample, and its target."""

    features: NDArray[np.float32]
    time: NDArray[np.datetime64]
    first: NDArray[np.intp]
    counts: NDArray[np.intp]
    target: NDArray[np.float32]


def _dropped(variables: int) -> Literal["macd_signal"] | None:
    return None if variables == len(MIGT_FEATURES) else "macd_signal"


def _reference_cut(config: Mapping[str, Any], seed: int, split: SplitName) -> _Cut:
    steps, variables = config["context_length"], config["n_variables"]
    horizons = np.array(config["horizons"])
    days_after = -(-int(horizons.max()) // BARS_PER_DAY)
    total = WARM_UP_DAYS + len(SPLITS) * SAMPLES_PER_SPLIT + days_after
    bars = market_ohlcv(seed, total * BARS_PER_DAY, minutes_per_bar=MINUTES_PER_DAY // BARS_PER_DAY)
    features = migt_features(bars, dropped=_dropped(variables))[:, :variables]

    first_day = WARM_UP_DAYS + SPLITS.index(split) * SAMPLES_PER_SPLIT
    first = (first_day + np.arange(SAMPLES_PER_SPLIT)) * BARS_PER_DAY
    generator = np.random.default_rng([seed, SPLITS.index(split)])
    counts = generator.integers((steps + 1) // 2, steps + 1, SAMPLES_PER_SPLIT)
    counts[::3] = steps
    target = features[(first + counts - 1)[:, None] + horizons, config["target_variable"]]
    return _Cut(features, bars.time, first, counts, target)


def _padded(
    features: Array, calendar: NDArray[np.int64], first: NDArray[np.intp], counts: NDArray[np.intp], length: int
) -> MarketDays:
    """Take `counts` rows from each row of `first` on, and pad them with zeros to `length`."""
    valid = np.arange(length) < counts[:, None]
    rows = np.where(valid, first[:, None] + np.arange(length), 0)
    return MarketDays(
        np.where(valid[:, :, None], features[rows], 0).astype(np.float32),
        valid,
        np.where(valid[:, :, None], calendar[rows], 0),
    )
