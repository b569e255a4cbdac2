import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsexport.bench.schema import decode, encode
from tsexport.errors import BundleError, ConfigurationError


@dataclass(frozen=True)
class Inner:
    value: float


@dataclass(frozen=True)
class Outer:
    name: str
    count: int
    flag: bool = False
    kind: Literal["a", "b"] = "a"
    path: Path | None = None
    pair: tuple[int, float] | None = None
    inner: tuple[Inner, ...] = ()
    table: Mapping[str, float] | None = None


outers = st.builds(
    Outer,
    name=st.text(),
    count=st.integers(),
    flag=st.booleans(),
    kind=st.sampled_from(["a", "b"]),
    path=st.none() | st.just(Path("x/y")),
    pair=st.none() | st.tuples(st.integers(), st.floats(allow_nan=False)),
    inner=st.lists(st.builds(Inner, st.floats(allow_nan=False)), max_size=3).map(tuple),
    table=st.none() | st.dictionaries(st.text(), st.floats(allow_nan=False), max_size=3),
)


@given(outers)
def test_a_record_survives_the_way_there_and_back(outer):
    assert decode(Outer, encode(outer), where="outer") == outer


def test_numbers_that_json_lacks_travel_as_words():
    assert encode(Inner(math.inf)) == {"value": "inf"}
    assert math.isnan(decode(Inner, {"value": "nan"}, where="inner").value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "n", "count": 1, "knd": "a"}, r"o has an unknown key 'knd' \(did you mean 'kind'\?\); keys are name"),
        ({"name": "n"}, "o lacks the key 'count'"),
        ({"name": 1, "count": 1}, r"o.name is 1 \(int\), and str is expected"),
        ({"name": "n", "count": 1.5}, r"o.count is 1.5 \(float\), and int is expected"),
        ({"name": "n", "count": True}, r"o.count is True \(bool\), and int is expected"),
        ({"name": "n", "count": 1, "flag": 1}, r"o.flag is 1 \(int\), and bool is expected"),
        ({"name": "n", "count": 1, "kind": "c"}, "o.kind is 'c'; allowed are 'a', 'b'"),
        ({"name": "n", "count": 1, "pair": [1]}, "o.pair has 1 values, and 2 are expected"),
        ({"name": "n", "count": 1, "inner": 1}, r"o.inner is 1 \(int\), and a list is expected"),
        ({"name": "n", "count": 1, "inner": [{"value": "x"}]}, r"o.inner\[0\].value is 'x' \(str\), and float"),
        ({"name": "n", "count": 1, "table": [1]}, r"o.table is \[1\] \(list\), and a table is expected"),
        ([], r"o is \[\] \(list\), and a table is expected"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(value, message):
    with pytest.raises(ConfigurationError, match=message):
        decode(Outer, value, where="o")


def test_the_caller_chooses_the_error():
    with pytest.raises(BundleError, match="lacks the key"):
        decode(Inner, {}, where="o", error=BundleError)
