"""The results of `gpu_runs.py` as Markdown, and what they are called."""

from collections.abc import Sequence

from tsexport.bench.statistics import Summary
from tsexport.bench.suites.gpu_cases import WAYS
from tsexport.bench.suites.gpu_records import OUTPUT_LIMITS, GpuFacts, GpuReport, GpuRow
from tsexport.bench.suites.report import NOT_MEASURED, megabytes, milliseconds, table
from tsexport.devices import device_of

COLUMNS = (
    "way", "device p50 ms", "p90", "p99", "calls", "whole call p50 ms", "p90", "p99", "calls", "output error",
    "memory MB", "first call s", "MHz",
)  # fmt: skip


def report_name(report: GpuReport) -> str:
    """Return "gpu-h100"; "gpu-rehearsal" where nothing ran on a GPU."""
    gpu = report.runs[0].gpu
    return "gpu-rehearsal" if report.rehearsal or gpu is None else f"gpu-{device_of(gpu)}"


def report_text(report: GpuReport) -> str:
    """Return the tables as Markdown, one for each case."""
    gpu = report.runs[0].gpu
    title = gpu.name if gpu and not report.rehearsal else "REHEARSAL on a CPU, no result"
    cases = dict.fromkeys(row.case.name for row in report.rows)
    sections = [_section(name, [row for row in report.rows if row.case.name == name], report) for name in cases]
    limits = [f"{one.name} {one.limit:g} ({one.reason})" for one in OUTPUT_LIMITS.values()]
    return "\n".join(
        [
            f"# torch on a GPU: {title}",
            "",
            *(f"- run {number}: {_facts_text(facts)}" for number, facts in enumerate(report.runs, 1)),
            "- device: milliseconds between two events on the stream, around the launches of one call, without copies; "
            "the stream was idle before. Whole call: wall-clock from arrays to arrays, with checks and both copies.",
            "- p90 is given from 64 calls on, p99 from 662; one process a case, so no spread between processes.",
            "- Output error: relative RMS of the worst output against the source module in fp32 on the CPU, random "
            f"feeds. Allowed: {'; '.join(limits)}. What is beyond is not timed.",
            "- memory: the most that torch allocated on the device beyond what it held before the session: weights, "
            "activations, a graph's buffers, and cuBLAS's workspaces. fp32 is without TF32.",
            "- First call: load, warm-up, capture and compilation; compilations came from a cache that was filled "
            "before, so theirs is no figure of torch.compile.",
            *(f"- {remark}" for remark in report.remarks),
            "",
            *sections,
        ]
    )


def _facts_text(facts: GpuFacts) -> str:
    words = []
    if facts.gpu is not None:
        gpu = facts.gpu
        limit = f", power limit {gpu.power_limit_w:g} W" if gpu.power_limit_w is not None else ""
        clock = f", up to {gpu.max_clock_mhz} MHz" if gpu.max_clock_mhz is not None else ""
        words.append(f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB, compute capability {gpu.compute_capability}, "
                     f"driver {gpu.driver}{limit}{clock}")  # fmt: skip
    words.append(f"torch {facts.torch}, CUDA {facts.cuda or 'none'}, triton {facts.triton or 'none'}")
    return "; ".join([facts.day, *words, f"Python {facts.python}", facts.cpu])


def _section(name: str, rows: Sequence[GpuRow], report: GpuReport) -> str:
    ordered = sorted(rows, key=lambda row: WAYS.index(row.way))
    measured = [row for row in ordered if row.status == "measured"]
    notes = [f"- {row.way}: {row.status}, {row.reason}" for row in ordered if row.status != "measured"]
    notes += [f"- {note}" for note in dict.fromkeys(note for row in measured for note in row.notes)]
    several = len(report.runs) > 1
    columns = (*COLUMNS, "run") if several else COLUMNS
    cells = [(*_cells(row), f"{row.run + 1}") if several else _cells(row) for row in measured]
    shown = [table(columns, cells), ""] if measured else []
    return "\n".join([f"## {name}", "", *shown, *notes, *([""] if notes else [])])


def _cells(row: GpuRow) -> tuple[str, ...]:
    return (
        row.way, *_times(row.device), *_times(row.wall),
        NOT_MEASURED if row.output_error is None else f"{row.output_error:.2g}",
        megabytes(row.memory_bytes),
        NOT_MEASURED if row.first_call_s is None else f"{row.first_call_s:.1f}",
        NOT_MEASURED if row.clock_mhz is None else f"{row.clock_mhz}",
    )  # fmt: skip


def _times(summary: Summary | None) -> tuple[str, ...]:
    if summary is None:
        return (NOT_MEASURED,) * 4
    return (*map(milliseconds, (summary.p50_ms, summary.p90_ms, summary.p99_ms)), f"{summary.samples}")
