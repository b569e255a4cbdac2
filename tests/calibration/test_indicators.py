"""Each indicator and each of the 25 features against a plain loop of its definition; nothing looks ahead; no NaN."""

import csv
import gzip
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.calibration import indicators
from tsexport.calibration.market import FEATURES, market_features
from tsexport.calibration.migt_features import MIGT_FEATURES, migt_feature_names, migt_features
from tsexport.calibration.synthetic import Bars, market_ohlcv
from tsexport.errors import DataError

SHARED = Path(os.environ.get("TSEXPORT_SHARED", Path(__file__).resolve().parents[3] / "shared"))
REAL = SHARED / "data" / "lean_minute_trades_ohlcv.csv.gz"

RTOL = 1e-5
"""float32 results of float64 sums in another order."""
ATOL_OF_PRICE = 1e-9
"""Where definitions cancel (bands, MACD, distances): this much of the price, in float64; float32 comes on top."""


def mean(values):
    return sum(values) / len(values)


def deviation(values):
    centre = mean(values)
    return math.sqrt(mean([(value - centre) ** 2 for value in values]))


def averaged(values, weight):
    """y_t = y_(t-1) + weight (x_t - y_(t-1)), y_0 = x_0."""
    result = [values[0]]
    for value in values[1:]:
        result.append(result[-1] + weight * (value - result[-1]))
    return result


def last(values, t, bars):
    return values[max(0, t - bars + 1) : t + 1]


def plain_features(bars):
    """The 25 definitions of `migt_features`, one bar after the other."""
    o, h, l, c, v = ([float(x) for x in getattr(bars, name)] for name in ("open", "high", "low", "close", "volume"))  # noqa: E741
    rows = range(len(c))
    before = [c[max(t - 1, 0)] for t in rows]
    returns = [math.log(c[t] / before[t]) for t in rows]
    gain = loss = 0.0
    rsi, true_range, vwap, relative, tick, spread, location = [], [], [], [], [], [], []
    sign = 0.0
    for t in rows:
        gain += (max(c[t] - before[t], 0) - gain) / 14
        loss += (max(before[t] - c[t], 0) - loss) / 14
        rsi.append(100 * gain / (gain + loss) if gain + loss else 50.0)
        true_range.append(max(h[t] - l[t], *((abs(h[t] - before[t]), abs(l[t] - before[t])) if t else (0,))))
        same_day = [s for s in range(t + 1) if bars.time[s].astype("M8[D]") == bars.time[t].astype("M8[D]")]
        typical = [(h[s] + l[s] + c[s]) / 3 for s in same_day]
        traded = sum(v[s] for s in same_day)
        weighted = sum(price * v[s] for price, s in zip(typical, same_day, strict=True))
        vwap.append(weighted / traded if traded else typical[-1])
        minute = str(bars.time[t])[11:16]
        earlier = [v[s] for s in range(t) if str(bars.time[s])[11:16] == minute][-5:]
        relative.append(v[t] / mean(earlier) if earlier and mean(earlier) else 1.0)
        sign = math.copysign(1, c[t] - before[t]) if c[t] != before[t] else sign
        tick.append(sign)
        location.append(((c[t] - l[t]) - (h[t] - c[t])) / (h[t] - l[t]) if h[t] > l[t] else 0.0)
        s = max(t - 1, 0)
        beta = math.log(h[t] / l[t]) ** 2 + math.log(h[s] / l[s]) ** 2
        gamma = math.log(max(h[t], h[s]) / min(l[t], l[s])) ** 2
        k = 3 - 2 * math.sqrt(2)
        alpha = (math.sqrt(2 * beta) - math.sqrt(beta)) / k - math.sqrt(gamma / k)
        spread.append(max(2 * (math.exp(alpha) - 1) / (1 + math.exp(alpha)), 0.0))
    short, long = averaged(c, 2 / 13), averaged(c, 2 / 27)
    macd = [fast - slow for fast, slow in zip(short, long, strict=True)]
    middle = [mean(last(c, t, 20)) for t in rows]
    reach = [2 * deviation(last(c, t, 20)) for t in rows]
    quick, slow = averaged(v, 2 / 6), averaged(v, 2 / 21)
    flow = [location[t] * v[t] for t in rows]
    columns = {
        **{"open": o, "high": h, "low": l, "close": c, "log_volume": [math.log(1 + x) for x in v]},
        **{"returns": returns, "rsi": rsi, "macd": macd, "macd_signal": averaged(macd, 2 / 10)},
        "volatility": [deviation(last(returns, t, 20)) for t in rows],
        "atr": averaged(true_range, 1 / 14),
        "bbands_upper": [m + r for m, r in zip(middle, reach, strict=True)],
        "bbands_middle": middle,
        "bbands_lower": [m - r for m, r in zip(middle, reach, strict=True)],
        **{"ema_short": short, "ema_long": long},
        "volume_ma_ratio": [v[t] / mean(last(v, t, 20)) if mean(last(v, t, 20)) else 1.0 for t in rows],
        "relative_volume": relative,
        "dollar_volume": [c[t] * v[t] for t in rows],
        "vwap": vwap,
        "vwap_distance": [(c[t] - vwap[t]) / vwap[t] for t in rows],
        "orderflow_imbalance": [
            sum(last(flow, t, 20)) / sum(last(v, t, 20)) if sum(last(v, t, 20)) else 0.0 for t in rows
        ],
        "trade_intensity": [q / s if s else 1.0 for q, s in zip(quick, slow, strict=True)],
        "tick_rule": tick,
        "spread_proxy": spread,
    }
    return np.array([columns[name] for name in MIGT_FEATURES]).T


def assert_equals_plain(bars):
    table, expected = migt_features(bars, dropped=None), plain_features(bars)
    assert table.dtype == np.float32
    for index, name in enumerate(MIGT_FEATURES):
        # Differences of prices cancel; the spread takes roots of differences of squares.
        atol = ATOL_OF_PRICE * float(bars.close.max()) if name != "spread_proxy" else 1e-7
        np.testing.assert_allclose(table[:, index], expected[:, index], rtol=RTOL, atol=atol, err_msg=name)


def cut(bars, rows):
    return Bars(*(getattr(bars, name)[rows] for name in ("time", "open", "high", "low", "close", "volume")))


@pytest.fixture(scope="module")
def real_bars():
    """Minute bars of each symbol, in order."""
    if not REAL.is_file():
        pytest.skip(f"there is no {REAL}")
    with gzip.open(REAL, "rt") as file:
        rows = list(csv.DictReader(file))
    result = {}
    for symbol in dict.fromkeys(row["symbol"] for row in rows):
        own = [row for row in rows if row["symbol"] == symbol]
        time = np.array([row["timestamp_exchange_local"].replace(" ", "T") for row in own], "M8[m]")
        order = np.argsort(time, kind="stable")
        columns = [np.array([float(row[name]) for row in own])[order] for name in ("open", "high", "low", "close")]
        result[symbol] = Bars(time[order], *columns, np.array([float(row["volume"]) for row in own])[order])
    return result


@given(seed=st.integers(0, 1000), rows=st.integers(1, 130), minutes=st.sampled_from([5, 60, 360]))
@settings(max_examples=25, deadline=None)
def test_migt_features_are_their_definitions(seed, rows, minutes):
    assert_equals_plain(market_ohlcv(seed, rows, minutes_per_bar=minutes))


def test_migt_features_of_real_minute_bars(real_bars):
    for symbol, bars in real_bars.items():
        part = cut(bars, slice(0, 250))
        assert_equals_plain(part)
        whole = migt_features(bars)
        assert np.isfinite(whole).all(), symbol
        np.testing.assert_array_equal(whole[:250], migt_features(part))


@pytest.mark.parametrize("compute", [market_features, lambda bars: migt_features(bars, dropped=None)])
@given(seed=st.integers(0, 100), rows=st.integers(2, 400), data=st.data())
@settings(max_examples=25, deadline=None)
def test_no_feature_changes_when_later_rows_do(compute, seed, rows, data):
    bars = market_ohlcv(seed, rows, minutes_per_bar=60)
    kept = data.draw(st.integers(1, rows - 1))
    other = market_ohlcv(seed + 1, rows, minutes_per_bar=60)
    joined = {
        name: np.concatenate((getattr(bars, name)[:kept], getattr(other, name)[kept:]))
        for name in ("open", "high", "low", "close", "volume")
    }
    changed = replace(bars, **joined)
    whole = compute(bars)
    np.testing.assert_array_equal(compute(changed)[:kept], whole[:kept])
    np.testing.assert_array_equal(compute(cut(bars, slice(0, kept))), whole[:kept])


@pytest.mark.parametrize("price", [0.01, 5.0, 123456.7])
@pytest.mark.parametrize("volume", [0.0, 100.0])
def test_a_price_that_never_moves_gives_no_nan(price, volume):
    flat = np.full(60, price)
    bars = replace(market_ohlcv(0, 60), open=flat, high=flat, low=flat, close=flat, volume=np.full(60, volume))
    table = dict(zip(MIGT_FEATURES, migt_features(bars, dropped=None).T, strict=True))
    assert all(np.isfinite(column).all() for column in table.values())
    assert (table["rsi"] == 50).all()
    assert (table["tick_rule"] == 0).all()
    assert (table["spread_proxy"] == 0).all()
    assert (table["orderflow_imbalance"] == 0).all()
    for name in ("volume_ma_ratio", "relative_volume", "trade_intensity"):
        np.testing.assert_allclose(table[name], 1, rtol=RTOL, atol=0)
    for name in ("returns", "macd", "macd_signal", "volatility", "atr", "vwap_distance"):
        np.testing.assert_allclose(table[name], 0, atol=ATOL_OF_PRICE * price, rtol=0)
    assert np.isfinite(market_features(bars)).all()


@given(seed=st.integers(0, 50), kept=st.lists(st.booleans(), min_size=40, max_size=40))
@settings(max_examples=25, deadline=None)
def test_bars_with_gaps_in_time_have_their_features(seed, kept):
    """Missing bars shorten histories, and the day and the minute of the day are those of the time, not of the row."""
    kept[0] = True
    assert_equals_plain(cut(market_ohlcv(seed, 40, minutes_per_bar=360), np.array(kept)))


def test_the_order_is_that_of_the_document():
    assert ", ".join(MIGT_FEATURES) == (
        "open, high, low, close, log_volume, returns, rsi, macd, macd_signal, volatility, atr, bbands_upper, "
        "bbands_middle, bbands_lower, ema_short, ema_long, volume_ma_ratio, relative_volume, dollar_volume, vwap, "
        "vwap_distance, orderflow_imbalance, trade_intensity, tick_rule, spread_proxy"
    )


def test_which_feature_is_dropped():
    bars = market_ohlcv(3, 50)
    table = migt_features(bars, dropped=None)
    assert table.shape == (50, 25)
    assert migt_features(bars).shape == (50, 24)
    for dropped in ("macd_signal", "bbands_middle"):
        names = migt_feature_names(dropped)
        assert names == tuple(name for name in MIGT_FEATURES if name != dropped)
        expected = table[:, [MIGT_FEATURES.index(name) for name in names]]
        np.testing.assert_array_equal(migt_features(bars, dropped=dropped), expected)
    middle = table[:, MIGT_FEATURES.index("bbands_middle")]
    bands = table[:, [MIGT_FEATURES.index("bbands_upper"), MIGT_FEATURES.index("bbands_lower")]]
    np.testing.assert_allclose(bands.mean(axis=1), middle, rtol=RTOL, atol=0)  # why it can be spared


def test_the_eight_features_are_the_indicators():
    bars = market_ohlcv(5, 90)
    table = dict(zip(FEATURES, market_features(bars).T, strict=True))
    expected = {
        "volatility": indicators.rolling_std(indicators.log_returns(bars.close), 20),
        "rsi": indicators.relative_strength(bars.close, 14),
        "macd": indicators.macd(bars.close, 12, 26),
        "momentum": indicators.momentum(bars.close, 10),
    }
    for name, column in expected.items():
        np.testing.assert_array_equal(table[name], column.astype(np.float32))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("low", 0.0, "a low that is zero or negative: row 4"),
        ("low", 1e6, "a high below its low: row 4"),
        ("volume", -1.0, "a negative volume: row 4"),
        ("close", np.inf, "the bars' close has values that are not finite"),
        ("time", np.datetime64("2019-01-01T00:00", "m"), "a time before that of the bar before it: row 4"),
    ],
)
def test_bad_bars_are_refused(name, value, message):
    bars = market_ohlcv(0, 10)
    column = getattr(bars, name).copy()
    column[4] = value
    with pytest.raises(DataError, match=message):
        migt_features(replace(bars, **{name: column}))
    with pytest.raises(DataError, match="there are no bars"):
        migt_features(cut(bars, slice(0, 0)))
