"""How far projections are from public latencies and from every GPU run, each alone and together.

A GPU run is one way of running one case of `gpu_runs.py` (`gpu_cases.WAYS`).  A projection is of an engine whose
kernels are fused and launched as one piece, so what it should be near is the fastest way of each model; where the host
starts kernels one by one, its time is taken in, fitted on the other models (`gpu_host.py`).  Both are told: every run,
and the fastest way of each model, in each precision and at each batch size.  No efficiency was fitted on GPU runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tsexport.bench.projection import Efficiency
from tsexport.bench.suites.projection_records import Report, Row
from tsexport.bench.suites.report import RESULTS, table
from tsexport.codec import decode, read_text
from tsexport.errors import DataError

GPU_RESULTS = "projection-gpu-*.json"
PUBLIC, EVERY, FASTEST = "public latencies", "every GPU run", "the fastest way of each model on a GPU"
_WAY = ", "


@dataclass(frozen=True)
class Total:
    """Rows taken together: median of |projected / measured - 1|, and the ratio farthest from 1 with what it is of."""

    name: str
    rows: int
    median: float
    worst_ratio: float
    worst: str


def read_gpu_runs(efficiency: Efficiency, folder: Path = RESULTS) -> tuple[Row, ...]:
    """Return the rows of every result of `gpu_runs.py --project`.

    Raises:
        DataError: one was projected with other efficiencies, or is no such result.
    """
    rows: list[Row] = []
    for path in sorted(folder.glob(GPU_RESULTS)):
        report = decode(Report, read_text(path), what=path.name, error=DataError)
        if report.efficiency != efficiency:
            raise DataError(
                f"{path.name} was projected with other efficiencies than these",
                next_step=f"run gpu_runs.py --project {path.name.removeprefix('projection-')} again",
            )
        rows += report.rows
    return tuple(rows)


def way_of(row: Row) -> str:
    """Return the way of running that a GPU run's row is of."""
    return row.anchor.source.partition(_WAY)[2]


def fastest(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return the fastest way of each model, or part of one, on a device, in a precision, at a batch size."""
    cases: dict[tuple[str, str, str, int], Row] = {}
    for row in rows:
        one = row.anchor
        key = (one.model, one.device, one.precision, one.batch)
        if key not in cases or one.measured_ms < cases[key].anchor.measured_ms:
            cases[key] = row
    return tuple(cases.values())


def total(name: str, rows: Sequence[Row]) -> Total:
    """Return rows taken together; at least one."""
    ratios = np.array([row.ratio for row in rows])
    worst = int(np.argmax(np.abs(np.log(ratios))))
    return Total(
        name, len(rows), float(np.median(np.abs(ratios - 1))), float(ratios[worst]), str(rows[worst].anchor)
    )  # fmt: skip


def totals(public: Sequence[Row], gpu: Sequence[Row]) -> tuple[Total, ...]:
    """Return the totals over public latencies, over GPU runs, and over both; only the first without GPU runs."""
    if not gpu:
        return (total(PUBLIC, public),)
    best = fastest(gpu)
    return (
        total(PUBLIC, public),
        total(EVERY, gpu),
        total(FASTEST, best),
        total(f"{PUBLIC} and {EVERY}", [*public, *gpu]),
        total(f"{PUBLIC} and {FASTEST}", [*public, *best]),
    )


def totals_text(found: Sequence[Total], goal: float) -> str:
    """Return the totals as a Markdown section."""
    rows = [
        [one.name, f"{one.rows}", f"{100 * one.median:.0f} %", "met" if one.median <= goal else "missed",
         f"{one.worst_ratio:.2f}", one.worst]
        for one in found
    ]  # fmt: skip
    head = ["over", "rows", "median error", f"within {100 * goal:.0f} %", "worst ratio", "of"]
    return "\n".join(["## Public latencies and GPU runs", "", table(head, rows), ""])
