"""What a projection says of the published rows of its device, and the record that a bundle keeps of it.

A projection judges nothing: a budget of a device is judged only by a measurement there.  It answers two questions, and
each with its own number: can this artifact meet the row at all (the lower bound), and would it (the estimate).  Of
several power modes or sizes of a device, the best one answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tsexport.bench.projection import AnchorError, Efficiency, Projection
from tsexport.bench.rows import budget_text, milliseconds
from tsexport.codec import decode_versioned, encode, read_text, write_whole
from tsexport.types import Budget

SCHEMA_VERSION = 1
PROJECTED = "projected"
"""The folder within `measurements/`, so that no reader takes a projection for a measurement."""
_ANY_GPU = "gpu"
Answer = Literal["could be met", "projected to miss", "cannot be met even at peak"]


@dataclass(frozen=True)
class Outlook:
    """One published row of the device: `projected_ms` and `least_ms` are of the mode that answers."""

    budget: Budget
    precision: str
    mode: str
    projected_ms: float
    least_ms: float
    bound: str
    answer: Answer

    def __str__(self) -> str:
        own = self.budget.precision in (None, self.precision)
        other = "" if own else f" in {self.precision}, where the row asks for {self.budget.precision}"
        return (
            f"projected {milliseconds(self.projected_ms)}{other} ({self.mode}; bound by {self.bound}; at least "
            f"{milliseconds(self.least_ms)} at peak): {self.answer}"
        )


@dataclass(frozen=True)
class ProjectionRecord:
    """What was projected for one artifact on a device that is not here.

    kind: always "projected"; a reader that looks at nothing else still knows what the figures are.
    projections: one for each mode and batch size, the kernels of the smallest batch alone.
    reason: why there are none, "" where there are.
    """

    device: str
    title: str
    tensorrt: str
    artifact: str
    precision: str
    efficiency: Efficiency
    error: AnchorError
    assumptions: tuple[str, ...]
    projections: tuple[Projection, ...] = ()
    outlooks: tuple[Outlook, ...] = ()
    reason: str = ""
    kind: Literal["projected"] = "projected"
    schema_version: int = SCHEMA_VERSION


def rows_of(budgets: Sequence[Budget], device: str) -> tuple[Budget, ...]:
    """Return the rows that a projection for a device can speak about: latencies of that device, or of any GPU."""
    return tuple(
        one
        for one in budgets
        if one.kind == "latency" and one.max_ms is not None and one.batch is not None and one.via is None
        if one.device in (device, _ANY_GPU)
    )


def outlooks(budgets: Sequence[Budget], projections: Sequence[Projection], precision: str) -> tuple[Outlook, ...]:
    """Return what projections say of each row whose batch size was projected.

    Args:
        budgets: of `rows_of`.
        precision: the artifact's.
    """
    found = []
    for budget in budgets:
        same = [one for one in projections if one.batch == budget.batch]
        if same and budget.max_ms is not None:
            found.append(_outlook(budget, budget.max_ms, min(same, key=lambda one: one.total_ms), precision))
    return tuple(found)


def _outlook(budget: Budget, max_ms: float, best: Projection, precision: str) -> Outlook:
    answer: Answer = "projected to miss"
    if best.least_ms > max_ms:
        answer = "cannot be met even at peak"
    elif best.total_ms <= max_ms:
        answer = "could be met"
    return Outlook(budget, precision, best.mode, best.total_ms, best.least_ms, best.bound, answer)


def outlook_row(outlook: Outlook) -> tuple[str, ...]:
    """Return (row, device, precision, batch, asked, projected, at least, bound by, answer) as text."""
    budget = outlook.budget
    return (
        f"{budget.model} {budget.component}" if budget.component else budget.model,
        budget.device or "",
        outlook.precision
        if budget.precision in (None, outlook.precision)
        else f"{outlook.precision}, not {budget.precision}",
        str(budget.batch),
        budget_text(budget),
        f"{milliseconds(outlook.projected_ms)} ({outlook.mode})",
        milliseconds(outlook.least_ms),
        outlook.bound,
        outlook.answer,
    )


def write_projection(record: ProjectionRecord, measurements: Path) -> Path:
    """Write `projected/<device>.json` into a bundle's `measurements/`, whole or not at all; return its path."""
    return write_whole(measurements / PROJECTED / f"{record.device}.json", encode(record))


def read_projection(path: Path) -> ProjectionRecord:
    """Return the record of a file.

    Raises:
        BundleError: it cannot be read, is of another schema version, or holds something else.
    """
    again = "build the bundle again"
    return decode_versioned(ProjectionRecord, read_text(path), version=SCHEMA_VERSION, what=path.name, next_step=again)
