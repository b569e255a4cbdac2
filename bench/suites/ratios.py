"""How many times faster, over several fresh processes: the two-level bootstrap.

Within one process neighbouring rounds are alike; another process has another memory layout and may be faster or slower
throughout.  An interval over pooled rounds would miss that, so both levels are drawn again: processes with replacement,
then rounds within each (T. Kalibera and R. Jones, "Rigorous Benchmarking in Reasonable Time", 2013).  The estimate is
the median over all rounds of median(baseline block) / median(contestant block), as in `tsexport.bench.statistics`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tsexport.bench.statistics import BOOTSTRAP_RESAMPLES, RATIO_MIN_ROUNDS, Ratio

CONFIDENCE = 0.95
Blocks = Sequence[Sequence[float]]
"""[rounds][calls] milliseconds of one contestant in one process."""


Table = NDArray[np.float64]
"""[processes, rounds] of one ratio in rounds of the same number."""


@dataclass(frozen=True)
class RoundMedians:
    """The median call of each round of one contestant, [processes][rounds] milliseconds."""

    name: str
    medians_ms: tuple[tuple[float, ...], ...]


def medians_of(name: str, processes: Sequence[Blocks]) -> RoundMedians:
    """Return the round medians of [processes][rounds][calls] milliseconds."""
    return RoundMedians(name, tuple(tuple(float(np.median(block)) for block in one) for one in processes))


def ratio_over_processes(baseline: Sequence[Blocks], contestant: Sequence[Blocks], *, seed: int = 0) -> Ratio:
    """Return baseline / contestant with its 95 % interval; fewer than 8 rounds give (0, None).

    Args:
        baseline, contestant: [processes][rounds][calls] milliseconds; round i of process p was measured side by side.

    Raises:
        ValueError: no processes, or another number of processes or rounds in the two.
    """
    rows = _round_ratios(medians_of("baseline", baseline), medians_of("contestant", contestant))
    pooled = np.concatenate(rows)
    value = float(np.median(pooled))
    if len(pooled) < RATIO_MIN_ROUNDS:
        return Ratio(value, 0.0, None, CONFIDENCE)
    medians = _drawn_medians(_table(rows)[None], np.random.default_rng(seed))[0]
    return _interval(value, medians)


def mean_over_models(models: Sequence[Sequence[tuple[RoundMedians, RoundMedians]]], *, seed: int = 0) -> Ratio:
    """Return the geometric mean over models of the least of its ratios, with its 95 % interval.

    The least ratio is that to the best of a model's baselines.  Each resample draws processes and rounds of every
    model, alike for all of that model's baselines, takes the least ratio, and then the geometric mean: the interval is
    of these models on this machine, not of other models.

    Args:
        models: for each model its pairs (baseline, contestant), of as many processes and rounds.

    Raises:
        ValueError: no models, a model without pairs, or rounds that do not match.
    """
    if not models or not all(models):
        raise ValueError("a mean over models needs a model, and every model a pair")
    generator = np.random.default_rng(seed)
    logarithms, value, rounds = np.zeros(BOOTSTRAP_RESAMPLES), 0.0, RATIO_MIN_ROUNDS
    for pairs in models:
        rows = [_round_ratios(baseline, contestant) for baseline, contestant in pairs]
        value += math.log(min(float(np.median(np.concatenate(one))) for one in rows)) / len(models)
        rounds = min(rounds, *(sum(map(len, one)) for one in rows))
        tables = np.stack([_table(one) for one in rows])  # [baselines, processes, rounds]
        logarithms += np.log(_drawn_medians(tables, generator).min(axis=0)) / len(models)
    if rounds < RATIO_MIN_ROUNDS:
        return Ratio(math.exp(value), 0.0, None, CONFIDENCE)
    return _interval(math.exp(value), np.exp(logarithms))


def _round_ratios(baseline: RoundMedians, contestant: RoundMedians) -> list[Table]:
    """Return baseline / contestant, one array of rounds for each process."""
    pairs = (baseline.medians_ms, contestant.medians_ms)
    if not pairs[0] or [len(one) for one in pairs[0]] != [len(one) for one in pairs[1]]:
        raise ValueError("both need the same processes and rounds, at least one")
    return [np.array(one) / np.array(other) for one, other in zip(*pairs, strict=True)]


def _table(rows: Sequence[Table]) -> Table:
    """Cut the processes to as many rounds as each has."""
    rounds = min(map(len, rows))
    return np.stack([one[:rounds] for one in rows])


def _drawn_medians(tables: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Return the median of each table [tables, processes, rounds] in each resample: [tables, resamples]."""
    _, processes, rounds = tables.shape
    drawn_processes = generator.integers(0, processes, (BOOTSTRAP_RESAMPLES, processes, 1))
    drawn_rounds = generator.integers(0, rounds, (BOOTSTRAP_RESAMPLES, processes, rounds))
    drawn = tables[:, drawn_processes, drawn_rounds].reshape(len(tables), BOOTSTRAP_RESAMPLES, -1)
    medians: NDArray[np.float64] = np.median(drawn, axis=2)
    return medians


def _interval(value: float, resampled: NDArray[np.float64]) -> Ratio:
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Ratio(value, min(float(low), value), max(float(high), value), CONFIDENCE)


def least(ratios: Sequence[Ratio]) -> Ratio:
    """Return the ratio to the best of several baselines: the least value, the least low end and the least high end.

    "Faster than the best of them" is "faster than each of them", and which one is best is itself uncertain, so no
    single one's interval would do.

    Raises:
        ValueError: no ratios.
    """
    highs = [one.high for one in ratios if one.high is not None]
    return Ratio(min(one.value for one in ratios), min(one.low for one in ratios), min(highs, default=None), CONFIDENCE)


@dataclass(frozen=True)
class PairRatio:
    """`name` is `ratio` times faster than `than`."""

    name: str
    than: str
    ratio: Ratio
