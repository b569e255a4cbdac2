"""Operations of a sample, what follows from them, and a source that answers the same feeds once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.exporters.checks import RememberedSource
from tsexport.exporters.cost import flops_of, samples_within
from tsexport.types import ModelSpec, TensorSpec


@pytest.mark.parametrize("rows", [1, 7])
def test_a_multiplication_and_an_addition_are_two_operations(rows):
    spec = ModelSpec("some", "cnn", "forecast", (TensorSpec("x", "float32", ("batch", rows, 96)),), ())
    assert flops_of(torch.nn.Linear(96, 10), spec) == 2 * rows * 96 * 10


@given(
    flops=st.floats(0, 1e15, allow_nan=False),
    budget=st.floats(1, 1e15),
    fewest=st.integers(1, 64),
    more=st.integers(0, 1000),
)
@settings(deadline=None)
def test_samples_stay_between_fewest_and_most_and_within_the_budget(flops, budget, fewest, more):
    most = fewest + more
    count = samples_within(flops, budget, fewest=fewest, most=most)
    assert fewest <= count <= most
    if count > fewest and flops > 0:
        assert count * flops <= budget * (1 + 1e-9)
    if flops == 0:
        assert count == most, "operations that are not known cut nothing"


def test_a_model_of_few_operations_keeps_all_and_a_huge_one_the_fewest():
    assert samples_within(1.3e8, 5e11, fewest=16, most=1024) == 1024
    assert samples_within(2.06e10, 5e11, fewest=16, most=1024) == 24
    assert samples_within(5.95e11, 5e11, fewest=16, most=1024) == 16


class Counted:
    """A source that counts how often it runs."""

    spec = ModelSpec("some", "cnn", "forecast", (TensorSpec("x", "float32", ("batch", 2)),), ())

    def __init__(self):
        self.calls = 0

    def run(self, feeds):
        self.calls += 1
        return {"y": feeds["x"] * 2}


def test_the_same_feeds_are_answered_once():
    counted = Counted()
    source = RememberedSource(counted)
    assert source.spec is counted.spec
    feeds = {"x": np.arange(6, dtype=np.float32).reshape(3, 2)}
    first = source.run(feeds)
    again = source.run({"x": feeds["x"].copy()})
    assert counted.calls == 1
    np.testing.assert_array_equal(again["y"], feeds["x"] * 2)
    with pytest.raises(ValueError, match="read-only"):
        first["y"][0] = 1


@pytest.mark.parametrize(
    "other",
    [
        {"x": np.arange(6, dtype=np.float32).reshape(2, 3)},
        {"x": np.arange(6, dtype=np.float64).reshape(3, 2)},
        {"z": np.arange(6, dtype=np.float32).reshape(3, 2)},
        {"x": np.arange(1, 7, dtype=np.float32).reshape(3, 2)},
    ],
)
def test_other_feeds_are_other_answers(other):
    counted = Counted()
    source = RememberedSource(counted)
    source.run({"x": np.arange(6, dtype=np.float32).reshape(3, 2)})
    if "x" in other:
        source.run(other)
    else:
        with pytest.raises(KeyError):
            source.run(other)
    assert counted.calls == 2
