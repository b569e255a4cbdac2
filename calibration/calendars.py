"""Times as numbers of a calendar, each from 0 on: what models' own calendars are made of."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CalendarNumbers:
    """Numbers of times [...], int64 in the shape of the times."""

    minute_of_day: NDArray[np.int64]
    weekday: NDArray[np.int64]
    """Monday is 0."""
    day_of_month: NDArray[np.int64]
    day_of_year: NDArray[np.int64]


def calendar_numbers(times: NDArray[np.datetime64]) -> CalendarNumbers:
    """Return the numbers of times; seconds are cut off."""
    days, months, years = (times.astype(f"datetime64[{unit}]") for unit in "DMY")
    since_monday = days.astype(np.int64) + 3  # day 0, 1970-01-01, was a Thursday
    return CalendarNumbers(
        minute_of_day=(times - days).astype("timedelta64[m]").astype(np.int64),
        weekday=np.asarray(since_monday % 7),
        day_of_month=(days - months.astype("datetime64[D]")).astype(np.int64),
        day_of_year=(days - years.astype("datetime64[D]")).astype(np.int64),
    )
