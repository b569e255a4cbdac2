"""Where a series of measurements changed: E-divisive means with a permutation test.

For a segment of n values and a split into the first k (X) and the other m = n - k (Y), the energy statistic is

    Q(k) = k m / n * (2 E|X - Y| - E|X - X'| - E|Y - Y'|)

with means over all pairs; it is 0 where both parts have one distribution and grows with any difference, without a model
of the noise (Matteson and James, "A Nonparametric Approach for Multiple Change Point Analysis of Multivariate Data",
2014; for performance tests Daly et al., "The Use of Change Point Detection to Identify Software Performance Regressions
in a Continuous Integration System", 2020).  The split with the largest Q is a change point where at most `SIGNIFICANCE`
of seeded permutations of the segment reach it; then both parts are searched in turn.

False alarms: under permutation the p-value of a series without a change is exact, and further splits are looked for
only after a first one, so a series without a change reports one with a chance of at most `SIGNIFICANCE`.

Limits: below `MIN_POINTS` values no split could be significant, and nothing is searched.  The values have to be
exchangeable where nothing changed: drift (a machine that warms up over weeks) shows as changes.  The last
`MIN_SEGMENT - 1` values cannot be told from outliers.  Values are compared as logarithms: a change is a ratio.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_SEGMENT = 3
"""Values on either side of a change; one or two slow runs are no change."""
SIGNIFICANCE = 0.01
PERMUTATIONS = 999
MIN_POINTS = 12
"""2 of the C(12, 6) = 924 ways to halve 12 values are as extreme as a clean step, well below 0.01.  Of 10 values 2 of
252 are, and some uneven splits beside them: such a test would miss half of the clean steps."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class ChangePoint:
    """A change between the values `index - 1` and `index`.

    `before` and `after` are the medians of the segments that it parts, in the unit of the values; `ratio` is
    after / before; `p_value` is that of the permutation test that found it.
    """

    index: int
    before: float
    after: float
    ratio: float
    p_value: float


@dataclass(frozen=True)
class _Split:
    index: int
    p_value: float


def change_points(values: Sequence[float], *, min_change: float = 0.0, seed: int = 0) -> tuple[ChangePoint, ...]:
    """Return the changes of a series, in its order; () for fewer than `MIN_POINTS` values.

    Args:
        values: positive finite numbers, oldest first.
        min_change: smaller relative changes between neighbouring segments are dropped, 0.05 for 5 % (a slowdown by
            1.05 and a speed-up by 1 / 1.05 count alike).
        seed: of the permutations; the same seed gives the same answer.

    Raises:
        ValueError: a value that is not positive and finite, or `min_change` below 0 (a bug of the caller).
    """
    logs = np.asarray(values, dtype=np.float64)
    if logs.size and not (np.all(np.isfinite(logs)) and np.all(logs > 0)):
        raise ValueError("a series consists of positive finite numbers")
    if min_change < 0:
        raise ValueError(f"min_change is {min_change}; allowed are fractions from 0 on")
    if logs.size < MIN_POINTS:
        return ()
    logs = np.log(logs)
    splits = sorted(_search(logs, 0, np.random.default_rng(seed)), key=lambda split: split.index)
    return _described(np.asarray(values, dtype=np.float64), splits, min_change)


def _search(logs: Values, offset: int, generator: np.random.Generator) -> list[_Split]:
    """Return every significant split of a segment that begins at `offset` of the series."""
    if len(logs) < MIN_POINTS:
        return []
    distances = np.abs(logs[:, None] - logs[None, :])  # [n, n]
    index, statistic = _best_split(distances)
    p_value = _p_value(distances, statistic, generator)
    if p_value > SIGNIFICANCE:
        return []
    left = _search(logs[:index], offset, generator)
    right = _search(logs[index:], offset + index, generator)
    return [*left, _Split(offset + index, p_value), *right]


def _best_split(distances: Values) -> tuple[int, float]:
    """Return (length of the first part, Q) of the best split of a segment with these pairwise distances."""
    n = len(distances)
    within = np.cumsum(np.sum(np.tril(distances), axis=1))  # [n]: over the pairs among the first k + 1
    rows = np.cumsum(np.sum(distances, axis=1))  # [n]: over the pairs of one of the first k + 1 with any
    total = within[-1]
    k = np.arange(MIN_SEGMENT, n - MIN_SEGMENT + 1)
    m = n - k
    first = within[k - 1]
    between = rows[k - 1] - 2 * first
    second = total - first - between
    energy = 2 * between / (k * m) - 2 * first / (k * (k - 1)) - 2 * second / (m * (m - 1))
    q = k * m / n * energy
    best = int(np.argmax(q))
    return int(k[best]), float(q[best])


def _p_value(distances: Values, statistic: float, generator: np.random.Generator) -> float:
    """Return (1 + permutations that reach the statistic) / (1 + permutations); stops once it is not significant."""
    bound = statistic - 1e-12 * max(abs(statistic), 1.0)  # equal arrangements may differ in the last bit
    reached = 0
    for done in range(1, PERMUTATIONS + 1):
        order = generator.permutation(len(distances))
        reached += _best_split(distances[np.ix_(order, order)])[1] >= bound
        if 1 + reached > SIGNIFICANCE * (1 + PERMUTATIONS):
            return (1 + reached) / (1 + done)
    return (1 + reached) / (1 + PERMUTATIONS)


def _described(values: Values, splits: Sequence[_Split], min_change: float) -> tuple[ChangePoint, ...]:
    """Return the splits with the medians around them; the smallest below `min_change` goes first, until none is."""
    kept = list(splits)
    while True:
        edges = [0, *(split.index for split in kept), len(values)]
        medians = [float(np.median(values[a:b])) for a, b in itertools.pairwise(edges)]
        found = [
            ChangePoint(split.index, before, after, after / before, split.p_value)
            for split, before, after in zip(kept, medians, medians[1:], strict=False)
        ]
        sizes = [abs(math.log(one.ratio)) for one in found]
        if not sizes or min(sizes) >= math.log1p(min_change):
            return tuple(found)
        del kept[sizes.index(min(sizes))]
