"""The windows of a series as a dataset, cut while the rows stream by.

One pass at the start checks the rows that are used and takes the training statistics; each `read` is one more pass that
keeps a block of rows and one batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from tsexport.calibration.datasets import Batch, digest_of, index_batches, read_range
from tsexport.calibration.scaling import PER_WINDOW, StandardScale
from tsexport.calibration.series import SeriesConfig, SplitName
from tsexport.calibration.statistics import RunningStatistics
from tsexport.calibration.tables import Block, Table, check_columns
from tsexport.errors import ConfigurationError, DataError
from tsexport.types import Array


@dataclass(frozen=True, eq=False)
class SeriesWindows:
    """A dataset of one input [context_length, columns] in float32, with its target; made by `windows_of`.

    `columns` and `target_columns` are those that were resolved, `first_row` is where the first window starts, and
    `read_scale` holds the training statistics of `read_columns` (both, without repeats) where scaling is "standard".
    """

    table: Table
    config: SeriesConfig
    split: SplitName
    input_name: str
    columns: tuple[str, ...]
    target_columns: tuple[str, ...]
    first_row: int
    count: int
    read_scale: StandardScale | None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.input_name,)

    @property
    def has_target(self) -> bool:
        return True

    @property
    def read_columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.columns, *self.target_columns)))

    @property
    def scale(self) -> StandardScale | None:
        """Training statistics of the input columns, None unless scaling is "standard"."""
        return self._scale_of(self.columns)

    @property
    def target_scale(self) -> StandardScale | None:
        """Training statistics of the target columns: `invert` turns scaled forecasts into the series' own units."""
        return self._scale_of(self.target_columns)

    @cached_property
    def digest(self) -> str:
        return digest_of(
            {
                "table": self.table.digest,
                "config": asdict(self.config),
                "split": self.split,
                "input": self.input_name,
                "columns": self.columns,
                "target_columns": self.target_columns,
            }
        )

    def ids(self, indices: Iterable[int]) -> tuple[str, ...]:
        """Name windows by split and first row: "test:011184"."""
        return tuple(f"{self.split}:{self.first_row + int(i) * self.config.stride:06d}" for i in indices)

    def read(self, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
        if not len(indices):
            return
        first = self.first_row + int(indices[0]) * self.config.stride
        stop = self.first_row + int(indices[-1]) * self.config.stride + self.config.span
        rows = RollingRows(self.table, self.read_columns, first, stop, self.read_scale)
        for part in index_batches(indices, batch_size, self.count):
            windows = rows.windows(self.first_row + part * self.config.stride, self.config.span)
            feed, target = self._cut(windows)
            yield Batch({self.input_name: feed}, target, self.ids(part))

    def batches(self, batch_size: int, *, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        return read_range(self, batch_size, start, stop)

    def _cut(self, windows: Array) -> tuple[Array, Array]:
        """Cut [windows, span, read columns] into input and target."""
        config = self.config
        if (measure := PER_WINDOW.get(config.scaling)) is not None:
            windows = measure(windows[:, : config.context_length]).apply(windows)
        feed = windows[:, : config.context_length, self._positions(self.columns)].astype(np.float32)
        targets = self._positions(self.target_columns)
        if config.target == "point":
            return feed, windows[:, -1, targets].astype(np.float32)
        return feed, windows[:, config.context_length :, targets].astype(np.float32)

    def _positions(self, columns: tuple[str, ...]) -> list[int]:
        return [self.read_columns.index(column) for column in columns]

    def _scale_of(self, columns: tuple[str, ...]) -> StandardScale | None:
        if self.read_scale is None:
            return None
        at = self._positions(columns)
        return StandardScale(self.read_scale.mean[at], self.read_scale.std[at])


class RollingRows:
    """The rows of a stream from the oldest still needed to the newest read; what lies before is forgotten."""

    def __init__(
        self, table: Table, columns: tuple[str, ...], start: int, stop: int, scale: StandardScale | None
    ) -> None:
        self._source = table.source
        self._blocks = table.blocks(columns, start, stop)
        self._scale = scale
        self._rows: Array = np.empty((0, len(columns)))
        self._first = start

    def windows(self, starts: Array, span: int) -> Array:
        """Return rows start..start+span for each of the increasing `starts`, [windows, span, columns]."""
        out = np.empty((len(starts), span, self._rows.shape[1]))
        done = 0
        while done < len(starts):
            self._advance(int(starts[done]), span)
            ready = int(np.searchsorted(starts, self._first + len(self._rows) - span, side="right"))
            out[done:ready] = self._rows[(starts[done:ready] - self._first)[:, None] + np.arange(span)]
            done = ready
        return out

    def _advance(self, start: int, span: int) -> None:
        """Forget the rows before `start`, and read until a window that starts there fits."""
        while self._first + len(self._rows) < start + span:
            forget = min(start - self._first, len(self._rows))
            block = next(self._blocks, None)
            if block is None:
                raise DataError(f"{self._source} was changed while it was read: rows are missing.")
            values = block.values if self._scale is None else self._scale.apply(block.values)
            self._rows = np.concatenate([self._rows[forget:], values])
            self._first += forget


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
    return SeriesWindows(table, config, split, name, columns, targets, first, count, scale)


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
    """Check the rows that are used, and take the training rows' statistics; None where nothing is scaled by them."""
    ranges = [used] if train is None else [used, train]
    statistics = RunningStatistics(len(columns))
    latest: list[Array | None] = [None] * len(ranges)
    start, stop = min(r[0] for r in ranges), max(r[1] for r in ranges)
    for block in table.blocks(columns, start, stop, config.time_column):
        for at, rows in enumerate(ranges):
            part = clip(block, *rows)
            check_finite(table.source, columns, part)
            latest[at] = check_time(table.source, config.time_column, part, latest[at])
        if train is not None:
            statistics.update(clip(block, *train).values)
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


def check_finite(source: str, columns: tuple[str, ...], block: Block) -> None:
    bad = ~np.isfinite(block.values)
    if not bad.any():
        return
    at, column = (int(i) for i in np.argwhere(bad)[0])
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
    if not len(block.times):
        return latest
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


def clip(block: Block, begin: int, end: int) -> Block:
    """Return the part of a block that lies in the rows begin..end."""
    size = len(block.values)
    part = slice(min(size, max(0, begin - block.first_row)), min(size, max(0, end - block.first_row)))
    return Block(block.first_row + part.start, block.values[part], None if block.times is None else block.times[part])
