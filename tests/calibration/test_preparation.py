"""The Python path of --include-preprocessing: held against plain loops, against datetime, and against the windows that
models are trained on."""

from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tsexport.calibration.market import minmax_window
from tsexport.calibration.preparation import (
    FIRST_MINUTE,
    LAST_MINUTE,
    calendar,
    calendar_tables,
    damage,
    fill_gaps,
    finish,
    prepare,
    raw_inputs,
    scale_of,
)
from tsexport.calibration.scaling import revin_scale
from tsexport.calibration.series import SeriesConfig
from tsexport.calibration.tables import MemoryTable
from tsexport.calibration.windows import windows_of
from tsexport.preparation import REVIN_EPSILON, Preparation
from tsexport.types import TensorSpec

FLOAT32_UNITS = 4 * 2.0**-24
"""The same float64 arithmetic, rounded to float32 once, in another order."""
NAMES = ("a", "b", "c")
RAW = "raw_x"

gappy = arrays(
    np.float64,
    array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=9),
    elements=st.one_of(st.just(np.nan), st.floats(-1e6, 1e6)),
)


def slowly(window, short_windows):
    """Fill one window [steps, columns] as the text says it, value by value."""
    begin = next((row for row in range(len(window)) if not np.isnan(window[row]).all()), len(window))
    out = window.copy()
    for column in range(window.shape[1]):
        values = [value for value in window[:, column] if not np.isnan(value)]
        last = values[0] if values else 0.0
        for row in range(len(window)):
            if not np.isnan(window[row, column]):
                last = window[row, column]
            out[row, column] = 0.0 if row < begin and short_windows == "zeros" else last
    return out


@given(gappy, st.sampled_from(["repeat", "zeros"]))
def test_gaps_are_filled_as_the_text_says(windows, short_windows):
    filled = fill_gaps(windows, short_windows)
    np.testing.assert_array_equal(filled, [slowly(window, short_windows) for window in windows])


@given(gappy)
def test_what_is_there_stays(windows):
    there = ~np.isnan(windows)
    np.testing.assert_array_equal(fill_gaps(windows, "zeros")[there], windows[there])


def preparation(**fields):
    return Preparation(**{"raw": RAW, "columns": NAMES, "scaling": "none", **fields})


# --- scaling ---------------------------------------------------------------------------------------------------------


def series(rows=400):
    """Columns of very different sizes: a price, a volume of 1e9, and a return."""
    steps = np.random.default_rng(3).standard_normal((rows, 3))
    walk = steps.cumsum(axis=0) * [0.5, 3e7, 0.0] + steps * [0.0, 0.0, 0.01]
    return (walk + np.array([120.0, 1e9, 0.0])).astype(np.float32)


@pytest.mark.parametrize("scaling", ["none", "standard", "minmax-window", "revin"])
@pytest.mark.parametrize("target", ["path", "point"])
def test_a_window_without_gaps_is_scaled_as_in_training(scaling, target):
    targets = ("b",) if target == "point" else ("c", "a")
    config = SeriesConfig(20, 5, columns=NAMES, target_columns=targets, scaling=scaling, target=target)
    table = MemoryTable(series(), NAMES)
    trained = windows_of(table, config, "test", name="x")
    raw = windows_of(table, replace(config, scaling="none"), "test", name=RAW)
    chosen = preparation(scaling=scaling)
    if scaling != "none":
        chosen = replace(chosen, targets=tuple(NAMES.index(name) for name in targets))
    if trained.scale is not None:
        chosen = replace(
            chosen,
            mean=tuple(trained.scale.mean),
            std=tuple(trained.scale.std),
            target_mean=tuple(trained.target_scale.mean),
            target_std=tuple(trained.target_scale.std),
        )
    for ours, theirs in zip(raw.batches(16), trained.batches(16), strict=True):
        prepared = prepare(chosen, ours.feeds)
        expected = theirs.feeds["x"]
        np.testing.assert_allclose(prepared.arrays[0], expected, rtol=FLOAT32_UNITS, atol=FLOAT32_UNITS)
        # a model that answers the scaled target exactly has the raw target as its forecast
        back = finish(chosen, theirs.target, prepared.scale)
        assert back.dtype == np.float32
        spread = ours.target.std(axis=0).max()
        np.testing.assert_allclose(back, ours.target, rtol=FLOAT32_UNITS, atol=FLOAT32_UNITS * max(spread, 1.0))


def test_the_rule_of_patchtst_cpu():
    """Shorter windows are padded with zeros on the left, then scaled with them; a zero range counts as 1."""
    window = series(30)[None]
    short = np.full((1, 40, 3), np.nan, np.float32)
    short[:, 10:] = window
    padded = np.concatenate([np.zeros((1, 10, 3)), window], axis=1)
    chosen = preparation(scaling="minmax-window", short_windows="zeros")
    given_short, given_padded = (prepare(chosen, {RAW: one}).arrays[0] for one in (short, padded))
    np.testing.assert_array_equal(given_short, given_padded)
    np.testing.assert_allclose(given_short, minmax_window(padded), rtol=FLOAT32_UNITS, atol=FLOAT32_UNITS)


@pytest.mark.parametrize("scaling", ["minmax-window", "revin"])
@pytest.mark.parametrize("level", [0.0, 5.0, -3.3e9])
def test_a_constant_window_is_0_and_a_forecast_of_0_is_its_level(scaling, level):
    chosen = preparation(scaling=scaling, targets=(1,))
    prepared = prepare(chosen, {RAW: np.full((2, 50, 3), level, np.float32)})
    np.testing.assert_array_equal(prepared.arrays[0], np.zeros((2, 50, 3)))
    back = finish(chosen, np.zeros((2, 1), np.float32), prepared.scale)
    np.testing.assert_array_equal(back, np.full((2, 1), np.float32(level)))


def test_a_column_without_any_value_is_0_after_scaling():
    windows = series(20)[None].copy()
    windows[:, :, 1] = np.nan
    mean, std = tuple(series().mean(axis=0, dtype=float)), tuple(series().std(axis=0, dtype=float))
    for scaling in ("none", "standard", "minmax-window", "revin"):
        statistics = {"mean": mean, "std": std} if scaling == "standard" else {}
        scaled = prepare(preparation(scaling=scaling, **statistics), {RAW: windows}).arrays[0]
        np.testing.assert_array_equal(scaled[:, :, 1], np.zeros((1, 20)))
        assert np.isfinite(scaled).all()


@given(arrays(np.float64, (2, 12, 3), elements=st.floats(-1e6, 1e6)))
def test_revin_gives_back_and_has_the_variance_it_divides_by(windows):
    scale = revin_scale(windows)
    np.testing.assert_allclose(scale.invert(scale.apply(windows)), windows, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(scale.span**2 - REVIN_EPSILON, windows.var(axis=1, keepdims=True), rtol=1e-9, atol=1e-9)


# --- calendar --------------------------------------------------------------------------------------------------------


@given(st.integers(FIRST_MINUTE, LAST_MINUTE))
def test_the_calendar_is_that_of_datetime(minute):
    time = datetime(1970, 1, 1) + timedelta(minutes=minute)  # on the series' own clock
    day_of_year = time.timetuple().tm_yday
    expected = (time.hour / 23, time.weekday() / 6, (time.day - 1) / 30, (day_of_year - 1) / 365)
    marks, indices = (calendar(np.array([[minute]]), form)[0, 0] for form in ("marks", "indices"))
    np.testing.assert_allclose(marks, np.array(expected) - 0.5, rtol=0, atol=1e-7)
    assert indices.tolist() == [time.hour * 60 + time.minute, time.weekday(), time.day, day_of_year]


def test_times_beyond_the_tables_are_the_nearest_inside():
    beyond = np.array([[FIRST_MINUTE - 10**6, FIRST_MINUTE, LAST_MINUTE, LAST_MINUTE + 1]])
    marks = calendar(beyond, "marks")[0]
    np.testing.assert_array_equal(marks[0], marks[1])
    np.testing.assert_array_equal(marks[3], marks[2])


def test_the_tables_hold_a_day_and_28_years():
    noon = 12 * 60
    for form in ("marks", "indices"):
        times, days = calendar_tables(form)
        assert times.shape == (1440, 1)
        assert days.shape == (10227, 3)
        there = np.concatenate([times[noon], days[59]])
        np.testing.assert_array_equal(there, calendar(np.array([59 * 1440 + noon]), form)[0])


def test_rows_without_any_value_are_not_valid():
    windows = series(20)[None].copy()
    windows[0, 3, 1] = windows[0, 5] = windows[0, 15:] = np.nan
    valid = prepare(preparation(beside=("valid",)), {RAW: windows}).arrays[1]
    assert np.flatnonzero(~valid[0]).tolist() == [5, 15, 16, 17, 18, 19]


# --- quantiles, names, damage ----------------------------------------------------------------------------------------


def test_quantiles_of_one_target_are_scaled_back_and_sorted():
    chosen = preparation(scaling="standard", mean=(1, 2, 3), std=(1, 1, 1), targets=(0,), target_mean=(10.0,),
                         target_std=(2.0,), sorts_quantiles=True)  # fmt: skip
    prepared = prepare(chosen, {RAW: series(8)[None]})
    output = np.array([[[3.0, 1.0, 2.0], [0.0, 0.5, -1.0]]], np.float32)
    np.testing.assert_array_equal(finish(chosen, output, prepared.scale), [[[12, 14, 16], [8, 10, 11]]])


def test_raw_inputs_bear_other_names_than_the_model_s():
    inputs = (TensorSpec("series", "float32", ("batch", 48, 7)), TensorSpec("known", "float32", ("batch", 60, 4)))
    assert list(map(str, raw_inputs(inputs))) == ["raw_series float32[batch, 48, 7]", "time_minutes int64[batch, 60]"]


def test_damage_is_of_four_kinds_and_repeats():
    windows = np.stack([series(40)] * 8)
    damaged = damage(windows)
    missing = np.isnan(damaged)
    np.testing.assert_array_equal(damage(windows), damaged)
    assert missing[0].any(axis=0).all()
    assert missing[0].all(axis=1).any()
    assert missing[1, :13].all()
    assert not missing[1, 13:].any()
    assert not missing[2].any()
    assert (damaged[2] == damaged[2, :1]).all()
    assert missing[3, :, -1].all()
    assert missing[3, :10, 0].all()
    assert not np.isnan(scale_of(preparation(), fill_gaps(damaged, "repeat")).offset).any()
