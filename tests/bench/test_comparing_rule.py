"""The rule of `tsexport compare`: estimates, intervals, floors, verdicts."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsexport.bench.compare_records import Slowdown
from tsexport.bench.comparing_rule import (
    FEWEST_PAIRS,
    PairTimes,
    decide,
    hodges_lehmann,
    judge_pairs,
    process_floor,
    slowdown,
    student_quantile,
)

EXACT = 1e-12
# From tables of Student's distribution (Fisher and Yates); the expansion is 1 % short at worst.
QUANTILES = [(0.975, 4, 2.7764), (0.975, 5, 2.5706), (0.995, 5, 4.0321), (0.995, 9, 3.2498), (0.975, 30, 2.0423)]
QUANTILE_TOLERANCE = 0.01


def pair(ratio=1.0, *, layout=1.0, rounds=6, noise=0.0, idle=0.0, drift=0.0, seed=0):
    """A drawn pair: the candidate takes `ratio` times as long; `drift` is what each block is slower than the last."""
    generator = np.random.default_rng(seed)

    def draw(level, first, scale):
        values = np.full((rounds, 2), level) * np.exp(generator.normal(0, scale, (rounds, 2)))
        order = np.arange(rounds)[:, None] * 4 + np.asarray(first)
        return tuple((float(a), float(b)) for a, b in values * (1 + drift) ** order)

    outer, inner = (0, 3), (1, 2)
    return PairTimes(
        draw(1.0, outer, noise),
        draw(ratio * layout, inner, noise),
        draw(120.0, outer, idle),
        draw(120.0, inner, idle),
        2,
    )


def pairs(ratios, **changes):
    return [pair(ratio, seed=number, **changes) for number, ratio in enumerate(ratios)]


def logs(ratios):
    """What `slowdown` takes: the logarithm of each pair's ratio."""
    return [float(np.median(one.log_ratios)) for one in pairs(ratios)]


# --- estimates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("probability", "degrees", "expected"), QUANTILES)
def test_students_quantiles_are_those_of_the_tables(probability, degrees, expected):
    assert student_quantile(probability, degrees) == pytest.approx(expected, rel=QUANTILE_TOLERANCE)


def test_hodges_lehmann_is_the_median_of_the_averages_of_two():
    values = [1.0, 2.0, 4.0, 100.0]
    averages = [(a + b) / 2 for i, a in enumerate(values) for b in values[i:]]
    assert hodges_lehmann(np.array([values]))[0] == np.median(averages)


@given(st.lists(st.floats(-0.5, 0.5), min_size=2, max_size=12), st.floats(-0.2, 0.2))
def test_hodges_lehmann_moves_with_its_values_and_stays_among_them(values, shift):
    estimate = hodges_lehmann(np.array([values]))[0]
    assert min(values) - EXACT <= estimate <= max(values) + EXACT
    assert hodges_lehmann(np.array([values]) + shift)[0] == pytest.approx(estimate + shift, abs=1e-9)


def test_a_machine_that_slows_down_steadily_does_not_move_a_round():
    """A B B A: the second A is as late as the first was early."""
    assert pair(1.1, drift=0.03).ratio == pytest.approx(1.1, abs=1e-9)
    assert pair(1.0, drift=-0.05).ratio == pytest.approx(1.0, abs=1e-9)


def test_one_odd_process_does_not_move_the_ratio():
    ratios = [1.0, 1.001, 0.999, 1.002, 0.998, 1.0, 1.001, 0.999, 1.0, 2.0]
    found = slowdown(logs(ratios), alpha=0.05, seed=0)
    assert found.value == pytest.approx(1.0, abs=0.002)


@given(st.lists(st.floats(0.8, 1.25), min_size=5, max_size=10), st.integers(0, 2**16))
def test_the_interval_holds_its_value_and_lies_among_the_pairs(ratios, seed):
    found = slowdown(logs(ratios), alpha=0.01, seed=seed, resamples=200)
    assert found.low <= found.value <= found.high
    assert min(ratios) - 1e-9 <= found.low
    assert found.high <= max(ratios) + 1e-9


def test_swapping_the_sides_turns_the_ratio_round():
    ratios = [1.02, 0.97, 1.05, 1.11, 0.99, 1.03]
    there = slowdown(logs(ratios), alpha=0.05, seed=1)
    back = slowdown([-one for one in logs(ratios)], alpha=0.05, seed=1)
    assert there.value * back.value == pytest.approx(1.0, abs=1e-9)
    assert there.low * back.high == pytest.approx(1.0, abs=0.02)  # quantiles of a finite number of resamples


def test_the_same_seed_gives_the_same_interval():
    some = logs([1.02, 0.97, 1.05, 1.11, 0.99, 1.01, 1.03, 0.98])
    assert slowdown(some, alpha=0.05, seed=3) == slowdown(some, alpha=0.05, seed=3)
    assert slowdown(some, alpha=0.05, seed=3, resamples=500) != slowdown(some, alpha=0.05, seed=4, resamples=500)


@pytest.mark.parametrize(("count", "confidence"), [(5, 1 - 2**-4), (6, 1 - 2**-5), (10, 0.99), (20, 0.99)])
def test_few_pairs_claim_no_more_than_they_can(count, confidence):
    found = slowdown(logs([1.0] * count), alpha=0.01, seed=0)
    assert found.confidence == pytest.approx(confidence)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Layouts of 3 %; 300 drawn runs of 8 pairs at 95 %: fewer than 95 - 4 % would be four standard deviations off."""
    generator = np.random.default_rng(0)
    held = 0
    for seed in range(300):
        drawn = 0.04 + generator.normal(0, 0.03 * math.sqrt(2), 8)
        found = slowdown(drawn, alpha=0.05, seed=seed, resamples=500)
        held += math.log(found.low) <= 0.04 <= math.log(found.high)
    assert held / 300 >= 0.91


def test_the_spread_of_processes_is_what_two_copies_may_show():
    """n normal differences of standard deviation s: t s / sqrt(n), up to what winsorizing a tenth changes."""
    drawn = np.random.default_rng(0).normal(0.0, 0.02, 400)
    assert process_floor(drawn, alpha=0.05) == pytest.approx(math.expm1(1.966 * 0.02 / math.sqrt(400)), rel=0.1)
    assert process_floor([0.1] * 5, alpha=0.05) == pytest.approx(0.0, abs=EXACT)
    assert process_floor([0.0, 0.01, 0.02, 0.03, 0.04], alpha=0.05) == pytest.approx(
        math.expm1(2.7764 * 0.0158114 / math.sqrt(5)), rel=QUANTILE_TOLERANCE
    )


def test_one_odd_pair_of_ten_does_not_hide_a_regression():
    usual = [0.10 + 0.002 * i for i in range(9)]
    assert process_floor([*usual, 0.75], alpha=0.05) < 0.02
    assert process_floor([*usual, 0.75], alpha=0.05) == process_floor([*usual, 0.50], alpha=0.05)


# --- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "floor", "verdict"),
    [
        (1.06, 1.10, 0.01, "regression"),
        (1.06, 1.10, 0.07, "inconclusive"),
        (1.05, 1.10, 0.01, "inconclusive"),
        (1.01, 1.04, 0.01, "unchanged"),
        (0.97, 1.04, 0.20, "unchanged"),
        (0.90, 0.94, 0.01, "improved"),
        (0.90, 0.94, 0.15, "inconclusive"),
        (0.90, 1.00, 0.01, "inconclusive"),
        (0.90, 1.20, 0.01, "inconclusive"),
        (1.06, None, 0.01, "regression"),
        (1.00, None, 0.01, "inconclusive"),
    ],
)
def test_verdicts(low, high, floor, verdict):
    found, reason = decide(Slowdown((low + (high or low)) / 2, low, high, 0.95), threshold=0.05, floor=floor)
    assert found == verdict
    assert "5.0%" in reason or f"{floor:.1%}" in reason


@given(st.floats(0.5, 2.0), st.floats(1.0, 1.5), st.floats(1.0, 1.5), st.floats(0.001, 0.5), st.floats(0.0, 0.5))
def test_red_lies_above_threshold_and_floor_and_never_holds_1(value, down, up, threshold, floor):
    ratio = Slowdown(value, value / down, value * up, 0.95)
    verdict, _ = decide(ratio, threshold=threshold, floor=floor)
    if verdict == "regression":
        assert ratio.low > 1 + threshold
        assert ratio.low > 1 + floor
    if verdict == "improved":
        assert ratio.high < 1
    if ratio.low <= 1 <= ratio.high:
        assert verdict in ("unchanged", "inconclusive")


def test_a_slower_candidate_is_red_and_two_alike_are_unchanged():
    assert judge_pairs(pairs([1.10, 1.11, 1.09, 1.10, 1.12, 1.09]), threshold=0.05, seed=0).verdict == "regression"
    assert judge_pairs(pairs([1.0, 1.01, 0.99, 1.0, 1.02, 0.99]), threshold=0.05, seed=0).verdict == "unchanged"
    assert judge_pairs(pairs([0.9, 0.91, 0.89, 0.9, 0.92, 0.89]), threshold=0.05, seed=0).verdict == "improved"
    assert judge_pairs(pairs([0.9, 1.1, 0.95, 1.2, 1.0, 1.1]), threshold=0.05, seed=0).verdict == "inconclusive"


def test_a_machine_that_is_no_quieter_than_the_change_makes_no_red():
    """The idle loop beside the two sides differs by as much as the bundles do."""
    ratios = [1.10, 1.11, 1.09, 1.10, 1.12, 1.09]
    unquiet = judge_pairs(pairs(ratios, idle=0.3), threshold=0.05, seed=0)
    assert unquiet.machine_floor > 0.12
    assert (unquiet.verdict, unquiet.ratio.low > 1.05) == ("inconclusive", True)
    assert "noise floor" in unquiet.reason


def test_a_verdict_takes_pairs_enough():
    with pytest.raises(ValueError, match="4 pairs; a verdict takes 5"):
        judge_pairs(pairs([1.0] * (FEWEST_PAIRS - 1)), threshold=0.05, seed=0)
    with pytest.raises(ValueError, match="as many are needed in both"):
        _ = PairTimes((), (), (), (), 2).log_ratios
