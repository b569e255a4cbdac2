"""Frozen records from and to plain JSON or TOML values, strictly.

What a record may hold: str, int, float, bool, None, Path, Literal, unions of these, `tuple[X, ...]`, `tuple[X, Y]`,
`Mapping[str, X]` and other frozen dataclasses.  Unknown keys, missing keys and wrong types are errors that say where.
JSON has no infinity: such floats travel as the strings "inf", "-inf" and "nan".
"""

import dataclasses
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tsexport.errors import ConfigurationError, UsageError, did_you_mean

Record = TypeVar("Record")

_NOT_FINITE = ("inf", "-inf", "nan")


def encode(value: object) -> Any:
    """Return a record as plain dicts, lists, strings and numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def decode(
    kind: type[Record], value: object, *, where: str, error: type[UsageError] = ConfigurationError, next_step: str = ""
) -> Record:
    """Return `value` as a record of `kind`.

    Args:
        kind: a dataclass.
        value: what JSON or TOML gave.
        where: how messages name it, for example "latency row 3 of latency-tables.toml".
        error: what is raised, from the tree of `tsexport.errors`.
        next_step: what the user can do about it.

    Raises:
        error: unknown keys, missing keys or values of another type.
    """
    try:
        record: Record = _decode(kind, value, where)
    except _MismatchError as mismatch:
        raise error(str(mismatch), next_step=next_step) from None
    return record


class _MismatchError(Exception):
    """A value that its record cannot hold; `decode` turns it into the caller's error."""


def _decode(kind: Any, value: object, where: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_record(kind, value, where)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _decode_union(get_args(kind), value, where)
    if origin is Literal:
        if value not in get_args(kind):
            allowed = ", ".join(map(repr, get_args(kind)))
            raise _MismatchError(f"{where} is {value!r}; allowed are {allowed}")
        return value
    if origin is tuple:
        return _decode_tuple(get_args(kind), value, where)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise _mismatch(where, value, "a table")
        return {str(key): _decode(get_args(kind)[1], item, f"{where}.{key}") for key, item in value.items()}
    return _decode_scalar(kind, value, where)


def _decode_record(kind: type[Any], value: object, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise _mismatch(where, value, "a table")
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for key in value:
        if key not in fields:
            raise _MismatchError(
                f"{where} has an unknown key {key!r}{did_you_mean(str(key), fields)}; keys are {', '.join(fields)}"
            )
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise _MismatchError(f"{where} lacks the key {name!r}")
    hints = get_type_hints(kind)
    return kind(**{str(key): _decode(hints[str(key)], item, f"{where}.{key}") for key, item in value.items()})


def _decode_union(kinds: tuple[Any, ...], value: object, where: str) -> Any:
    reasons: list[str] = []
    for kind in kinds:
        try:
            return _decode(kind, value, where)
        except _MismatchError as mismatch:
            if kind is not type(None):
                reasons.append(str(mismatch))
    raise _MismatchError("; or ".join(reasons))


def _decode_tuple(kinds: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _mismatch(where, value, "a list")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise _MismatchError(f"{where} has {len(value)} values, and {len(kinds)} are expected")
    return tuple(_decode(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _decode_scalar(kind: Any, value: object, where: str) -> Any:
    if kind is Any:
        return value
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float:
        if isinstance(value, str) and value in _NOT_FINITE:
            return float(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(kind, type) and isinstance(value, kind):
        return value
    raise _mismatch(where, value, "null" if kind is type(None) else getattr(kind, "__name__", str(kind)))


def _mismatch(where: str, value: object, expected: str) -> _MismatchError:
    return _MismatchError(f"{where} is {value!r} ({type(value).__name__}), and {expected} is expected")
