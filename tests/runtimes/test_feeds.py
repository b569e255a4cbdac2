"""The quick acceptance of feeds agrees with the full check."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsexport.errors import FeedError
from tsexport.runtimes.sessions import ExpectedFeeds, check_feeds
from tsexport.types import TensorSpec

INPUTS = (TensorSpec("a", "float32", ("batch", 3)), TensorSpec("b", "int64", ("batch",)))


def good(batch=2):
    return {"a": np.zeros((batch, 3), np.float32), "b": np.zeros(batch, np.int64)}


SHAPES = st.sampled_from([(2, 3), (2,), (1, 3), (1,), (3, 3), (0, 3), (0,), (), (2, 3, 1), (2, 4)])
DTYPES = st.sampled_from(["float32", "float64", "int64", ">f4"])
ARRAYS = st.builds(np.zeros, SHAPES, DTYPES)
OTHERS = st.sampled_from([None, [1.0], np.float32(1), np.ma.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32).T])
NAMES = st.sampled_from(["a", "b", "c"])


@given(st.dictionaries(NAMES, ARRAYS | OTHERS, max_size=3) | st.fixed_dictionaries({"a": ARRAYS | OTHERS, "b": ARRAYS}))
def test_it_accepts_nothing_that_the_check_refuses(feeds):
    batch = ExpectedFeeds.of(INPUTS).batch_of(feeds)
    try:
        arrays, checked = check_feeds(INPUTS, feeds)
    except FeedError:
        assert batch == 0
        return
    if batch:
        assert batch == checked
        assert all(arrays[name] is feeds[name] for name in feeds), "what is accepted is used as it is"


@pytest.mark.parametrize("batch", [1, 7])
def test_it_accepts_what_is_common(batch):
    assert ExpectedFeeds.of(INPUTS).batch_of(good(batch)) == batch
    assert ExpectedFeeds.of(INPUTS).batch_of(dict(reversed(good(batch).items()))) == batch


@pytest.mark.parametrize(
    "inputs", [(TensorSpec("a", "float32", (2, 3)),), (TensorSpec("a", "float32", ("batch", "batch")),), ()]
)
def test_inputs_of_another_form_are_left_to_the_check(inputs):
    feeds = {spec.name: np.zeros((2, 3), np.float32) for spec in inputs}
    assert ExpectedFeeds.of(inputs).batch_of(feeds) == 0


def test_arrays_that_are_not_contiguous_are_left_to_the_check():
    feeds = {**good(3), "a": np.zeros((3, 3), np.float32).T}
    assert ExpectedFeeds.of(INPUTS).batch_of(feeds) == 0
    assert check_feeds(INPUTS, feeds)[0]["a"].flags.c_contiguous
