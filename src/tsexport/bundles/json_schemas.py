"""JSON Schema (draft 2020-12) of the records of a bundle, from the dataclasses that read and write them.

`make schemas` writes the files that `docs/bundle-format.md` names.  A schema allows what `tsexport.codec` reads: every
key is needed but those that came to a record later (`codec.ADDED_LATER`), no other is allowed.  It also says, of what a
single value must be, what `tsexport.bundles.manifest` checks besides its type (`_NARROWED`).  What a schema refuses the
readers refuse too.  They refuse more: entries that contradict each other, keys that stand there twice, and 1.0 where a
whole number is needed, which JSON Schema takes for one.
"""

import dataclasses
import inspect
import json
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Union, get_args, get_origin

from tsexport.bench.records import SCHEMA_VERSION as RECORD_VERSION
from tsexport.bench.records import MachineRecord
from tsexport.bundles.manifest import ArtifactEntry, FileDigest, Golden, GoldenTolerance, Manifest, Selection
from tsexport.codec import ADDED_LATER, write_whole

DRAFT = "https://json-schema.org/draft/2020-12/schema"
FILES: Mapping[str, type] = MappingProxyType(
    {
        "manifest.schema.json": Manifest,
        "selection.schema.json": Selection,
        "measurements.schema.json": MachineRecord,
    }
)
_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", Path: "string", type(None): "null"}
_SHA256 = {"pattern": "^[0-9a-f]{64}$"}
# Relative, without "//", "." and "..", a "/" at the end, or a backslash.
_PATH = {"pattern": r"^(?!/)(?!.*//)(?!.*/$)(?!(.*/)?\.{1,2}(/|$))[^\\]+$"}
_NUMBER, _NULL = {"type": "number"}, {"type": "null"}
_NARROWED: Mapping[tuple[type, str], Mapping[str, Any]] = MappingProxyType(
    {
        (FileDigest, "path"): _PATH,
        (FileDigest, "sha256"): _SHA256,
        (ArtifactEntry, "path"): _PATH,
        (ArtifactEntry, "files"): {"minItems": 1},
        (ArtifactEntry, "sha256"): _SHA256,
        (Golden, "samples"): {"minimum": 1},
        (Golden, "batch"): {"minimum": 1},
        (Manifest, "artifacts"): {"minItems": 1},
        (Manifest, "name"): {"pattern": "^[^./][^/]*$"},
        (Selection, "threads"): {"minimum": 1},
        (MachineRecord, "schema_version"): {"const": RECORD_VERSION},
    }
)
"""What a field must be besides its type."""
_NARROWED_WHOLE: Mapping[type, Mapping[str, Any]] = MappingProxyType(
    {
        GoldenTolerance: {
            "anyOf": [
                {"properties": {"atol": _NUMBER, "rtol": _NUMBER}},
                {"properties": {"atol": _NULL, "rtol": _NULL, "max_relative_rms": _NUMBER}},
            ]
        }
    }
)
"""What fields must be together: a bound is given whole, and one is given."""


def schema_of(kind: type, *, title: str) -> dict[str, Any]:
    """Return the schema of a record: each dataclass in it once under `$defs`, with its docstring as description.

    Args:
        kind: a dataclass whose field types are those of `tsexport.codec`.
        title: of the document.

    Raises:
        TypeError: a field of another type, or two dataclasses of one name.
    """
    writer = _Writer({}, {})
    top = writer.schema(kind)
    return {"$schema": DRAFT, "title": title, **top, "$defs": dict(sorted(writer.written.items()))}


def schema_text(name: str) -> str:
    """Return the text of one of `FILES`."""
    return json.dumps(schema_of(FILES[name], title=name.replace(".schema", "")), indent=2) + "\n"


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Writes the schemas of types; `kinds` are the dataclasses that were met, by name, and `written` their schemas."""

    kinds: dict[str, type]
    written: dict[str, dict[str, Any]]

    def schema(self, kind: Any) -> dict[str, Any]:
        if kind is Any:
            return {}
        origin, members = get_origin(kind), get_args(kind)
        if origin is Literal:
            return {"enum": list(members)} if len(members) > 1 else {"const": members[0]}
        if origin in (Union, types.UnionType):
            return {"anyOf": [self.schema(member) for member in members]}
        if origin is tuple:
            return self._sequence(members)
        if origin is not None and issubclass(origin, Mapping):
            inner = self.schema(members[1])
            return {"type": "object", **({"additionalProperties": inner} if inner else {})}
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            return self._reference(kind)
        if kind not in _SCALARS:
            raise TypeError(f"{kind!r} is no type of a record")
        return {"type": _SCALARS[kind]}

    def _record(self, kind: type) -> dict[str, Any]:
        hints = typing.get_type_hints(kind)
        fields = [field.name for field in dataclasses.fields(kind)]
        return {
            "description": inspect.cleandoc(kind.__doc__ or ""),
            "type": "object",
            "properties": {name: {**self.schema(hints[name]), **_NARROWED.get((kind, name), {})} for name in fields},
            "required": [field.name for field in dataclasses.fields(kind) if field.metadata != ADDED_LATER],
            "additionalProperties": False,
            **_NARROWED_WHOLE.get(kind, {}),
        }

    def _reference(self, kind: type) -> dict[str, Any]:
        name = kind.__name__
        if self.kinds.setdefault(name, kind) is not kind:
            raise TypeError(f"two records are called {name}")
        if name not in self.written:
            self.written[name] = {}  # a record that holds itself is not written again
            self.written[name] = self._record(kind)
        return {"$ref": f"#/$defs/{name}"}

    def _sequence(self, members: tuple[Any, ...]) -> dict[str, Any]:
        if len(members) == 2 and members[1] is Ellipsis:
            inner = self.schema(members[0])
            return {"type": "array", **({"items": inner} if inner else {})}
        items = [self.schema(member) for member in members]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def main(folder: str) -> None:
    """Write every file into a folder."""
    for name in FILES:
        print(write_whole(Path(folder) / name, schema_text(name)))


if __name__ == "__main__":
    main(sys.argv[1])
