"""Trading days: past and future are kept apart, features are their formulas, and a build calibrates on them."""

import numpy as np
import pytest

from tsexport.calibration.reference import has_reference, reference_windows
from tsexport.calibration.synthetic import MINUTES_PER_DAY, Bars, market_ohlcv
from tsexport.calibration.trading_days import (
    DAILY_FEATURES,
    HELD_OUT_DAYS,
    LONGEST_SESSION,
    MINUTE_FEATURES,
    OPEN_MINUTE,
    SEED,
    TRAINING_DAYS,
    daily_features,
    minute_features,
    standardised,
    trading_days,
)

ATOL = 1e-9
"""float64 against a reference that sums in another order; all values are of about unit scale or smaller."""
CONFIG = {"days": 5, "daily_features": 16, "minutes": 30, "minute_features": 16, "targets": 3}
DAYS, MINUTES = 9, 30


@pytest.fixture(scope="module")
def bars():
    return market_ohlcv(3, DAYS * MINUTES_PER_DAY, minutes_per_bar=1)


@pytest.fixture(scope="module")
def sessions():
    return np.arange(DAYS)[:, None] * MINUTES_PER_DAY + OPEN_MINUTE + np.arange(MINUTES)


def changed_from(bars, row):
    """The same bars, with other prices and volumes from a row on."""
    factor = np.where(np.arange(len(bars)) >= row, 1.5, 1.0)
    return Bars(bars.time, *(getattr(bars, name) * factor for name in ("open", "high", "low", "close", "volume")))


def read(split, **config):
    windows, source = reference_windows("hrm-27m", {**CONFIG, **config}, 0, split, ("daily", "minutes"))
    (batch,) = windows.batches(1000)
    return batch, source


@pytest.mark.parametrize(("day", "minute"), [(4, 0), (4, 17), (8, 29)])
def test_a_minutes_features_use_no_bar_after_it(bars, sessions, day, minute):
    before = minute_features(bars, sessions)
    after = minute_features(changed_from(bars, sessions[day, minute]), sessions)
    same = np.isclose(before, after, atol=ATOL, rtol=0).all(axis=2)
    known = np.arange(DAYS * MINUTES).reshape(DAYS, MINUTES) < day * MINUTES + minute
    assert same[known].all()
    assert not same[day, minute]


def test_a_days_features_use_no_day_after_it(bars, sessions):
    after = daily_features(changed_from(bars, sessions[5, 0]), sessions)
    before = daily_features(bars, sessions)
    np.testing.assert_allclose(after[:5], before[:5], atol=ATOL, rtol=0)
    assert not np.allclose(after[5], before[5], atol=ATOL, rtol=0)


def test_minute_features_are_their_formulas(bars, sessions):
    day, minute = 3, 20
    row, first = sessions[day, minute], sessions[day, 0]
    close, volume = np.log(bars.close), bars.volume
    returns = np.diff(close)  # returns[t - 1] is that of row t
    so_far = slice(first, row + 1)
    expected = [
        *(close[row] - close[row - n] for n in (1, 5, 15, 30, 60)),
        *(np.sqrt(np.mean(returns[row - n : row] ** 2)) for n in (15, 60)),
        np.log(bars.high[row] / bars.low[row]),
        (bars.close[row] - bars.low[row]) / (bars.high[row] - bars.low[row]),
        np.log(volume[row] / volume[row - 59 : row + 1].mean()),
        np.log(volume[row - 4 : row + 1].mean() / volume[row - 59 : row + 1].mean()),
        close[row] - np.log(bars.open[first]),
        close[row] - np.log(np.average(bars.close[so_far], weights=volume[so_far])),
        close[row] - np.log(bars.high[so_far].max()),
        close[row] - np.log(bars.low[so_far].min()),
        minute / (MINUTES - 1) - 0.5,
    ]
    given = minute_features(bars, sessions)
    assert given.shape == (DAYS, MINUTES, MINUTE_FEATURES)
    np.testing.assert_allclose(given[day, minute], expected, atol=ATOL, rtol=0)


def test_daily_features_are_their_formulas(bars, sessions):
    day = 7
    rows = sessions[day]
    close = np.log(bars.close)
    returns = np.diff(close, prepend=close[0])
    last = close[sessions[:, -1]]
    volatility = np.sqrt((returns[sessions] ** 2).mean(axis=1))
    volume = bars.volume[sessions].sum(axis=1)
    high, low = bars.high[rows].max(), bars.low[rows].min()
    start, middle = np.log(bars.open[rows[0]]), close[rows[MINUTES // 2]]
    expected = [
        *(last[7] - last[6], last[7] - last[2], last[7] - last[0], start - last[6], last[7] - start),
        *(np.log(high / low), (bars.close[rows[-1]] - low) / (high - low), middle - start, last[7] - middle),
        *(volatility[7], volatility[3:8].mean(), volatility[:8].mean()),
        *(np.log(volume[7] / volume[:8].mean()), np.log(volume[3:8].mean() / volume[:8].mean())),
        *(last[7] - last[:8].mean(), 2 / 6 - 0.5),  # day 7 is a Wednesday, as 2020-01-01 was
    ]
    given = daily_features(bars, sessions)
    assert given.shape == (DAYS, DAILY_FEATURES)
    np.testing.assert_allclose(given[day], expected, atol=ATOL, rtol=0)


def test_a_constant_feature_is_zero():
    assert standardised(np.full((3, 2), 7.0), np.full((3, 2), 7.0)).tolist() == [[0, 0]] * 3


def test_a_bar_without_a_range_closes_in_its_middle(bars, sessions):
    flat = Bars(bars.time, *(bars.close for _ in range(4)), bars.volume)
    assert (minute_features(flat, sessions)[:, :, 8] == 0.5).all()


def test_a_day_has_the_tokens_of_those_before_it_and_the_target_behind_its_minutes():
    config = CONFIG["days"], CONFIG["minutes"]
    train, source = read("train")
    count = CONFIG["days"] + TRAINING_DAYS + HELD_OUT_DAYS
    bars = market_ohlcv(SEED, count * MINUTES_PER_DAY, minutes_per_bar=1)
    sessions = np.arange(count)[:, None] * MINUTES_PER_DAY + OPEN_MINUTE + np.arange(config[1])
    tokens = daily_features(bars, sessions)
    tokens = standardised(tokens, tokens[: config[0] + TRAINING_DAYS])
    assert source == "the reference trading days"
    assert list(train.feeds) == ["daily", "minutes"]
    np.testing.assert_allclose(train.feeds["daily"][10], tokens[10:15], atol=1e-5, rtol=0)  # float32
    close = np.log(bars.close)
    row = sessions[15, 29]  # the last minute's target lies behind the session
    ratio = train.target[10, 29] / [close[row + ahead] - close[row] for ahead in (1, 5, 15)]
    other = train.target[2, 3] / [close[sessions[7, 3] + ahead] - close[sessions[7, 3]] for ahead in (1, 5, 15)]
    np.testing.assert_allclose(ratio, other, rtol=1e-5, atol=0)


def test_training_days_come_before_those_held_out_and_set_the_scale():
    train, test = read("train")[0], read("test")[0]
    assert (len(train), len(test)) == (TRAINING_DAYS, HELD_OUT_DAYS)
    assert (train.ids[0], test.ids[0]) == ("train:000000", "test:000000")
    assert not set(train.ids) & set(test.ids)
    assert train.feeds["daily"].dtype == train.feeds["minutes"].dtype == train.target.dtype == np.float32
    # The last training day is not yet among the tokens of itself, but of the first one held out.
    np.testing.assert_array_equal(train.feeds["daily"][-1][1:], test.feeds["daily"][0][:-1])
    minutes = train.feeds["minutes"]
    np.testing.assert_allclose(minutes.mean(axis=(0, 1)), 0, atol=1e-4, rtol=0)
    np.testing.assert_allclose(minutes.std(axis=(0, 1)), 1, atol=1e-4, rtol=0)
    np.testing.assert_allclose(train.target.std(axis=(0, 1)), 1, atol=1e-4, rtol=0)


def test_the_target_can_be_learned():
    """A linear map of a minute's features, fitted to the training days, beats the mean on those held out.

    Over 5 and 15 minutes, that is; the very next minute is mostly noise.
    """
    train, test = read("train")[0], read("test")[0]
    design, held = (
        np.column_stack((b.feeds["minutes"].reshape(-1, 16), np.ones(b.target.size // 3))) for b in (train, test)
    )
    solution = np.linalg.lstsq(design, train.target.reshape(-1, 3), rcond=None)[0]
    error = ((held @ solution - test.target.reshape(-1, 3)) ** 2).mean(axis=0)
    assert (error < [1.0, 0.9, 0.8] * test.target.reshape(-1, 3).var(axis=0)).all()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, True), ({"targets": 2}, False), ({"minute_features": 5}, False), ({"daily_features": 5}, False),
     ({"minutes": LONGEST_SESSION}, True), ({"minutes": LONGEST_SESSION + 1}, False)],
)  # fmt: skip
def test_which_configurations_have_days(changes, expected):
    assert has_reference("hrm-27m", {**CONFIG, **changes}) is expected


def test_the_longest_session_has_targets_too():
    days = trading_days(2, LONGEST_SESSION, "test")
    (batch,) = days.batches(100)
    assert np.isfinite(batch.target).all()
