"""The suites' results as text (Markdown tables that also read well in a terminal) and as files."""

import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from tsexport.bench.affinity import threads_text
from tsexport.bench.fingerprint import Machine
from tsexport.bench.statistics import Ratio
from tsexport.bench.suites.goals import Judged
from tsexport.bench.suites.rows import ModelResult, Row
from tsexport.codec import encode, write_whole

RESULTS = Path(__file__).resolve().parent.parent / "results"
NOT_MEASURED = "n/a"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are padded; the first column is aligned left, the rest right."""
    widths = [max(len(line[i]) for line in (columns, *rows)) for i in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells[1:], widths[1:], strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join([line(columns), line(rule), *(line(row) for row in rows)])


def ratio_text(ratio: Ratio | None) -> str:
    """Return "4.61 [4.50, 4.70]"."""
    return NOT_MEASURED if ratio is None else f"{ratio.value:.2f} {interval_text(ratio.low, ratio.high)}"


def interval_text(low: float, high: float | None) -> str:
    """Return "[4.50, 4.70]"; without an upper bound "[0.00, inf)"."""
    return f"[{low:.2f}, inf)" if high is None else f"[{low:.2f}, {high:.2f}]"


def milliseconds(value: float | None) -> str:
    """Return milliseconds with three digits behind the point."""
    return NOT_MEASURED if value is None else f"{value:.3f}"


def megabytes(size_bytes: int | None, digits: int = 0) -> str:
    """Return millions of bytes."""
    return NOT_MEASURED if size_bytes is None else f"{size_bytes / 1e6:.{digits}f}"


def percent(value: float | None, signed: bool = False) -> str:
    """Return a fraction in percent; `signed` is for changes."""
    if value is None:
        return NOT_MEASURED
    return f"{100 * value:+.2f} %" if signed else f"{100 * value:.2g} %"


COLUMNS = (
    "contestant",
    "p50 ms",
    "p90 ms",
    "x eager",
    "x best plain fp32",
    "x plain ONNX",
    "file MB",
    "memory MB",
    "output error",
    "task metric change",
)


def _cells(row: Row) -> tuple[str, ...]:
    if row.failed:
        return (f"{row.name} ({row.what})", "failed", *[NOT_MEASURED] * (len(COLUMNS) - 2))
    summary = row.summary
    return (
        f"{row.name} ({row.what})",
        milliseconds(summary.p50_ms if summary else None),
        milliseconds(summary.p90_ms if summary else None),
        ratio_text(row.than_eager),
        ratio_text(row.than_best_plain_fp32),
        ratio_text(row.than_plain_onnx),
        megabytes(row.size_bytes, 2),
        megabytes(row.memory_bytes),
        percent(row.output_error),
        percent(row.degradation, signed=True),
    )


def model_text(result: ModelResult, machine: Machine, threads: int) -> str:
    """Return one model's section: the table, what failed, and what to know about it."""
    notes = notes_text(result, machine, threads)
    return f"## {result.model}\n\n{table(COLUMNS, [_cells(row) for row in result.rows])}\n\n{notes}\n"


def notes_text(result: ModelResult, machine: Machine, threads: int, more: Sequence[str] = ()) -> str:
    """Return what to know about a model's figures, as a list: how they were measured, what failed, caveats, `more`."""
    count = f"{result.processes} fresh process{'es' if result.processes > 1 else ''} of each contestant"
    notes = [
        f"{machine.instruction_set}, {threads_text(threads)}, batch 1, {count}, {result.rounds} rounds together; "
        f"{load_text(result.load_average)}; errors over {result.windows} windows.",
        *(f"{row.name} failed: {row.failed}" for row in result.rows if row.failed),
        *(
            f"{row.name} was still drifting when its warm-up was capped"
            for row in result.rows
            if not (row.failed or row.stable_warmup)
        ),
        *result.caveats,
        *more,
    ]
    return "\n".join(f"- {note}" for note in notes)


def goals_text(goals: Sequence[Judged], machine: Machine) -> str:
    """Return the table of goals, or "" where the models have none."""
    if not goals:
        return ""
    rows = [
        (
            f"{one.model}, {one.goal} {one.limit:g}" if one.limit >= 1 else f"{one.model}, {one.goal} {one.limit:.0%}",
            one.cpu,
            NOT_MEASURED if one.value is None else f"{one.value:.3g}",
            NOT_MEASURED if one.low is None else interval_text(one.low, one.high),
            one.status,
            one.reason,
        )
        for one in goals
    ]
    columns = ("goal", "for CPUs", "measured", "95 % interval", "status", "why")
    return f"## Goals, on {machine.instruction_set}\n\n{table(columns, rows)}\n"


def machine_text(machine: Machine) -> str:
    """Return what it was measured on, in one line."""
    tools = ", ".join(f"{name} {version}" for name, version in machine.packages)
    return (
        f"{machine} ({machine.architecture}, {machine.operating_system}, Python {platform.python_version()}; {tools})"
    )


def load_text(load_average: tuple[float, float]) -> str:
    """Return the system's load over the last minute, (before, after) what was measured."""
    before, after = load_average
    return f"load average {before:.1f} before, {after:.1f} after"


def results_path(suite: str, machine: Machine) -> Path:
    """Return where a suite's record goes unless it is told otherwise."""
    return RESULTS / f"{suite}-{machine.instruction_set}.json"


def publish(record: object, text: str, path: Path) -> None:
    """Print a suite's text, write it and its record, and say where they are."""
    print(text)
    print(f"written: {', '.join(str(written) for written in write_results(record, text, path))}", file=sys.stderr)


def write_results(record: object, text: str, path: Path) -> tuple[Path, Path]:
    """Write a record as JSON to `path` and its text beside it as .md; each whole or not at all."""
    return write_whole(path, encode(record)), write_whole(path.with_suffix(".md"), text)
