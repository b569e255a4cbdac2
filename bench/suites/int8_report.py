"""The text of the suite on INT8: all models in one table, each model's contestants, and what its build tried."""

from collections.abc import Sequence

from tsexport.bench.suites.goals_of_int8 import MAX_ERROR, against, defaults_run, rivals
from tsexport.bench.suites.report import (
    NOT_MEASURED,
    interval_text,
    megabytes,
    milliseconds,
    percent,
    ratio_text,
    table,
)
from tsexport.bench.suites.rows import (
    DEFAULTS,
    PLAIN_ONNX,
    ModelResult,
    Row,
    TriedCandidate,
)
from tsexport.quantize.evaluation import budget_miss
from tsexport.types import Accuracy, AccuracyBudget

BUSY_SHARE = 1.0
"""Of the cores: what the suite itself runs before timing leaves a load average of about one."""
OVERVIEW = ("model", "plain ONNX ms", "fastest default", "its ms", "its error", "selected", "ms", "x default", "x fp32",
            "error", "task metric change", "times smaller")  # fmt: skip
CONTESTANTS = ("contestant", "p50 ms", "p90 ms", "x plain ONNX", "selected is x faster", "file MB", "memory MB",
               "output error", "task metric change", "counts")  # fmt: skip
TRIED = ("candidate", "runtime", "precision", "x fp32", "MACs in int8", "conversions", "file MB", "output error",
         "task metric change", "status", "reason")  # fmt: skip


def overview_text(results: Sequence[ModelResult]) -> str:
    """Return one line a model; milliseconds are p50 at batch 1."""
    return f"## All models\n\n{table(OVERVIEW, [_overview(one) for one in results])}\n"


def busy_text(results: Sequence[ModelResult], cores: int) -> str:
    """Return a warning where the machine did other work already before a model was timed, or ""."""
    busy = [one for one in results if one.load_average[0] > BUSY_SHARE * cores]
    if not busy:
        return ""
    named = ", ".join(f"{one.model} {one.load_average[0]:.1f}" for one in busy)
    return (
        f"**The machine was busy** (load average on {cores} cores before timing: {named}). Take these ratios as a "
        "trial, and measure again on a machine that does nothing else."
    )


def _overview(one: ModelResult) -> tuple[str, ...]:
    rows = {row.name: row for row in one.rows}
    selected, fp32 = rows[one.selected], rows[one.fp32]
    found = against(one, rivals(one))
    rival = found[1] if found else None
    smallest = min((row.size_bytes for row in one.rows if row.precision == "fp32" and row.size_bytes), default=None)
    return (
        one.model,
        _p50(rows.get(PLAIN_ONNX)),
        rival.name if rival else NOT_MEASURED,
        _p50(rival),
        percent(rival.output_error) if rival else NOT_MEASURED,
        f"{selected.precision}: {selected.what}",
        _p50(selected),
        ratio_text(found[0] if found else None),
        "same" if selected is fp32 else ratio_text(one.ratio(one.selected, one.fp32)),
        percent(selected.output_error),
        percent(selected.degradation, signed=True),
        f"{smallest / selected.size_bytes:.2f}" if smallest and selected.size_bytes else NOT_MEASURED,
    )


def _p50(row: Row | None) -> str:
    if row is None:
        return NOT_MEASURED
    return "failed" if row.failed else milliseconds(row.summary.p50_ms if row.summary else None)


def contestants_text(result: ModelResult) -> str:
    """Return one model's contestants; "counts" says which defaults the selected artifact is held against."""
    return table(CONTESTANTS, [_contestant(result, row) for row in result.rows])


def _contestant(result: ModelResult, row: Row) -> tuple[str, ...]:
    name = f"{row.name} ({row.what})"
    if row.failed:
        return (name, "failed", *[NOT_MEASURED] * (len(CONTESTANTS) - 2))
    summary = row.summary
    return (
        name,
        milliseconds(summary.p50_ms if summary else None),
        milliseconds(summary.p90_ms if summary else None),
        ratio_text(row.than_plain_onnx),
        ratio_text(result.ratio(result.selected, row.name)),
        megabytes(row.size_bytes, 2),
        megabytes(row.memory_bytes),
        percent(row.output_error),
        percent(row.degradation, signed=True),
        _counts(row),
    )


def _counts(row: Row) -> str:
    if row.name not in DEFAULTS:
        return ""
    return "yes" if row.output_error is not None and row.output_error <= MAX_ERROR else "no: above 5 %"


def by_budget_text(result: ModelResult) -> str:
    """Return what the comparison would be, were the defaults judged by the budget that the selected artifact has.

    With labels that is the change of the task metric, which may let a default count whose outputs are further off.
    """
    held = [row for row in defaults_run(result) if _holds_budget(result, row)]
    found = against(result, held)
    if found is None:
        return ""
    ratio, rival = found
    return (
        "by the change of the task metric alone, as the build's own budget counts, the fastest default is "
        f"{rival.name} ({percent(rival.output_error)} off): {ratio.value:.2f} {interval_text(ratio.low, ratio.high)}"
    )


def _holds_budget(result: ModelResult, row: Row) -> bool:
    if row.output_error is None:
        return False
    accuracy = Accuracy(row.name, row.what, result.windows, row.output_error, degradation=row.degradation)
    return not budget_miss(accuracy, AccuracyBudget("task metric", MAX_ERROR, MAX_ERROR))


def tried_text(tried: Sequence[TriedCandidate]) -> str:
    """Return what the bundle's build tried, with its own measurements, or "" where it tried nothing."""
    return table(TRIED, [_tried(one) for one in tried]) if tried else ""


def _tried(one: TriedCandidate) -> tuple[str, ...]:
    return (
        one.name,
        one.runtime,
        one.precision,
        ratio_text(one.speedup),
        NOT_MEASURED if one.int8_share is None else f"{one.int8_share:.0%}",
        NOT_MEASURED if one.conversions is None else str(one.conversions),
        megabytes(one.size_bytes, 2),
        percent(one.output_error),
        percent(one.degradation, signed=True),
        one.status,
        one.reason.replace("|", "/"),
    )
