"""Trading days as hrm-27m reads them, cut from synthetic minute bars: the days before, the day's minutes, a target.

Bars run round the clock; a day's session is its `minutes` bars from 9:30 on.  With c the logarithmic close of a minute,
a return over n minutes is c_t - c_(t-n), and a volatility over n the root of the mean squared one-minute return.

    MINUTE_FEATURES  returns over 1, 5, 15, 30 and 60 minutes; volatilities over 15 and 60; ln(high / low); where the
                     close lies between low and high, 0 to 1; ln(volume / its mean over 60), and of its mean over 5;
                     ln(close / the session's first open); ln(close / the session's volume-weighted mean price so far);
                     ln(close / the session's highest, lowest price so far); the minute, -0.5 to 0.5
    DAILY_FEATURES   of a session: ln(close / close 1, 5 and 20 days before); ln(open / close of the day before);
                     ln(close / open); ln(high / low); where the close lies between them; its first and second half's
                     return; volatility, and its mean over 5 and 20 days; ln(volume / its mean over 20 days), and of its
                     mean over 5; ln(close / its mean over 20 days); the weekday, -0.5 (Monday) to 0.5

A minute's features use bars up to it alone, a day's tokens the days before it alone.  Windows at the start of the
series are shorter.  Features are standardised by the training days.  `target` is, at each minute, the return over the
next 1, 5 and 15 minutes, in standard deviations of the training days.  What minutes mean to the published model is not
published; these are this project's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsexport.calibration.arrays import ArrayDataset
from tsexport.calibration.calendars import calendar_numbers
from tsexport.calibration.indicators import Values, log_returns, momentum, ratio, rolling_mean
from tsexport.calibration.series import SplitName
from tsexport.calibration.synthetic import MINUTES_PER_DAY, Bars, market_ohlcv
from tsexport.types import Array

MINUTE_FEATURES = 16
DAILY_FEATURES = 16
TARGET_MINUTES = (1, 5, 15)
OPEN_MINUTE = 9 * 60 + 30
LONGEST_SESSION = MINUTES_PER_DAY - OPEN_MINUTE - max(TARGET_MINUTES)
TRAINING_DAYS, HELD_OUT_DAYS = 64, 64
"""Few, since a day is 390 steps of a large model: what the checks of data ask for, or a little more."""
SEED = 2026


def has_trading_days(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration of hrm-27m takes and answers days as they are cut here."""
    sizes = (config["daily_features"], config["minute_features"], config["targets"])
    fitting = sizes == (DAILY_FEATURES, MINUTE_FEATURES, len(TARGET_MINUTES))
    return fitting and config["minutes"] <= LONGEST_SESSION


def reference_trading_days(
    config: Mapping[str, Any], seed: int, split: SplitName, names: Sequence[str]
) -> tuple[ArrayDataset, str]:
    """Return one split of the days for `hrm-27m`, and what they are; they have a seed and names of their own."""
    return trading_days(config["days"], config["minutes"], split), "the reference trading days"


def trading_days(days: int, minutes: int, split: SplitName) -> ArrayDataset:
    """Return the training days, or those held out, which follow them.

    Args:
        days: daily tokens before each day.
        minutes: of a session.
        split: "train", or any other for the days held out.

    Returns:
        daily [n, days, 16], minutes [n, minutes, 16], target [n, minutes, 3], all float32.
    """
    count = days + TRAINING_DAYS + HELD_OUT_DAYS
    bars = market_ohlcv(SEED, count * MINUTES_PER_DAY, minutes_per_bar=1)
    sessions = np.arange(count)[:, None] * MINUTES_PER_DAY + OPEN_MINUTE + np.arange(minutes)
    by_minute = minute_features(bars, sessions)[days:]
    tokens = daily_features(bars, sessions)
    close = np.log(bars.close)
    target = np.stack([close[sessions[days:] + ahead] - close[sessions[days:]] for ahead in TARGET_MINUTES], axis=-1)
    by_minute = standardised(by_minute, by_minute[:TRAINING_DAYS])
    tokens = standardised(tokens, tokens[: days + TRAINING_DAYS])
    target = target / target[:TRAINING_DAYS].std(axis=(0, 1))
    daily = np.stack([tokens[first : first + days] for first in range(count - days)])
    part = slice(0, TRAINING_DAYS) if split == "train" else slice(TRAINING_DAYS, None)
    arrays: dict[str, Array] = {"daily": daily[part].astype(np.float32), "minutes": by_minute[part].astype(np.float32)}
    return ArrayDataset(arrays, target[part].astype(np.float32), prefix=split)


def minute_features(bars: Bars, sessions: NDArray[np.intp]) -> Values:
    """Return [days, minutes, 16] for the rows of sessions [days, minutes]."""
    close, returns = np.log(bars.close), log_returns(bars.close)
    volume = rolling_mean(bars.volume, 60)
    running = (
        *(momentum(close, minutes) for minutes in (1, 5, 15, 30, 60)),
        *(np.sqrt(rolling_mean(returns * returns, minutes)) for minutes in (15, 60)),
        np.log(bars.high / bars.low),
        ratio(bars.close - bars.low, bars.high - bars.low, 0.5),
        np.log(bars.volume / volume),
        np.log(rolling_mean(bars.volume, 5) / volume),
    )
    price, traded = bars.close[sessions], bars.volume[sessions]
    within = (
        np.log(price / bars.open[sessions[:, :1]]),
        np.log(price / (np.cumsum(price * traded, axis=1) / np.cumsum(traded, axis=1))),
        np.log(price / np.maximum.accumulate(bars.high[sessions], axis=1)),
        np.log(price / np.minimum.accumulate(bars.low[sessions], axis=1)),
        np.broadcast_to(np.linspace(-0.5, 0.5, sessions.shape[1]), price.shape),
    )
    return np.stack([*(values[sessions] for values in running), *within], axis=-1)


def daily_features(bars: Bars, sessions: NDArray[np.intp]) -> Values:
    """Return [days, 16] for the rows of sessions [days, minutes]."""
    prices = np.log(bars.close[sessions])
    first, last, middle = np.log(bars.open[sessions[:, 0]]), prices[:, -1], prices[:, sessions.shape[1] // 2]
    high, low = bars.high[sessions].max(axis=1), bars.low[sessions].min(axis=1)
    volatility = np.sqrt((log_returns(bars.close)[sessions] ** 2).mean(axis=1))
    volume = bars.volume[sessions].sum(axis=1)
    weekday = calendar_numbers(bars.time[sessions[:, 0]]).weekday
    return np.stack(
        [
            *(momentum(last, days) for days in (1, 5, 20)),
            first - np.concatenate((first[:1], last[:-1])),
            last - first,
            np.log(high / low),
            ratio(bars.close[sessions[:, -1]] - low, high - low, 0.5),
            middle - first,
            last - middle,
            volatility,
            *(rolling_mean(volatility, days) for days in (5, 20)),
            np.log(volume / rolling_mean(volume, 20)),
            np.log(rolling_mean(volume, 5) / rolling_mean(volume, 20)),
            last - rolling_mean(last, 20),
            weekday / 6 - 0.5,
        ],
        axis=-1,
    )


def standardised(values: Values, training: Values) -> Values:
    """Return values [..., features] less the mean of the training values, in their standard deviations."""
    axes = tuple(range(training.ndim - 1))
    deviation = training.std(axis=axes)
    return np.asarray((values - training.mean(axis=axes)) / np.where(deviation > 0, deviation, 1))
