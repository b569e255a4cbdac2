"""Records to JSON and back, strictly: what the dataclass says is what the file holds, no more and no less.

`encode` writes every field in the order of the dataclass and every mapping sorted by key, so equal records give equal
bytes; NaN and infinity are refused, since JSON has no word for them (a bound that is absent is None).  `decode` accepts
exactly that: an unknown, missing or repeated key, or a value of another type, is an error that names the place
("artifacts[0].format") and what is allowed.  `from_plain` does the same for what was parsed already, TOML included;
tables that people write may leave out keys whose fields have defaults.  A field that came to a record after files of
its schema version had been written bears `ADDED_LATER`: those files are read, too.

Field types that are understood: str, int, float, bool, None, Path (a string), Literal, unions of these with one
dataclass, frozen dataclasses, `tuple[X, ...]`, `tuple[X, Y]`, `Mapping[str, X]`, and Any (any JSON value; sequences
become tuples).
"""

import dataclasses
import json
import math
import os
import stat
import tempfile
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from tsexport.errors import BundleError, TsexportError, did_you_mean
from tsexport.locks import writing_beside

Record = TypeVar("Record")
ADDED_LATER: Mapping[str, bool] = types.MappingProxyType({"added later": True})
"""Metadata of a field with a default whose key an older file may lack."""
_NAMES = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    Path: "a path",
    type(None): "null",
}


class _Mismatch(Exception):
    """A value that does not fit its type; `where` is the path of the key."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(message)
        self.where = where


def encode(record: object) -> str:
    """Return a dataclass record as indented JSON text that ends with a newline.

    Raises:
        ValueError: the record holds NaN, infinity or something that JSON cannot hold (an error of the caller).
    """
    return json.dumps(to_plain(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_plain(value: object, where: str = "record") -> Any:
    """Return a record as plain dicts, lists and scalars, ready for `json.dumps`.

    Raises:
        ValueError: NaN, infinity, a key that is no string, or a type that JSON has no form for.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError(f"{where}: a mapping in a record has strings as keys")
        return {key: to_plain(value[key], f"{where}.{key}") for key in sorted(value)}
    if isinstance(value, tuple | list):
        return [to_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}; records hold finite numbers only")
    if isinstance(value, Path):
        return str(value)
    # Exactly these types: a numpy scalar, say, would be written by its repr or not at all.
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise ValueError(f"{where} is a {type(value).__name__}, which a record cannot hold")


def decode(kind: type[Record], text: str | bytes, *, what: str, error: type[TsexportError] = BundleError) -> Record:
    """Return the record that JSON text holds.

    Args:
        kind: the dataclass to read.
        text: JSON, UTF-8 if bytes.
        what: what is being read, for messages ("manifest.json").
        error: the class of error to raise.

    Raises:
        error: the text is no JSON, or does not hold exactly such a record.
    """
    return from_plain(kind, parse_json(text, what=what, error=error), what=what, error=error)


def parse_json(text: str | bytes, *, what: str, error: type[TsexportError] = BundleError, next_step: str = "") -> Any:
    """Return the value of JSON text; repeated keys, NaN and infinity are refused.

    Raises:
        error: the text is no such JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as failure:
        raise error(f"{what} is not valid JSON: {failure}", next_step=next_step) from None


def from_plain(
    kind: type[Record],
    value: Any,
    *,
    what: str,
    error: type[TsexportError] = BundleError,
    next_step: str = "",
    defaults: bool = False,
) -> Record:
    """Return the record that parsed JSON or TOML holds.

    Args:
        kind: the dataclass to read.
        value: what a parser gave: dicts, lists and scalars.
        what: what is being read, for messages ("latency row 3 of latency-tables.toml").
        error: the class of error to raise, with this `next_step`.
        defaults: keys whose fields have a default may be missing, as in tables that people write.

    Raises:
        error: the value is not exactly such a record.
    """
    try:
        return typing.cast(Record, _Reader(defaults).read(kind, value, ""))
    except RecursionError:
        raise error(f"{what} is nested too deeply", next_step=next_step) from None
    except _Mismatch as mismatch:
        place = f"{what}: {mismatch.where}" if mismatch.where else what
        raise error(f"{place}: {mismatch}", next_step=next_step) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands there twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not allowed, numbers are finite")


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads values by their types; with `defaults`, keys whose fields have a default may be missing."""

    defaults: bool

    def read(self, kind: Any, value: Any, where: str) -> Any:
        if kind is Any:
            return _decode_any(value, where)
        origin = get_origin(kind)
        if origin is Literal:
            return _decode_literal(get_args(kind), value, where)
        if origin in (Union, types.UnionType):
            return self._union(get_args(kind), value, where)
        if origin is tuple:
            return self._tuple(get_args(kind), value, where)
        if origin is not None and issubclass(origin, Mapping):
            items = _expect(dict, "an object", value, where)
            member = get_args(kind)[1]
            return {
                _decode_scalar(str, key, where): self.read(member, item, _join(where, key))
                for key, item in items.items()
            }
        if dataclasses.is_dataclass(kind):
            return self._record(kind, value, where)
        return _decode_scalar(kind, value, where)

    def _record(self, kind: Any, value: Any, where: str) -> Any:
        given = _expect(dict, "an object", value, where)
        hints = typing.get_type_hints(kind)
        allowed = {f.name: f for f in dataclasses.fields(kind)}
        for key in given:
            if key not in allowed:
                hint = did_you_mean(key, allowed)
                raise _Mismatch(where, f"unknown key {key!r}{hint}; allowed are {', '.join(allowed)}")
        needed = [name for name, field in allowed.items() if not self._may_be_absent(field)]
        missing = [name for name in needed if name not in given]
        if missing:
            raise _Mismatch(where, f"missing {', '.join(map(repr, missing))}; needed are {', '.join(needed)}")
        return kind(
            **{name: self.read(hints[name], given[name], _join(where, name)) for name in allowed if name in given}
        )

    def _may_be_absent(self, field: "dataclasses.Field[Any]") -> bool:
        return _has_default(field) and (self.defaults or field.metadata == ADDED_LATER)

    def _tuple(self, members: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
        items = _expect(list, "a list", value, where)
        if len(members) == 2 and members[1] is Ellipsis:
            members = (members[0],) * len(items)
        if len(items) != len(members):
            raise _Mismatch(where, f"has {len(items)} items, needed are {len(members)}")
        return tuple(
            self.read(member, item, f"{where}[{index}]")
            for index, (member, item) in enumerate(zip(members, items, strict=True))
        )

    def _union(self, members: tuple[Any, ...], value: Any, where: str) -> Any:
        rest = [member for member in members if member is not type(None)]
        if value is None and len(rest) < len(members):
            return None
        if len(rest) == 1:  # its own message says more than "one of"
            return self.read(rest[0], value, where)
        for member in rest:
            try:
                return self.read(member, value, where)
            except _Mismatch:
                continue
        names = " or ".join(_NAMES.get(member, str(member)) for member in members)
        raise _Mismatch(where, f"is {_shown(value)}, needed is {names}")


def _has_default(field: "dataclasses.Field[Any]") -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _decode_literal(allowed: tuple[Any, ...], value: Any, where: str) -> Any:
    for choice in allowed:
        if type(choice) is type(value) and choice == value:
            return choice
    raise _Mismatch(where, f"is {_shown(value)}, allowed are {', '.join(map(repr, allowed))}")


def _decode_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind not in _NAMES:
        raise TypeError(f"{kind!r} at {where} is no type of a record")
    if kind is float and type(value) is int:
        value = _to_float(value, where)
    if kind is Path:
        return Path(_decode_scalar(str, value, where))
    if type(value) is not kind:
        raise _Mismatch(where, f"is {_shown(value)}, needed is {_NAMES[kind]}")
    if kind is float and not math.isfinite(value):
        raise _Mismatch(where, "is no finite number")
    if kind is str:
        _check_text(value, where)
    return value


def _decode_any(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        return {_decode_scalar(str, key, where): _decode_any(item, _join(where, key)) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_decode_any(item, f"{where}[{index}]") for index, item in enumerate(value))
    if type(value) not in _NAMES:
        raise _Mismatch(where, f"is {_shown(value)}, which a record cannot hold")
    return _decode_scalar(type(value), value, where)


def _to_float(value: int, where: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise _Mismatch(where, "is too large a number") from None


def _check_text(text: str, where: str) -> None:
    """Refuse lone surrogates: JSON can spell them, but no terminal and no file can take them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _Mismatch(where, "holds text that is not valid Unicode") from None


def _expect(kind: type, name: str, value: Any, where: str) -> Any:
    if type(value) is not kind:
        raise _Mismatch(where, f"is {_shown(value)}, needed is {name}")
    return value


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _shown(value: Any) -> str:
    """Return a value for a message, cut short."""
    text = json.dumps(value, allow_nan=True, ensure_ascii=True, default=str)  # TOML has dates and times too
    return text if len(text) <= 60 else text[:57] + "..."


def write_whole(path: Path, text: str) -> Path:
    """Write a file others may be reading, its folder made where absent: the whole text or nothing.  Return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing_beside(path) as (descriptor, temporary):
        content = memoryview(text.encode())
        while content:
            content = content[os.write(descriptor, content) :]
        os.fsync(descriptor)
        os.fchmod(descriptor, 0o644)  # it was private so far, and a bundle is for others to read
        temporary.replace(path)
    return path


def try_folder(folder: Path) -> None:
    """Make a folder where absent, and a file in it that is gone again: what takes minutes asks before it begins.

    Raises:
        OSError: nothing can be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def read_text(path: Path) -> str:
    """Return the text of a record's file.

    Raises:
        BundleError: it cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path.name} cannot be read: {error}") from None


def read_plain(path: Path, *, what: str, most_bytes: int) -> bytes:
    """Return the bytes of a file that anybody may have put there: never of a link, and never of a pipe, whose reading
    would wait for a writer.

    Args:
        what: the file, for messages.
        most_bytes: as much as such a file may have.

    Raises:
        BundleError: it is missing, is no plain file, is larger, or cannot be read.
    """
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > most_bytes:
            raise BundleError(f"{what} is no plain file, or far too large")
        return path.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{what} is missing", next_step="fetch the bundle again or build it again") from None
    except OSError as error:
        raise BundleError(f"{what} cannot be read: {error.strerror}") from None


def decode_versioned(kind: type[Record], text: str, *, version: int, what: str, next_step: str) -> Record:
    """Return the record of a JSON text with a `schema_version`, which is looked at before any other key is judged.

    Raises:
        BundleError: no JSON, another schema version, unknown or missing keys, or values of another type.
    """
    document = parse_json(text, what=what, next_step=next_step)
    found = document.get("schema_version") if isinstance(document, dict) else None
    if found != version:
        raise BundleError(
            f"{what} has schema_version {found!r}; this version of tsexport reads {version}", next_step=next_step
        )
    return from_plain(kind, document, what=what, next_step=next_step)
