"""The report of `estimate_accuracy.py`: measured peaks, our estimates, fitted and held out, the published figures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tsexport.bench.fingerprint import Machine
from tsexport.bench.memory_forms import ModelGraphs
from tsexport.bench.memory_model import RULES, MemoryParts, counts_of, estimate_parts, estimated_range
from tsexport.bench.published_memory import PublishedMemory, published_memory
from tsexport.bench.suites.estimate_cases import CASES, Case
from tsexport.bench.suites.estimate_measure import Measured, Peak
from tsexport.bench.suites.memory_fit import LARGE_BYTES, Sample, allowed_bytes, held_out
from tsexport.codec import encode, write_whole
from tsexport.estimating import read_graphs
from tsexport.models.sources import identify, open_source

SCHEMA_VERSION = 3
MB = 1_000_000
NAME = "estimate-accuracy"


@dataclass(frozen=True)
class AccuracyRow:
    """One artifact at one batch size: the measured peak above an idle session and our estimates, in bytes.

    name: the registered model.  counts: how often each constant of `Rules` counts.
    simulated_bytes: the estimate without those constants.
    held_out_bytes: the estimate with the constants fitted on the other models alone.
    range_bytes: what `tsexport estimate` prints beside the estimate, where the C library's luck decides.
    """

    model: str
    name: str
    runtime: str
    batch: int
    weights_bytes: int
    runs: int
    measured_bytes: int
    lowest_bytes: int
    highest_bytes: int
    counts: tuple[float, ...]
    simulated_bytes: int
    estimated_bytes: int
    held_out_bytes: int
    range_bytes: tuple[int, int] | None

    @property
    def is_large(self) -> bool:
        """Whether the model's weights take 20 MB or more."""
        return self.weights_bytes >= LARGE_BYTES

    @property
    def sample(self) -> Sample:
        """The row as the fit sees it."""
        return Sample(self.name, self.weights_bytes, self.measured_bytes, self.simulated_bytes, self.counts)

    def met(self, estimated_bytes: int) -> bool:
        """Whether an estimate is within 25 % (weights of 20 MB and more) or 5 MB."""
        return abs(estimated_bytes - self.measured_bytes) <= allowed_bytes(self.weights_bytes, self.measured_bytes)


@dataclass(frozen=True)
class PublishedRow:
    """A published figure beside the measured peak of the same configuration, which it misses by `factor`."""

    config: str
    model: str
    batch: int
    claimed_mb: float
    runtime: str
    measured_bytes: int
    estimated_bytes: int
    factor: float


@dataclass(frozen=True)
class AccuracyReport:
    """All rows; `failed` are those that gave none, with the reason."""

    machine: Machine
    threads: int
    libc: str
    packages: tuple[str, ...]
    rows: tuple[AccuracyRow, ...] = ()
    published: tuple[PublishedRow, ...] = ()
    failed: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION


def rows_of(measured: Measured) -> tuple[AccuracyRow, ...]:
    """Return the measured peaks with their estimates, in the order of the cases."""
    rows: list[AccuracyRow] = []
    for case in CASES:
        own = [peak for peak in measured.peaks if peak.model == case.label and peak.batch in case.batches]
        if own:
            graphs = read_graphs(open_source(identify(case.model, settings=dict(case.settings))))
            rows += [row_of(case, graphs, peak) for peak in sorted(own, key=lambda peak: (peak.runtime, peak.batch))]
            print(f"{case.label} is estimated", flush=True)
    return with_held_out(rows)


def row_of(case: Case, graphs: ModelGraphs, peak: Peak) -> AccuracyRow:
    """Return one peak with its estimate; the held-out one is not yet there."""
    parts: MemoryParts = estimate_parts(graphs, peak.runtime, peak.batch)
    return AccuracyRow(
        model=case.label,
        name=case.model,
        runtime=peak.runtime,
        batch=peak.batch,
        weights_bytes=graphs.plain.weights.total_bytes,
        runs=peak.runs,
        measured_bytes=peak.measured_bytes,
        lowest_bytes=peak.lowest_bytes,
        highest_bytes=peak.highest_bytes,
        counts=counts_of(graphs, peak.runtime, peak.batch),
        simulated_bytes=parts.total_bytes - parts.runtime_bytes,
        estimated_bytes=parts.total_bytes,
        held_out_bytes=0,
        range_bytes=estimated_range(graphs, peak.runtime, peak.batch),
    )


def with_held_out(rows: Sequence[AccuracyRow]) -> tuple[AccuracyRow, ...]:
    """Return the rows with the estimates by constants that were fitted without their models."""
    found = []
    for runtime in RULES:
        own = [row for row in rows if row.runtime == runtime]
        rules = held_out([row.sample for row in own])
        found += [
            replace(row, held_out_bytes=row.simulated_bytes + rules[row.name].bytes_for(row.counts)) for row in own
        ]
    order = {(row.model, row.runtime, row.batch): at for at, row in enumerate(rows)}
    return tuple(sorted(found, key=lambda row: order[row.model, row.runtime, row.batch]))


def published_rows(rows: Sequence[AccuracyRow]) -> tuple[PublishedRow, ...]:
    """Return each published figure beside the rows of its configuration."""
    return tuple(
        PublishedRow(
            config=f"{one.row.model}: {one.row.config}",
            model=row.model,
            batch=row.batch,
            claimed_mb=one.row.claimed_mb,
            runtime=row.runtime,
            measured_bytes=row.measured_bytes,
            estimated_bytes=row.estimated_bytes,
            factor=one.misses_by(row.measured_bytes),
        )
        for one in published_memory()
        for row in rows
        if _is_of(row, one)
    )


def _is_of(row: AccuracyRow, one: PublishedMemory) -> bool:
    default = one.size == "medium" and row.model == one.model and one.model != "itransformer"
    return row.batch == one.batch and (default or row.model == f"{one.model} {one.size}")


def report_of(measured: Measured) -> AccuracyReport:
    """Return the report on measured peaks."""
    rows = rows_of(measured)
    return AccuracyReport(
        measured.machine,
        measured.threads,
        measured.libc,
        measured.packages,
        rows,
        published_rows(rows),
        measured.failed,
    )


def write_report(measured: Measured, folder: Path) -> None:
    """Write the report as JSON and as a page."""
    report = report_of(measured)
    write_whole(folder / f"{NAME}.json", encode(report))
    write_whole(folder / f"{NAME}.md", markdown(report))


def markdown(report: AccuracyReport) -> str:
    """Return the report as a page."""
    machine = report.machine
    lines = [
        "# Estimated memory against measured",
        "",
        f"Measured on {machine.cpu_model} ({machine.instruction_set}), {report.threads} threads, {report.libc}, "
        f"{', '.join(report.packages)}: peak above an idle",
        "session of the same runtime, median of the fresh processes in `runs`, and the lowest and highest of them.",
        "`estimated` is what `tsexport estimate` says; its few constants were fitted on these rows.  `held out` is",
        "what it would say with the constants fitted on the other models alone, every size of this one left out.",
        "`range` is printed beside the estimate where the C library's luck decides (docs/estimate.md).",
        "",
        "Met: within 25 % where the weights take 20 MB or more, within 5 MB below.  By the peak: within 25 % where the",
        "peak is 20 MB or more, within 5 MB below; small weights can have activations of a gigabyte.",
        "",
        "| runtime | weights of 20 MB and more: met | held out | smaller: met | held out "
        "| by the peak, held out | worst ratio by the peak, held out |",
        "|---|---|---|---|---|---|---|",
        *_summary(report.rows),
        "",
        "| model | runtime | batch | weights MB | runs | measured MB | lowest to highest | estimated MB | ratio | met "
        "| held out MB | ratio | met | range MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.model} | {row.runtime} | {row.batch} | {row.weights_bytes / MB:.1f} | "
        f"{row.runs} | {row.measured_bytes / MB:.1f} | {row.lowest_bytes / MB:.1f} to {row.highest_bytes / MB:.1f} | "
        f"{_against(row, row.estimated_bytes)} | {_against(row, row.held_out_bytes)} | {_range(row)} |"
        for row in report.rows
    ]
    lines += [
        "",
        "## The published figures beside them",
        "",
        "| published for | claimed MB | runtime | measured MB | published is off by | ours MB | ours is off by |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.config} | {one.claimed_mb:,.0f} | {one.runtime} | {one.measured_bytes / MB:.1f} | "
        f"{one.factor:.0f} times | {one.estimated_bytes / MB:.1f} | {_times(one):.2f} times |"
        for one in report.published
    ]
    lines += ["", *(f"Not measured: {one}." for one in report.failed)]
    return "\n".join(lines).rstrip() + "\n"


def _range(row: AccuracyRow) -> str:
    if row.range_bytes is None:
        return "-"
    least, most = row.range_bytes
    return f"{least / MB:.1f} to {most / MB:.1f}"


def _times(one: PublishedRow) -> float:
    ratio = one.estimated_bytes / one.measured_bytes
    return max(ratio, 1 / ratio)


def _against(row: AccuracyRow, estimated: int) -> str:
    met = "met" if row.met(estimated) else "missed"
    return f"{estimated / MB:.1f} | {estimated / row.measured_bytes:.2f} | {met}"


def _summary(rows: Sequence[AccuracyRow]) -> Iterator[str]:
    for runtime in RULES:
        own = [row for row in rows if row.runtime == runtime]
        if not own:
            continue
        cells = []
        for large in (True, False):
            some = [row for row in own if row.is_large is large]
            cells.append(f"{sum(row.met(row.estimated_bytes) for row in some)} of {len(some)}")
            cells.append(f"{sum(row.met(row.held_out_bytes) for row in some)} of {len(some)}")
        either = sum(_either(row) for row in own)
        worst = max((row for row in own if row.measured_bytes >= LARGE_BYTES), key=_ratio, default=own[0])
        yield (
            f"| {runtime} | {' | '.join(cells)} | {either} of {len(own)} | "
            f"{worst.held_out_bytes / worst.measured_bytes:.2f} ({worst.model}, batch {worst.batch}) |"
        )


def _ratio(row: AccuracyRow) -> float:
    ratio = row.held_out_bytes / row.measured_bytes
    return max(ratio, 1 / ratio)


def _either(row: AccuracyRow) -> bool:
    return abs(row.held_out_bytes - row.measured_bytes) <= row.sample.unit_bytes
