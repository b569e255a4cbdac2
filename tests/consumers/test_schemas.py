"""docs/schemas in agreement with the readers: what a schema refuses they refuse too, and of types alone the reverse."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any, Literal

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsexport.bench.records import record_from_text
from tsexport.bundles.json_schemas import FILES, main, schema_of, schema_text
from tsexport.bundles.manifest import parse_manifest, parse_selection
from tsexport.codec import from_plain
from tsexport.errors import BundleError

ROOT = Path(__file__).resolve().parents[2]
MANIFEST, SELECTION, RECORD = FILES
READERS = {
    MANIFEST: parse_manifest,
    SELECTION: parse_selection,
    RECORD: lambda text: record_from_text(text, name="record"),
}
EXACT = 2**53
"""Whole numbers up to it are the same in JSON as everywhere."""


@pytest.fixture(
    scope="module",
    params=["fp32", pytest.param("int8", marks=pytest.mark.slow), pytest.param("pruned", marks=pytest.mark.slow)],
)
def documents(request, bundle_of):
    """The documents of a real bundle."""
    folder = bundle_of(request.param).path
    (record,) = (folder / "measurements").glob("*.json")
    paths = {MANIFEST: folder / "manifest.json", SELECTION: folder / "selection.json", RECORD: record}
    return {name: path.read_text(encoding="utf-8") for name, path in paths.items()}


def reads(name, document):
    try:
        READERS[name](json.dumps(document))
    except BundleError:
        return False
    return True


# --- the files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_those_of_the_records(name):
    assert (ROOT / "docs/schemas" / name).read_text(encoding="utf-8") == schema_text(name), "run `make schemas`"
    jsonschema_rs.meta.validate(json.loads(schema_text(name)))


def test_they_are_all_written(tmp_path, capsys):
    main(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (ROOT / "docs/schemas").iterdir()}
    assert (tmp_path / MANIFEST).read_text(encoding="utf-8") == schema_text(MANIFEST)
    assert MANIFEST in capsys.readouterr().out


def test_a_record_says_what_it_is():
    definitions = json.loads(schema_text(MANIFEST))["$defs"]
    assert definitions["Golden"]["description"].startswith("golden/inputs.npz and outputs.npz")
    assert all(one["description"] and one["additionalProperties"] is False for one in definitions.values())


# --- what is refused -------------------------------------------------------------------------------------------------


def first(document):
    return document["artifacts"][0]


def tables(**changes):
    """Return what gives a manifest a file of calibration tables."""
    record = {"path": "artifacts/tables.json", "sha256": "a" * 64, "size_bytes": 1, **changes}
    return lambda document: document.update(calibration_tables=record)


BREAKS = {
    "a name that climbs": (MANIFEST, lambda one: one.update(name="../../x")),
    "a hidden name": (MANIFEST, lambda one: one.update(name=".x")),
    "no name": (MANIFEST, lambda one: one.update(name="")),
    "an unknown key": (MANIFEST, lambda one: one.update(latency_ms=1.0)),
    "an unknown key within": (MANIFEST, lambda one: first(one)["inputs"][0].update(layout="NCHW")),
    "a missing key": (MANIFEST, lambda one: one.pop("golden")),
    "a missing key with a default": (MANIFEST, lambda one: one.pop("coverage")),
    "a missing key within": (MANIFEST, lambda one: first(one)["files"][0].pop("sha256")),
    "another schema": (MANIFEST, lambda one: one.update(schema_version=2)),
    "no artifacts": (MANIFEST, lambda one: one.update(artifacts=[])),
    "an artifact without files": (MANIFEST, lambda one: first(one).update(files=[])),
    "a digest in upper case": (MANIFEST, lambda one: first(one).update(sha256="A" * 64)),
    "a short digest": (MANIFEST, lambda one: first(one)["files"][0].update(sha256="a")),
    "a digest of the tables that is none": (MANIFEST, tables(sha256="a")),
    "a path that climbs": (MANIFEST, tables(path="../calibration.json")),
    "an absolute path": (MANIFEST, tables(path="/calibration.json")),
    "a path with an empty part": (MANIFEST, tables(path="a//b")),
    "a path with a dot": (MANIFEST, tables(path="a/./b")),
    "a folder": (MANIFEST, tables(path="a/")),
    "a backslash": (MANIFEST, tables(path="a\\b")),
    "no path": (MANIFEST, tables(path="")),
    "no golden samples": (MANIFEST, lambda one: one["golden"].update(samples=0)),
    "a batch of none": (MANIFEST, lambda one: one["golden"].update(batch=0)),
    "half a bound": (MANIFEST, lambda one: first(one)["golden_tolerance"].update(rtol=None)),
    "no bound": (MANIFEST, lambda one: first(one)["golden_tolerance"].update(atol=None, rtol=None)),
    "another format": (MANIFEST, lambda one: first(one).update(format="tflite")),
    "a number as text": (MANIFEST, lambda one: first(one).update(size_bytes="1")),
    "true as a number": (MANIFEST, lambda one: first(one).update(size_bytes=True)),
    "an option of three": (MANIFEST, lambda one: first(one).update(options=[["a", "b", "c"]])),
    "an option of one": (MANIFEST, lambda one: first(one).update(options=[["a"]])),
    "no threads": (SELECTION, lambda one: one.update(threads=0)),
    "an unknown key of a selection": (SELECTION, lambda one: one["order"][0].update(p50_ms=1.0)),
    "a missing key of a selection": (SELECTION, lambda one: one.pop("basis")),
    "another schema of a record": (RECORD, lambda one: one.update(schema_version=2)),
    "an unknown key of a record": (RECORD, lambda one: one["machine"].update(owner="me")),
    "a missing key of a record": (RECORD, lambda one: one["machine"].pop("cpu_model")),
}


def test_what_is_allowed_by_both(documents, schema):
    document = json.loads(documents[MANIFEST])
    tables()(document)
    schema(MANIFEST).validate(document)
    assert reads(MANIFEST, document)


@pytest.mark.parametrize(("name", "break_it"), BREAKS.values(), ids=BREAKS)
def test_what_is_refused_by_both(documents, schema, name, break_it):
    document = json.loads(documents[name])
    assert schema(name).is_valid(document)
    assert reads(name, document)
    break_it(document)
    assert not schema(name).is_valid(document)
    assert not reads(name, document)


# --- property: whatever is done to a document ------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
FRACTIONS = st.floats(-1e6, 1e6).filter(lambda number: not number.is_integer())
SCALARS = st.none() | st.booleans() | st.integers(-EXACT, EXACT) | FRACTIONS | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)


def change(draw, value):
    """Change one place of a JSON value: drop, add or replace an item, here or further in."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys:
        return draw(VALUES)
    key = draw(st.sampled_from(keys))
    kind = draw(st.sampled_from(["within"] * 6 + ["drop", "add", "replace"]))
    if kind == "within":
        value[key] = change(draw, value[key])
    elif kind == "drop":
        del value[key]
    elif kind == "replace":
        value[key] = draw(VALUES)
    elif isinstance(value, dict):
        value[draw(TEXT)] = draw(VALUES)
    else:
        value.append(draw(VALUES | st.just(value[key])))
    return value


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_what_a_schema_refuses_its_reader_refuses(documents, schema, name, data):
    document = change(data.draw, json.loads(documents[name]))
    if reads(name, document):
        schema(name).validate(document)


@dataclass(frozen=True)
class Inner:
    """An inner record."""

    number: float
    word: Literal["a", "b"]


@dataclass(frozen=True)
class Outer:
    """A record with fields of every type that a record may hold."""

    whole: int
    text: str
    flag: bool
    path: Path
    nothing: None
    version: Literal[1]
    inner: Inner
    maybe: Inner | None
    either: int | str
    many: tuple[Inner, ...]
    pair: tuple[str, int]
    table: Mapping[str, float]
    anything: Any
    things: tuple[Any, ...]
    objects: Mapping[str, Any]


OUTER = jsonschema_rs.Draft202012Validator(schema_of(Outer, title="outer"))
INNERS = st.fixed_dictionaries({"number": FRACTIONS | st.integers(-9, 9), "word": st.sampled_from("ab")})
OUTERS = st.fixed_dictionaries(
    {
        "whole": st.integers(-EXACT, EXACT), "text": TEXT, "flag": st.booleans(), "path": TEXT, "nothing": st.none(),
        "version": st.just(1), "inner": INNERS, "maybe": st.none() | INNERS, "either": st.integers(-9, 9) | TEXT,
        "many": st.lists(INNERS, max_size=2), "pair": st.tuples(TEXT, st.integers(-9, 9)).map(list),
        "table": st.dictionaries(TEXT, FRACTIONS, max_size=2), "anything": VALUES,
        "things": st.lists(VALUES, max_size=2), "objects": st.dictionaries(TEXT, VALUES, max_size=2),
    }
)  # fmt: skip


@given(data=st.data(), changes=st.integers(0, 2))
def test_of_types_a_schema_allows_what_the_codec_reads_and_nothing_else(data, changes):
    """Floats that are whole are left out: JSON Schema takes 1.0 for a whole number, the codec does not."""
    document = data.draw(OUTERS)
    for _ in range(changes):
        document = change(data.draw, document)
    try:
        from_plain(Outer, document, what="outer")
    except BundleError:
        assert not OUTER.is_valid(document)
    else:
        OUTER.validate(document)


def test_a_type_that_no_record_may_hold():
    with pytest.raises(TypeError, match="complex'> is no type of a record"):
        schema_of(make_dataclass("Odd", [("z", complex)]), title="odd")


def test_two_records_of_one_name():
    other = make_dataclass("Inner", [("z", int)])
    with pytest.raises(TypeError, match="two records are called Inner"):
        schema_of(make_dataclass("Both", [("a", Inner), ("b", other)]), title="both")
