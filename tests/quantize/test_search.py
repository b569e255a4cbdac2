"""The search for the count of layers in floating point, without building anything: what it returns always held."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsexport.quantize.search import (
    FEWEST_WINDOWS,
    MOST_TRIALS,
    WINDOWS,
    Layer,
    Trial,
    by_work,
    most_layers,
    predict,
    rank,
    search_count,
    windows_for,
)


def layers_of(*macs):
    return tuple(Layer(f"l{index}", "MatMul", f"o{index}", work) for index, work in enumerate(macs))


def searched(errors, budget, first=1, trials=100, seconds=math.inf, macs=None):
    """Search over candidates whose error with k layers left is errors[k]; returns what was found and tried."""
    tried = []

    def attempt(count):
        tried.append(count)
        return Trial(count, errors[count] <= budget, errors[count])

    layers = layers_of(*(macs or [1] * len(errors)))
    return search_count(layers, first, attempt, lambda: len(tried) < seconds, most_trials=trials), tried


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=40),
    st.floats(0, 10),
    st.integers(-3, 60),
    st.integers(0, 10),
    st.integers(0, 10),
)
def test_what_is_returned_held_the_budget_and_is_the_best_that_did(errors, budget, first, trials, seconds):
    """Errors in any order, any cap: never a candidate outside the budget, never one worse than another that held."""
    found, tried = searched(errors, budget, first, trials, seconds)
    assert len(tried) == len(set(tried)), "no count is tried twice"
    assert len(tried) <= min(trials, seconds)
    assert all(1 <= count <= 0.9 * len(errors) for count in tried), "a tenth of the work stays in integers"
    good = [count for count in tried if errors[count] <= budget]
    if good:
        assert found.best.count == min(good)
        assert found.best.held
        assert errors[found.best.count] <= budget
    else:
        assert found.best is None
    assert [trial.count for trial in found.trials] == tried


@given(st.lists(st.floats(0, 10), min_size=2, max_size=60), st.floats(0, 10), st.integers(1, 60))
def test_where_errors_fall_with_every_layer_the_fewest_layers_are_found(errors, budget, first):
    errors = sorted(errors, reverse=True)
    found, tried = searched(errors, budget, first)
    most = most_layers(layers_of(*[1] * len(errors)))
    enough = [count for count in range(1, most + 1) if errors[count] <= budget]
    assert (found.best.count if found.best else None) == (enough[0] if enough else None)
    assert len(tried) <= 2 + 2 * math.ceil(math.log2(len(errors)))


def test_a_good_first_guess_takes_few_candidates():
    errors = [9, 8, 7, 4, 3, 3, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0]
    found, tried = searched(errors, 4.5, first=3)
    assert (found.best.count, tried, found.ended) == (3, [3, 1, 2], "settled")


@pytest.mark.parametrize(
    ("errors", "options", "best", "ended"),
    [
        ([9, 9, 9, 9, 9], {}, None, "exhausted"),
        ([9], {}, None, "exhausted"),  # one layer: without it nothing is quantized
        ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], {"seconds": 0}, None, "time"),
        ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], {"first": 8, "seconds": 2}, 4, "time"),
        ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], {"first": 8, "trials": 1}, 8, "trials"),
    ],
)
def test_why_a_search_ends(errors, options, best, ended):
    found, _ = searched(errors, 5.5, **options)
    assert (found.best.count if found.best else None, found.ended) == (best, ended)


@pytest.mark.parametrize(
    ("macs", "most"),
    [((1,), 0), ((1, 1), 1), ((95, 5), 0), ((5, 95), 1), ((1,) * 20, 18), ((0, 0, 0), 2)],
)
def test_a_tenth_of_the_work_stays_in_integers(macs, most):
    assert most_layers(layers_of(*macs)) == most


def test_a_smaller_count_that_brings_nothing_is_not_looked_for():
    """Of four layers that are left the first does all the work: leaving three instead would bring back a hundredth."""
    errors = [9, 8, 8, 8, 1, 1]
    found, tried = searched(errors, 5, first=4, macs=[900, 2, 2, 2, 2, 192])
    assert (found.best.count, tried) == (4, [4])
    assert searched(errors, 5, first=4)[1] == [4, 2, 3]


def test_a_candidate_that_cannot_be_built_is_no_answer():
    def attempt(count):
        return Trial(count, False, None)

    found = search_count(layers_of(1, 1, 1, 1), 1, attempt, lambda: True)
    assert found.best is None
    assert [trial.count for trial in found.trials] == [1, 2, 3]


@given(st.lists(st.floats(0.001, 10), min_size=1, max_size=30), st.floats(0, 1))
def test_the_prediction_leaves_the_squared_error_that_is_allowed(values, ratio):
    ordered = sorted(values, reverse=True)
    count = predict(ordered, ratio)
    total = sum(one**2 for one in ordered)
    assert 1 <= count <= len(ordered)
    assert sum(one**2 for one in ordered[count:]) <= ratio * total + 1e-9 * total
    if count > 1:
        assert sum(one**2 for one in ordered[count - 1 :]) > ratio * total - 1e-9 * total


def test_layers_that_break_everything_are_predicted_to_fall_back():
    assert predict([math.inf, math.inf, 1.0, 0.1], 0.5) == 3
    assert predict([math.inf, 0.1, 0.1], 1.0) == 1
    assert predict([0.0, 0.0], 0.5) == 1


def test_layers_that_time_did_not_reach_come_last_and_the_small_ones_first():
    layers = layers_of(50, 10, 40, 20, 30)
    assert [one.name for one in by_work(layers)] == ["l1", "l3", "l4", "l2", "l0"]
    order = rank(layers, {"l1": 0.1, "l3": 0.5, "l4": 0.1})
    assert [one.name for one in order] == ["l3", "l1", "l4", "l2", "l0"]
    assert rank(layers, {}) == by_work(layers)


@pytest.mark.parametrize(
    ("macs", "count", "windows"),
    [(10**6, 20, WINDOWS), (10**9, 20, 5), (10**12, 100, FEWEST_WINDOWS), (0, 3, WINDOWS)],
)
def test_windows_follow_the_work_of_the_model(macs, count, windows):
    assert windows_for(layers_of(*[macs] * count)) == windows


def test_a_search_builds_few_candidates():
    errors = [1.0] * 100 + [0.0]
    assert len(searched(errors, 0.5, trials=MOST_TRIALS)[1]) == MOST_TRIALS
