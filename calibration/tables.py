"""Series as tables of rows: csv (also .csv.gz), parquet, or in memory; read in blocks of rows, never whole.

Memory is a block of rows, and of a parquet file one page and one dictionary of each column, as large as its writer made
them (1 MiB by default, compressed and not: up to 4 MiB a column).  It does not grow with the number of rows.

A row is counted from 0 and leaves out the header of a csv; an empty field is a gap and reads as NaN.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from tsexport.calibration.arrays import array_digest
from tsexport.calibration.datasets import digest_of
from tsexport.errors import DataError, MissingDependencyError, did_you_mean
from tsexport.types import Array, file_sha256

BLOCK_ROWS = 8192
"""Rows that are held at once, of parquet files and tables in memory."""
BLOCK_BYTES = 1 << 16
"""Bytes of a csv that are parsed at once; also what each parquet column is buffered by.  Arrow reads some 32 blocks of
a csv ahead: with blocks of 1 MiB that alone took 37 MiB, and reading was no faster."""
BLOCK_HEADERS = 64
"""A csv block is at least so many times its header line, since every row must fit into one."""
HEADER_BYTES = 1 << 20
"""Where to stop looking for the end of a csv's header line."""


@dataclass(frozen=True)
class Block:
    """Consecutive rows: `values` is float64 [rows, columns], `times` the time column (any dtype) or None."""

    first_row: int
    values: Array
    times: Array | None


class Table(Protocol):
    """Rows of named columns, read front to back."""

    @property
    def source(self) -> str:
        """Name for messages."""
        ...

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def numeric_columns(self) -> tuple[str, ...]:
        """Columns that hold numbers (or only gaps, as far as can be seen without reading the whole table)."""
        ...

    @property
    def row_count(self) -> int: ...

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the content."""
        ...

    def blocks(self, columns: Sequence[str], start: int, stop: int, time_column: str | None = None) -> Iterator[Block]:
        """Yield the rows from `start` up to `stop` in blocks, in order and without holes."""
        ...


class MemoryTable:
    """Values in memory, [rows, columns], for series that are generated or already loaded."""

    def __init__(self, values: Array, columns: Sequence[str], *, source: str = "the series") -> None:
        if values.ndim != 2 or values.shape[1] != len(columns):
            raise DataError(
                f"{source}: {len(columns)} column names were given for values of shape {list(values.shape)}.",
                next_step="Give values [rows, columns] and one name per column.",
            )
        check_column_names(source, columns)
        self._values = values
        self._columns = tuple(columns)
        self._source = source

    @property
    def source(self) -> str:
        return self._source

    @property
    def columns(self) -> tuple[str, ...]:
        return self._columns

    @property
    def numeric_columns(self) -> tuple[str, ...]:
        return self._columns

    @property
    def row_count(self) -> int:
        return len(self._values)

    @cached_property
    def digest(self) -> str:
        return digest_of({"table": array_digest(self._values), "columns": self._columns})

    def blocks(self, columns: Sequence[str], start: int, stop: int, time_column: str | None = None) -> Iterator[Block]:
        picked = [self._columns.index(name) for name in columns]
        at_time = None if time_column is None else self._columns.index(time_column)
        for first in range(start, min(stop, self.row_count), BLOCK_ROWS):
            rows = self._values[first : min(first + BLOCK_ROWS, stop)]
            yield Block(first, rows[:, picked].astype(np.float64), None if at_time is None else rows[:, at_time])


class CsvTable:
    """A csv with a header line, commas between the fields and points in the numbers; gzip by its suffix `.gz`.

    Raises:
        DataError: unreadable, empty, or without usable column names.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        pyarrow("csv")
        with reading(path), self._open() as stream:
            header, _, _ = stream.read(HEADER_BYTES).partition(b"\n")
        self._block_bytes = max(BLOCK_BYTES, BLOCK_HEADERS * len(header))
        with reading(path), self._open() as stream:
            reader = self._reader(stream)
            self._schema = reader.schema
            check_column_names(self.source, self._schema.names)
            self._numeric = (*numeric_columns(self._schema), *text_that_begins_as_numbers(next(iter(reader), None)))

    @property
    def source(self) -> str:
        return self.path.name

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._schema.names)

    @property
    def numeric_columns(self) -> tuple[str, ...]:
        return tuple(name for name in self.columns if name in self._numeric)

    @cached_property
    def row_count(self) -> int:
        with reading(self.path), self._open() as stream:
            return sum(batch.num_rows for batch in self._reader(stream, {self.columns[0]: pyarrow().string()}))

    @cached_property
    def digest(self) -> str:
        return digest_of({"csv": file_sha256(self.path)})

    def blocks(self, columns: Sequence[str], start: int, stop: int, time_column: str | None = None) -> Iterator[Block]:
        types: dict[str, Any] = {name: pyarrow().float64() for name in columns}
        if time_column is not None:
            types.setdefault(time_column, None)
        with reading(self.path), self._open() as stream:
            try:
                yield from cut_blocks(self._reader(stream, types, start), columns, start, stop, time_column)
            except pyarrow().ArrowInvalid:
                self._find_unparsable(columns)
                raise

    def _open(self) -> Any:
        return pyarrow().input_stream(str(self.path), compression="gzip" if self.path.suffix == ".gz" else None)

    def _reader(self, stream: Any, types: dict[str, Any] | None = None, skip: int = 0) -> Any:
        """Open a streaming reader of the columns in `types` (None: all; a type of None is inferred)."""
        csv = pyarrow("csv")
        # One thread: read-ahead would hold an unknown number of blocks, and errors would come out of order.
        read = csv.ReadOptions(block_size=self._block_bytes, use_threads=False, skip_rows_after_names=skip)
        convert = csv.ConvertOptions(
            include_columns=None if types is None else list(types),
            column_types=None if types is None else {name: kind for name, kind in types.items() if kind is not None},
            strings_can_be_null=True,
        )
        return csv.open_csv(stream, read_options=read, convert_options=convert)

    def _find_unparsable(self, columns: Sequence[str]) -> None:
        """Read the columns as text and raise for the first field that is no number (Arrow's row numbers vary)."""
        pa = pyarrow()
        with self._open() as stream:
            row = 0
            for batch in self._reader(stream, {name: pa.string() for name in columns}):
                fields = [batch.column(name).to_pylist() for name in columns]
                for offset, values in enumerate(zip(*fields, strict=True)):
                    for name, text in zip(columns, values, strict=True):
                        if text is not None and not is_number(text):
                            raise DataError(
                                f"{self.source}: {text!r} in column {name!r}, data row {row + offset} "
                                f"(the first is 0), is not a number.",
                                next_step=f"Correct the file, or leave {name!r} out of `columns`.",
                            )
                row += batch.num_rows


class ParquetTable:
    """A parquet file.

    Raises:
        DataError: unreadable, or without usable column names.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as file:
            self._schema = file.schema_arrow
            self._group_rows = tuple(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
        check_column_names(self.source, self._schema.names)

    @property
    def source(self) -> str:
        return self.path.name

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._schema.names)

    @property
    def numeric_columns(self) -> tuple[str, ...]:
        return numeric_columns(self._schema)

    @property
    def row_count(self) -> int:
        return sum(self._group_rows)

    @cached_property
    def digest(self) -> str:
        return digest_of({"parquet": file_sha256(self.path)})

    def blocks(self, columns: Sequence[str], start: int, stop: int, time_column: str | None = None) -> Iterator[Block]:
        numeric = self.numeric_columns
        for name in columns:
            if name not in numeric:
                raise DataError(
                    f"{self.source}: column {name!r} holds {self._schema.field(name).type}, not numbers; numeric "
                    f"columns are {', '.join(numeric) or 'none'}.",
                    next_step=f"Leave {name!r} out of `columns`, or write it as numbers.",
                )
        ends = np.cumsum(self._group_rows)
        groups = [i for i, end in enumerate(ends) if end > start and end - self._group_rows[i] < stop]
        first = int(ends[groups[0]] - self._group_rows[groups[0]]) if groups else 0
        wanted = list(dict.fromkeys([*columns, *([] if time_column is None else [time_column])]))
        with self._open() as file:
            batches = file.iter_batches(BLOCK_ROWS, row_groups=groups, columns=wanted, use_threads=False)
            for block in cut_blocks(batches, columns, first, stop, time_column):
                skip = max(0, start - block.first_row)
                if skip < len(block.values):
                    times = None if block.times is None else block.times[skip:]
                    yield Block(block.first_row + skip, block.values[skip:], times)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        # Buffered, and without pre_buffer (which is on by default): else a file of one huge row group is read whole.
        parquet = pyarrow("parquet")
        with (
            reading(self.path),
            parquet.ParquetFile(str(self.path), buffer_size=BLOCK_BYTES, pre_buffer=False) as file,
        ):
            yield file


def open_table(path: Path) -> Table:
    """Open a csv, csv.gz or parquet file by its suffix."""
    return ParquetTable(path) if path.suffix.lower() in (".parquet", ".pq") else CsvTable(path)


def cut_blocks(
    batches: Any, columns: Sequence[str], first_row: int, stop: int, time_column: str | None
) -> Iterator[Block]:
    """Turn Arrow record batches, the first of which begins at `first_row`, into blocks that end at `stop`."""
    row = first_row
    for batch in batches:
        if row >= stop:
            return
        part = batch.slice(0, stop - row)
        values = np.empty((part.num_rows, len(columns)))
        for at, name in enumerate(columns):
            column = part.column(name)
            if str(column.type).startswith("decimal"):  # numpy has no such type
                column = column.cast(pyarrow().float64())
            values[:, at] = column.to_numpy(zero_copy_only=False)  # gaps become NaN
        times = None if time_column is None else part.column(time_column).to_numpy(zero_copy_only=False)
        if part.num_rows:
            yield Block(row, values, times)
        row += part.num_rows


def check_column_names(source: str, names: Sequence[str]) -> None:
    for at, name in enumerate(names):
        if not name:
            raise DataError(
                f"{source}: column {at} has no name.",
                next_step="Name it in the header, or write the file without its index (pandas: to_csv(index=False)).",
            )
        if name in names[:at]:
            raise DataError(f"{source}: two columns are named {name!r}.", next_step="Rename one of them.")


def check_columns(table: Table, names: Sequence[str]) -> None:
    """Raise where a configured column is not in the table."""
    for name in names:
        if name not in table.columns:
            raise DataError(
                f"{table.source} has no column {name!r}{did_you_mean(name, table.columns)}; "
                f"its columns are {', '.join(table.columns)}.",
                next_step="Correct the column names in the series configuration.",
            )


def numeric_columns(schema: Any) -> tuple[str, ...]:
    types = pyarrow().types
    tests = (types.is_integer, types.is_floating, types.is_decimal, types.is_null)
    return tuple(field.name for field in schema if any(test(field.type) for test in tests))


def text_that_begins_as_numbers(batch: Any) -> tuple[str, ...]:
    """Return the text columns of a csv whose first field is a number: numbers with a broken one among them.

    They count as numeric, so that reading them reports the broken field; else they would silently be left out.
    """
    if batch is None or not batch.num_rows:
        return ()
    firsts = {name: batch.column(name)[0].as_py() for name in batch.schema.names}
    return tuple(name for name, value in firsts.items() if isinstance(value, str) and is_number(value))


def is_number(text: str) -> bool:
    """Return whether Arrow would read the text as a number (Python's own "1_000" is none)."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what can be wrong with a csv or parquet file while it is read into a DataError."""
    try:
        yield
    except (pyarrow().ArrowException, OSError, EOFError) as error:
        raise DataError(
            f"{path.name} cannot be read: {error}",
            next_step="A series is a csv with a header and commas, the same gzipped (.csv.gz), or a parquet file.",
        ) from error


def pyarrow(module: str = "") -> ModuleType:
    """Import pyarrow, or one of its modules, when a file is first opened."""
    from importlib import import_module

    try:
        return import_module(f"pyarrow.{module}" if module else "pyarrow")
    except ImportError as error:
        raise MissingDependencyError(
            "Reading csv and parquet series needs pyarrow, which is not installed.",
            next_step='Run: pip install "tsexport[build]"',
        ) from error
