"""Preparation inside the graph (--include-preprocessing): a module that takes raw windows and gives forecasts.

It says in tensors what `calibration.preparation` says in numpy; the build holds every artifact against that one.  Only
plain operators of fixed shapes are used, so that every runtime has them:

    fill       log2(steps) rounds: where a value is missing, take that 1, 2, 4, ... rows before it
    calendar   minutes are split into days and minutes of the day, and both are looked up: weekdays and leap years
               repeat after 28 years, 10227 days, from 1901 to February 2100
    sort       Batcher's odd-even merge sort: one gather, minimum, maximum and selection a layer.
               Source: Batcher 1968, "Sorting networks and their applications"

float32 keeps 24 bits.  Training means are therefore subtracted first, and what a mean loses in float32 a second time:
(x - high) - low.  The fill stands between the two, since OpenVINO would otherwise join them, or multiply before it
subtracts.  It also divides integers as float32 does; so a quotient is corrected by its own remainder, and the bounds of
times are midnights, which float32 holds.

The two parts bear the names BEFORE and BEHIND, and so do the nodes that are exported from them: quantizers leave those
alone.
"""

import numpy as np
import torch
from torch import Tensor, nn

from tsexport.preparation import REVIN_EPSILON, Preparation
from tsexport.types import Array

BEFORE, BEHIND = "before_model", "behind_model"
MINUTES_A_DAY = 1440
DAYS_A_CYCLE = 28 * 365 + 7
FIRST_DAY, LAST_DAY = (int(np.datetime64(day, "D").astype(np.int64)) for day in ("1901-01-01", "2100-02-28"))


class Filled(nn.Module):
    """Windows [batch, steps, columns] with NaN -> without; see the module's `fill`.

    `padding` [columns] stands for the rows that a short window lacks; without it they repeat each column's first value.
    `absent` [columns] stands for columns without any value; without it they are 0.
    """

    back: Tensor
    first: Tensor
    zero: Tensor
    padding: Tensor | None
    absent: Tensor | None

    def __init__(self, steps: int, padding: Tensor | None = None, absent: Tensor | None = None) -> None:
        super().__init__()
        rows = torch.arange(steps)
        self.strides = tuple(1 << power for power in range((steps - 1).bit_length()))
        self.register_buffer("back", torch.stack([(rows - stride).clamp(min=0) for stride in (1, *self.strides)]))
        self.register_buffer("first", (rows == 0)[None, :, None])
        self.register_buffer("zero", torch.zeros(()))
        self.register_buffer("padding", padding)
        self.register_buffer("absent", absent)

    def forward(self, windows: Tensor) -> Tensor:
        for at in range(len(self.strides)):
            windows = torch.where(torch.isnan(windows), windows.index_select(1, self.back[at + 1]), windows)
        missing = torch.isnan(windows)  # only before the first value, by now
        begins = ~missing & (missing.index_select(1, self.back[0]) | self.first)
        values = torch.where(begins, windows, self.zero).sum(dim=1, keepdim=True)  # [batch, 1, columns]
        if self.absent is not None:
            values = torch.where(missing[:, -1:], self.absent, values)
        if self.padding is not None:
            short = missing.to(windows.dtype).amin(dim=2, keepdim=True)  # 1 in rows before the window begins
            values = torch.where(short > 0, self.padding, values)
        return torch.where(missing, values, windows)


class Calendar(nn.Module):
    """Minutes since 1970, [batch, rows] int64 -> calendar [batch, rows, 4]: time, weekday, day of month, day of year.

    `times` are the first for a day's minutes, [1440, 1], `days` the others for a cycle's days from 1970 on, [10227, 3].
    """

    times: Tensor
    days: Tensor

    def __init__(self, times: Array, days: Array) -> None:
        super().__init__()
        self.register_buffer("times", torch.from_numpy(times))
        self.register_buffer("days", torch.from_numpy(days))

    def forward(self, minutes: Tensor) -> Tensor:
        inside = minutes.clamp(FIRST_DAY * MINUTES_A_DAY, LAST_DAY * MINUTES_A_DAY)
        # whole cycles are added, so that integers are positive, and every way to round a quotient is the same
        day, minute = split(inside + 3 * DAYS_A_CYCLE * MINUTES_A_DAY, MINUTES_A_DAY)
        _, place = split(day, DAYS_A_CYCLE)
        return torch.cat([self.times[minute], self.days[place]], dim=2)


def split(whole: Tensor, part: int) -> tuple[Tensor, Tensor]:
    """Return quotient and remainder of non-negative integers, right even where the division is a float32's."""
    quotient = torch.div(whole, part, rounding_mode="trunc")
    over = torch.div(whole - quotient * part + part, part, rounding_mode="trunc")  # 1; 0 or 2 where it was rounded off
    quotient = quotient + over - 1
    return quotient, whole - quotient * part


class Before(nn.Module):
    """Raw windows [batch, steps, columns], and minutes [batch, rows] where there is a calendar -> scaled windows, what
    the target columns were scaled by (offset and span, [batch or 1, 1, targets]), and what the model takes beside."""

    high: Tensor
    low: Tensor
    std: Tensor
    target_offset: Tensor
    target_span: Tensor
    one: Tensor

    def __init__(self, preparation: Preparation, steps: int, calendar: Calendar | None) -> None:
        super().__init__()
        self.scaling = preparation.scaling
        self.targets = list(preparation.targets)
        self.calendar = calendar
        self.beside = preparation.beside
        mean = np.array(preparation.mean or [0.0] * len(preparation.columns))
        high = torch.from_numpy(mean.astype(np.float32))
        low = torch.from_numpy((mean - mean.astype(np.float32)).astype(np.float32))
        self.filled = Filled(
            steps,
            padding=-high if preparation.short_windows == "zeros" else None,
            absent=low if preparation.scaling == "standard" else None,
        )
        self.register_buffer("high", high)
        self.register_buffer("low", low)
        self.register_buffer("std", torch.tensor(preparation.std))
        self.register_buffer("target_offset", torch.tensor(preparation.target_mean)[None, None])
        self.register_buffer("target_span", torch.tensor(preparation.target_std)[None, None])
        self.register_buffer("one", torch.ones(()))

    def scale(self, windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scaled windows, offset and span of the target columns."""
        if self.scaling == "standard":
            scaled = (self.filled(windows - self.high) - self.low) / self.std
            return scaled, self.target_offset, self.target_span
        filled: Tensor = self.filled(windows)
        if self.scaling == "none":
            return filled, self.target_offset, self.target_span
        if self.scaling == "minmax-window":
            offset = filled.amin(dim=1, keepdim=True)
            span = filled.amax(dim=1, keepdim=True) - offset
            span = torch.where(span == 0, self.one, span)
            scaled = (filled - offset) / span
        else:
            origin = filled[:, :1]  # near the values: a mean of large ones would be rounded
            shifted = filled - origin
            mean = shifted.mean(dim=1, keepdim=True)
            centred = shifted - mean
            span = torch.sqrt((centred * centred).mean(dim=1, keepdim=True) + REVIN_EPSILON)
            offset, scaled = origin + mean, centred / span
        return scaled, offset[:, :, self.targets], span[:, :, self.targets]

    def forward(self, windows: Tensor, minutes: Tensor | None = None) -> tuple[Tensor, ...]:
        beside = []
        for one in self.beside:
            if one == "valid":
                beside.append(torch.isnan(windows).to(windows.dtype).amin(dim=2) < 1)  # some value of the row is there
            else:
                assert self.calendar is not None
                beside.append(self.calendar(minutes))
        return (*self.scale(windows), *beside)


class Behind(nn.Module):
    """A model's first output -> in the series' units, its quantiles in ascending order."""

    def __init__(self, preparation: Preparation, values: int) -> None:
        super().__init__()
        self.scales_back = bool(preparation.targets)
        layers = sorting_layers(values) if preparation.sorts_quantiles else ()
        self.layers = len(layers)
        for at, layer in enumerate(layers):
            partner = torch.arange(values)
            keeps_less = torch.zeros(values, dtype=torch.bool)
            for low, high in layer:
                partner[low], partner[high], keeps_less[low] = high, low, True
            self.register_buffer(f"partner_{at}", partner)
            self.register_buffer(f"keeps_less_{at}", keeps_less)

    def forward(self, output: Tensor, offset: Tensor, span: Tensor) -> Tensor:
        if self.scales_back:
            # [batch, targets] for one row ahead, else [batch, horizon, targets or quantiles]
            flat = output.dim() == 2
            output = output * (span[:, 0] if flat else span) + (offset[:, 0] if flat else offset)
        for at in range(self.layers):
            other = output.index_select(output.dim() - 1, self.get_buffer(f"partner_{at}"))
            less, more = torch.minimum(output, other), torch.maximum(output, other)
            output = torch.where(self.get_buffer(f"keeps_less_{at}"), less, more)
        return output


def sorting_layers(count: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Return the comparisons (low, high) that sort `count` values, in layers that touch every value once at most.

    It is the network of the next power of two, where what lies beyond `count` would be infinite and never moves.
    """
    layers = []
    block = 1
    while block < count:
        stride = block
        while stride >= 1:
            layer = [
                (first + at, first + at + stride)
                for first in range(stride % block, count, 2 * stride)
                for at in range(stride)
                if first + at + stride < count and (first + at) // (2 * block) == (first + at + stride) // (2 * block)
            ]
            layers.append(tuple(layer))
            stride //= 2
        block *= 2
    return tuple(layer for layer in layers if layer)


class PreparedModel(nn.Module):
    """Raw windows, and minutes where there is a calendar -> the outputs of `model`, the first one in raw units."""

    def __init__(
        self, model: nn.Module, preparation: Preparation, steps: int, values: int, calendar: Calendar | None
    ) -> None:
        """Take `steps` rows of a window, and `values` on the last axis of the first output."""
        super().__init__()
        self.add_module(BEFORE, Before(preparation, steps, calendar))
        self.model = model
        self.add_module(BEHIND, Behind(preparation, values))

    def forward(self, windows: Tensor, minutes: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        scaled, offset, span, *beside = self.get_submodule(BEFORE)(windows, minutes)
        answer = self.model(scaled, *beside)
        behind = self.get_submodule(BEHIND)
        if isinstance(answer, Tensor):
            return behind(answer, offset, span)  # type: ignore[no-any-return]
        return (behind(answer[0], offset, span), *answer[1:])
