import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.bench.statistics import (
    P50_SAMPLES,
    P90_SAMPLES,
    P99_SAMPLES,
    RATIO_MIN_ROUNDS,
    percentile,
    ratio_of_medians,
    samples_needed,
    summarize,
    throughput_per_s,
)

latencies = st.floats(min_value=1e-4, max_value=1e5, allow_nan=False)


def test_the_published_sample_counts_follow_from_one_rule():
    assert (P50_SAMPLES, P90_SAMPLES, P99_SAMPLES) == (10, 64, 662)


@given(st.floats(min_value=0.01, max_value=0.999))
def test_samples_needed_is_the_smallest_that_keeps_the_rule(quantile):
    n = samples_needed(quantile)
    assert quantile**n <= 0.0013 * (1 + 1e-9)
    assert n == 1 or quantile ** (n - 1) > 0.0013 * (1 - 1e-9)


@pytest.mark.parametrize(
    ("samples", "p50", "p90", "p99"),
    [(9, False, False, False), (10, True, False, False), (63, True, False, False), (64, True, True, False),
     (661, True, True, False), (662, True, True, True)],
)  # fmt: skip
def test_percentiles_are_given_from_their_sample_counts_on(samples, p50, p90, p99):
    summary = summarize([float(i) for i in range(1, samples + 1)])
    assert (summary.p50_ms is not None, summary.p90_ms is not None, summary.p99_ms is not None) == (p50, p90, p99)


def test_percentiles_are_nearest_rank():
    summary = summarize([float(i) for i in range(1, 1001)])
    assert (summary.p50_ms, summary.p90_ms, summary.p99_ms) == (500.0, 900.0, 990.0)
    assert summary.mean_ms == pytest.approx(500.5)
    assert summary.median_ms == 500.5


@given(st.lists(latencies, min_size=P90_SAMPLES, max_size=200), st.sampled_from([0.5, 0.9]))
def test_a_percentile_is_a_sample_with_enough_samples_below(samples, quantile):
    value = percentile(samples, quantile)
    assert value in samples
    assert sum(s <= value for s in samples) >= quantile * len(samples) - 1e-9
    assert sum(s < value for s in samples) < quantile * len(samples) + 1e-9


@given(st.lists(latencies, min_size=1, max_size=100), st.randoms())
def test_a_summary_does_not_depend_on_order(samples, random):
    shuffled = random.sample(samples, len(samples))
    ours, theirs = summarize(samples), summarize(shuffled)
    assert (ours.min_ms, ours.median_ms, ours.p50_ms, ours.p90_ms) == (
        theirs.min_ms, theirs.median_ms, theirs.p50_ms, theirs.p90_ms,
    )  # fmt: skip
    assert ours.mean_ms == pytest.approx(theirs.mean_ms)
    assert min(samples) * (1 - 1e-9) <= ours.mean_ms <= max(samples) * (1 + 1e-9)


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [math.inf], [0.0], [-1.0]])
def test_impossible_latencies_are_refused(samples):
    with pytest.raises(ValueError, match="positive finite"):
        summarize(samples)


@given(st.lists(latencies, min_size=1, max_size=50), st.integers(1, 64))
def test_throughput_is_batch_over_mean_latency(samples, batch):
    assert throughput_per_s(samples, batch) == pytest.approx(1000 * batch / np.mean(samples))


blocks = st.lists(st.lists(latencies, min_size=1, max_size=5), min_size=RATIO_MIN_ROUNDS, max_size=20)


@settings(max_examples=30)
@given(blocks, st.floats(min_value=0.1, max_value=10))
def test_a_contestant_that_is_always_c_times_slower_has_the_ratio_one_over_c(baseline, slower):
    contestant = [[value * slower for value in block] for block in baseline]
    ratio = ratio_of_medians(baseline, contestant, seed=1)
    assert ratio.value == pytest.approx(1 / slower)
    # Exactly the same in every round, whatever the drift between rounds: the interval closes.
    assert ratio.low == pytest.approx(1 / slower)
    assert ratio.high == pytest.approx(1 / slower)


@settings(max_examples=30)
@given(blocks, st.integers(0, 5))
def test_the_interval_holds_the_estimate_and_is_reproducible(baseline, seed):
    contestant = [list(reversed(block)) for block in reversed(baseline)]
    ratio = ratio_of_medians(baseline, contestant, seed=seed)
    assert 0 < ratio.low <= ratio.value <= ratio.high
    assert ratio == ratio_of_medians(baseline, contestant, seed=seed)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(7)
    covered = 0
    for seed in range(200):
        drift = generator.uniform(1, 3, (20, 1))
        fast = drift * generator.lognormal(0.0, 0.1, (20, 7))
        slow = 2.0 * drift * generator.lognormal(0.0, 0.1, (20, 7))
        ratio = ratio_of_medians(slow.tolist(), fast.tolist(), seed=seed)
        covered += ratio.low <= 2.0 <= ratio.high
    assert covered >= 0.90 * 200  # 95 % claimed; the percentile bootstrap of 20 rounds may be a little short


def test_too_few_rounds_have_no_interval():
    rounds = [[1.0]] * (RATIO_MIN_ROUNDS - 1)
    ratio = ratio_of_medians(rounds, rounds, seed=0)
    assert (ratio.value, ratio.low, ratio.high) == (1.0, 0.0, None)


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([[1.0]], [[1.0], [1.0]]), ([[]], [[1.0]])])
def test_unpaired_or_empty_rounds_are_refused(ours, theirs):
    with pytest.raises(ValueError, match=r"rounds|without calls"):
        ratio_of_medians(ours, theirs, seed=0)
