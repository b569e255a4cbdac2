"""All models in one table: what a user has without tsexport, and what tsexport selects."""

from collections import Counter
from collections.abc import Sequence

from tsexport.bench.rows import verdict_rows
from tsexport.bench.suites.report import (
    NOT_MEASURED,
    megabytes,
    milliseconds,
    percent,
    ratio_text,
    table,
)
from tsexport.bench.suites.rows import (
    EAGER,
    PLAIN_ONNX,
    PLAIN_OPENVINO,
    PLAIN_OPENVINO_F32,
    PLAIN_TORCHSCRIPT,
    ModelResult,
    Row,
)

COLUMNS = (
    "model", "eager", "TorchScript", "ONNX", "OpenVINO f32", "OpenVINO bf16", "fp32", "runs as", "x best plain",
    "selected", "precision", "x fp32", "fp32 MB", "selected MB", "memory MB", "error", "budgets",
)  # fmt: skip


def overview_text(results: Sequence[ModelResult]) -> str:
    """Return the table, one line a model; milliseconds are p50 at batch 1."""
    return f"## All models\n\n{table(COLUMNS, [_cells(one) for one in results])}\n"


def budgets_text(results: Sequence[ModelResult]) -> str:
    """Return the published rows of all models with their verdicts, or "" where there are none."""
    rows = [
        (one.model, row.model, row.budget, row.device, row.precision, row.batch, row.value, row.status)
        for one in results
        for row in verdict_rows(one.verdicts)
    ]
    columns = ("model", "published for", "budget", "device", "precision", "batch", "value", "status")
    return f"## Published budgets\n\n{table(columns, rows)}\n" if rows else ""


def _cells(one: ModelResult) -> tuple[str, ...]:
    rows = {row.name: row for row in one.rows}
    fp32, selected = rows[one.fp32], rows[one.selected]
    in_bf16 = PLAIN_OPENVINO_F32 in rows
    found = Counter(verdict.status for verdict in one.verdicts)
    quantized = selected.precision != "fp32"
    return (
        one.model,
        _p50(rows.get(EAGER)),
        _p50(rows.get(PLAIN_TORCHSCRIPT)),
        _p50(rows.get(PLAIN_ONNX)),
        _p50(rows.get(PLAIN_OPENVINO_F32 if in_bf16 else PLAIN_OPENVINO)),
        _p50(rows.get(PLAIN_OPENVINO)) if in_bf16 else NOT_MEASURED,
        _p50(fp32),
        fp32.what,
        ratio_text(fp32.than_best_plain_fp32),
        _p50(selected) if quantized else "as fp32",
        selected.precision,
        ratio_text(one.ratio(one.selected, one.fp32)) if quantized else NOT_MEASURED,
        megabytes(fp32.size_bytes, 2),
        megabytes(selected.size_bytes, 2),
        megabytes(selected.memory_bytes),
        percent(selected.output_error),
        ", ".join(f"{count} {status}" for status, count in sorted(found.items())) or "none",
    )


def _p50(row: Row | None) -> str:
    if row is None:
        return NOT_MEASURED
    if row.failed:
        return "failed"
    return milliseconds(row.summary.p50_ms if row.summary else None)
