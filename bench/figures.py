"""The published rows that are no latency and no throughput: sizes, memory, gains, load, parity, printed estimates.

Each number of such a row becomes a `Figure` with one question: how much is it here.  `bench.figure_verdicts` answers.
`low` and `high` bound what the document says; a figure is a budget where the document forbids more ("max"), otherwise a
description, which a measurement can contradict and nobody can miss.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from tsexport.bench.tables import (
    FAMILY_PREFIX,
    CpuLoadRow,
    GainRow,
    LatencyTables,
    MemoryRow,
    ParityRow,
    PublishedEstimateRow,
    Span,
)

FigureKind = Literal["memory", "gain", "cpu_load", "parity", "published_estimate"]
ENSEMBLE_PREFIX = "ensemble:"


@dataclass(frozen=True)
class Figure:
    """One number of a published row.

    quantity: what is counted ("weights", "speedup", ...), in `unit` ("" for counts and ratios).
    low, high: the bounds that the document gives; equal where it gives one value, None where it gives none on a side.
    is_budget: whether more than `high` is a miss; otherwise more or less contradicts a description.
    transform: what a gain comes from; detail: what else tells figures of one row apart (requests a second, a member).
    """

    kind: FigureKind
    model: str
    quantity: str
    unit: str
    low: float | None
    high: float | None
    is_budget: bool = False
    component: str | None = None
    device: str | None = None
    precision: str | None = None
    transform: str = ""
    detail: str = ""
    note: str = ""
    caveat: str = ""
    source: str = ""

    def __str__(self) -> str:
        parts = (self.model, self.component, self.transform, self.quantity, self.detail)
        return " ".join(part for part in parts if part)


def figures_of(tables: LatencyTables) -> tuple[Figure, ...]:
    """Return every figure of the tables, in their order."""
    return (
        *(figure for row in tables.memory for figure in _memory(row)),
        *(figure for row in tables.gain for figure in _gains(row)),
        *(figure for row in tables.cpu_load for figure in _loads(row)),
        *map(_parity, tables.parity),
        *map(_estimate, tables.published_estimate),
    )


def figures_for(tables: LatencyTables, model: str, family: str, component: str | None = None) -> tuple[Figure, ...]:
    """Return the figures of a model: its own, its family's, and its share in ensembles.

    Without `component` these are the figures of the whole model (no component, or "total"); with it, that part's alone.
    Printed estimates name a family without the prefix.
    """
    parts = (None, "total") if component is None else (component,)

    def belongs(one: Figure) -> bool:
        if one.model == model:
            return one.component in parts
        if component is not None:
            return False
        if one.model.startswith(ENSEMBLE_PREFIX):
            return one.detail == model
        return one.model == FAMILY_PREFIX + family or (one.kind == "published_estimate" and one.model == family)

    return tuple(one for one in figures_of(tables) if belongs(one))


def figure_text(figure: Figure) -> str:
    """Return what a figure says, as "<= 4 MB", "2-3 x" or "3.5e+06"."""
    unit = f" {figure.unit}" if figure.unit else ""
    low, high = figure.low, figure.high
    if low is None and high is None:
        return ""
    if low == high:
        return f"{low:.7g}{unit}"
    if low is None:
        return f"<= {high:.7g}{unit}"
    if high is None:
        return f">= {low:.7g}{unit}"
    return f"{low:g}-{high:g}{unit}"


def _memory(row: MemoryRow) -> Iterator[Figure]:
    base = Figure(
        "memory", row.model, "", "", None, None, component=row.component, device=row.device, precision=row.precision,
        note=row.note, caveat=row.caveat, source=row.source,
    )  # fmt: skip

    def exact(quantity: str, unit: str, value: float | None, detail: str = "") -> Iterator[Figure]:
        if value is not None:
            yield replace(base, quantity=quantity, unit=unit, low=value, high=value, detail=detail)

    def most(quantity: str, unit: str, value: float | None, detail: str = "") -> Iterator[Figure]:
        if value is not None:
            yield replace(base, quantity=quantity, unit=unit, high=value, is_budget=True, detail=detail)

    def least(quantity: str, unit: str, value: float | None) -> Iterator[Figure]:
        if value is not None:
            yield replace(base, quantity=quantity, unit=unit, low=value)

    def span(quantity: str, unit: str, value: Span | None) -> Iterator[Figure]:
        if value is not None:
            yield replace(base, quantity=quantity, unit=unit, low=value[0], high=value[1])

    yield from exact("parameters", "", row.parameters)
    yield from most("parameters", "", row.parameters_max)
    yield from exact("parameters, rounded", "", row.parameters_rounded)
    yield from exact("parameters in int8", "", row.parameters_int8)
    yield from exact("weights", "MB", row.weights_mb)
    yield from most("weights", "MB", row.weights_mb_max)
    yield from most("host memory", "GB", row.host_ram_gb_max)
    for member, size in (row.model_mb or {}).items():
        yield from exact("model in the process", "MB", size, member)
    # model_mb_max is a budget of the device, which `tables.latency_budgets` gives and `verdicts.judge` judges.
    yield from span("process with the PyTorch runtime", "MB", row.runtime_mb_range)
    yield from span("process of all members", "MB", row.process_mb_range)
    if row.container is not None:
        yield from most("container memory left", "GiB", row.container.memory_gib - row.container.reserved_memory_gib)
    yield from least("memory of the machine", "GB", row.ram_gb_min)
    yield from least("memory of the GPU", "GB", row.vram_gb_min)
    if isinstance(row.disk_mb, tuple):
        yield from span("disk", "MB", row.disk_mb)
    else:
        yield from exact("disk", "MB", row.disk_mb)
    for what, by_key in (
        ("training memory", row.training_gb_by_batch),
        ("training memory with Adam", row.training_gb_with_adam),
        ("training memory with manual attention", row.manual_attention_gb_by_batch),
    ):
        for key, value in (by_key or {}).items():
            yield from exact(what, "GB", value, f"batch {key}")
    for key, value in (row.training_gb_max or {}).items():
        yield from most("training memory", "GB", value, f"batch {key}")
    for key, value in (row.gb_per_layer or {}).items():
        yield from exact("training memory a layer", "GB", value, f"{key} attention")


def _gains(row: GainRow) -> Iterator[Figure]:
    device = row.device or (", ".join(row.devices) or None)
    base = Figure(
        "gain", row.model, "", "x", None, None, device=device, precision=row.precision,
        transform=row.transform or (row.precision or ""), note=row.note, caveat=row.caveat, source=row.source,
    )  # fmt: skip
    if row.speedup is not None:
        yield replace(base, quantity="speedup", low=row.speedup, high=row.speedup)
    if row.speedup_range is not None:
        yield replace(base, quantity="speedup", low=row.speedup_range[0], high=row.speedup_range[1])
    ratios = (
        ("throughput gain", row.throughput_gain),
        ("size before / after", row.size_ratio),
        ("memory after / before", row.memory_ratio),
        ("parameters after / before", row.parameter_ratio),
        ("attention operations before / after", row.attention_operations_ratio),
    )
    for quantity, value in ratios:
        if value is not None:
            yield replace(base, quantity=quantity, low=value, high=value)


def _loads(row: CpuLoadRow) -> Iterator[Figure]:
    for rps, (low, high) in row.percent_by_rps.items():
        yield Figure(
            "cpu_load", row.model, "CPU load", "%", low, high, device=row.device, detail=f"at {rps} requests/s",
            note=row.note, caveat=row.caveat, source=row.source,
        )  # fmt: skip


def _parity(row: ParityRow) -> Figure:
    return Figure(
        "parity", row.model, "largest difference", "", None, row.max_abs, True, detail=row.check,
        note=row.note, caveat=row.caveat, source=row.source,
    )  # fmt: skip


def _estimate(row: PublishedEstimateRow) -> Figure:
    return Figure(
        "published_estimate", row.model, "memory estimate", "MB", row.claimed_mb, row.claimed_mb, detail=row.config,
        note=row.note, caveat=row.caveat, source=row.source,
    )  # fmt: skip
