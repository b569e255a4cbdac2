"""The rule of `tsexport compare`: from interleaved pairs of fresh processes to a ratio, a noise floor and a verdict.

What is resampled.  A process keeps its layout in memory as long as it lives, and its latency with it: half a percent to
a few between processes of one file, which no number of calls averages away.  So the unit is the pair, one fresh process
of each side, timed in rounds of four blocks (A B B A, the next round B A A B).  With a, b the medians of blocks,

    round:  l = (log b1 + log b2 - log a1 - log a2) / 2        a linear drift of the machine cancels
    pair:   d_i = median of l over its rounds
    ratio:  exp of the Hodges-Lehmann estimate of the d_i, the median of (d_i + d_j) / 2 over i <= j

which one odd process of ten does not move, and which loses 5 % of the mean's efficiency where none is odd (J. L. Hodges
and E. L. Lehmann, "Estimates of location based on rank tests", 1963).

The interval is a percentile bootstrap over pairs, with replacement, seeded.  Rounds are not resampled within them: what
they vary by is in the d_i already, and would count twice (A. Davison and D. Hinkley, "Bootstrap Methods and their
Application", 1997, section 3.8: of nested data the upper level alone).  Percentile intervals of few units are too
narrow; the tails are widened as T. Hesterberg gives it ("What teachers should know about the bootstrap", 2015, section
4.1): alpha / 2 becomes Phi(-sqrt(n / (n - 1)) t), t being Student's quantile for n - 1 degrees.  No interval claims
more than 1 - 2^(1 - n), since n pairs all lie on one side of the true ratio that often.

The noise floor is what two copies of one bundle may show in such a run.  Of the processes: the half-width
t s_w / ((1 - 2 g / n) sqrt(n)) that the spread of the d_i leaves for two copies, s_w being their standard deviation
after the g = n / 10 largest and smallest became their neighbours, t of n - 2 g - 1 degrees (K. Yuen, "The two-sample
trimmed t for unequal population variances", 1974); what drifts for both sides alike is not in the d_i.  Of the machine:
the idle loop (`bench.noise`), timed beside each block, is compared as if it were the two bundles; its bound is what the
machine alone can make of nothing.

The verdict, with threshold h and floor f:

    regression     low > 1 + max(h, f)
    improved       high < 1 / (1 + max(h, f))
    unchanged      low > 1 / (1 + h) and high < 1 + h
    inconclusive   anything else: more pairs, until the time is up

It is given at most after each number of pairs in LOOKS; each look spends an equal share of alpha = 5 %, so that all of
them together err no more often, however they depend on each other.  At the first look 1 - 2^(1 - 6) = 96.9 % is all
that six pairs can claim: where the true change is exactly h, one run is red in nominally 1.6 % + 4 x 0.5 % = 3.6 % of
cases, and twice in a row, which alone counts as a regression, in 0.13 %.  Drawn from a normal distribution it was 1.6 %
at six pairs (of 500) and 0.5 % at ten (of 400); with a tenth of the resamples tails are cut, and 9 of 100 first runs
were red, none twice.  Two copies of one bundle are a whole threshold away from that: all six pairs would have to show
more than h by layout alone, and six fresh ones once more.  `bench/suites/compare_rule.py` simulates both errors and a
bundle slowed by 10 %; what it gave, and what was measured, stands in docs/compare.md.

Limits: pairs share the machine, hence what a machine does to one file and not to the other for minutes (a file in a
slow page, an alignment that one build always gets) is part of the ratio.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from tsexport.bench.compare_records import ComparisonVerdict, Slowdown

Floats = NDArray[np.float64]

LOOKS = (6, 10, 15, 21, 28)
"""After so many pairs a verdict is tried."""
FEWEST_PAIRS = 5
"""Where the time is up, a verdict takes at least so many."""
ALPHA = 0.05
RESAMPLES = 20_000
WINSORIZED = 0.1
"""The share of pairs at either end whose size does not count for the spread between processes."""


@dataclass(frozen=True)
class PairTimes:
    """One pair of processes: block medians [rounds][2] of each side, and of the idle loop beside each block."""

    base_ms: tuple[tuple[float, float], ...]
    candidate_ms: tuple[tuple[float, float], ...]
    idle_base_us: tuple[tuple[float, float], ...]
    idle_candidate_us: tuple[tuple[float, float], ...]
    stable_warmups: int

    @property
    def log_ratios(self) -> Floats:
        """log(candidate / base) of each round: [rounds]."""
        return _log_ratios(self.base_ms, self.candidate_ms)

    @property
    def idle_log_ratios(self) -> Floats:
        """The same of the idle loop, which is one and the same program on both sides: [rounds]."""
        return _log_ratios(self.idle_base_us, self.idle_candidate_us)

    @property
    def ratio(self) -> float:
        """candidate / base of this pair."""
        return math.exp(float(np.median(self.log_ratios)))

    @property
    def base_median_ms(self) -> float:
        return float(np.median(np.asarray(self.base_ms)))

    @property
    def candidate_median_ms(self) -> float:
        return float(np.median(np.asarray(self.candidate_ms)))


@dataclass(frozen=True)
class Judgement:
    """What one look found."""

    verdict: ComparisonVerdict
    reason: str
    ratio: Slowdown
    process_floor: float
    machine_floor: float


def judge_pairs(pairs: Sequence[PairTimes], *, threshold: float, seed: int, resamples: int = RESAMPLES) -> Judgement:
    """Return the verdict of the pairs so far.

    Args:
        pairs: at least FEWEST_PAIRS.
        threshold: the change that matters, 0.05 for 5 %.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        ValueError: fewer pairs, or one without rounds (a bug of the caller).
    """
    if len(pairs) < FEWEST_PAIRS:
        raise ValueError(f"{len(pairs)} pairs; a verdict takes {FEWEST_PAIRS}")
    found = [float(np.median(pair.log_ratios)) for pair in pairs]
    ratio = slowdown(found, alpha=ALPHA / len(LOOKS), seed=seed, resamples=resamples)
    by_process = process_floor(found, alpha=ALPHA)
    idle = slowdown(
        [float(np.median(pair.idle_log_ratios)) for pair in pairs], alpha=ALPHA, seed=seed + 1, resamples=resamples
    )
    by_machine = max(1.0 / idle.low, idle.high or math.inf) - 1.0
    verdict, reason = decide(ratio, threshold=threshold, floor=max(by_process, by_machine))
    return Judgement(verdict, reason, ratio, by_process, by_machine)


def decide(ratio: Slowdown, *, threshold: float, floor: float) -> tuple[ComparisonVerdict, str]:
    """Return the verdict on an interval, and why."""
    high = math.inf if ratio.high is None else ratio.high
    needed = max(threshold, floor)
    noise = f"the noise floor of {floor:.1%}" if floor > threshold else f"the threshold of {threshold:.1%}"
    if ratio.low > 1.0 + needed:
        return "regression", f"slower by {ratio}, above {noise}"
    if high < 1.0 / (1.0 + needed):
        return "improved", f"faster: {ratio}, beyond {noise}"
    if ratio.low > 1.0 / (1.0 + threshold) and high < 1.0 + threshold:
        return "unchanged", f"{ratio} lies within the threshold of {threshold:.1%}"
    if ratio.low > 1.0 + threshold or high < 1.0 / (1.0 + threshold):
        return "inconclusive", f"{ratio} lies beyond the threshold of {threshold:.1%}, but not beyond {noise}"
    return "inconclusive", f"{ratio} holds the threshold of {threshold:.1%}, on either side of which it may lie"


def slowdown(log_ratios: Sequence[float], *, alpha: float, seed: int, resamples: int = RESAMPLES) -> Slowdown:
    """Return exp of the Hodges-Lehmann estimate over pairs, with its widened bootstrap interval.

    Args:
        log_ratios: log(candidate / base) of each pair; at least 2.
        alpha: of both tails together.
    """
    values, n = np.asarray(log_ratios, dtype=np.float64), len(log_ratios)
    value = float(hodges_lehmann(values[None])[0])
    drawn = np.random.default_rng(seed).integers(0, n, (resamples, n))
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * student_quantile(1.0 - alpha / 2.0, n - 1))
    low, high = np.quantile(hodges_lehmann(values[drawn]), [tail, 1.0 - tail])
    confidence = min(1.0 - alpha, 1.0 - 2.0 ** (1 - n))
    return Slowdown(math.exp(value), math.exp(min(float(low), value)), math.exp(max(float(high), value)), confidence)


def process_floor(log_ratios: Sequence[float], *, alpha: float) -> float:
    """Return by how much two copies may differ in so many pairs, by the spread between processes alone.

    Args:
        log_ratios: log(candidate / base) of each pair; at least 2.
        alpha: of both tails together.
    """
    values, n = np.sort(np.asarray(log_ratios, dtype=np.float64)), len(log_ratios)
    g = int(WINSORIZED * n)
    winsorized = np.clip(values, values[g], values[n - 1 - g])
    error = float(np.std(winsorized, ddof=1)) / ((1.0 - 2.0 * g / n) * math.sqrt(n))
    return math.expm1(student_quantile(1.0 - alpha / 2.0, n - 2 * g - 1) * error)


def hodges_lehmann(values: Floats) -> Floats:
    """Return the median over i <= j of (v_i + v_j) / 2 in each row: [rows, n] -> [rows]."""
    i, j = np.triu_indices(values.shape[1])
    result: Floats = np.median((values[:, i] + values[:, j]) / 2.0, axis=1)
    return result


def student_quantile(probability: float, degrees: int) -> float:
    """Return Student's quantile by the expansion 26.7.5 of Abramowitz and Stegun; 1 % too small at worst from 4 on."""
    z, v = NormalDist().inv_cdf(probability), float(degrees)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def _log_ratios(base: Sequence[tuple[float, float]], candidate: Sequence[tuple[float, float]]) -> Floats:
    if not base or len(base) != len(candidate):
        raise ValueError(f"{len(base)} against {len(candidate)} rounds; as many are needed in both, at least one")
    result: Floats = np.mean(np.log(np.asarray(candidate)), axis=1) - np.mean(np.log(np.asarray(base)), axis=1)
    return result
