"""What every row of a latency table is checked for, beyond its keys and types, and how messages name a row."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from tsexport.errors import ConfigurationError

_COUNTS = frozenset({"batch", "samples", "connections"})


def row_places(text: str, kind: str, count: int, name: str) -> tuple[str, ...]:
    """Return how messages name each row of a kind: by its number, and by its line where headers can be told apart."""
    header = re.compile(rf"\s*\[\[\s*{kind}\s*\]\]")
    lines = [number for number, line in enumerate(text.splitlines(), 1) if header.match(line)]
    known = len(lines) == count  # rows may also stand in one inline list, and headers within a multi-line string
    return tuple(
        f"{kind} row {number} of {name}" + (f", line {lines[number - 1]}" if known else "")
        for number in range(1, count + 1)
    )


def check_row(row: Any, place: str, figures: Sequence[str]) -> None:
    """Refuse values that cannot be, and a row that says nothing.

    Args:
        row: a record of `bench.tables`.
        place: how messages name it.
        figures: the keys of which a row has at least one; () where it needs none.

    Raises:
        ConfigurationError: an empty name, a number below what can be, or a range the wrong way round.
    """
    for item in fields(row):
        value = getattr(row, item.name)
        if item.name in ("model", "name", "source") and not value.strip():
            raise ConfigurationError(f"{place}: {item.name} is empty")
        if item.name in _COUNTS and value is not None and value < 1:
            raise ConfigurationError(f"{place}: {item.name} is {value}; allowed are whole numbers from 1 on")
        _check_number(value, f"{place}: {item.name}")
    if figures and all(getattr(row, key) in (None, "") for key in figures):
        raise ConfigurationError(f"{place} has none of {', '.join(figures[:-1])} and {figures[-1]}")


def _check_number(value: Any, where: str) -> None:
    if isinstance(value, float) and value < 0:
        raise ConfigurationError(f"{where} is {value:g}; allowed are numbers from 0 on")
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(one, float) for one in value):
        for one in value:
            _check_number(one, where)
        if value[0] > value[1]:
            raise ConfigurationError(f"{where} is [{value[0]:g}, {value[1]:g}]; the first must not be the larger one")
    if isinstance(value, Mapping):
        for key, one in value.items():
            _check_number(one, f"{where}.{key}")
