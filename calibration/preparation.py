"""Raw windows to a model's inputs, and its answers back to the series' units: what --include-preprocessing puts into a
graph, in numpy and float64.

    fill       a missing value (NaN) is the last one before it in its column; where there is none yet in the window, the
               column's first value.  A column without any value is 0 after scaling.
    short      rows before the first one that holds any value make a window short.  `short_windows` says what stands
               for them: each column's first value, or zeros, which are then scaled with the others.
    scale      as `calibration.scaling` says; a constant window is 0 under every scaling but "standard".
    calendar   minutes since 1970-01-01 00:00 on the series' own clock to what `TIME_MARKS` names, -0.5..0.5 each, or to
               the indices that `calibration.market_days.CALENDAR` names.
    valid      True where any value of a row is there.
    scale back the first output, by the numbers that its columns were scaled with.
    sort       quantiles in ascending order.

A window without gaps comes out as `calibration.windows` cuts it.  Limits: raw values are float32, so a column at 1e9
is known to 64 units only; infinities are not repaired; times outside 1901-01-01 to 2100-02-28 00:00 count as the
nearest that is inside (in that span every fourth year is a leap year).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tsexport.calibration.market_days import calendar_of
from tsexport.calibration.scaling import PER_WINDOW, WindowScale
from tsexport.calibration.synthetic import time_marks
from tsexport.preparation import BesideWindows, Preparation, ShortWindows
from tsexport.types import BATCH, Array, Feeds, TensorSpec

RAW_PREFIX = "raw_"
TIME_INPUT = "time_minutes"
FIRST_MINUTE, LAST_MINUTE = (
    int(np.datetime64(moment, "m").astype(np.int64)) for moment in ("1901-01-01T00:00", "2100-02-28T00:00")
)
DAMAGES = 4


def raw_inputs(inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return the raw inputs in place of a model's: its windows, and where it takes a calendar, the rows' times."""
    windows, *beside = inputs
    raw = TensorSpec(RAW_PREFIX + windows.name, "float32", windows.shape)
    calendars = [spec for spec in beside if spec.dtype != "bool"]
    return (raw, *(TensorSpec(TIME_INPUT, "int64", (BATCH, *spec.shape[1:2])) for spec in calendars))


def fill_gaps(windows: Array, short_windows: ShortWindows, absent: Array | float = 0.0) -> Array:
    """Return windows [n, steps, columns] without NaN, as the module's `fill` and `short` say.

    `absent` stands for columns without any value: one number, or one a column.
    """
    steps = np.arange(windows.shape[1])[:, None]
    there = ~np.isnan(windows)
    last = np.maximum.accumulate(np.where(there, steps, -1), axis=1)  # -1 before the first value
    first = np.where(there.any(axis=1, keepdims=True), there.argmax(axis=1)[:, None], 0)
    filled = np.take_along_axis(windows, np.where(last < 0, first, last), axis=1)
    filled = np.where(np.isnan(filled), absent, filled)
    if short_windows == "zeros":
        filled = np.where((last < 0).all(axis=2, keepdims=True), 0.0, filled)
    return filled


def scale_of(preparation: Preparation, filled: Array) -> WindowScale:
    """Return what filled windows [n, steps, columns] are scaled by, [n, 1, columns] or one row for all."""
    measure = PER_WINDOW.get(preparation.scaling)
    if measure is not None:
        return measure(filled)
    if preparation.scaling == "standard":
        return WindowScale(_row(preparation.mean), _row(preparation.std))
    return WindowScale(np.zeros((1, 1, 1)), np.ones((1, 1, 1)))


def target_scale_of(preparation: Preparation, scale: WindowScale) -> WindowScale:
    """Return what the target columns were scaled by; `scale` is that of the input columns."""
    if preparation.scaling == "standard":
        return WindowScale(_row(preparation.target_mean), _row(preparation.target_std))
    at = list(preparation.targets)
    return WindowScale(scale.offset[:, :, at], scale.span[:, :, at])


def _row(values: tuple[float, ...]) -> Array:
    return np.array(values)[None, None]


CALENDARS: Mapping[BesideWindows, Callable[[NDArray[np.datetime64]], Array]] = {
    "marks": time_marks,
    "indices": calendar_of,
}


def calendar(minutes: Array, form: BesideWindows) -> Array:
    """Return the calendar of minutes since 1970, [n, rows] -> [n, rows, 4]: float32 marks, or int64 indices."""
    inside = np.clip(minutes, FIRST_MINUTE, LAST_MINUTE)
    return CALENDARS[form](inside.astype("datetime64[m]"))


def calendar_tables(form: BesideWindows) -> tuple[Array, Array]:
    """Return the calendar's first column for a day's minutes, [1440, 1], and the others for 28 years, [10227, 3]."""
    start, day, end = (np.datetime64(moment, "m") for moment in ("1970-01-01", "1970-01-02", "1998-01-01"))
    minutes, days = np.arange(start, day), np.arange(start, end, np.timedelta64(1, "D"))
    return CALENDARS[form](minutes)[:, :1], CALENDARS[form](days)[:, 1:]


@dataclass(frozen=True)
class Prepared:
    """Arrays in the order of the model's inputs, and what the windows were scaled by."""

    arrays: tuple[Array, ...]
    scale: WindowScale


def prepare(preparation: Preparation, feeds: Feeds) -> Prepared:
    """Return what a model is fed for raw feeds, by their names."""
    absent = _row(preparation.mean) if preparation.scaling == "standard" else 0.0
    raw = feeds[preparation.raw]
    filled = fill_gaps(raw.astype(np.float64), preparation.short_windows, absent)
    scale = scale_of(preparation, filled)
    beside: list[Array] = [
        np.any(~np.isnan(raw), axis=2) if one == "valid" else calendar(feeds[TIME_INPUT], one)
        for one in preparation.beside
    ]
    return Prepared((scale.apply(filled).astype(np.float32), *beside), scale)


def finish(preparation: Preparation, output: Array, scale: WindowScale) -> Array:
    """Return a model's first output, [n, ...] float32, in the series' units and with its quantiles in order.

    It is [n, targets] for one row ahead, else [n, horizon, targets or quantiles].
    """
    if preparation.targets:
        target = target_scale_of(preparation, scale)
        shaped = output.reshape(len(output), -1, output.shape[-1]).astype(np.float64)
        output = target.invert(shaped).reshape(output.shape).astype(np.float32)
    return np.sort(output, axis=-1) if preparation.sorts_quantiles else output


def damage(windows: Array) -> Array:
    """Return raw windows [n, steps, columns] as serving may send them, a quarter of each kind.

    Gaps in every column, and some rows missing; a short history, missing rows first; every column constant; the last
    column without any value, and the first without one at its start.
    """
    damaged = windows.copy()
    steps, columns = windows.shape[1:]
    drawn = np.random.default_rng(steps).random((len(windows[0::DAMAGES]), steps, columns + 1))
    missing = (drawn[:, :, :-1] < 0.2) | (drawn[:, :, -1:] < 0.1)
    damaged[0::DAMAGES][missing] = np.nan
    damaged[1::DAMAGES, : steps // 3] = np.nan
    damaged[2::DAMAGES] = windows[2::DAMAGES, -1:]
    damaged[3::DAMAGES, : steps // 4, 0] = np.nan
    damaged[3::DAMAGES, :, -1] = np.nan
    return damaged
