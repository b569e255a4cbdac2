"""The change point search: real steps are found, series without one are left alone at the stated rate."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tsexport.bench.change_points import (
    MIN_POINTS,
    MIN_SEGMENT,
    SIGNIFICANCE,
    _best_split,
    change_points,
)

NOISE = 0.02
"""Relative noise of a median latency from run to run, as on a shared machine."""


def series(*levels, length=15, noise=NOISE, seed=0):
    generator = np.random.default_rng(seed)
    return [float(level * np.exp(noise * generator.standard_normal())) for level in levels for _ in range(length)]


@pytest.mark.parametrize("ratio", [1.1, 1.3, 2.0, 0.9, 0.5])
@pytest.mark.parametrize("length", [6, 10, 40])
def test_a_step_is_found_where_it_is(ratio, length):
    (found,) = change_points(series(10.0, 10.0 * ratio, length=length))
    assert found.index == length
    assert found.ratio == pytest.approx(ratio, rel=3 * NOISE)
    assert found.before == pytest.approx(10.0, rel=3 * NOISE)
    assert found.p_value <= SIGNIFICANCE


def test_several_steps_up_and_down():
    found = change_points(series(10.0, 14.0, 8.0, length=20, seed=3))
    assert [one.index for one in found] == [20, 40]
    assert found[0].ratio > 1 > found[1].ratio


def test_false_alarms_are_as_rare_as_stated():
    """300 series without a change.  More than 9 alarms have a chance below 0.2 % at a rate of 1 %."""
    generator = np.random.default_rng(11)
    alarms = 0
    for number in range(300):
        draw = generator.lognormal(0, 0.05, 24) if number % 2 else 1 + generator.pareto(3.0, 24)  # tails of latencies
        alarms += bool(change_points(draw.tolist(), seed=number))
    assert alarms <= 9


def test_a_smaller_change_than_asked_for_is_dropped():
    values = series(10.0, 10.4, length=30, noise=0.005)
    assert [one.index for one in change_points(values)] == [30]
    assert change_points(values, min_change=0.05) == ()


def test_of_two_changes_the_large_one_stays_and_its_segments_are_joined():
    values = series(10.0, 10.3, 20.0, length=30, noise=0.004)
    assert [one.index for one in change_points(values)] == [30, 60]
    (found,) = change_points(values, min_change=0.05)
    assert found.index == 60
    assert 10.0 < found.before < 10.3


def test_one_slow_run_is_no_change():
    values = series(10.0, length=30)
    values[17] *= 4
    assert change_points(values) == ()


def test_too_few_values_are_not_searched():
    values = [1.0] * (MIN_POINTS // 2) + [9.0] * (MIN_POINTS // 2)
    assert [one.index for one in change_points(values)] == [MIN_POINTS // 2]
    assert change_points(values[1:]) == ()
    assert change_points([]) == ()


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_latency_is_a_bug_of_the_caller(bad):
    with pytest.raises(ValueError, match="positive finite"):
        change_points([1.0] * 20 + [bad])
    with pytest.raises(ValueError, match="min_change is -1"):
        change_points([1.0] * 20, min_change=-1)


latencies = st.lists(st.floats(0.01, 1000.0), max_size=30)


@hypothesis_settings(max_examples=40)
@given(latencies, st.integers(0, 2**32 - 1))
def test_changes_are_ordered_apart_and_repeatable(values, seed):
    found = change_points(values, seed=seed)
    edges = [0, *(one.index for one in found), len(values)]
    assert not found or all(b - a >= MIN_SEGMENT for a, b in itertools.pairwise(edges))
    assert all(one.p_value <= SIGNIFICANCE and one.ratio == one.after / one.before for one in found)
    assert change_points(values, seed=seed) == found


@hypothesis_settings(max_examples=40)
@given(latencies, st.floats(0.1, 10.0))
def test_the_unit_does_not_matter(values, factor):
    ours = change_points(values)
    scaled = change_points([value * factor for value in values])
    assert len(scaled) <= len(values)
    if not _is_close_call(values):
        assert [one.index for one in scaled] == [one.index for one in ours]


def _is_close_call(values):
    """Whether rounding could decide: two splits whose statistics differ in the last digits only."""
    if len(values) < MIN_POINTS:
        return False
    logs = np.log(np.asarray(values))
    return len(np.unique(np.round(logs, 6))) < len(logs)


@given(st.lists(st.floats(-5, 5), min_size=MIN_POINTS, max_size=20))
def test_the_statistic_is_the_formula(values):
    x = np.asarray(values)
    distances = np.abs(x[:, None] - x[None, :])
    n = len(x)
    formula = {}
    for k in range(MIN_SEGMENT, n - MIN_SEGMENT + 1):
        first, second = x[:k], x[k:]
        between = np.mean([abs(a - b) for a in first for b in second])
        alike = [np.mean([abs(a - b) for i, a in enumerate(part) for b in part[:i]]) for part in (first, second)]
        formula[k] = k * (n - k) / n * (2 * between - sum(alike))
    index, statistic = _best_split(distances)
    assert statistic == pytest.approx(max(formula.values()), abs=1e-9)
    assert formula[index] == pytest.approx(statistic, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_an_independent_search_finds_the_same_steps(seed):
    """ruptures' optimal partition into as many segments, by another cost (least absolute deviations)."""
    import ruptures

    generator = np.random.default_rng(seed)
    levels = np.cumprod(generator.choice([0.7, 1.4], 4)) * 10
    values = series(*levels, length=18, seed=seed)
    found = [one.index for one in change_points(values, seed=seed)]
    signal = np.log(np.asarray(values))[:, None]
    expected = ruptures.Dynp(model="l1", min_size=MIN_SEGMENT, jump=1).fit(signal).predict(n_bkps=3)[:-1]
    assert found == expected
