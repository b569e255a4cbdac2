"""What each TensorRT version takes: the project's own copy of NVIDIA's tables, `data/tensorrt.json`, with its sources.

An operator's row says from which version on it is there, and with which element types; a fact says what a range of
versions does with a node beyond that: refuses it, or accepts it and computes something else.
"""

import functools
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

Verdict = Literal["refused", "computed wrongly", "hazard"]


def version_key(version: str) -> tuple[int, int]:
    """Return (major, minor) of a version such as "8.5.2", to compare by."""
    major, minor, *_ = (*version.split("."), "0")
    return int(major), int(minor)


@dataclass(frozen=True)
class Fact:
    """What the versions from `first` to `last` (None: to the newest) do with some nodes of these operators.

    `check` is a key of `device_facts.CHECKS`, which recognises the nodes; `rewrite` is what helps, "" where nothing is
    known.
    """

    check: str
    operators: tuple[str, ...]
    verdict: Verdict
    first: str
    last: str | None
    reason: str
    rewrite: str

    def holds_in(self, version: str) -> bool:
        """Return whether a version of the table does so."""
        last = (10**6, 0) if self.last is None else version_key(self.last)
        return version_key(self.first) <= version_key(version) <= last


@dataclass(frozen=True)
class Table:
    """`versions` are ascending; `operators` gives (first version, types or None where it is not supported) of each.

    `types` gives the first version that has tensors of one of ONNX's types; those that are not there have none.
    `min_opset` gives the least opset from a version on.
    """

    versions: tuple[str, ...]
    inferred: tuple[str, ...]
    facts_read_to: str
    max_opset: dict[str, int]
    min_opset: dict[str, int]
    types: dict[str, str]
    operators: dict[str, tuple[tuple[str, tuple[str, ...] | None], ...]]
    facts: tuple[Fact, ...]
    rewrites: dict[str, str]

    def closest(self, version: str) -> str:
        """Return the newest version of the table that is no newer than this one; the oldest for one before it."""
        asked = version_key(version)
        return next((one for one in reversed(self.versions) if version_key(one) <= asked), self.versions[0])

    def from_version(self, version: str) -> tuple[str, ...]:
        """Return the versions of the table that are newer, ascending."""
        return tuple(one for one in self.versions if version_key(one) > version_key(version))

    def types_of(self, operator: str, version: str) -> tuple[str, ...] | None:
        """Return the element types that an operator takes, () where none are written, None where it is not there."""
        found: tuple[str, ...] | None = None
        for first, types in self.operators.get(operator, ()):
            if version_key(first) <= version_key(version):
                found = types
        return found

    def has_type(self, kind: str, version: str) -> bool:
        """Return whether a version has tensors of an ONNX type such as "INT16"."""
        return kind in self.types and version_key(self.types[kind]) <= version_key(version)

    def least_opset(self, version: str) -> int:
        """Return the oldest opset that a version documents."""
        return max(opset for first, opset in self.min_opset.items() if version_key(first) <= version_key(version))

    def facts_on(self, operator: str, version: str) -> tuple[Fact, ...]:
        return tuple(fact for fact in self.facts if operator in fact.operators and fact.holds_in(version))


def _row(row: list[Any]) -> tuple[str, tuple[str, ...] | None]:
    first, types = row
    return first, None if types is None else tuple(types.split())


@functools.cache
def tensorrt_table() -> Table:
    """Return the table; read once."""
    plain = json.loads(files("tsexport.exporters").joinpath("data", "tensorrt.json").read_text(encoding="utf-8"))
    return Table(
        versions=tuple(plain["versions"]),
        inferred=tuple(plain["inferred"]),
        facts_read_to=plain["facts_read_to"],
        max_opset=plain["max_opset"],
        min_opset=plain["min_opset"],
        types=plain["types"],
        operators={name: tuple(_row(row) for row in rows) for name, rows in plain["operators"].items()},
        facts=tuple(Fact(**{**fact, "operators": tuple(fact["operators"])}) for fact in plain["facts"]),
        rewrites=plain["rewrites"],
    )
