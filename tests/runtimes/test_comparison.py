"""Comparisons: the formulas by hand, everything that must fail, and properties over arbitrary arrays."""

import math

import hypothesis.extra.numpy as arrays_of
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tsexport.runtimes.comparison import TOLERANCES, compare_outputs, relative_rms, scale_tolerance
from tsexport.types import Tolerance

TOLERANCE = Tolerance("test", atol=0.1, rtol=0.01, reason="round numbers")
REPEAT = TOLERANCES["repeat"]
SHAPES = arrays_of.array_shapes(max_dims=3, max_side=5)
FLOATS = arrays_of.arrays(np.float32, SHAPES, elements=st.floats(-1e6, 1e6, width=32))
INTEGERS = arrays_of.arrays(np.int64, SHAPES, elements=st.integers(-(2**62), 2**62))


def one(expected, actual, tolerance=TOLERANCE, scaled=False):
    (comparison,) = compare_outputs({"y": expected}, {"y": actual}, tolerance, scaled=scaled)
    return comparison


def test_the_formulas_by_hand():
    comparison = one(np.array([0.0, 10.0, -100.0]), np.array([0.05, 10.1, -101.0]))
    assert comparison.max_abs_error == pytest.approx(1.0)
    assert comparison.excess == pytest.approx(1.0 / 1.1)  # 0.05 / 0.1, 0.1 / 0.2, 1 / 1.1
    assert comparison.relative_rms == pytest.approx(math.sqrt(0.0025 + 0.01 + 1.0) / math.sqrt(10100.0))
    assert comparison.passed
    assert comparison.reason == ""


def test_a_miss_names_the_worst_element():
    comparison = one(np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([[0.0, 1.0], [2.5, 3.1]]))
    assert not comparison.passed
    assert comparison.excess == pytest.approx(0.5 / 0.12)
    assert comparison.reason == "at [1, 0] 2.5, expected 2 within atol 0.1 + rtol 0.01 (test)"


@pytest.mark.parametrize(
    ("actual", "reason"),
    [
        (np.array([1.0, np.nan]), "1 of 2 actual values are NaN or infinite"),
        (np.array([-np.inf, np.inf]), "2 of 2 actual values are NaN or infinite"),
        (np.array([[1.0, 2.0]]), r"shape (1, 2), expected (2,)"),
        (np.array([1.0]), r"shape (1,), expected (2,)"),
        (np.array([1.0, 2.0], np.float32), "dtype float32, expected float64"),
    ],
)
def test_what_cannot_be_compared_fails(actual, reason):
    comparison = one(np.array([1.0, 2.0]), actual)
    assert not comparison.passed
    assert comparison.reason == reason
    assert comparison.excess == comparison.max_abs_error == comparison.relative_rms == math.inf


def test_an_expected_nan_fails_even_where_it_is_matched():
    values = np.array([1.0, np.nan])
    assert one(values, values).reason == "1 of 2 expected values are NaN or infinite"


def test_empty_outputs_fail():
    assert one(np.zeros((0, 3)), np.zeros((0, 3))).reason == "shape (0, 3) has no elements to compare"
    assert not one(np.zeros((0, 3)), np.zeros((0, 3)), scaled=True).passed


def test_names_that_differ_fail():
    y = np.ones(2)
    missing, extra = compare_outputs({"y": y}, {"yy": y}, TOLERANCE)
    assert (missing.output, missing.passed, missing.reason) == ("y", False, "the output is missing; given: yy")
    assert (extra.output, extra.passed, extra.reason) == ("yy", False, "the output is not expected; expected: y")


def test_values_whose_difference_overflows_fail():
    comparison = one(np.array([1.7e308]), np.array([-1.7e308]))
    assert not comparison.passed
    assert comparison.excess == math.inf


def test_integers_that_are_equal_in_float64_differ():
    comparison = one(np.array([2**60]), np.array([2**60 + 1]), REPEAT)
    assert not comparison.passed
    assert comparison.max_abs_error == 1.0


def test_booleans():
    truth = np.array([True, False])
    assert one(truth, truth, REPEAT).passed
    assert not one(truth, ~truth).passed


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_a_scaled_tolerance_judges_alike_in_any_unit(scale):
    expected, good, bad = np.array([1.0, -1.0]), np.array([1.05, -1.0]), np.array([1.0, -1.2])
    assert one(expected * scale, good * scale, scaled=True).passed
    assert not one(expected * scale, bad * scale, scaled=True).passed
    assert scale_tolerance(TOLERANCE, expected * scale).atol == pytest.approx(0.1 * scale)


def test_an_unscaled_tolerance_is_taken_literally():
    assert one(np.array([1e-6]), np.array([5e-2])).passed
    assert one(np.array([1e-6]), np.array([5e-2])).tolerance == TOLERANCE


def test_relative_rms_without_a_reference():
    assert relative_rms(np.zeros(3), np.zeros(3)) == 0.0
    assert relative_rms(np.zeros(3), np.ones(3)) == math.inf
    assert relative_rms(np.ones(3), np.ones(4)) == math.inf
    assert relative_rms(np.ones(3), np.array([1, 1, np.nan])) == math.inf


def test_relative_rms_neither_overflows_nor_vanishes():
    for size in (1e-200, 1e200):
        values = np.array([3.0, 4.0]) * size
        assert relative_rms(values, values * 1.5) == pytest.approx(0.5)


def test_every_tolerance_is_under_its_own_name_with_a_reason():
    assert {"repeat", "fp32-same-math", "fp32-export", "golden"} <= set(TOLERANCES)
    for name, tolerance in TOLERANCES.items():
        assert name == tolerance.name
        assert len(tolerance.reason) > 20
    ladder = [TOLERANCES[name] for name in ("repeat", "fp32-same-math", "fp32-export", "golden")]
    assert sorted(ladder, key=lambda t: (t.atol, t.rtol)) == ladder


@given(st.one_of(FLOATS, INTEGERS))
def test_anything_finite_equals_itself(values):
    comparison = one(values, values.copy(), REPEAT)
    assert comparison.passed
    assert (comparison.max_abs_error, comparison.excess, comparison.relative_rms) == (0.0, 0.0, 0.0)


@given(FLOATS, st.data())
def test_one_changed_element_is_found(values, data):
    index = tuple(data.draw(st.integers(0, side - 1)) for side in values.shape)
    changed = values.copy()
    changed[index] += np.float32(1.0) + np.abs(changed[index])
    assert not one(values, changed, REPEAT).passed
    assert one(values, changed, REPEAT).max_abs_error > 0.0


@given(FLOATS, st.floats(0, 0.999), st.floats(1e-6, 1.0), st.floats(0.0, 0.5))
def test_errors_inside_the_tolerance_pass_and_twice_it_fail(values, share, atol, rtol):
    tolerance = Tolerance("drawn", atol, rtol, "drawn")
    expected = values.astype(np.float64)
    allowed = atol + rtol * np.abs(expected)
    assert one(expected, expected + share * allowed, tolerance).excess <= 1.0 + 1e-15 * np.abs(expected).max() / atol
    outside = one(expected, expected + 2.0 * allowed, tolerance)
    assert not outside.passed
    assert outside.excess > 1.0


@given(FLOATS, st.floats(-0.5, 0.5))
def test_relative_rms_of_a_relative_error_is_that_error(values, error):
    expected = values.astype(np.float64)
    assume(np.abs(expected).max() > 1e-3)
    assert relative_rms(expected, expected * (1.0 + error)) == pytest.approx(abs(error), abs=1e-9)


@given(FLOATS, st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_one_value_that_is_not_finite_always_fails(values, bad, data):
    spoilt = values.copy()
    spoilt[tuple(data.draw(st.integers(0, side - 1)) for side in values.shape)] = bad
    huge = Tolerance("huge", math.inf, 0.0, "accepts every finite value")
    assert not one(values, spoilt, huge).passed
    assert not one(spoilt, values, huge).passed
