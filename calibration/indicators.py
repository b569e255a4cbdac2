"""Technical indicators as pure functions of float64 arrays [rows], oldest row first.

Row t of every result uses rows up to t only, and its bits do not change when rows are appended.  No row is NaN: each
function says what stands for a history that is still too short ("warm-up") and for a division by zero.

Sources: Wilder 1978, New Concepts in Technical Trading Systems (RSI, ATR); Appel 1979 (MACD); Bollinger 2001, Bollinger
on Bollinger Bands; Lee and Ready 1991, Inferring Trade Direction from Intraday Data (tick rule); Corwin and Schultz
2012, A Simple Way to Estimate Bid-Ask Spreads from Daily High and Low Prices.

Four indicators that are usually computed from single trades have proxies here, since OHLCV has no trades:
`orderflow_imbalance`, `trade_intensity`, `tick_rule` and `spread_proxy`.
"""

import numpy as np
from numpy.typing import NDArray

from tsexport.calibration.synthetic import recurse

Values = NDArray[np.float64]


def ratio(numerator: Values, denominator: Values, otherwise: float | Values) -> Values:
    """Return numerator / denominator, and `otherwise` where the denominator is 0."""
    zero = denominator == 0
    return np.where(zero, otherwise, numerator / np.where(zero, 1.0, denominator))


def shifted(values: Values, bars: int) -> Values:
    """Return x_(t-bars).  Warm-up: the first value stands for those before it."""
    return np.concatenate((np.full(min(bars, len(values)), values[0]), values[:-bars]))


def log_returns(close: Values) -> Values:
    """Return ln(c_t / c_(t-1)).  Warm-up: 0 at row 0."""
    return np.diff(np.log(close), prepend=np.log(close[0]))


def momentum(close: Values, bars: int) -> Values:
    """Return c_t - c_(t-bars).  Warm-up: the first close stands for those before it."""
    return close - shifted(close, bars)


def rolling_mean(values: Values, bars: int) -> Values:
    """Return the mean of the last `bars` values.  Warm-up: of those there are."""
    sums = _windows(values, bars, before=0.0).sum(axis=1)
    return np.asarray(sums / np.minimum(np.arange(1, len(values) + 1), bars))


def rolling_std(values: Values, bars: int) -> Values:
    """Return the population standard deviation of the last `bars` values.  Warm-up: of those there are."""
    # two passes, since E[x^2] - E[x]^2 cancels; NaN is left out of both
    return np.asarray(np.nanstd(_windows(values, bars, before=np.nan), axis=1))


def exponential_average(values: Values, bars: int) -> Values:
    """Return EMA_n: y_t = y_(t-1) + 2 / (n + 1) (x_t - y_(t-1)).  Warm-up: y_0 = x_0."""
    weight = 2 / (bars + 1)
    inputs = weight * values
    inputs[0] = values[0]
    return recurse(1 - weight, inputs)


def wilder_average(values: Values, bars: int) -> Values:
    """Return Wilder's smoothing: y_t = y_(t-1) + (x_t - y_(t-1)) / n.  Warm-up: y_0 = x_0."""
    inputs = values / bars
    inputs[0] = values[0]
    return recurse(1 - 1 / bars, inputs)


def relative_strength(close: Values, bars: int) -> Values:
    """Return Wilder's RSI, 0 to 100: 100 G / (G + L) of the smoothed gains and losses.

    Warm-up: G_0 = L_0 = 0; 50 where both are 0, so where the price has not moved yet.
    """
    change = np.diff(close, prepend=close[0])
    gain, loss = (recurse(1 - 1 / bars, np.maximum(part, 0) / bars) for part in (change, -change))
    total = gain + loss
    return np.where(total > 0, 100 * gain / np.where(total > 0, total, 1), 50.0)


def macd(close: Values, fast_bars: int, slow_bars: int) -> Values:
    """Return EMA_fast(close) - EMA_slow(close).  Warm-up: 0 at row 0, since both begin at the first close."""
    return exponential_average(close, fast_bars) - exponential_average(close, slow_bars)


def average_true_range(high: Values, low: Values, close: Values, bars: int) -> Values:
    """Return Wilder's average of max(h_t - l_t, |h_t - c_(t-1)|, |l_t - c_(t-1)|).  Warm-up: h_0 - l_0 at row 0."""
    before = shifted(close, 1)
    before[0] = low[0]  # then all three are at most h_0 - l_0
    true_range = np.maximum(high - low, np.maximum(np.abs(high - before), np.abs(low - before)))
    return wilder_average(true_range, bars)


def bollinger_bands(close: Values, bars: int, deviations: float) -> tuple[Values, Values, Values]:
    """Return (upper, middle, lower): the rolling mean, and `deviations` rolling standard deviations off it."""
    middle = rolling_mean(close, bars)
    reach = deviations * rolling_std(close, bars)
    return middle + reach, middle, middle - reach


def volume_ratio(volume: Values, bars: int) -> Values:
    """Return v_t over the mean of the last `bars` volumes, v_t among them; 1 where none was traded."""
    return ratio(volume, rolling_mean(volume, bars), 1.0)


def relative_volume(volume: Values, minute_of_day: NDArray[np.int64], days: int) -> Values:
    """Return v_t over the mean volume of the last `days` earlier bars of the same minute of the day.

    Warm-up: of those there are; 1 where there is none yet, or where nothing was traded in them.
    """
    result = np.ones(len(volume))
    for minute in np.unique(minute_of_day):
        rows = np.flatnonzero(minute_of_day == minute)
        earlier = rolling_mean(volume[rows], days)[:-1]
        result[rows[1:]] = ratio(volume[rows[1:]], earlier, 1.0)
    return result


def session_vwap(price: Values, volume: Values, day: NDArray[np.int64]) -> Values:
    """Return the volume-weighted average price since the day began: sum(p v) / sum(v), the bar itself included.

    Warm-up: starts anew with every change of `day`; the bar's own price while nothing was traded that day.
    """
    begins = np.flatnonzero(np.diff(day, prepend=day[0] - 1))
    result = np.empty(len(price))
    for rows in np.split(np.arange(len(price)), begins[1:]):
        traded = np.cumsum(volume[rows])
        result[rows] = ratio(np.cumsum(price[rows] * volume[rows]), traded, price[rows])
    return result


def orderflow_imbalance(high: Values, low: Values, close: Values, volume: Values, bars: int) -> Values:
    """Return a proxy of (bought - sold) / traded volume over the last `bars` bars, -1 to 1.

    Without trades a bar's volume is taken as bought as far as its close lies towards the high: the location
    ((c - l) - (h - c)) / (h - l), 0 where h = l, weighs its volume (Chaikin's money flow).  0 where none was traded.
    """
    location = ratio((close - low) - (high - close), high - low, 0.0)
    return ratio(rolling_mean(location * volume, bars), rolling_mean(volume, bars), 0.0)


def trade_intensity(volume: Values, fast_bars: int, slow_bars: int) -> Values:
    """Return a proxy of how fast trades arrive against usual: EMA_fast(v) / EMA_slow(v); 1 where none was traded.

    Without a count of trades the volume stands for it.
    """
    return ratio(exponential_average(volume, fast_bars), exponential_average(volume, slow_bars), 1.0)


def tick_rule(close: Values) -> Values:
    """Return the sign of the last change of price, 1 or -1.  Warm-up: 0 until the price has changed.

    Lee and Ready's rule on closes, where it is meant for trades: a zero change keeps the sign before it.
    """
    sign = np.sign(np.diff(close, prepend=close[0]))
    last = np.maximum.accumulate(np.where(sign != 0, np.arange(len(close)), 0))
    return np.asarray(sign[last])


def spread_proxy(high: Values, low: Values) -> Values:
    """Return Corwin and Schultz's estimate of the relative bid-ask spread from the ranges of two bars in a row.

    With b the sum of both ln(h / l)^2 and g = ln(highest / lowest)^2 of the two together:
    a = (sqrt(2 b) - sqrt(b)) / k - sqrt(g / k), k = 3 - 2 sqrt(2), and the spread 2 (e^a - 1) / (e^a + 1), at least 0.
    Warm-up: row 0 is taken twice.  Made for days; on shorter bars it is no more than a proxy.
    """
    high_before, low_before = shifted(high, 1), shifted(low, 1)
    own, before = np.log(high / low) ** 2, np.log(high_before / low_before) ** 2
    both = np.log(np.maximum(high, high_before) / np.minimum(low, low_before)) ** 2
    k = 3 - 2 * np.sqrt(2)
    alpha = (np.sqrt(2 * (own + before)) - np.sqrt(own + before)) / k - np.sqrt(both / k)
    return np.asarray(np.maximum(2 * np.tanh(alpha / 2), 0.0))  # (e^a - 1) / (e^a + 1) = tanh(a / 2)


def _windows(values: Values, bars: int, before: float) -> Values:
    """Return the last `bars` values of each row, [rows, bars]; `before` stands for those before the first."""
    padded = np.concatenate((np.full(bars - 1, before), values))
    return np.lib.stride_tricks.sliding_window_view(padded, bars)
