"""Errors that build up: K steps fed with their own output, the order of quantiles and what they cover."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsexport.quantize.quantiles import CROSSING_SHARE, Order, coverage, crossing_miss, order_of_quantiles
from tsexport.quantize.rollout import Feedback, NoFeedback, feedback_of, roll, rollout_errors, rollout_miss
from tsexport.types import ModelSpec, TensorSpec


def spec(given_shape, answer_shape, *, task="forecast", more=(), component=None, dtype="float32", config=None):
    inputs = (TensorSpec("x", dtype, ("batch", *given_shape)), *more)
    outputs = (TensorSpec("y", "float32", ("batch", *answer_shape)),)
    return ModelSpec("model", "family", task, inputs, outputs, component, config or {})


STATE, WINDOW = Feedback("state", "x", "y"), Feedback("window", "x", "y")


def test_what_goes_on():
    assert feedback_of(spec((3, 8, 8), (3, 8, 8))) == STATE
    assert feedback_of(spec((24, 3), (6, 3))) == WINDOW
    assert str(STATE) == "y is the next x"
    assert str(WINDOW) == "y is appended to x, whose oldest rows go"


REFUSED = {
    "it answers classes, and takes none": spec((24, 3), (3,), task="classification"),
    "it answers quantiles, and takes none": spec((24, 3), (6, 3), task="quantiles"),
    "beside x it takes known": spec((24, 3), (6, 3), more=(TensorSpec("known", "float32", ("batch", 30, 4)),)),
    "head is a part of model": spec((24, 3), (24, 3), component="head"),
    "does not continue": spec((24, 8), (1,)),
    "it takes x int64": spec((24, 3), (6, 3), dtype="int64"),
    "it takes raw windows and answers scaled ones": spec(
        (24, 3), (6, 3), config={"preprocessing": {"scaling": "standard", "scales_back": False}}
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_does_not_go_on(reason):
    found = feedback_of(REFUSED[reason])
    assert isinstance(found, NoFeedback)
    assert reason in found.reason


@given(context=st.integers(1, 12), horizon=st.integers(1, 15), steps=st.integers(1, 4))
def test_windows_move_on_by_what_was_answered(context, horizon, steps):
    """A model that counts on: whatever context and horizon are, each step continues the one before."""

    def count(feeds):
        last = feeds["x"][:, -1:, :]
        return {"y": last + np.arange(1, horizon + 1, dtype=np.float32)[None, :, None]}

    start = np.arange(context, dtype=np.float32)[None, :, None].repeat(2, axis=2)
    answers = np.concatenate(list(roll(count, WINDOW, start, steps)), axis=1)
    np.testing.assert_array_equal(answers[0, :, 0], context + np.arange(horizon * steps, dtype=np.float32))


def test_errors_build_up():
    windows = np.ones((9, 2, 4, 4), np.float32)  # more rows than go through at once
    errors = rollout_errors(lambda f: {"y": f["x"] * 1.01}, lambda f: {"y": f["x"]}, STATE, windows, 5)
    assert errors == pytest.approx([1.01**k - 1 for k in range(1, 6)], rel=1e-4)
    assert rollout_miss(errors, 0.06) == ""
    assert rollout_miss(errors, 0.05) == (
        "after 5 steps fed with its own output it is 5.10% of the source's RMS away, allowed is 5.00%"
    )


def test_answers_that_are_not_finite_miss():
    errors = rollout_errors(
        lambda f: {"y": f["x"] * np.float32("inf")}, lambda f: {"y": f["x"]}, STATE, np.ones((1, 4), np.float32), 1
    )
    assert rollout_miss(errors, 1e9)


def test_order_and_coverage():
    source = np.array([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0]])
    artifact = np.array([[1.0, 0.0, 2.0], [0.0, 2.0, 1.0]])
    order = order_of_quantiles(artifact, source)
    assert order == Order(crossed=0.5, source_crossed=0.25, new=0.25)
    assert crossing_miss(order) == (
        "25.00% of neighbouring quantiles cross that do not in the source model, allowed is 1%"
    )
    assert crossing_miss(Order(0.5, 0.5, CROSSING_SHARE)) == ""
    assert coverage(source, np.array([1.0, 1.0])) == (0.0, 1.0, 1.0)
    assert coverage(source, np.array([[1.0], [1.0]])) == (0.0, 1.0, 1.0)


@given(st.integers(2, 6), st.integers(1, 20), st.integers(0, 1000))
def test_sorted_quantiles_never_cross(levels, rows, seed):
    values = np.sort(np.random.default_rng(seed).standard_normal((rows, levels)), axis=1)
    assert order_of_quantiles(values, values) == Order(0.0, 0.0, 0.0)
    covered = coverage(values, np.zeros(rows))
    assert list(covered) == sorted(covered)
