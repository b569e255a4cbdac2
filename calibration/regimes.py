"""Calibration windows drawn by regime, so that the few of them show the model what it will meet.

Every candidate window is described by up to six traits, each cut into classes:

- level: the mean of its values, each feature in units of its deviation over the candidates; fifths of the candidates.
- volatility: the root mean square of steps along time, per feature in the same units (of a grid, the deviation within
  it); fifths of the candidates.
- gaps: the share of missing values: none, some, or at least a tenth.
- season, where rows have dates: quarter of the day, weekday or weekend, and quarter of the year, of the last row that a
  window shows.

A trait with one class alone is left out.  A class gets its share of the windows, but at least `LEAST` of them where the
candidates have so many.  Windows are taken one by one, each time one whose classes are furthest behind what they should
have: sum over traits of (wanted - taken) / wanted, ties in an order drawn by the seed.  So each trait is balanced on
its own; all combinations of classes would be more than there are windows.

Cost: one pass over at most `CANDIDATES` windows, drawn by the seed where there are more, and fewer where windows are
large (`CANDIDATE_BYTES`, but never fewer than are asked for); a few numbers a feature are kept of each.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tsexport.calibration.calendars import CalendarNumbers, calendar_numbers
from tsexport.calibration.datasets import Batch, Dataset, Subset, draw
from tsexport.calibration.marked_windows import CLOCK, MarkedWindows
from tsexport.calibration.synthetic import MINUTES_PER_DAY, TIME_MARKS, mark_numbers
from tsexport.calibration.windows import SeriesWindows
from tsexport.types import Array

CANDIDATES = 4096
CANDIDATE_BYTES = 2**28
BATCH_BYTES = 2**24
LEAST = 8
FIFTHS = 5
MANY_GAPS = 0.1


@dataclass(frozen=True)
class RegimeDraw:
    """Drawn windows, and how many of them are of each class ("volatility 5 of 5", "weekend")."""

    subset: Subset
    regimes: Mapping[str, int]


@dataclass(frozen=True)
class Trait:
    """Classes of windows by one trait: `classes[i]` is an index into `names`."""

    names: tuple[str, ...]
    classes: Array


def draw_by_regime(dataset: Dataset, count: int, seed: int, *, exclude: Iterable[int] = ()) -> RegimeDraw:
    """Draw `count` windows without replacement, reproducibly for a seed; the result is in the dataset's order.

    Args:
        dataset: read once, in a stream.
        count: of windows.
        seed: decides which windows are candidates, and among equals.
        exclude: indices that must not be drawn.

    Raises:
        DataError: fewer than `count` windows are there.
    """
    left_out = tuple(exclude)
    free = dataset.count - len(set(left_out))
    size = _window_bytes(dataset)
    most = max(count, min(free, CANDIDATES, CANDIDATE_BYTES // size))
    candidates = draw(dataset, most, seed, exclude=left_out)
    traits = traits_of(candidates, max(1, min(64, BATCH_BYTES // size)))
    drawn = balanced(traits, candidates.count, count, seed)
    regimes = {
        name: int((trait.classes[drawn] == index).sum()) for trait in traits for index, name in enumerate(trait.names)
    }
    return RegimeDraw(Subset(dataset, [candidates.indices[at] for at in drawn]), regimes)


def _window_bytes(dataset: Dataset) -> int:
    first = next(iter(dataset.batches(1)), None)
    return max(1, sum(array.nbytes for array in first.feeds.values()) if first is not None else 0)


def traits_of(candidates: Subset, batch_size: int) -> tuple[Trait, ...]:
    """Return the traits by which windows differ, in one pass over them."""
    parts = [_described(batch) for batch in candidates.batches(batch_size)]
    levels, volatilities, gaps = (np.concatenate(column) for column in zip(*parts, strict=True))
    deviation = np.std(levels, axis=0)
    unit = np.where(deviation > 0, deviation, 1)
    traits = [
        _fifths("level", ((levels - levels.mean(axis=0)) / unit).mean(axis=1)),
        _fifths("volatility", (volatilities / unit).mean(axis=1)),
        Trait(("no gaps", "some gaps", f"gaps from {MANY_GAPS:.0%} on"), np.digitize(gaps, [1e-12, MANY_GAPS])),
        *_seasons(calendar_of(candidates.base, candidates.indices)),
    ]
    return tuple(trait for trait in map(_without_empty, traits) if len(trait.names) > 1)


def _described(batch: Batch) -> tuple[Array, Array, Array]:
    """Return level and volatility of each feature [windows, features], and the share of gaps [windows], of the first
    floating-point input."""
    array = next((one for one in batch.feeds.values() if one.dtype.kind == "f"), None)
    if array is None or array.ndim < 2:
        return np.zeros((len(batch), 1)), np.zeros((len(batch), 1)), np.zeros(len(batch))
    values = array.astype(np.float64)
    missing = ~np.isfinite(values)  # infinity is refused later, by name
    values[missing] = np.nan
    features = 1 if values.ndim >= 4 else values.ndim - 1
    within = tuple(axis for axis in range(1, values.ndim) if axis != features)
    there = np.maximum((~missing).sum(axis=within), 1)
    levels = np.where(missing, 0, values).sum(axis=within) / there
    if values.ndim == 3:
        steps = np.diff(values, axis=1)
        known = np.maximum((~np.isnan(steps)).sum(axis=1), 1)
        volatilities = np.sqrt(np.where(np.isnan(steps), 0, np.square(steps)).sum(axis=1) / known)
    else:
        apart = np.where(missing, 0, values - np.expand_dims(levels, within))
        volatilities = np.sqrt(np.square(apart).sum(axis=within) / there)
    return levels, volatilities, missing.mean(axis=tuple(range(1, values.ndim)))


def _fifths(what: str, values: Array) -> Trait:
    edges = np.unique(np.quantile(values, np.arange(1, FIFTHS) / FIFTHS, method="lower"))
    names = tuple(f"{what} {index + 1} of {FIFTHS}" for index in range(FIFTHS))
    return Trait(names, np.searchsorted(edges, values, side="left"))


def _seasons(calendar: CalendarNumbers | None) -> tuple[Trait, ...]:
    if calendar is None:
        return ()
    return (
        Trait(("hours 0-5", "hours 6-11", "hours 12-17", "hours 18-23"), calendar.minute_of_day // 360),
        Trait(("weekday", "weekend"), (calendar.weekday >= 5).astype(np.int64)),
        Trait(tuple(f"quarter {quarter} of the year" for quarter in range(1, 5)), calendar.day_of_year * 4 // 366),
    )


def _without_empty(trait: Trait) -> Trait:
    there, classes = np.unique(trait.classes, return_inverse=True)
    return Trait(tuple(trait.names[index] for index in there), classes)


def calendar_of(dataset: Dataset, indices: Sequence[int]) -> CalendarNumbers | None:
    """Return the calendar of the last row that each window shows; None where rows have no dates.

    Read, in a stream, from the time column, or from columns that hold the clock or the marks of models.
    """
    series = dataset.base if isinstance(dataset, MarkedWindows) else dataset
    if not isinstance(series, SeriesWindows) or not len(indices):
        return None
    config, table = series.config, series.table
    rows = series.first_row + np.asarray(indices) * config.stride + config.context_length - 1
    kept: tuple[tuple[str, ...], ...] = (CLOCK, TIME_MARKS)
    columns = next((one for one in kept if set(one) <= set(table.columns)), ())
    if config.time_column is not None:
        columns = table.numeric_columns[:1]
    elif not columns:
        return None
    values, times = np.empty((len(rows), len(columns))), np.empty(len(rows), "datetime64[m]")
    for block in table.blocks(columns, int(rows[0]), int(rows[-1]) + 1, config.time_column):
        here = (rows >= block.first_row) & (rows < block.first_row + len(block.values))
        at = rows[here] - block.first_row
        values[here] = block.values[at]
        if block.times is not None:
            if block.times.dtype.kind != "M":
                return None
            times[here] = block.times[at].astype("datetime64[m]")
    if columns == TIME_MARKS:
        hour, weekday, day_of_month, day_of_year = mark_numbers(values).T
        return CalendarNumbers(hour * 60, weekday, day_of_month, day_of_year)
    if columns == CLOCK:
        times = (values @ np.array([MINUTES_PER_DAY, 1.0])).astype(np.int64).astype("datetime64[m]")
    return calendar_numbers(times)


def balanced(traits: Sequence[Trait], candidates: int, count: int, seed: int) -> list[int]:
    """Return the positions of `count` of the candidates, ascending, so that each class of each trait has its share."""
    order = random.Random(seed).sample(range(candidates), candidates)
    if not traits or count >= candidates:
        return sorted(order[:count])
    wanted = [_wanted(np.bincount(trait.classes), count) for trait in traits]
    taken = [np.zeros(len(one)) for one in wanted]
    classes = [trait.classes[order] for trait in traits]
    free = np.ones(candidates, bool)
    drawn = []
    for _ in range(count):
        behind = sum(((want - took) / want)[which] for want, took, which in zip(wanted, taken, classes, strict=True))
        best = int(np.argmax(np.where(free, behind, -np.inf)))
        free[best] = False
        drawn.append(order[best])
        for took, which in zip(taken, classes, strict=True):
            took[which[best]] += 1
    return sorted(drawn)


def _wanted(there: Array, count: int) -> Array:
    """Return how many windows of each class are wanted: its share, and no fewer than LEAST where there are so many."""
    return np.asarray(np.maximum(there * count / there.sum(), np.minimum(there, LEAST)))
