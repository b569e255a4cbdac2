"""The windows of a series whose last columns are a calendar, as the two inputs that some models take.

Every model takes the channels as [context_length, channels].  One that uses the calendar for the past alone takes it as
[context_length, marks]; one that uses it for the future too, where it is known as well, as [context_length + horizon,
marks], and it answers the first channel.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tsexport.calibration.datasets import Batch, digest_of, read_range
from tsexport.calibration.windows import SeriesWindows


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
