"""The synthetic series: reproducible, of the form they promise, and refused for impossible sizes."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.calibration.synthetic import channels_series, market_ohlcv, recurse
from tsexport.errors import ConfigurationError

FIELDS = ("open", "high", "low", "close", "volume")


def test_same_seed_same_bytes_everywhere():
    bars = market_ohlcv(7, 500)
    digest = hashlib.sha256(b"".join(getattr(bars, name).tobytes() for name in FIELDS)).hexdigest()
    assert digest == "1fb218ad13713e7ac9a0d98cbae45d152d68960674dbd28759437e67a61ef1e4"


@given(seed=st.integers(0, 2**32), rows=st.integers(1, 300))
@settings(max_examples=40, deadline=None)
def test_bars_are_bars(seed, rows):
    bars = market_ohlcv(seed, rows)
    assert len(bars) == rows
    assert (bars.low <= np.minimum(bars.open, bars.close)).all()
    assert (bars.high >= np.maximum(bars.open, bars.close)).all()
    assert (bars.low > 0).all()
    assert (bars.volume >= 0).all()
    assert np.array_equal(bars.open[1:], bars.close[:-1])
    assert np.array_equal(bars.close, np.round(bars.close, 2))


@given(rows=st.integers(1, 200), more=st.integers(0, 200), seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_a_longer_series_begins_with_the_shorter(rows, more, seed):
    short, long = market_ohlcv(seed, rows), market_ohlcv(seed, rows + more)
    assert all(np.array_equal(getattr(short, name), getattr(long, name)[:rows]) for name in FIELDS)
    assert np.array_equal(channels_series(seed, rows, 2), channels_series(seed, rows + more, 2)[:rows])


def test_season_reversion_and_regimes_are_there():
    bars = market_ohlcv(3, 48_000)
    returns = np.diff(np.log(bars.close))
    by_hour = np.array([returns[hour::24].mean() for hour in range(24)])
    assert np.ptp(by_hour) > 8 * returns.std() / np.sqrt(len(returns) / 24)  # far beyond chance
    left = returns - by_hour[np.arange(len(returns)) % 24]
    assert np.corrcoef(left[:-1], left[1:])[0, 1] < -0.03  # deviations revert
    size = np.abs(left)
    assert np.corrcoef(size[:-20], size[20:])[0, 1] > 0.02  # volatility comes in regimes


def test_bar_length_sets_time_and_season():
    bars = market_ohlcv(0, 100, minutes_per_bar=15)
    assert (np.diff(bars.time) == np.timedelta64(15, "m")).all()


def test_channels_series():
    series = channels_series(0, 5000, 7)
    assert series.shape == (5000, 7)
    assert series.dtype == np.float32
    assert ((series.std(axis=0) > 0.3) & (series.std(axis=0) < 3)).all()
    lagged = [np.corrcoef(series[:-24, c], series[24:, c])[0, 1] for c in range(7)]
    assert min(lagged) > 0.1  # yesterday tells something about today
    assert not np.array_equal(series, channels_series(1, 5000, 7))


@given(st.floats(0, 0.999), st.lists(st.floats(-100, 100), min_size=1, max_size=70))
def test_recursion_is_the_loop(decay, inputs):
    expected, state = [], 0.0
    for value in inputs:
        state = decay * state + value
        expected.append(state)
    np.testing.assert_allclose(recurse(decay, np.array(inputs)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: market_ohlcv(0, 0), "rows is 0; at least 1"),
        (lambda: market_ohlcv(-1, 10), "seed is -1; it must be 0 or more"),
        (lambda: market_ohlcv(0, 10, minutes_per_bar=7), "minutes_per_bar is 7; it must divide a day"),
        (lambda: channels_series(0, 10, 0), "channels is 0; at least 1"),
        (lambda: channels_series(0, -1, 1), "rows is -1"),
    ],
)
def test_impossible_sizes(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call()
