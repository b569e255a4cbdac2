"""The market features of `migt-tvdt`, from OHLCV bars: 25 upstream, of which the model takes 24.

Definitions and warm-up stand in `calibration.indicators`; row t uses bars up to t only.  In order:

    open, high, low, close     the bar's own
    log_volume                 ln(1 + volume)
    returns                    ln(c_t / c_(t-1))
    rsi                        Wilder, 14 bars, 0 to 100
    macd, macd_signal          EMA_12 - EMA_26 of the close; EMA_9 of that
    volatility                 population standard deviation of the last 20 returns
    atr                        Wilder's average true range, 14 bars
    bbands_upper, _middle, _lower   mean of the last 20 closes, 2 population standard deviations off it
    ema_short, ema_long        EMA_12 and EMA_26 of the close
    volume_ma_ratio            volume over the mean of the last 20
    relative_volume            volume over the mean of the last 5 earlier bars of the same minute of the day
    dollar_volume              close times volume, in the price's currency
    vwap, vwap_distance        of (h + l + c) / 3 since the day began; (close - vwap) / vwap
    orderflow_imbalance        proxy: Chaikin's money flow over 20 bars, -1 to 1
    trade_intensity            proxy: EMA_5 over EMA_20 of the volume
    tick_rule                  proxy: sign of the last change of the close, -1, 0 or 1
    spread_proxy               proxy: Corwin and Schultz's spread of two bars, relative

The documents that name them leave the periods open: these are the usual ones.  The last four need single trades, which
OHLCV does not have; what is computed instead says so above.

Of the 25 the documents' model takes 24.  `macd_signal` is dropped: it is a smoothed `macd`, and the bands are kept
whole.  The alternative is `bbands_middle`, which is the mean of the other two bands.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tsexport.calibration import indicators
from tsexport.calibration.calendars import calendar_numbers
from tsexport.calibration.market import MACD_FAST_BARS, MACD_SLOW_BARS, RSI_BARS, VOLATILITY_BARS, require_bars
from tsexport.calibration.synthetic import Bars
from tsexport.errors import DataError

MIGT_FEATURES = (
    *("open", "high", "low", "close", "log_volume", "returns", "rsi", "macd", "macd_signal", "volatility", "atr"),
    *("bbands_upper", "bbands_middle", "bbands_lower", "ema_short", "ema_long", "volume_ma_ratio", "relative_volume"),
    *("dollar_volume", "vwap", "vwap_distance", "orderflow_imbalance", "trade_intensity", "tick_rule", "spread_proxy"),
)
Dropped = Literal["macd_signal", "bbands_middle"]

MACD_SIGNAL_BARS = 9
ATR_BARS = 14
BANDS_BARS, BANDS_DEVIATIONS = 20, 2.0
VOLUME_BARS = 20
RELATIVE_VOLUME_DAYS = 5
IMBALANCE_BARS = 20
INTENSITY_FAST_BARS, INTENSITY_SLOW_BARS = 5, 20


def migt_feature_names(dropped: Dropped | None = "macd_signal") -> tuple[str, ...]:
    """Return the names of the 24 features that are left without `dropped`, or of all 25."""
    return tuple(name for name in MIGT_FEATURES if name != dropped)


def migt_features(bars: Bars, *, dropped: Dropped | None = "macd_signal") -> NDArray[np.float32]:
    """Return the features [rows, 24] of `bars`, or [rows, 25] with `dropped=None`: float32, computed in float64.

    Raises:
        DataError: no bars, a low or close that is not positive, a high below the low, a negative volume, a value that
            is not finite, or time that goes backwards.
    """
    _require_ohlcv(bars)
    o, h, l, c, v = (np.asarray(getattr(bars, name), np.float64) for name in ("open", "high", "low", "close", "volume"))  # noqa: E741
    minute = calendar_numbers(bars.time).minute_of_day
    day = bars.time.astype("datetime64[D]").astype(np.int64)
    returns = indicators.log_returns(c)
    macd = indicators.macd(c, MACD_FAST_BARS, MACD_SLOW_BARS)
    upper, middle, lower = indicators.bollinger_bands(c, BANDS_BARS, BANDS_DEVIATIONS)
    vwap = indicators.session_vwap((h + l + c) / 3, v, day)
    columns = {
        "open": o,
        "high": h,
        "low": l,
        "close": c,
        "log_volume": np.log1p(v),
        "returns": returns,
        "rsi": indicators.relative_strength(c, RSI_BARS),
        "macd": macd,
        "macd_signal": indicators.exponential_average(macd, MACD_SIGNAL_BARS),
        "volatility": indicators.rolling_std(returns, VOLATILITY_BARS),
        "atr": indicators.average_true_range(h, l, c, ATR_BARS),
        "bbands_upper": upper,
        "bbands_middle": middle,
        "bbands_lower": lower,
        "ema_short": indicators.exponential_average(c, MACD_FAST_BARS),
        "ema_long": indicators.exponential_average(c, MACD_SLOW_BARS),
        "volume_ma_ratio": indicators.volume_ratio(v, VOLUME_BARS),
        "relative_volume": indicators.relative_volume(v, minute, RELATIVE_VOLUME_DAYS),
        "dollar_volume": c * v,
        "vwap": vwap,
        "vwap_distance": (c - vwap) / vwap,
        "orderflow_imbalance": indicators.orderflow_imbalance(h, l, c, v, IMBALANCE_BARS),
        "trade_intensity": indicators.trade_intensity(v, INTENSITY_FAST_BARS, INTENSITY_SLOW_BARS),
        "tick_rule": indicators.tick_rule(c),
        "spread_proxy": indicators.spread_proxy(h, l),
    }
    return np.stack([columns[name] for name in migt_feature_names(dropped)], axis=1).astype(np.float32)


def _require_ohlcv(bars: Bars) -> None:
    require_bars(bars)
    faults = {
        "a low that is zero or negative": bars.low <= 0,
        "a high below its low": bars.high < bars.low,
        "a negative volume": bars.volume < 0,
        "a time before that of the bar before it": np.diff(bars.time, prepend=bars.time[:1]) < np.timedelta64(0, "m"),
    }
    for fault, rows in faults.items():
        if rows.any():
            raise DataError(
                f"the bars have {fault}: row {int(np.argmax(rows))} (the first is 0)",
                next_step="Correct or leave out those bars; sort them by time, one instrument at a time.",
            )
