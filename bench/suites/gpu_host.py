"""What the host adds to a projection where it starts kernels one by one: the ways of running without a CUDA graph.

The device waits for the host where that is slower, so

    time = max(roofline, launches * microseconds that the host takes for one of the projected kernels)

A projected kernel is fused and may be several of the framework's, so the microseconds belong to the way (eager,
TorchScript, compiled).  For each model they are fitted on the runs of the other models, never on its own: the least sum
of squares of log(projected / measured) over a grid.  A way that ran for one model alone is left as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tsexport.bench.suites.gpu_cases import GRAPH_SUFFIX, Way
from tsexport.bench.suites.projection_records import Row

_US_PER_MS = 1e3
_HOST_US = np.arange(1.0, 120.5, 0.5)


@dataclass(frozen=True)
class Run:
    """A GPU run: of which model, in which way, its projected row, and the launches that its graph has."""

    model: str
    way: Way
    row: Row
    launches: int

    @property
    def by_host(self) -> bool:
        """Whether the host starts kernels one by one."""
        return not self.way.endswith(GRAPH_SUFFIX)


def host_us(runs: Sequence[Run]) -> float:
    """Return what the host takes for a kernel, in microseconds; at least one run."""
    roofline = np.array([run.row.projected_ms for run in runs])
    launches = np.array([run.launches for run in runs])
    measured = np.array([run.row.anchor.measured_ms for run in runs])
    projected = np.maximum(roofline, launches * _HOST_US[:, None] / _US_PER_MS)
    return float(_HOST_US[np.argmin((np.log(projected / measured) ** 2).sum(axis=1))])


def with_host(runs: Sequence[Run]) -> tuple[Row, ...]:
    """Return the runs' rows, those without a CUDA graph projected with the host's time of the other models' runs."""
    return tuple(_with_host(run, runs) for run in runs)


def _with_host(run: Run, runs: Sequence[Run]) -> Row:
    others = [one for one in runs if one.way == run.way and one.model != run.model]
    if not run.by_host or not others:
        return run.row
    host_ms = run.launches * host_us(others) / _US_PER_MS
    if host_ms <= run.row.projected_ms:
        return run.row
    ratio = host_ms / run.row.anchor.measured_ms
    return replace(run.row, projected_ms=host_ms, ratio=ratio, bound="host")
