"""The eight features against plain loops of their definitions, and the window rule."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tsexport.calibration import market
from tsexport.calibration.synthetic import market_ohlcv
from tsexport.errors import DataError

RTOL, ATOL = 1e-5, 1e-5
"""float32 results of float64 sums in another order."""


def plain_features(bars):
    """The definitions of the module's docstring, one bar after the other."""
    close = [float(value) for value in bars.close]
    rows, returns = [], []
    gain = loss = 0.0
    fast = slow = close[0]
    for t, price in enumerate(close):
        before = close[t - 1] if t else price
        returns.append(math.log(price / before))
        last = returns[-20:]
        mean = sum(last) / len(last)
        volatility = math.sqrt(sum((r - mean) ** 2 for r in last) / len(last))
        gain += (max(price - before, 0) - gain) / 14
        loss += (max(before - price, 0) - loss) / 14
        rsi = 100 * gain / (gain + loss) if gain + loss else 50.0
        fast += 2 / 13 * (price - fast)
        slow += 2 / 27 * (price - slow)
        momentum = price - close[max(t - 10, 0)]
        rows.append([price, bars.high[t], bars.low[t], bars.volume[t], volatility, rsi, fast - slow, momentum])
    return np.array(rows)


@given(seed=st.integers(0, 1000), rows=st.integers(1, 120))
@settings(max_examples=40, deadline=None)
def test_features_are_their_definitions(seed, rows):
    bars = market_ohlcv(seed, rows)
    table = market.market_features(bars)
    assert table.shape == (rows, len(market.FEATURES))
    assert table.dtype == np.float32
    np.testing.assert_allclose(table, plain_features(bars), rtol=RTOL, atol=ATOL)


def test_no_feature_looks_ahead():
    whole = market.market_features(market_ohlcv(1, 300))
    part = market.market_features(market_ohlcv(1, 200))
    np.testing.assert_allclose(whole[:200], part, rtol=1e-6, atol=1e-6)


def test_a_price_that_never_moves():
    bars = market_ohlcv(0, 40)
    flat = replace(bars, close=np.full(40, 5.0))
    table = market.market_features(flat)
    names = dict(zip(market.FEATURES, table.T, strict=True))
    assert (names["rsi"] == 50).all()
    for name in ("volatility", "macd", "momentum"):
        np.testing.assert_allclose(names[name], 0, atol=1e-12)


def test_bad_bars_are_refused():
    bars = market_ohlcv(0, 10)
    broken = bars.volume.copy()
    broken[3] = np.nan
    with pytest.raises(DataError, match="the bars' volume has values that are not finite"):
        market.market_features(replace(bars, volume=broken))
    with pytest.raises(DataError, match="a close is zero or negative"):
        market.market_features(replace(bars, close=bars.close * 0))
    with pytest.raises(DataError, match="there are no bars"):
        market.market_features(replace(bars, close=bars.close[:0]))


@given(hnp.arrays(np.float32, (2, 6, 3), elements=st.floats(-1000, 1000, width=32)))
def test_minmax_is_its_formula(windows):
    scaled = market.minmax_window(windows)
    for n in range(2):
        for f in range(3):
            column = windows[n, :, f]
            span = column.max() - column.min()
            expected = (column - column.min()) / (span if span > 0 else np.float32(1))
            np.testing.assert_array_equal(scaled[n, :, f], expected)
    assert ((scaled >= 0) & (scaled <= 1)).all()


def test_constant_features_become_zero():
    assert (market.minmax_window(np.full((1, 5, 2), 7, np.float32)) == 0).all()


def test_last_window():
    table = np.arange(20, dtype=np.float32).reshape(10, 2)
    np.testing.assert_array_equal(market.last_window(table, 4), table[-4:])
    padded = market.last_window(table[:3], 5)
    assert (padded[:2] == 0).all()
    np.testing.assert_array_equal(padded[2:], table[:3])


def test_examples_are_windows_and_the_close_eight_bars_on():
    table = market.market_features(market_ohlcv(2, 200))
    inputs, targets = market.scaled_examples(table, np.array([0, 5, 64]))
    assert inputs.shape == (3, 128, 8)
    assert targets.shape == (3, 1)
    for row, start in enumerate((0, 5, 64)):
        close = table[start : start + 128, 0]
        future = table[start + 127 + 8, 0]
        assert targets[row, 0] == pytest.approx((future - close.min()) / (close.max() - close.min()), rel=1e-5)


def test_training_and_evaluation_share_no_row():
    rows = market.REFERENCE_ROWS
    last_of_training = market.training_starts(rows)[-1] + market.CONTEXT_BARS - 1 + market.HORIZON_BARS
    first, last = market.evaluation_starts(rows)[[0, -1]]
    assert last_of_training == int(0.7 * rows) - 1
    assert first == rows - int(0.15 * rows)
    assert last + market.CONTEXT_BARS - 1 + market.HORIZON_BARS == rows - 1


def test_reference_table():
    table, close = market.reference_table()
    assert table.shape == (market.REFERENCE_ROWS, 8)
    assert market.FEATURES[close] == "close"
    assert np.isfinite(table).all()
