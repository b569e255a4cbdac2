"""The windows of a series whose last columns are a calendar, as the two inputs that some models take.

Every model takes the channels as [context_length, channels].  One that uses the calendar for the past alone takes it as
[context_length, marks]; one that uses it for the future too, where it is known as well, as [context_length + horizon,
marks], and it answers the first channel.  A graph that makes the calendar itself takes the time of every row in place
of marks.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tsexport.calibration.datasets import Batch, digest_of, index_batches, read_range
from tsexport.calibration.windows import SeriesWindows
from tsexport.types import Array


@dataclass(frozen=True, eq=False)
class MarkedWindows:
    """A dataset over `base`, whose columns are `channels` channels and then marks.

    `names` are the inputs for channels and marks.  With `ahead`, base's target columns are the first channel and the
    marks: the target is then [horizon].
    """

    base: SeriesWindows
    names: tuple[str, ...]
    channels: int
    ahead: bool

    @property
    def count(self) -> int:
        return self.base.count

    @property
    def has_target(self) -> bool:
        return True

    @cached_property
    def digest(self) -> str:
        return digest_of(
            {"base": self.base.digest, "names": self.names, "channels": self.channels, "ahead": self.ahead}
        )

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
        feeds = dict(zip(self.names, map(np.ascontiguousarray, (values, marks)), strict=True))
        return Batch(feeds, np.ascontiguousarray(target), batch.ids)


@dataclass(frozen=True, eq=False)
class TimedWindows:
    """A dataset over `base`, whose rows are `minutes_per_row` apart, the first at `first_minute` since 1970.

    `names` are the inputs for channels and times.  With `ahead`, times reach over the horizon too, and the target is
    [horizon] of base's only target column.
    """

    base: SeriesWindows
    names: tuple[str, ...]
    first_minute: int
    minutes_per_row: int
    ahead: bool

    @property
    def count(self) -> int:
        return self.base.count

    @property
    def has_target(self) -> bool:
        return True

    @cached_property
    def digest(self) -> str:
        clock = [self.first_minute, self.minutes_per_row]
        return digest_of({"base": self.base.digest, "names": self.names, "clock": clock, "ahead": self.ahead})

    def ids(self, indices: Iterable[int]) -> tuple[str, ...]:
        return self.base.ids(indices)

    def read(self, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
        parts = index_batches(indices, batch_size, self.count)
        for part, batch in zip(parts, self.base.read(indices, batch_size), strict=True):
            yield self._with_times(part, batch)

    def batches(self, batch_size: int, *, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        return read_range(self, batch_size, start, stop)

    def _with_times(self, indices: Array, batch: Batch) -> Batch:
        config = self.base.config
        rows = np.arange(config.span if self.ahead else config.context_length)
        starts = self.base.first_row + indices * config.stride
        times = self.first_minute + self.minutes_per_row * (starts[:, None] + rows)
        feeds = dict(zip(self.names, (batch.feeds[self.base.input_name], times), strict=True))
        target = batch.target
        if self.ahead and target is not None:
            target = np.ascontiguousarray(target[:, :, 0])
        return Batch(feeds, target, batch.ids)
