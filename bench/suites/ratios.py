"""How many times faster, over several fresh processes: the two-level bootstrap.

Within one process neighbouring rounds are alike; another process has another memory layout and may be faster or slower
throughout.  An interval over pooled rounds would miss that, so both levels are drawn again: processes with replacement,
then rounds within each (T. Kalibera and R. Jones, "Rigorous Benchmarking in Reasonable Time", 2013).  The estimate is
the median over all rounds of median(baseline block) / median(contestant block), as in `tsexport.bench.statistics`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tsexport.bench.statistics import BOOTSTRAP_RESAMPLES, RATIO_MIN_ROUNDS, Ratio

CONFIDENCE = 0.95
Blocks = Sequence[Sequence[float]]
"""[rounds][calls] milliseconds of one contestant in one process."""


def ratio_over_processes(baseline: Sequence[Blocks], contestant: Sequence[Blocks], *, seed: int = 0) -> Ratio:
    """Return baseline / contestant with its 95 % interval; fewer than 8 rounds give (0, None).

    Args:
        baseline, contestant: [processes][rounds][calls] milliseconds; round i of process p was measured side by side.

    Raises:
        ValueError: no processes, or another number of processes or rounds in the two.
    """
    if not baseline or [len(one) for one in baseline] != [len(one) for one in contestant]:
        raise ValueError("both need the same processes and rounds, at least one")
    ratios = [
        np.array([np.median(a) / np.median(b) for a, b in zip(one, other, strict=True)])
        for one, other in zip(baseline, contestant, strict=True)
    ]  # [processes] of [rounds]
    pooled = np.concatenate(ratios)
    value = float(np.median(pooled))
    if len(pooled) < RATIO_MIN_ROUNDS:
        return Ratio(value, 0.0, None, CONFIDENCE)
    rounds = min(map(len, ratios))
    table = np.stack([one[:rounds] for one in ratios])  # [processes, rounds]
    generator = np.random.default_rng(seed)
    drawn_processes = generator.integers(0, len(table), (BOOTSTRAP_RESAMPLES, len(table), 1))
    drawn_rounds = generator.integers(0, rounds, (BOOTSTRAP_RESAMPLES, len(table), rounds))
    medians = np.median(table[drawn_processes, drawn_rounds].reshape(BOOTSTRAP_RESAMPLES, -1), axis=1)
    low, high = np.quantile(medians, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
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
