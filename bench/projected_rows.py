"""Projections as rows of text, for terminals and reports alike.  Every figure of them is projected."""

from collections.abc import Sequence
from dataclasses import dataclass

from tsexport.bench.projection import ProjectedKernel, Projection
from tsexport.bench.rows import milliseconds

SHOWN_KERNELS = 12


@dataclass(frozen=True)
class ProjectionRow:
    """One batch size in one mode; `launch`, `memory` and `compute` are the shares of the kernels bound by each."""

    batch: str
    mode: str
    total: str
    least: str
    bound: str
    launch: str
    memory: str
    compute: str
    kernels: str


@dataclass(frozen=True)
class KernelRow:
    """One kernel and its share of the estimate."""

    name: str
    operators: str
    macs: str
    precision: str
    moved: str
    time: str
    share: str
    bound: str


def projection_rows(projections: Sequence[Projection]) -> tuple[ProjectionRow, ...]:
    """Return one row for each projection, in their order."""
    counted = {one.mode: str(len(one.kernels)) for one in projections if one.kernels}
    return tuple(
        ProjectionRow(
            batch=str(one.batch),
            mode=one.mode,
            total=milliseconds(one.total_ms),
            least=milliseconds(one.least_ms),
            bound=one.bound,
            launch=_share(one.launch_ms, one.total_ms),
            memory=_share(one.memory_ms, one.total_ms),
            compute=_share(one.compute_ms, one.total_ms),
            kernels=counted.get(one.mode, ""),
        )
        for one in projections
    )


def kernel_rows(projection: Projection, most: int = SHOWN_KERNELS) -> tuple[KernelRow, ...]:
    """Return the kernels that take longest, the longest first."""
    longest = sorted(projection.kernels, key=lambda one: -one.ms)[:most]
    return tuple(_kernel_row(one, projection.total_ms) for one in longest)


def _kernel_row(one: ProjectedKernel, total_ms: float) -> KernelRow:
    return KernelRow(
        name=one.name,
        operators=" + ".join(one.operators),
        macs=f"{sum(one.macs.values()):,}",
        precision=", ".join(sorted(one.macs)),
        moved=f"{one.bytes_read + one.bytes_written:,}",
        time=milliseconds(one.ms),
        share=_share(one.ms, total_ms),
        bound=one.bound,
    )


def _share(part_ms: float, total_ms: float) -> str:
    return f"{part_ms / total_ms:.0%}" if total_ms else "n/a"
