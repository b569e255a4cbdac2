"""The windows of a series whose last columns are a calendar, as the two inputs that some models take.

Every model takes the channels as [context_length, channels].  One that uses the calendar for the past alone takes it as
[context_length, marks]; one that uses it for the future too, where it is known as well, as [context_length + horizon,
marks], and it answers the first channel.  A graph that makes the calendar itself takes the time of every row in place
of marks, as minutes since 1970; windows are float32, which is too coarse for those, so a table has them as CLOCK.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tsexport.calibration.datasets import Batch, digest_of, read_range
from tsexport.calibration.synthetic import MINUTES_PER_DAY
from tsexport.calibration.tables import Block, Table
from tsexport.calibration.windows import SeriesWindows
from tsexport.errors import DataError
from tsexport.types import Array

CLOCK = ("day since 1970", "minute of the day")


def clock_of(times: Array) -> Array:
    """Return times [rows] of numpy's datetime64 as CLOCK's columns, [rows, 2]."""
    minutes = times.astype("datetime64[m]").astype(np.int64)
    return np.stack(np.divmod(minutes, MINUTES_PER_DAY), axis=1)


@dataclass(frozen=True, eq=False)
class ClockTable:
    """A table whose time column can also be read as CLOCK's columns.

    Raises, while it is read:
        DataError: the time column holds no dates.
    """

    base: Table
    time_column: str

    @property
    def source(self) -> str:
        return self.base.source

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.base.columns, *CLOCK)

    @property
    def numeric_columns(self) -> tuple[str, ...]:
        return self.base.numeric_columns

    @property
    def row_count(self) -> int:
        return self.base.row_count

    @property
    def digest(self) -> str:
        return digest_of({"base": self.base.digest, "clock": self.time_column})

    def blocks(self, columns: Sequence[str], start: int, stop: int, time_column: str | None = None) -> Iterator[Block]:
        others = [name for name in columns if name not in CLOCK]
        for block in self.base.blocks(others, start, stop, self.time_column):
            assert block.times is not None  # they were asked for
            if block.times.dtype.kind != "M":
                raise DataError(
                    f"{self.source}: the time column {self.time_column!r} holds {block.times.dtype} and no dates",
                    next_step="Write times as 2024-01-31 23:59:00.",
                )
            every = np.concatenate([block.values, clock_of(block.times)], axis=1)
            at = [[*others, *CLOCK].index(name) for name in columns]
            yield Block(block.first_row, every[:, at], block.times if time_column is not None else None)


@dataclass(frozen=True, eq=False)
class MarkedWindows:
    """A dataset over `base`, whose columns are `channels` channels and then marks.

    `names` are the inputs for channels and marks.  With `ahead`, base's target columns are the first channel and the
    marks: the target is then [horizon].  With `timed`, the marks are CLOCK's columns, fed as int64 minutes.
    """

    base: SeriesWindows
    names: tuple[str, ...]
    channels: int
    ahead: bool
    timed: bool = False

    @property
    def count(self) -> int:
        return self.base.count

    @property
    def has_target(self) -> bool:
        return True

    @cached_property
    def digest(self) -> str:
        form = {"channels": self.channels, "ahead": self.ahead, "timed": self.timed}
        return digest_of({"base": self.base.digest, "names": self.names, **form})

    def ids(self, indices: Iterable[int]) -> tuple[str, ...]:
        return self.base.ids(indices)

    def read(self, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
        for batch in self.base.read(indices, batch_size):
            yield self._split(batch)

    def batches(self, batch_size: int, *, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        return read_range(self, batch_size, start, stop)

    def _split(self, batch: Batch) -> Batch:
        seen, target = batch.feeds[self.base.input_name], batch.target
        assert target is not None  # windows of a series have one
        values, marks = seen[:, :, : self.channels], seen[:, :, self.channels :]
        if self.ahead:
            marks = np.concatenate([marks, target[:, :, 1:]], axis=1)
            target = target[:, :, 0]
        if self.timed:
            days, minutes = np.moveaxis(marks.astype(np.int64), -1, 0)
            marks = days * MINUTES_PER_DAY + minutes
        feeds = dict(zip(self.names, map(np.ascontiguousarray, (values, marks)), strict=True))
        return Batch(feeds, np.ascontiguousarray(target), batch.ids)
