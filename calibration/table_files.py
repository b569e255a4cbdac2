"""Calibration tables as files: written, read, and refused where they do not match.

A file holds the tables of one or more observers (a build with several static recipes may make several), as JSON in
schema 1.  A table is re-used only for the very ONNX file, the very windows and the observer that it was made with:
ranges of another graph, or of other data, look plausible and are wrong.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tsexport import codec
from tsexport.calibration.table import CalibrationTable, Observer
from tsexport.calibration.tensorrt_cache import read_cache
from tsexport.errors import CalibrationTableError

_SHOWN = 12
"""Digits of a digest in a message, and names in a list."""


@dataclass(frozen=True)
class CalibrationFile:
    """What a file of calibration tables holds."""

    schema_version: Literal[1]
    tables: tuple[CalibrationTable, ...]


def tables_text(tables: Sequence[CalibrationTable]) -> str:
    """Return the text of a file of tables, each once, in their order.  Equal tables give equal text."""
    return codec.encode(CalibrationFile(1, tuple(dict.fromkeys(tables))))


def read_tables(path: Path) -> tuple[CalibrationTable, ...]:
    """Return the tables of a file.

    Raises:
        CalibrationTableError: it cannot be read, is no such file, is of another schema, or holds a range that is none.
    """
    again = "give a calibration.json that a build of an int8 target wrote, or leave --calibration-table out"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CalibrationTableError(f"--calibration-table {path} cannot be read: {error.strerror}") from error
    if content.startswith(b"TRT-"):
        cache = read_cache(content.decode(errors="replace"), what=path.name)
        raise CalibrationTableError(
            f"{path.name} is TensorRT's calibration cache, of {len(cache.scales)} tensors; it does not say which model "
            f"and which data it belongs to",
            next_step=again,
        )
    value = codec.parse_json(content, what=path.name, error=CalibrationTableError, next_step=again)
    if not isinstance(value, dict) or value.get("schema_version") != 1:
        version = value.get("schema_version") if isinstance(value, dict) else None
        what = "has no schema_version" if version is None else f"has schema_version {version!r}"
        raise CalibrationTableError(f"{path.name} {what}; a file of calibration tables has 1", next_step=again)
    tables = codec.from_plain(
        CalibrationFile, value, what=path.name, error=CalibrationTableError, next_step=again
    ).tables
    if not tables:
        raise CalibrationTableError(f"{path.name} holds no calibration table", next_step=again)
    for table in tables:
        _check_ranges(path.name, table)
    return tables


def _check_ranges(what: str, table: CalibrationTable) -> None:
    for one in table.ranges:
        lows, highs = one.channel_lows, one.channel_highs
        if (table.observer.axis is None) != (not lows) or len(lows) != len(highs):
            raise CalibrationTableError(
                f"{what}: the range of {one.name!r} has {len(lows)} and {len(highs)} ends of channels; the observer is "
                f"{table.observer}"
            )
        for low, high in ((one.low, one.high), *zip(lows, highs, strict=True)):
            if low > high:
                raise CalibrationTableError(f"{what}: the range of {one.name!r} begins at {low:g} and ends at {high:g}")
    if len(set(table.tensors)) < len(table.ranges):
        twice = next(name for at, name in enumerate(table.tensors) if name in table.tensors[:at])
        raise CalibrationTableError(f"{what}: the tensor {twice!r} has two ranges under {table.observer}")


def matching_table(
    tables: Sequence[CalibrationTable],
    *,
    model_sha256: str,
    data_sha256: str,
    tensors: Sequence[str],
    observer: Observer,
) -> CalibrationTable:
    """Return the one of some tables that fits; it may hold ranges of other tensors too.

    Raises:
        CalibrationTableError: none is of this observer, this model and this data, or it lacks a tensor.
    """
    observed = [table for table in tables if table.observer == observer]
    if not observed:
        there = "; ".join(dict.fromkeys(str(table.observer) for table in tables))
        raise CalibrationTableError(
            f"the calibration table was made with another observer: {there}; this build calibrates with {observer}",
            next_step=_ANEW,
        )
    of_model = [table for table in observed if table.model_sha256 == model_sha256]
    if not of_model:
        raise CalibrationTableError(
            f"the calibration table belongs to another model: it was made with the ONNX file of SHA-256 "
            f"{_digests(table.model_sha256 for table in observed)}, and this build quantizes {model_sha256[:_SHOWN]}",
            next_step=f"{_ANEW}, or build the model, checkpoint and settings that the table was made with",
        )
    of_data = [table for table in of_model if table.data_sha256 == data_sha256]
    if not of_data:
        raise CalibrationTableError(
            f"the calibration table was made with other data: windows of digest "
            f"{_digests(table.data_sha256 for table in of_model)}, and this build calibrates with "
            f"{data_sha256[:_SHOWN]}",
            next_step=f"{_ANEW}, or give the file, the [series] table and the --seed that the table was made with",
        )
    # Recipes that quantize other operators observe other tensors, alike.
    found = max(of_data, key=lambda table: len({*tensors} & {*table.tensors}))
    missing = [name for name in tensors if name not in found.tensors]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise CalibrationTableError(
            f"the calibration table has no range of {', '.join(map(repr, missing[:_SHOWN]))}{more}", next_step=_ANEW
        )
    return found


_ANEW = "calibrate anew, without --calibration-table"


def _digests(digests: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(digest[:_SHOWN] for digest in digests))
