"""Days of bars: padded, masked, with a calendar; nothing lost, nothing invented."""

from dataclasses import asdict
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.calibration.market_days import BARS_PER_DAY, calendar_of, market_days
from tsexport.calibration.reference import has_reference, reference_windows
from tsexport.errors import DataError
from tsexport.models import migt_tvdt

CONFIG = migt_tvdt.Config(context_length=12, n_variables=5)


@given(st.lists(st.integers(-60_000_000, 60_000_000), min_size=1, max_size=20))
def test_the_calendar_is_that_of_the_standard_library(minutes):
    times = np.array(minutes).astype("datetime64[m]")
    for row, time in zip(calendar_of(times), times, strict=True):
        moment = time.astype(datetime)
        day = moment.timetuple()
        assert row.tolist() == [60 * moment.hour + moment.minute, moment.weekday(), moment.day, day.tm_yday]


@given(kept=st.lists(st.booleans(), min_size=3 * BARS_PER_DAY, max_size=3 * BARS_PER_DAY), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_days_hold_every_row_once_and_zeros_behind(kept, seed):
    kept[0] = True
    time = (np.datetime64("2024-02-28T00:00", "m") + 5 * np.arange(3 * BARS_PER_DAY))[np.array(kept)]
    features = np.random.default_rng(seed).standard_normal((len(time), 4)).astype(np.float32)
    days = market_days(features, time)
    assert days.bars.shape == (len(days), BARS_PER_DAY, 4)
    assert (days.valid.dtype, days.calendar.dtype, days.bars.dtype) == (np.bool_, np.int64, np.float32)
    np.testing.assert_array_equal(days.bars[days.valid], features)
    np.testing.assert_array_equal(days.calendar[days.valid], calendar_of(time))
    assert (days.bars[~days.valid] == 0).all()
    assert (days.calendar[~days.valid] == 0).all()
    assert (np.diff(days.valid.astype(int), axis=1) <= 0).all()  # rows first, padding behind
    assert days.valid[:, 0].all()
    for day in range(len(days)):
        assert len({tuple(row[1:]) for row in days.calendar[day][days.valid[day]]}) == 1  # one date


def test_a_short_day_is_padded():
    time = np.datetime64("2024-03-01T09:30", "m") + 5 * np.arange(78)
    days = market_days(np.ones((78, 2), np.float32), time)
    assert days.valid.sum() == 78
    assert days.calendar[0, 0].tolist() == [570, 4, 1, 61]  # a Friday in a leap year


def test_days_that_cannot_be_made_are_refused():
    minutes = np.datetime64("2024-03-01T00:00", "m") + np.arange(400)
    with pytest.raises(DataError, match="2024-03-01 has 400 bars, and a day holds 288") as caught:
        market_days(np.ones((400, 2), np.float32), minutes)
    assert "Resample to longer bars" in caught.value.next_step
    with pytest.raises(DataError, match="time goes backwards at row 2"):
        market_days(np.ones((3, 2), np.float32), minutes[[5, 6, 1]])
    with pytest.raises(DataError, match="0 rows of features and 0 times"):
        market_days(np.ones((0, 2), np.float32), minutes[:0])
    with pytest.raises(DataError, match="3 rows of features and 4 times"):
        market_days(np.ones((3, 2), np.float32), minutes[:4])


def test_the_reference_feeds_every_input():
    config = asdict(CONFIG)
    assert has_reference("migt-tvdt", config)
    names = tuple(spec.name for spec in CONFIG.inputs)
    digests = set()
    for split in ("train", "validation", "test"):
        windows, source = reference_windows("migt-tvdt", config, 0, split, names)
        (batch,) = windows.batches(windows.count)
        assert source == "the reference market days"
        for spec in CONFIG.inputs:
            array = batch.feeds[spec.name]
            assert (array.shape, array.dtype.name) == (spec.with_batch(windows.count), spec.dtype)
        assert batch.target.shape == (windows.count, 5)
        digests.add(windows.digest)
    assert len(digests) == 3
    assert not has_reference("migt-tvdt", {**config, "context_length": 289})
    assert not has_reference("migt-tvdt", {**config, "n_variables": 26})


def test_the_target_is_the_close_behind_the_last_valid_bar():
    config = {**asdict(CONFIG), "horizons": (1, 2, 3, 4, 5)}
    windows, _ = reference_windows("migt-tvdt", config, 0, "test", ("bars", "valid", "calendar"))
    longer, _ = reference_windows(
        "migt-tvdt", {**config, "context_length": 288}, 0, "test", ("bars", "valid", "calendar")
    )
    (batch,), (days,) = windows.batches(64), longer.batches(64)
    whole = np.flatnonzero(days.feeds["valid"].all(axis=1))
    assert len(whole) > 20
    for row in whole:
        seen = int(batch.feeds["valid"][row].sum())
        np.testing.assert_array_equal(batch.feeds["bars"][row, :seen], days.feeds["bars"][row, :seen, :5])
        np.testing.assert_array_equal(batch.target[row], days.feeds["bars"][row, seen : seen + 5, 3])
