"""The device bundle suite's results as tables."""

from collections.abc import Sequence

from tsexport.bench.affinity import threads_text
from tsexport.bench.suites.device_bundle_records import TARGETS, BuiltBundle, Case, Options, Report, Row
from tsexport.bench.suites.report import machine_text, table
from tsexport.targets import HOST
from tsexport.wording import change_text, count_text, markdown_cell, percent_text, size_text

GIB = 1 << 30
NOT_RUN = "not run"
COLUMNS = (
    "model", "target", "TensorRT", "weights", "selected", "output error", "task metric", "budget", "check", "kit",
    "rewrites for TensorRT", "graph", "seconds", "peak GiB",
)  # fmt: skip


def report_text(report: Report) -> str:
    """Return the tables as Markdown."""
    refused = [row for row in report.rows if row.outcome == "refused"]
    lacking = [row for row in report.rows if row.lacks or row.outcome == "ended"]
    return "\n".join(
        [
            "# Whole device bundles in full size",
            "",
            f"{machine_text(report.machine)}; {_options(report.options)}; {_code(report.rows)}.",
            "",
            f"Every registered model in its default configuration, on its reference data: {_counts(report)}. "
            "A bundle counts as whole where the selected artifact is of the target's precision and holds the accuracy "
            "budget in exact simulation, `tsexport check` takes the shipped graph, the device kit is complete, and "
            "`verify` passes. Nothing here ran on a device.",
            "",
            "## Relative RMS error of the worst output",
            "",
            _overview(report),
            "",
            "## Bundles",
            "",
            "Seconds and peaks are no costs of a build: a model's first row makes what its later ones find in the "
            "cache, and the machine may have been busy.",
            "",
            table(COLUMNS, [cells for row in report.rows if (cells := _cells(row))]),
            "",
            *_section("Refused", refused),
            *_section("Not as promised", lacking),
            *_not_run(report),
        ]
    )


def row_line(row: Row) -> str:
    """Return a row's outcome in one line, for the terminal."""
    took = f"{row.seconds:.0f} s, peak {row.peak_bytes / GIB:.1f} GiB"
    return f"{case_text(row.case)}: {row.outcome}, {took}{''.join(f'; {one}' for one in row.problems)}"


def case_text(case: Case) -> str:
    """Return a row's name in words."""
    return f"{case.model} for {_target_text(case.target, case.device)}"


def _target_text(target: str, device: str) -> str:
    return target if device == HOST else f"{target} on {device}"


def _options(options: Options) -> str:
    batches = ", ".join(map(str, options.batches))
    return (
        f"batches {batches}, formats {', '.join(options.formats)}, {threads_text(options.threads)}, "
        f"search {options.search_seconds:g} s"
    )


def _code(rows: Sequence[Row]) -> str:
    states = list(dict.fromkeys(row.code_digest for row in rows))
    return f"code {', '.join(states)}" if len(states) < 2 else f"{len(states)} states of the code: {', '.join(states)}"


def _counts(report: Report) -> str:
    outcomes = [row.outcome for row in report.rows]
    whole = sum(row.outcome == "built" and not row.lacks for row in report.rows)
    counts = (
        (whole, "whole"),
        (outcomes.count("built") - whole, "built and not whole"),
        (outcomes.count("refused"), "refused"),
        (outcomes.count("ended"), "ended without an answer"),
        (len(report.cases) - len(report.rows), NOT_RUN),
    )
    said = ", ".join(f"{count} {what}" for count, what in counts if count)
    return f"of {count_text(len(report.cases), 'row')} {said}"


def _overview(report: Report) -> str:
    models = dict.fromkeys(case.model for case in report.cases)
    columns = ("model", *(_target_text(*one) for one in TARGETS))
    rows = [[model, *(_cell(report.row(Case(model, *one))) for one in TARGETS)] for model in models]
    return table(columns, rows)


def _cell(row: Row | None) -> str:
    if row is None:
        return NOT_RUN
    if row.answer.bundle is None:
        return row.outcome
    return percent_text(row.answer.bundle.output_error) + (" (not whole)" if row.lacks else "")


def _cells(row: Row) -> list[str]:
    bundle = row.answer.bundle
    if bundle is None:
        return []
    return [
        row.case.model,
        _target_text(row.case.target, row.case.device),
        bundle.tensorrt,
        bundle.weights,
        bundle.artifact,
        f"{percent_text(bundle.output_error)} over {count_text(bundle.windows, 'window')}",
        "n/a" if bundle.degradation is None else f"{bundle.metric} {change_text(bundle.degradation)}",
        f"{'held' if bundle.within_budget else 'missed'}, {_budget(bundle)}",
        "takes it" if bundle.accepted else count_text(len(bundle.refusals), "refusal"),
        "incomplete" if bundle.kit.problems else f"complete, {count_text(bundle.kit.files, 'file')}",
        "; ".join(bundle.rewrites) or "none",
        size_text(bundle.graph_bytes),
        f"{row.seconds:.0f}",
        f"{row.peak_bytes / GIB:.1f}",
    ]


def _budget(bundle: BuiltBundle) -> str:
    if bundle.degradation is None:
        return f"error {percent_text(bundle.max_output_error)}"
    return f"metric {percent_text(bundle.max_degradation)}"


def _section(title: str, rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    lines = []
    for row in rows:
        refusal = row.answer.refusal
        kind = f" ({refusal.kind}; next step: {refusal.next_step or 'none'})" if refusal else ""
        lines.append(f"- {case_text(row.case)}: {markdown_cell('; '.join(row.problems))}{markdown_cell(kind)}")
    return [f"## {title}", "", *lines, ""]


def _not_run(report: Report) -> list[str]:
    absent = [case for case in report.cases if report.row(case) is None]
    if not absent:
        return []
    lines = []
    for model in dict.fromkeys(case.model for case in absent):
        targets = [_target_text(case.target, case.device) for case in absent if case.model == model]
        lines.append(f"- {model}: {'every target' if len(targets) == len(TARGETS) else ', '.join(targets)}")
    return ["## Not run", "", *lines, ""]
