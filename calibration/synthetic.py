"""Synthetic series from a seed, with numpy only: what a build calibrates on when the user gives no data.

They stand for nobody's market.  They are made so that a model can learn something from them and so that their ranges
look like those of real bars: the reference checkpoints are trained on them, and the same rows come out of the same
seed on every machine.

Market bars (`market_ohlcv`), one bar t after the other, logarithmic price p_t = m_t + d_t + s_t:

    v_t  volatility regime: 1 (calm) or 1.75 (stressed); changes with probability 1/250 a bar
    m_t  random walk, steps 0.0005 v_t e_t: nobody can predict it
    d_t  deviation that reverts to zero: d_t = phi d_(t-1) + 0.004 v_t e'_t, phi = 0.5^(1/4) (half gone after 4 bars)
    s_t  daily season: 0.01 sin(2 pi t / bars a day)

The close is 100 exp(p_t), the open is the close before it; high and low lie beyond both by half-normal distances of
0.002 v_t; the volume is log-normal, follows the day, and grows with the bar's move.  Prices are rounded to 0.01 and
volumes to whole units, as on an exchange.  Rounding also hides the last-bit differences between the exp() of one CPU
and another.  A longer series begins with the shorter one of the same seed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsexport.calibration.calendars import calendar_numbers
from tsexport.errors import ConfigurationError

MINUTES_PER_DAY = 1440
FIRST_BAR = np.datetime64("2020-01-01T00:00", "m")

TIME_MARKS = ("hour", "weekday", "day_of_month", "day_of_year")
_MOST = (23, 6, 30, 365)

REGIME_CHANGE_PROBABILITY = 1 / 250
STRESSED_VOLATILITY = 1.75
WALK_SCALE = 0.0005
DEVIATION_SCALE = 0.004
DEVIATION_HALF_LIFE_BARS = 4
SEASON_AMPLITUDE = 0.01
WICK_SCALE = 0.002
BASE_PRICE = 100.0
BASE_VOLUME = 10_000.0


@dataclass(frozen=True)
class Bars:
    """OHLCV bars, oldest first, each field an array [rows]: prices and volume float64, `time` datetime64[m]."""

    time: NDArray[np.datetime64]
    open: NDArray[np.float64]
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    close: NDArray[np.float64]
    volume: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.close)


def recurse(decay: float, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return y with y[0] = inputs[0] and y[t] = decay * y[t-1] + inputs[t], along the first axis.

    Computed by doubling: after step k every value holds the 2^k inputs up to it, so log2(rows) passes over the array
    take the place of a Python loop.
    """
    result = np.array(inputs, dtype=np.float64)
    step, factor = 1, decay
    while step < len(result):
        carried = factor * result[:-step]
        result[step:] += carried
        step, factor = 2 * step, factor * factor
    return result


def market_ohlcv(seed: int, rows: int, *, minutes_per_bar: int = 60) -> Bars:
    """Return `rows` synthetic bars (see the module's formulas); `minutes_per_bar` sets the length of the daily season.

    Raises:
        ConfigurationError: fewer than one row, a negative seed, or bars that do not divide a day.
    """
    _check(seed, rows)
    if minutes_per_bar < 1 or MINUTES_PER_DAY % minutes_per_bar:
        raise ConfigurationError(
            f"minutes_per_bar is {minutes_per_bar}; it must divide a day of {MINUTES_PER_DAY} minutes",
            next_step="Use 1, 5, 15, 30 or 60.",
        )
    # One generator per part, so that a longer series begins with the shorter one.
    regime, walk, deviation, wicks, turnover = (np.random.default_rng([seed, part]) for part in range(5))
    t = np.arange(rows)
    stressed = np.cumsum(regime.random(rows) < REGIME_CHANGE_PROBABILITY) % 2 == 1
    volatility = np.where(stressed, STRESSED_VOLATILITY, 1.0)
    day = 2 * np.pi * t * minutes_per_bar / MINUTES_PER_DAY

    log_price = np.cumsum(WALK_SCALE * volatility * walk.standard_normal(rows))
    decay = 0.5 ** (1 / DEVIATION_HALF_LIFE_BARS)
    log_price += recurse(decay, DEVIATION_SCALE * volatility * deviation.standard_normal(rows))
    log_price += SEASON_AMPLITUDE * np.sin(day)

    close = np.round(BASE_PRICE * np.exp(log_price), 2)
    open_ = np.concatenate(([BASE_PRICE], close[:-1]))
    reach = 1 + np.abs(wicks.standard_normal((rows, 2))) * (WICK_SCALE * volatility)[:, None]
    high = np.round(np.maximum(open_, close) * reach[:, 0], 2)
    low = np.round(np.minimum(open_, close) / reach[:, 1], 2)
    move = np.abs(np.log(close / open_))
    activity = 0.4 * np.sin(day - 1.0) + 20 * move + 0.3 * turnover.standard_normal(rows)
    volume = np.round(BASE_VOLUME * volatility * np.exp(activity))
    time = FIRST_BAR + (t * minutes_per_bar).astype("timedelta64[m]")
    return Bars(time, open_, high, low, close, volume)


def channels_series(seed: int, rows: int, channels: int) -> NDArray[np.float32]:
    """Return an hourly series [rows, channels], float32, of roughly unit scale, for forecasting models.

    Every channel c is a_c sin(2 pi t / 24 + f_c) + b_c sin(2 pi t / 168 + g_c) + w_c F_t + D_t,c, where F is a slow
    factor that all channels share (AR(1), 0.98), D the channel's own AR(1) (0.8), and the weights are drawn from the
    seed.

    Raises:
        ConfigurationError: fewer than one row or channel, or a negative seed.
    """
    _check(seed, rows)
    if channels < 1:
        raise ConfigurationError(f"channels is {channels}; at least 1 is needed")
    weights, shared, own = (np.random.default_rng([seed, 100 + part]) for part in range(3))
    day_amplitude, week_amplitude, loading = weights.uniform(0.3, 0.9, (3, channels))
    day_phase, week_phase = weights.uniform(0, 2 * np.pi, (2, channels))
    t = np.arange(rows)[:, None]
    series = day_amplitude * np.sin(2 * np.pi * t / 24 + day_phase)
    series = series + week_amplitude * np.sin(2 * np.pi * t / 168 + week_phase)
    series = series + loading * recurse(0.98, 0.2 * shared.standard_normal((rows, 1)))
    series = series + recurse(0.8, 0.25 * own.standard_normal((rows, channels)))
    return np.asarray(series, dtype=np.float32)


def hourly_times(rows: int) -> NDArray[np.datetime64]:
    """Return the times of the rows of `channels_series`, [rows]: hours from FIRST_BAR on."""
    return np.asarray(FIRST_BAR.astype("datetime64[h]") + np.arange(rows))


def time_marks(times: NDArray[np.datetime64]) -> NDArray[np.float32]:
    """Return the calendar of times [...] as [..., 4]: what `TIME_MARKS` names, each in -0.5..0.5.

    hour / 23, weekday / 6 (Monday is 0), (day of month - 1) / 30 and (day of year - 1) / 365, less 0.5 each.
    """
    given = calendar_numbers(times)
    counts = (given.minute_of_day // 60, given.weekday, given.day_of_month, given.day_of_year)
    scaled = [count / most for count, most in zip(counts, _MOST, strict=True)]
    return np.stack(scaled, axis=-1).astype(np.float32) - np.float32(0.5)


def mark_numbers(marks: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Return hour, weekday, day of month and day of year, each from 0 on, of marks [..., 4] as `time_marks` makes
    them."""
    return np.rint((marks.astype(np.float64) + 0.5) * _MOST).astype(np.int64)


def _check(seed: int, rows: int) -> None:
    if seed < 0:
        raise ConfigurationError(f"seed is {seed}; it must be 0 or more")
    if rows < 1:
        raise ConfigurationError(f"rows is {rows}; at least 1 is needed")
