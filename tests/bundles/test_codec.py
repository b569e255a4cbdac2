"""The codec takes exactly what a record says, and says what is wrong with anything else."""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsexport.codec import decode, encode, from_plain, parse_json, to_plain
from tsexport.errors import BundleError, ConfigurationError, DataError


@dataclass(frozen=True)
class Inner:
    size: int | str


@dataclass(frozen=True)
class Outer:
    name: str
    ratio: float
    flag: bool
    kind: Literal["a", "b"]
    inner: Inner | None
    items: tuple[Inner, ...]
    pair: tuple[str, int]
    counts: Mapping[str, int]
    path: Path
    free: Any


GOOD = {
    "name": "n", "ratio": 0.5, "flag": True, "kind": "a", "inner": {"size": 3}, "items": [{"size": "batch"}],
    "pair": ["x", 1], "counts": {"k": 1}, "path": "a/b", "free": {"deep": [1, None, "t"]},
}  # fmt: skip
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner).map(tuple) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=8,
)
TEXT = st.text(st.characters(codec="utf-8"))
INNER = st.builds(Inner, st.integers() | TEXT)
OUTER = st.builds(
    Outer, TEXT, st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.sampled_from(["a", "b"]),
    st.none() | INNER, st.lists(INNER).map(tuple), st.tuples(TEXT, st.integers()),
    st.dictionaries(TEXT, st.integers()), st.sampled_from([Path("a/b"), Path("/c"), Path()]), JSON_VALUES,
)  # fmt: skip


def read(value):
    return decode(Outer, json.dumps(value), what="outer.json")


@given(OUTER)
def test_round_trip(record):
    text = encode(record)
    assert decode(Outer, text, what="outer.json") == record
    assert encode(decode(Outer, text.encode(), what="outer.json")) == text
    assert text.endswith("}\n")


def test_reads_what_it_should():
    record = read(GOOD)
    assert record.inner == Inner(3)
    assert record.items == (Inner("batch"),)
    assert record.path == Path("a/b")
    assert record.free == {"deep": (1, None, "t")}
    assert isinstance(read(GOOD | {"ratio": 2}).ratio, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nmae": 1}, "unknown key 'nmae' (did you mean 'name'?); allowed are name, ratio"),
        ({"name": 3}, "name: is 3, needed is a string"),
        ({"ratio": "0.5"}, "ratio: is \"0.5\", needed is a number"),
        ({"ratio": True}, "ratio: is true, needed is a number"),
        ({"ratio": 10**400}, "ratio: is too large a number"),
        ({"flag": 1}, "flag: is 1, needed is true or false"),
        ({"kind": "c"}, "kind: is \"c\", allowed are 'a', 'b'"),
        ({"inner": {"size": 1.5}}, "inner.size: is 1.5, needed is an integer or a string"),
        ({"inner": {}}, "inner: missing 'size'; needed are size"),
        ({"items": [{"size": 1}, 4]}, "items[1]: is 4, needed is an object"),
        ({"items": {}}, "items: is {}, needed is a list"),
        ({"pair": ["x"]}, "pair: has 1 items, needed are 2"),
        ({"path": 3}, "path: is 3, needed is a string"),
        ({"counts": {"k": None}}, "counts.k: is null, needed is an integer"),
        ({"name": "\ud800"}, "name: holds text that is not valid Unicode"),
        ({"free": {"\ud800": 1}}, "holds text that is not valid Unicode"),
    ],
)  # fmt: skip
def test_says_which_key_and_what_is_allowed(change, message):
    with pytest.raises(BundleError) as caught:
        read(GOOD | change)
    assert str(caught.value).startswith("outer.json")
    assert message in str(caught.value)


@pytest.mark.parametrize("name", GOOD)
def test_every_key_is_needed(name):
    with pytest.raises(BundleError, match=f"missing '{name}'"):
        read({key: value for key, value in GOOD.items() if key != name})


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe\x00", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"[" * 100_000, b"1" * 5000, b'{"a": Infinity}'],
    ids=["empty", "cut", "no text", "NaN", "twice", "deep", "long number", "infinity"],
)
def test_what_is_no_json(text):
    with pytest.raises(BundleError, match=r"outer\.json is not valid JSON"):
        decode(Outer, text, what="outer.json")


def test_infinity_by_exponent():
    text = json.dumps(GOOD).replace("0.5", "1e999")
    with pytest.raises(BundleError, match="no finite number"):
        decode(Outer, text, what="outer.json")


def test_raises_the_error_that_was_asked_for():
    with pytest.raises(DataError):
        decode(Outer, "3", what="outer.json", error=DataError)


@pytest.mark.parametrize("value", [math.nan, math.inf, {1: 2}, object(), b"bytes"])
def test_refuses_to_write(value):
    with pytest.raises(ValueError, match=r"record"):
        to_plain((value,))


def test_what_is_parsed_names_the_next_step():
    for read in (
        lambda: parse_json("{", what="m", next_step="do b"),
        lambda: from_plain(Row, 3, what="m", next_step="do b"),
    ):
        with pytest.raises(BundleError, match="m") as caught:
            read()
        assert caught.value.next_step == "do b"


# --- tables that people write ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    name: str
    bound_ms: float
    span: tuple[float, float] | None = None
    note: str = ""
    by_batch: Mapping[str, float] = field(default_factory=dict)


def read_row(text, *, defaults=True):
    return from_plain(Row, tomllib.loads(text), what="row 1 of t.toml", error=ConfigurationError, defaults=defaults)


def test_a_written_table_may_leave_out_what_has_a_default():
    assert read_row('name = "n"\nbound_ms = 7') == Row("n", 7.0)
    text = 'name = "n"\nbound_ms = 7\nspan = [1, 2.5]\nby_batch = { 8 = 1 }'
    assert read_row(text) == Row("n", 7.0, (1.0, 2.5), "", {"8": 1.0})


def test_what_a_program_wrote_may_not():
    with pytest.raises(ConfigurationError, match="missing 'span', 'note', 'by_batch'; needed are name, bound_ms, span"):
        read_row('name = "n"\nbound_ms = 7', defaults=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "n"', "row 1 of t.toml: missing 'bound_ms'; needed are name, bound_ms"),
        ('name = "n"\nbound_ms = 1\nnoot = ""', "row 1 of t.toml: unknown key 'noot' (did you mean 'note'?)"),
        ('name = "n"\nbound_ms = inf', "row 1 of t.toml: bound_ms: is no finite number"),
        ('name = "n"\nbound_ms = true', "row 1 of t.toml: bound_ms: is true, needed is a number"),
        ('name = "n"\nbound_ms = 1979-05-27', 'row 1 of t.toml: bound_ms: is "1979-05-27", needed is a number'),
        ('name = "n"\nbound_ms = 1\nspan = [1]', "row 1 of t.toml: span: has 1 items, needed are 2"),
    ],
)
def test_a_written_table_says_what_is_wrong(text, message):
    with pytest.raises(ConfigurationError) as caught:
        read_row(text)
    assert str(caught.value).startswith(message)


def test_a_free_value_that_json_lacks_is_refused():
    free = tomllib.loads("deep = [1979-05-27]")
    with pytest.raises(BundleError, match=r'free\.deep\[0\]: is "1979-05-27", which a record cannot hold'):
        from_plain(Outer, GOOD | {"free": free}, what="outer.toml")
