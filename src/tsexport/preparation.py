"""How raw windows become what a model takes, and its forecasts what a user reads: a record of the core."""

from dataclasses import dataclass
from typing import Literal

Scaling = Literal["none", "standard", "minmax-window", "revin"]
ShortWindows = Literal["repeat", "zeros"]
BesideWindows = Literal["marks", "indices", "valid"]
REVIN_EPSILON = 1e-5
"""Added to the variance of a window for "revin"."""


@dataclass(frozen=True)
class Preparation:
    """What stands in a graph before its model, and behind it, so that raw windows go in and forecasts come out.

    `raw` names the raw windows, [batch, context_length, columns]: float32 in the series' own units, NaN where a value
    is missing.  Where a model takes a calendar, times go in too: int64 minutes since 1970, [batch, rows].

    scaling: of the windows.  mean, std: statistics of the training rows for "standard", else ().
    short_windows: what stands for rows before the first one: that row's values again, or zeros before scaling.
    targets: where the columns that the first output forecasts lie in `columns`; () where it is not scaled back.
    target_mean, target_std: of the target columns for "standard"; they need not be among `columns`.
    beside: the model's inputs after its windows, in order: the calendar as marks in -0.5..0.5 or as indices (see
        `calibration.preparation`), or which rows hold any value.
    sorts_quantiles: the last axis of the first output is put in ascending order.
    """

    raw: str
    columns: tuple[str, ...]
    scaling: Scaling
    short_windows: ShortWindows = "repeat"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    targets: tuple[int, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    beside: tuple[BesideWindows, ...] = ()
    sorts_quantiles: bool = False

    @property
    def takes_times(self) -> bool:
        return "marks" in self.beside or "indices" in self.beside
