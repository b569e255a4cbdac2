"""The windows of a series as a dataset, cut while the rows stream by.

One pass at the start checks the rows that are used and takes the training statistics; each `read` is one more pass that
keeps a block of rows and one batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property

import numpy as np

from tsexport.calibration.datasets import Batch, digest_of, index_batches, read_range
from tsexport.calibration.scaling import StandardScale, window_scale
from tsexport.calibration.series import SeriesConfig, SplitName
from tsexport.calibration.statistics import RunningStatistics
from tsexport.calibration.tables import Block, Table, check_columns
from tsexport.errors import ConfigurationError, DataError
from tsexport.types import Array


class SeriesWindows:
    """A dataset of one input [context_length, columns] in float32, with its target; made by `windows_of`.

    `columns` and `target_columns` are those that were resolved; `scale` holds the training statistics of the input
    columns and `target_scale` those of the target columns where scaling is "standard", else None.
    """

    def __init__(
        self, table: Table, config: SeriesConfig, split: SplitName, first: int, count: int, name: str,
        columns: tuple[str, ...], target_columns: tuple[str, ...], read_columns: tuple[str, ...],
        read_scale: StandardScale | None,
    ) -> None:  # fmt: skip
        self.config = config
        self.split = split
        self.first_row = first
        self.columns = columns
        self.target_columns = target_columns
        self._table = table
        self._count = count
        self._name = name
        self._read_columns = read_columns
        self._scale = read_scale
        self._inputs_at = [read_columns.index(column) for column in columns]
        self._targets_at = [read_columns.index(column) for column in target_columns]

    @property
    def names(self) -> tuple[str, ...]:
        return (self._name,)

    @property
    def count(self) -> int:
        return self._count

    @property
    def has_target(self) -> bool:
        return True

    @property
    def scale(self) -> StandardScale | None:
        s = self._scale
        return None if s is None else StandardScale(s.mean[self._inputs_at], s.std[self._inputs_at])

    @property
    def target_scale(self) -> StandardScale | None:
        s = self._scale
        return None if s is None else StandardScale(s.mean[self._targets_at], s.std[self._targets_at])

    @cached_property
    def digest(self) -> str:
        return digest_of(
            {
                "table": self._table.digest,
                "config": asdict(self.config),
                "split": self.split,
                "input": self._name,
                "columns": self.columns,
                "target_columns": self.target_columns,
            }
        )

    def ids(self, indices: Sequence[int]) -> tuple[str, ...]:
        """Name windows by split and first row: "test:011184"."""
        return tuple(f"{self.split}:{self.first_row + int(i) * self.config.stride:06d}" for i in indices)

    def read(self, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
        if not len(indices):
            return
        first = self.first_row + int(indices[0]) * self.config.stride
        stop = self.first_row + int(indices[-1]) * self.config.stride + self.config.span
        rows = RollingRows(self._table.blocks(self._read_columns, first, stop), self._scale, len(self._read_columns))
        for part in index_batches(indices, batch_size, self.count):
            windows = rows.windows(self.first_row + part * self.config.stride, self.config.span)
            feed, target = self._cut(windows)
            yield Batch({self._name: feed}, target, self.ids(part))

    def batches(self, batch_size: int, *, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        return read_range(self, batch_size, start, stop)

    def _cut(self, windows: Array) -> tuple[Array, Array]:
        """Cut [windows, span, read columns] into input and target."""
        config = self.config
        if config.scaling == "minmax-window":
            windows = window_scale(windows[:, : config.context_length]).apply(windows)
        feed = windows[:, : config.context_length, self._inputs_at].astype(np.float32)
        if config.target == "point":
            return feed, windows[:, -1, self._targets_at].astype(np.float32)
        return feed, windows[:, config.context_length :, self._targets_at].astype(np.float32)


class RollingRows:
    """The rows of a stream from the oldest still needed to the newest read; what lies before is forgotten."""

    def __init__(self, blocks: Iterator[Block], scale: StandardScale | None, columns: int) -> None:
        self._blocks = blocks
        self._scale = scale
        self._rows: Array = np.empty((0, columns))
        self._first: int | None = None

    def windows(self, starts: Array, span: int) -> Array:
        """Return rows start..start+span for each of the increasing `starts`, [windows, span, columns]."""
        out = np.empty((len(starts), span, self._rows.shape[1]))
        done = 0
        while done < len(starts):
            first = self._advance(int(starts[done]), span)
            ready = int(np.searchsorted(starts, first + len(self._rows) - span, side="right"))
            out[done:ready] = self._rows[(starts[done:ready] - first)[:, None] + np.arange(span)]
            done = ready
        return out

    def _advance(self, start: int, span: int) -> int:
        """Forget the rows before `start`, read until a window fits, and return the number of the first row kept."""
        first = start if self._first is None else self._first
        while first < start or len(self._rows) < span:
            forget = min(start - first, len(self._rows))
            if forget:
                self._rows = self._rows[forget:]
                first += forget
            if len(self._rows) >= span:
                break
            block = next(self._blocks)
            values = block.values if self._scale is None else self._scale.apply(block.values)
            if not len(self._rows):
                first = block.first_row
            self._rows = np.concatenate([self._rows, values])
        self._first = first
        return first


def windows_of(table: Table, config: SeriesConfig, split: SplitName, *, name: str = "x") -> SeriesWindows:
    """Return the windows of one split as a dataset that feeds the input `name`.

    Raises:
        ConfigurationError: the split is not configured.
        DataError: columns that are not there, too few rows, gaps, infinities, time going backwards, or a training
            column that is constant under standard scaling.
    """
    if split not in config.split.given:
        raise ConfigurationError(
            f"the split {split!r} is not configured; split names {', '.join(config.split.given)}.",
            next_step=f"Add {split} to the series configuration's split.",
        )
    columns, targets = resolve_columns(table, config)
    begin, end = split_in_table(table, config, split)
    first = max(0, begin - config.rows_before_target)
    last = end - config.span
    if last < first:
        raise DataError(
            f"{table.source}: a window takes {config.span} rows (context_length {config.context_length} + horizon "
            f"{config.horizon}), and the split {split!r} offers {end - first} (rows {first} to {end}).",
            next_step="Use a longer series, a larger split, or a model with a shorter context.",
        )
    count = (last - first) // config.stride + 1
    read_columns = tuple(dict.fromkeys((*columns, *targets)))
    used = (first, first + (count - 1) * config.stride + config.span)
    train = split_in_table(table, config, "train") if config.scaling == "standard" else None
    scale = scan(table, config, read_columns, used, train)
    return SeriesWindows(table, config, split, first, count, name, columns, targets, read_columns, scale)


def resolve_columns(table: Table, config: SeriesConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the input and the target columns, defaults filled in from the table."""
    if config.time_column is not None:
        check_columns(table, (config.time_column,))
    columns = config.columns or tuple(name for name in table.numeric_columns if name != config.time_column)
    if not columns:
        raise DataError(
            f"{table.source} has no numeric column; its columns are {', '.join(table.columns)}.",
            next_step="Check the separator (a comma is expected) and the file.",
        )
    targets = config.target_columns or columns
    check_columns(table, (*columns, *targets))
    return columns, targets


def split_in_table(table: Table, config: SeriesConfig, split: SplitName) -> tuple[int, int]:
    begin, end = config.split.rows(split, table.row_count)
    if end > table.row_count:
        raise DataError(
            f"{table.source} has {table.row_count} rows, and the split {split!r} ends at row {end}.",
            next_step="Correct split in the series configuration.",
        )
    return begin, end


def scan(
    table: Table, config: SeriesConfig, columns: tuple[str, ...], used: tuple[int, int], train: tuple[int, int] | None
) -> StandardScale | None:
    """Check the rows that are used and take the statistics of the training rows; None where nothing is scaled by them."""
    ranges = [used] if train is None else [used, train]
    statistics = RunningStatistics(len(columns))
    latest: Array | None = None
    start, stop = min(r[0] for r in ranges), max(r[1] for r in ranges)
    for block in table.blocks(columns, start, stop, config.time_column):
        for begin, end in ranges:
            check_finite(table.source, columns, block, begin, end)
        latest = check_time(table.source, config.time_column, block, latest)
        if train is not None:
            statistics.update(block.values[clip(block, *train)])
    if train is None:
        return None
    flat = statistics.constant | (statistics.std == 0)
    if flat.any():
        name, value = columns[int(np.argmax(flat))], float(statistics.minimum[int(np.argmax(flat))])
        raise DataError(
            f"{table.source}: column {name!r} is constant ({value:g}) over the training rows {train[0]} to {train[1]}, "
            f"so it cannot be divided by its standard deviation.",
            next_step=f'Drop {name!r} from `columns` and `target_columns`, or set scaling = "none".',
        )
    return StandardScale(statistics.mean, statistics.std)


def check_finite(source: str, columns: tuple[str, ...], block: Block, begin: int, end: int) -> None:
    part = clip(block, begin, end)
    bad = ~np.isfinite(block.values[part])
    if not bad.any():
        return
    at, column = (int(i) for i in np.argwhere(bad)[0])
    at += part.start
    value = block.values[at, column]
    time = "" if block.times is None else f", time {block.times[at]}"
    what = "is a gap (an empty field or NaN)" if np.isnan(value) else f"is infinite ({value})"
    raise DataError(
        f"{source}: column {columns[column]!r}, data row {block.first_row + at} (the first is 0){time}, {what}.",
        next_step="Fill or cut the gap before exporting, or choose splits that leave those rows out.",
    )


def check_time(source: str, name: str | None, block: Block, latest: Array | None) -> Array | None:
    """Raise where time goes backwards: rows out of order, or several series below each other, make false windows."""
    if block.times is None or block.times.dtype.kind not in "Miuf":
        return None  # text that is no date has no order to check
    times = block.times if latest is None else np.concatenate([latest, block.times])
    back = np.flatnonzero(times[1:] < times[:-1])
    if len(back):
        at = int(back[0]) + 1
        row = block.first_row + at - (0 if latest is None else 1)
        raise DataError(
            f"{source}: {name!r} goes backwards at data row {row} (the first is 0): {times[at]} after {times[at - 1]}.",
            next_step="Sort the rows by time; where the file holds several series, write one file for each.",
        )
    return times[-1:]


def clip(block: Block, begin: int, end: int) -> slice:
    """Return the part of a block that lies in the rows begin..end."""
    size = len(block.values)
    return slice(min(size, max(0, begin - block.first_row)), min(size, max(0, end - block.first_row)))
