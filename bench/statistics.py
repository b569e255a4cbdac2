"""Percentiles that admit when there are too few samples, and the ratio of two interleaved series with its interval.

A percentile q is given only where the chance that all n samples lie below the true q-quantile, q^n, is at most 0.0013
(three standard deviations, one-sided).  That gives n = 10 for p50, 64 for p90 and 662 for p99.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MISS_PROBABILITY = 0.0013


def samples_needed(quantile: float) -> int:
    """Return the smallest n with quantile^n <= 0.0013: 10 for 0.5, 64 for 0.9, 662 for 0.99."""
    return math.ceil(math.log(MISS_PROBABILITY) / math.log(quantile))


P50_SAMPLES = samples_needed(0.50)
P90_SAMPLES = samples_needed(0.90)
P99_SAMPLES = samples_needed(0.99)

RATIO_MIN_ROUNDS = 8
"""A bootstrap over fewer rounds says more than it knows; below this there is no upper bound."""

BOOTSTRAP_RESAMPLES = 4000


@dataclass(frozen=True)
class Summary:
    """Latencies of single calls in milliseconds; a percentile is None where `samples` are too few for it."""

    samples: int
    mean_ms: float
    min_ms: float
    median_ms: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True)
class Ratio:
    """How many times faster than the baseline: baseline / contestant, above 1 is faster, with its interval.

    Where there were too few rounds for an interval `low` is 0 and `high` is None: anything is possible.
    """

    value: float
    low: float
    high: float | None
    confidence: float


def percentile(samples_ms: Sequence[float], quantile: float) -> float | None:
    """Return the nearest-rank percentile (always a sample, never interpolated), or None below `samples_needed`."""
    if len(samples_ms) < samples_needed(quantile):
        return None
    return float(np.percentile(np.asarray(samples_ms), 100 * quantile, method="inverted_cdf"))


def summarize(samples_ms: Sequence[float]) -> Summary:
    """Return the summary of one series of latencies.

    Raises:
        ValueError: no samples, or one that is not a positive finite number (a bug of the caller, not of the user).
    """
    values = np.asarray(samples_ms, dtype=np.float64)
    if values.size == 0 or not np.all(np.isfinite(values)) or np.any(values <= 0):
        raise ValueError(f"latencies are positive finite numbers, at least one; given {values.size} samples")
    return Summary(
        samples=int(values.size),
        mean_ms=float(values.mean()),
        min_ms=float(values.min()),
        median_ms=float(np.median(values)),
        p50_ms=percentile(samples_ms, 0.50),
        p90_ms=percentile(samples_ms, 0.90),
        p99_ms=percentile(samples_ms, 0.99),
    )


def throughput_per_s(samples_ms: Sequence[float], batch: int) -> float:
    """Return samples per second of calls made one after another: batch x calls / time spent in them."""
    return batch * len(samples_ms) / (float(np.sum(np.asarray(samples_ms, dtype=np.float64))) / 1000.0)


def ratio_of_medians(
    baseline_blocks: Sequence[Sequence[float]],
    contestant_blocks: Sequence[Sequence[float]],
    *,
    seed: int,
    confidence: float = 0.95,
) -> Ratio:
    """Return how many times faster the contestant is than the baseline, measured in the same rounds.

    Block i of both was measured in round i, next to each other, so that drift (clock, neighbours) hits both alike:
    the estimate is the median over rounds of median(baseline block) / median(contestant block).  The interval is the
    percentile bootstrap over rounds (B. Efron, "Bootstrap Methods", 1979), seeded, hence reproducible.

    Args:
        baseline_blocks, contestant_blocks: [rounds][calls] latencies in one unit; as many rounds in both, calls may
            differ.

    Raises:
        ValueError: no rounds, another number of rounds, or an empty block (a bug of the caller).
    """
    if not baseline_blocks or len(baseline_blocks) != len(contestant_blocks):
        raise ValueError(f"{len(baseline_blocks)} against {len(contestant_blocks)} rounds; as many are needed in both")
    ratios = _block_medians(baseline_blocks) / _block_medians(contestant_blocks)
    value = float(np.median(ratios))
    if len(ratios) < RATIO_MIN_ROUNDS:
        return Ratio(value, 0.0, None, confidence)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(ratios), (BOOTSTRAP_RESAMPLES, len(ratios)))
    medians = np.median(ratios[drawn], axis=1)  # [resamples]
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(medians, [tail, 100 - tail])
    return Ratio(value, min(float(low), value), max(float(high), value), confidence)


def _block_medians(blocks: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    if any(len(block) == 0 for block in blocks):
        raise ValueError("a block without calls")
    return np.array([float(np.median(np.asarray(block))) for block in blocks], dtype=np.float64)
