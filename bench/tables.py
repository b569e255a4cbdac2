"""The published latency, throughput, memory and compression figures, each row with its source and its caveat.

`bench/data/latency-tables.toml` is carried as it was published; every row becomes a frozen record here, nothing is
dropped.  `latency_budgets` picks what a model is held to, `bench.figures` what else a row says of it.  A table of the
user's own has the same form (docs/latency-tables.md) and is read by the same rules.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from tsexport.bench.table_checks import check_row, row_places
from tsexport.codec import from_plain
from tsexport.errors import ConfigurationError, UsageError, did_you_mean
from tsexport.types import Budget

SCHEMA = 1
TABLES_NAME = "latency-tables.toml"
FAMILY_PREFIX = "family:"

Device = Literal[
    "any", "cpu", "cpu4", "cpu16", "gpu", "a100", "a100-80gb", "h100", "h200", "t4", "rtx3070", "rtx4090",
    "jetson-nano", "orin-nano", "xavier-nx", "agx-orin",
]  # fmt: skip
TablePrecision = Literal["fp32", "fp16", "bf16", "int8"]
Span = tuple[float, float]


@dataclass(frozen=True)
class LatencyRow:
    """Milliseconds per call: `max_ms` is the budget, `range_ms` what the document expects to see."""

    model: str
    device: Device
    batch: int
    source: str
    precision: TablePrecision | None = None
    component: str | None = None
    max_ms: float | None = None
    min_ms: float | None = None
    range_ms: Span | None = None
    formula: str = ""
    statistic: Literal["p90", "mean"] = "p90"
    samples: int | None = None
    via: Literal["http"] | None = None
    note: str = ""
    caveat: str = ""


@dataclass(frozen=True)
class ThroughputRow:
    """Requests or samples per second that must be reached."""

    model: str
    device: Device
    precision: TablePrecision
    source: str
    batch: int | None = None
    via: Literal["http"] | None = None
    connections: int | None = None
    min_rps: float | None = None
    range_rps: Span | None = None
    min_samples_per_s: float | None = None
    range_samples_per_s: Span | None = None
    note: str = ""
    caveat: str = ""


@dataclass(frozen=True)
class Container:
    """What the published deployment grants a container, and what it keeps for itself."""

    cpus: float
    memory_gib: float
    reserved_cpus: float
    reserved_memory_gib: float


@dataclass(frozen=True)
class MemoryRow:
    """Parameters, weights, process, disk and training memory.  Mb and gb are as the documents write them."""

    model: str
    source: str
    component: str | None = None
    device: Device | None = None
    precision: TablePrecision | None = None
    parameters: float | None = None
    parameters_max: float | None = None
    parameters_rounded: float | None = None
    parameters_int8: float | None = None
    weights_mb: float | None = None
    weights_mb_max: float | None = None
    host_ram_gb_max: float | None = None
    model_mb: Mapping[str, float] | None = None
    model_mb_max: float | None = None
    runtime_mb_range: Span | None = None
    process_mb_range: Span | None = None
    container: Container | None = None
    ram_gb_min: float | None = None
    vram_gb_min: float | None = None
    disk_mb: Span | float | None = None
    training_gb_by_batch: Mapping[str, float] | None = None
    training_gb_max: Mapping[str, float] | None = None
    training_gb_with_adam: Mapping[str, float] | None = None
    manual_attention_gb_by_batch: Mapping[str, float] | None = None
    gb_per_layer: Mapping[str, float] | None = None
    note: str = ""
    caveat: str = ""


@dataclass(frozen=True)
class GainRow:
    """What a transformation is said to bring; ratios are after / before, speed-ups before / after."""

    model: str
    source: str
    transform: str | None = None
    precision: TablePrecision | None = None
    device: Device | None = None
    devices: tuple[Device, ...] = ()
    speedup: float | None = None
    speedup_range: Span | None = None
    throughput_gain: float | None = None
    size_ratio: float | None = None
    memory_ratio: float | None = None
    parameter_ratio: float | None = None
    attention_operations_ratio: float | None = None
    note: str = ""
    caveat: str = ""


@dataclass(frozen=True)
class CpuLoadRow:
    """Percent of the CPU that serving takes, by requests per second."""

    model: str
    device: Device
    source: str
    percent_by_rps: Mapping[str, Span]
    via: Literal["http"] | None = None
    note: str = ""
    caveat: str = ""


@dataclass(frozen=True)
class ParityRow:
    """How closely two ways of computing the same thing must agree."""

    model: str
    check: str
    max_abs: float
    source: str
    note: str = ""
    caveat: str = ""


@dataclass(frozen=True)
class PublishedEstimateRow:
    """A memory figure printed beside an example; the same document's formula may give another."""

    model: str
    config: str
    claimed_mb: float
    source: str
    note: str = ""
    caveat: str = ""


@dataclass(frozen=True)
class ServiceLevelRow:
    """What a use case allows per call."""

    name: str
    max_ms: float
    source: str
    note: str = ""
    caveat: str = ""


@dataclass(frozen=True)
class LatencyTables:
    """Every row of the published tables, by kind and in their order."""

    latency: tuple[LatencyRow, ...] = ()
    throughput: tuple[ThroughputRow, ...] = ()
    memory: tuple[MemoryRow, ...] = ()
    gain: tuple[GainRow, ...] = ()
    cpu_load: tuple[CpuLoadRow, ...] = ()
    parity: tuple[ParityRow, ...] = ()
    published_estimate: tuple[PublishedEstimateRow, ...] = ()
    service_level: tuple[ServiceLevelRow, ...] = ()

    def __len__(self) -> int:
        return sum(len(getattr(self, kind)) for kind in ROW_KINDS)


ROW_KINDS: Mapping[str, type[Any]] = {
    "latency": LatencyRow,
    "throughput": ThroughputRow,
    "memory": MemoryRow,
    "gain": GainRow,
    "cpu_load": CpuLoadRow,
    "parity": ParityRow,
    "published_estimate": PublishedEstimateRow,
    "service_level": ServiceLevelRow,
}


def parse_tables(text: str, name: str = TABLES_NAME) -> LatencyTables:
    """Return the tables written in TOML.

    Raises:
        ConfigurationError: broken TOML, another schema, no rows, unknown kinds, keys, devices or precisions, missing
            keys, wrong types, values that cannot be, or a row that names no figure.  Names the row and its line.
    """
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and lists in lists
        raise ConfigurationError(f"{name} is no TOML: {error}") from None
    schema = document.pop("schema", None)
    if type(schema) is not int or schema != SCHEMA:
        raise ConfigurationError(
            f"{name} has schema {schema!r}; this version reads schema {SCHEMA}",
            next_step=f"begin the file with `schema = {SCHEMA}`",
        )
    tables: dict[str, tuple[Any, ...]] = {}
    for kind, rows in document.items():
        if kind not in ROW_KINDS:
            raise ConfigurationError(
                f"{name} has rows of an unknown kind {kind!r}{did_you_mean(kind, ROW_KINDS)}; "
                f"kinds are {', '.join(ROW_KINDS)}"
            )
        if not isinstance(rows, list):
            raise ConfigurationError(f"{name}: {kind} is one table; write [[{kind}]] before each row")
        places = row_places(text, kind, len(rows), name)
        tables[kind] = tuple(
            from_plain(ROW_KINDS[kind], row, what=place, error=ConfigurationError, defaults=True)
            for row, place in zip(rows, places, strict=True)
        )
        for row, place in zip(tables[kind], places, strict=True):
            check_row(row, place, _FIGURES.get(ROW_KINDS[kind], ()))
    if not any(tables.values()):
        raise ConfigurationError(
            f"{name} has no rows; kinds are {', '.join(ROW_KINDS)}", next_step="write a row below [[latency]]"
        )
    return LatencyTables(**tables)


_FIGURES: Mapping[type[Any], tuple[str, ...]] = {
    LatencyRow: ("max_ms", "min_ms", "formula"),
    ThroughputRow: ("min_rps", "min_samples_per_s"),
    MemoryRow: tuple(item.name for item in fields(MemoryRow) if item.default is None)[3:],
    GainRow: tuple(item.name for item in fields(GainRow) if item.default is None)[3:],
}
"""What a row of a kind must say at least one of."""


def load_tables(path: Path | None = None) -> LatencyTables:
    """Return the tables of a file, by default those that the project carries.

    Raises:
        UsageError: the file cannot be read.
        ConfigurationError: as `parse_tables`.
    """
    if path is None:
        return parse_tables((files("tsexport.bench") / "data" / TABLES_NAME).read_text(encoding="utf-8"))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the latency tables {path} cannot be read: {error}", next_step="see docs/latency-tables.md for the format"
        ) from None
    return parse_tables(text, path.name)


def latency_budgets(
    model: str, family: str, component: str | None = None, *, tables: LatencyTables | None = None
) -> tuple[Budget, ...]:
    """Return the rows a model is held to: its own first, then those of its family, in the tables' order.

    Latency and throughput rows, and memory rows that bound a model on a device.  Without `component` these are the rows
    of the whole model (no component, or "total"); with it, that component's alone.

    Args:
        model: a registered name such as "patchtst-cpu".
        family: "transformer", "recurrent", "cnn", ... without the prefix.
    """
    tables = load_tables() if tables is None else tables
    budgets = (
        *map(budget_of, tables.latency),
        *map(_throughput_budget, tables.throughput),
        *(_memory_budget(row) for row in tables.memory if row.device is not None and row.model_mb_max is not None),
    )
    parts = (None, "total") if component is None else (component,)
    held_to = (model, FAMILY_PREFIX + family) if component is None else (model,)
    return tuple(b for name in held_to for b in budgets if b.model == name and b.component in parts)


def budget_of(row: LatencyRow) -> Budget:
    """Return what a latency row asks for."""
    return Budget(
        kind="latency",
        model=row.model,
        device=row.device,
        precision=row.precision,
        batch=row.batch,
        component=row.component,
        max_ms=row.max_ms,
        min_ms=row.min_ms,
        range_ms=row.range_ms,
        statistic=row.statistic,
        via=row.via,
        note=row.note,
        caveat=row.caveat,
        source=row.source,
        samples=row.samples,
        formula=row.formula,
    )


def _throughput_budget(row: ThroughputRow) -> Budget:
    return Budget(
        kind="throughput",
        model=row.model,
        device=row.device,
        precision=row.precision,
        batch=row.batch,
        via=row.via,
        note=row.note,
        caveat=row.caveat,
        source=row.source,
        min_requests_per_s=row.min_rps,
        min_samples_per_s=row.min_samples_per_s,
        range_per_s=row.range_rps or row.range_samples_per_s,
    )


def _memory_budget(row: MemoryRow) -> Budget:
    return Budget(
        kind="memory",
        model=row.model,
        device=row.device,
        precision=row.precision,
        batch=None,
        component=row.component,
        note=row.note,
        caveat=row.caveat,
        source=row.source,
        max_memory_mb=row.model_mb_max,
    )
