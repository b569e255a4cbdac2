"""Streaming statistics: minimum, maximum, mean and population standard deviation, in one pass and bounded memory.

Blocks are merged with the update of Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
sample variances" (1979): with n = n_a + n_b and d = mean_b - mean_a,
mean = mean_a + d n_b / n and M2 = M2_a + M2_b + d^2 n_a n_b / n; the variance is M2 / n.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from tsexport.calibration.datasets import Batch
from tsexport.types import Array


class RunningStatistics:
    """Statistics of `features` columns over rows that arrive in blocks [rows, features]; computed in float64."""

    def __init__(self, features: int) -> None:
        self.count = 0
        self.mean: Array = np.zeros(features)
        self.minimum: Array = np.full(features, np.inf)
        self.maximum: Array = np.full(features, -np.inf)
        self._squares: Array = np.zeros(features)

    def update(self, rows: Array) -> None:
        """Add a block [rows, features]; an empty one changes nothing."""
        if not len(rows):
            return
        # Outputs of a bad candidate may hold infinities; they end up in the extremes, where a report shows them.
        with np.errstate(invalid="ignore", over="ignore"):
            self._merge(rows.astype(np.float64, copy=False))

    def _merge(self, block: Array) -> None:
        # The rows are shifted by their first one: exact for a constant column, and no cancellation far from zero.
        origin = block[0]
        shifted = block - origin
        shifted_mean = shifted.mean(axis=0)
        squares = np.square(shifted - shifted_mean).sum(axis=0)
        total = self.count + len(block)
        difference = origin + shifted_mean - self.mean
        self.mean = self.mean + difference * (len(block) / total)
        self._squares = self._squares + squares + np.square(difference) * (self.count * len(block) / total)
        self.minimum = np.minimum(self.minimum, block.min(axis=0))
        self.maximum = np.maximum(self.maximum, block.max(axis=0))
        self.count = total

    @property
    def std(self) -> Array:
        """Population standard deviation (divided by the count, as numpy's default)."""
        variance: Array = self._squares / max(1, self.count)
        return np.asarray(np.sqrt(variance))

    @property
    def constant(self) -> Array:
        """Which features held one value throughout (decided by the extremes: rounding may leave a tiny variance)."""
        return np.asarray(self.minimum == self.maximum)


@dataclass(frozen=True)
class TensorStatistics:
    """What was seen of one tensor: extremes, mean, population standard deviation, and the number of values."""

    name: str
    minimum: float
    maximum: float
    mean: float
    std: float
    values: int


class RangeObserver:
    """Extremes, mean and deviation of tensors by name: what checks find and reports show.

    Static quantization takes its ranges from `calibration.table`.
    """

    def __init__(self) -> None:
        self._statistics: dict[str, RunningStatistics] = {}

    def update(self, tensors: Mapping[str, Array]) -> None:
        """Add one batch of named tensors (inputs, or what a session answered)."""
        for name, tensor in tensors.items():
            self._statistics.setdefault(name, RunningStatistics(1)).update(tensor.reshape(-1, 1))

    @property
    def ranges(self) -> tuple[TensorStatistics, ...]:
        """What was seen so far, in the order in which the tensors first came."""
        return tuple(
            TensorStatistics(name, float(s.minimum[0]), float(s.maximum[0]), float(s.mean[0]), float(s.std[0]), s.count)
            for name, s in self._statistics.items()
            if s.count
        )


def input_ranges(batches: Iterable[Batch]) -> tuple[TensorStatistics, ...]:
    """Observe the feeds of all batches in one pass."""
    observer = RangeObserver()
    for batch in batches:
        observer.update(batch.feeds)
    return observer.ranges
