"""The eight market features of `patchtst-cpu`, from OHLCV bars, and the window rule that goes with them.

Feature t uses bars up to t only.  In the order of the model's last axis:

    close, high, low, volume   the bar's own
    volatility                 population standard deviation of the last 20 logarithmic returns
                               r_t = ln(c_t / c_(t-1)), fewer at the start; r_0 = 0
    rsi                        Wilder's relative strength index over 14 bars, 0 to 100: 100 G / (G + L), where G and L
                               are the smoothed gains and losses, x_t = x_(t-1) + (g_t - x_(t-1)) / 14, x_0 = 0; 50
                               where both are zero
    macd                       EMA_12(close) - EMA_26(close), where EMA_n starts at the first close and has the weight
                               2 / (n + 1)
    momentum                   c_t - c_(t-10), the first close standing for those before it

The documents that name these features leave their periods open; 20, 14, 12/26 and 10 are the usual ones.

Window rule: the last 128 bars, shorter histories padded with zeros on the left, then min-max scaled per window and
feature, a zero range counting as 1.
"""

import numpy as np
from numpy.typing import NDArray

from tsexport.calibration.indicators import log_returns, macd, momentum, relative_strength, rolling_std
from tsexport.calibration.synthetic import Bars, market_ohlcv
from tsexport.errors import DataError
from tsexport.types import Array

FEATURES = ("close", "high", "low", "volume", "volatility", "rsi", "macd", "momentum")
CLOSE = FEATURES.index("close")
CONTEXT_BARS = 128
HORIZON_BARS = 8
"""`patchtst-cpu` predicts the close this many bars after its window."""

VOLATILITY_BARS = 20
RSI_BARS = 14
MACD_FAST_BARS, MACD_SLOW_BARS = 12, 26
MOMENTUM_BARS = 10

REFERENCE_SEED = 2024
REFERENCE_ROWS = 24_000
REFERENCE_MINUTES_PER_BAR = 90
"""Sixteen bars a day, so that every patch of `patchtst-cpu` begins at the same hour: it cannot tell their order."""

TRAINING_FRACTION = 0.70
EVALUATION_FRACTION = 0.15


def market_features(bars: Bars) -> NDArray[np.float32]:
    """Return the features [rows, 8] of `bars`, float32, computed in float64.

    Raises:
        DataError: no bars, a price that is not positive, or a value that is not finite.
    """
    require_bars(bars)
    close = np.asarray(bars.close, dtype=np.float64)
    table = (
        close,
        bars.high,
        bars.low,
        bars.volume,
        rolling_std(log_returns(close), VOLATILITY_BARS),
        relative_strength(close, RSI_BARS),
        macd(close, MACD_FAST_BARS, MACD_SLOW_BARS),
        momentum(close, MOMENTUM_BARS),
    )
    return np.stack(table, axis=1).astype(np.float32)


def require_bars(bars: Bars) -> None:
    """Raise where indicators cannot be computed.

    Raises:
        DataError: no bars, a close that is not positive, or a value that is not finite.
    """
    if not len(bars):
        raise DataError("there are no bars to compute features from")
    for name in ("open", "high", "low", "close", "volume"):
        if not np.isfinite(getattr(bars, name)).all():
            raise DataError(f"the bars' {name} has values that are not finite", next_step="Remove or fill those bars.")
    if (bars.close <= 0).any():
        raise DataError("a close is zero or negative; logarithmic returns need positive prices")


def last_window(features: Array, bars: int = CONTEXT_BARS) -> Array:
    """Return the last `bars` rows of [rows, F], padded with zeros on the left where there are fewer."""
    missing = max(bars - len(features), 0)
    return np.concatenate((np.zeros((missing, *features.shape[1:]), features.dtype), features[-bars:]))


def minmax_range(windows: Array) -> tuple[Array, Array]:
    """Return (minimum, range) of windows [n, T, F] over time, each [n, 1, F]; a zero range is returned as 1."""
    low = windows.min(axis=1, keepdims=True)
    span = windows.max(axis=1, keepdims=True) - low
    return low, np.where(span > 0, span, np.ones_like(span))


def minmax_window(windows: Array) -> Array:
    """Return windows [n, T, F] scaled to 0..1 per window and feature: (x - min) / (max - min, or 1 where that is 0)."""
    low, span = minmax_range(windows)
    return np.asarray((windows - low) / span)


def scaled_examples(table: Array, starts: NDArray[np.intp]) -> tuple[Array, Array]:
    """Return what `patchtst-cpu` is trained and judged on: windows that begin at rows `starts` of a table [rows, 8].

    Inputs are [n, 128, 8], scaled per window; targets are [n, 1]: the close 8 bars after the window's last bar, scaled
    by the minimum and range of the close in that window, so that it may lie outside 0..1.
    """
    windows = table[starts[:, None] + np.arange(CONTEXT_BARS)]
    future = table[starts + CONTEXT_BARS - 1 + HORIZON_BARS, CLOSE]
    low, span = minmax_range(windows)
    return minmax_window(windows), (future[:, None] - low[:, 0, [CLOSE]]) / span[:, 0, [CLOSE]]


def reference_table() -> tuple[NDArray[np.float32], int]:
    """Return (features [24000, 8] float32, column of the close): what `patchtst-cpu`'s checkpoint is trained on.

    The first 70 % of the rows are for training and calibration, the last 15 % for evaluation; those between are left to
    choose by (the training script does not use them).  See `training_starts` and `evaluation_starts`.
    """
    bars = market_ohlcv(REFERENCE_SEED, REFERENCE_ROWS, minutes_per_bar=REFERENCE_MINUTES_PER_BAR)
    return market_features(bars), CLOSE


def training_starts(rows: int) -> NDArray[np.intp]:
    """Return the first rows of all examples (window and target) that lie in the first 70 % of `rows`."""
    return np.arange(int(rows * TRAINING_FRACTION) - CONTEXT_BARS - HORIZON_BARS + 1)


def evaluation_starts(rows: int) -> NDArray[np.intp]:
    """Return the first rows of all examples (window and target) that lie in the last 15 % of `rows`."""
    return np.arange(rows - int(rows * EVALUATION_FRACTION), rows - CONTEXT_BARS - HORIZON_BARS + 1)
