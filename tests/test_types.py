"""The shared records: shapes with a batch, digests of files, and feeds that come again from a seed."""

import hashlib
from dataclasses import FrozenInstanceError, is_dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsexport import types
from tsexport.types import (
    ELEMENTS_AT_ONCE,
    Comparison,
    Parity,
    Session,
    TensorSpec,
    Tolerance,
    file_sha256,
    files_sha256,
    random_feeds,
    rows_at_once,
)

TOLERANCE = Tolerance("exact", 0.0, 0.0, "for tests")


def comparison(output, excess):
    return Comparison(output, excess, excess, excess, TOLERANCE, excess <= 1)


def test_every_record_is_frozen():
    records = [value for value in vars(types).values() if is_dataclass(value) and value.__module__ == types.__name__]
    assert len(records) > 10
    assert all(record.__dataclass_params__.frozen for record in records)
    with pytest.raises(FrozenInstanceError):
        TOLERANCE.atol = 1.0


def test_a_tensor_reads_as_a_person_would_write_it():
    assert str(TensorSpec("past", "float32", ("batch", 336, 7))) == "past float32[batch, 336, 7]"
    assert str(TensorSpec("scale", "float64", ())) == "scale float64[]"


@pytest.mark.parametrize(
    ("shape", "expected"), [(("batch", 3), (5, 3)), ((2, 3), (2, 3)), ((), ()), (("batch",), (5,))]
)
def test_the_batch_takes_its_place(shape, expected):
    assert TensorSpec("x", "float32", shape).with_batch(5) == expected


def test_parity_is_that_of_its_worst_output():
    good, bad, worse = comparison("a", 0.5), comparison("b", 1.5), comparison("c", float("inf"))
    assert Parity("m", "r", "random", 1, (good,)).passed
    parity = Parity("m", "r", "random", 1, (good, worse, bad))
    assert not parity.passed
    assert parity.worst is worse


@given(data=st.binary(max_size=200_000))
def test_a_files_digest_is_its_sha256(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "digest"
    path.write_bytes(data)
    assert file_sha256(path) == files_sha256((path,)) == hashlib.sha256(data).hexdigest()


def test_the_digest_of_several_files_is_that_of_their_lines(tmp_path):
    first, second = tmp_path / "a.xml", tmp_path / "a.bin"
    first.write_bytes(b"graph")
    second.write_bytes(b"weights")
    lines = f"{file_sha256(first)}  .xml\n{file_sha256(second)}  .bin\n"
    whole = files_sha256((first, second))
    assert whole == hashlib.sha256(lines.encode()).hexdigest()
    moved = [path.rename(tmp_path / f"b{path.suffix}") for path in (first, second)]
    assert files_sha256(tuple(moved)) == whole  # names do not count
    assert files_sha256(tuple(moved[::-1])) != whole  # the order does
    moved[1].write_bytes(b"other weights")
    assert files_sha256(tuple(moved)) != whole


SPECS = (
    TensorSpec("x", "float32", ("batch", 4)),
    TensorSpec("half", "float16", ("batch",)),
    TensorSpec("ids", "int64", ("batch", 2)),
    TensorSpec("mask", "bool", ("batch", 3)),
    TensorSpec("scale", "float64", ()),
)


@given(batch=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
def test_random_feeds_fit_their_tensors(batch, seed):
    feeds = random_feeds(SPECS, batch, seed)
    assert list(feeds) == [spec.name for spec in SPECS]
    for spec in SPECS:
        assert feeds[spec.name].shape == spec.with_batch(batch)
        assert np.asarray(feeds[spec.name]).dtype == np.dtype(spec.dtype)
    assert set(np.unique(feeds["ids"])) <= {0, 1}  # safe to look up in any table of two rows or more
    again = random_feeds(SPECS, batch, seed)
    assert all(np.array_equal(feeds[name], again[name]) for name in feeds)


def test_other_seeds_give_other_feeds():
    first, second = (random_feeds(SPECS, 4, seed)["x"] for seed in (1, 2))
    assert not np.array_equal(first, second)


def test_a_session_is_known_by_what_it_offers():
    class Complete:
        inputs = outputs = ()

        def run(self, feeds): ...
        def close(self): ...
        def __enter__(self): ...
        def __exit__(self, *_): ...

    class Lacking:
        def run(self, feeds): ...

    assert isinstance(Complete(), Session)
    assert not isinstance(Lacking(), Session)


@pytest.mark.parametrize(
    ("shapes", "rows"),
    [
        (((1, 128, 8),), 64),  # patchtst-cpu
        (((1, 288, 24), (1, 288), (1, 288, 4)), 7),  # migt-tvdt: 64 took 6 GB
        (((1, 64, 16), (1, 390, 16)), 9),  # hrm-27m
        (((1, 13, 256, 256),), 1),  # sfno-hybrid: one is more than what may be there at once, and there is no less
        (((1,),), 64),
    ],
)
def test_the_larger_a_sample_is_the_fewer_run_at_once(shapes, rows):
    assert rows_at_once(iter(shapes), 64) == rows


@given(elements=st.integers(1, 10**8), most=st.integers(1, 100))
def test_at_least_one_row_and_at_most_as_many_as_were_asked_for(elements, most):
    rows = rows_at_once([(1, elements)], most)
    assert 1 <= rows <= most
    assert rows == 1 or rows * elements <= ELEMENTS_AT_ONCE
