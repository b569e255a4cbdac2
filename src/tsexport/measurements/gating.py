"""What `bench` and `compare` judged, as CI systems read it: JUnit XML and a Markdown summary.

One test case for each judged row: a failure where a budget is missed or a regression was confirmed, skipped with the
reason where nothing could be judged, passed else.  The XML has the elements and attributes of the schema that Jenkins'
xUnit plug-in publishes (junit-10.xsd), which GitLab and GitHub's reporters read too; it is written with the standard
library's ElementTree, since all that is needed are four elements.  In GitHub Actions the summary is appended to the
file that `$GITHUB_STEP_SUMMARY` names.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree

from tsexport.bench.affinity import threads_text
from tsexport.bench.figures import figure_text
from tsexport.bench.rows import budget_text, milliseconds, status_word, verdict_rows
from tsexport.codec import try_folder, write_whole
from tsexport.errors import UsageError

if TYPE_CHECKING:
    from tsexport.bench.compare_records import ComparedSide, ComparisonResult
    from tsexport.bench.figure_verdicts import FigureVerdict
    from tsexport.measurements.benchmarking import BenchmarkResult
    from tsexport.types import Verdict

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"
_PASSED = frozenset({"met", "refuted"})
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, escaped or not (section 2.2)."""
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~&@!])")

Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class GateCase:
    """One judged row.  `group` is the bundle, `kind` what a failure is called, `seconds` what judging it took."""

    group: str
    name: str
    outcome: Outcome
    status: str
    value: str
    reason: str
    kind: str = "budget missed"
    seconds: float = 0.0


@dataclass(frozen=True)
class GateReport:
    """Cases under a title; `lead` are lines above their table in the summary, and `tables` more tables below it."""

    title: str
    cases: tuple[GateCase, ...]
    lead: tuple[str, ...] = ()
    tables: tuple["GateTable", ...] = ()


@dataclass(frozen=True)
class GateTable:
    """A table of text with its title."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def bench_report(results: Sequence["BenchmarkResult"], ensembles: Sequence["Verdict"] = ()) -> GateReport:
    """Return the judged rows of bundles, with what their artifacts are fast enough for."""
    from tsexport.bench.use_cases import use_case_rows, use_case_titles

    cases: list[GateCase] = []
    tables: list[GateTable] = []
    for one in results:
        cases += verdict_cases(one.bundle, one.record.verdicts)
        cases += [_figure_case(one.bundle, verdict) for verdict in one.figures]
        columns = ("artifact", "runtime", "batch", "p90", "samples", *use_case_titles(one.use_cases))
        tables.append(GateTable(f"{one.bundle}: fast enough for", columns, use_case_rows(one.use_cases)))
    cases += verdict_cases("ensembles", ensembles)
    machines = dict.fromkeys(f"{one.bundle}: measured on {one.record.machine}" for one in results)
    return GateReport("tsexport bench", _distinct(cases), tuple(machines), tuple(tables))


def verdict_cases(group: str, verdicts: Sequence["Verdict"]) -> list[GateCase]:
    """Return a case for each row of a latency table that was judged."""
    cases = []
    for verdict, row in zip(verdicts, verdict_rows(verdicts), strict=True):
        budget = verdict.budget
        batch = "" if budget.batch is None else f"batch {budget.batch}"
        via = f"over {budget.via}" if budget.via else ""
        words = (budget.kind, budget.model, budget.component, budget.device, budget.precision, batch, via)
        name = f"{' '.join(word for word in words if word)}: {budget_text(budget) or 'no figure'}"
        cases.append(GateCase(group, name, _outcome(verdict.status), row.status, row.value, verdict.reason))
    return cases


def compare_report(result: "ComparisonResult") -> GateReport:
    """Return a comparison of two bundles as one case."""
    outcomes: Mapping[str, Outcome] = {"regression": "failed", "inconclusive": "skipped"}
    base, candidate = result.base, result.candidate
    name = (
        f"{candidate.artifact} on {candidate.runtime} against {base.artifact} on {base.runtime}, batch {result.batch}"
    )
    case = GateCase(
        group=candidate.bundle,
        name=name,
        outcome=outcomes.get(result.verdict, "passed"),
        status=result.verdict,
        value=str(result.ratio),
        reason=result.reason,
        kind="regression",
        seconds=result.seconds,
    )
    rows = tuple(
        (side, one.given, one.artifact, one.runtime, one.precision, _median(one))
        for side, one in (("base", base), ("candidate", candidate))
    )
    judged = not result.runs or result.runs[-1].looks > 0
    floor = f"{100 * result.noise_floor:.3g} %" if judged else "n/a"
    lead = (
        f"{result.verdict}: {result.ratio} against the base; threshold {100 * result.threshold:.3g} %, "
        f"noise floor {floor}",
        f"{result.processes} fresh processes of each side, {threads_text(result.threads)}, on {result.machine}",
        f"noise: {result.noise}",
    )
    columns = ("side", "bundle", "artifact", "runtime", "precision", "median")
    return GateReport("tsexport compare", (case,), lead, (GateTable("", columns, rows),))


def require_writable(*, junit: Path | None = None, summary: Path | None = None) -> None:
    """Raise where `publish` could not write these, before minutes are spent on what they are to hold.

    Raises:
        UsageError: a file cannot be written.
    """
    for path, option in ((junit, "--junit"), (summary, "--summary")):
        if path is not None:
            try:
                try_folder(path.parent)
            except OSError as error:
                raise _unwritable(path, option, error) from error


def publish(report: GateReport, *, junit: Path | None = None, summary: Path | None = None) -> None:
    """Write a report where it is asked for, and append the summary to `$GITHUB_STEP_SUMMARY` where that is set.

    Raises:
        UsageError: a file cannot be written.
    """
    if junit is not None:
        _write(junit, junit_text(report), "--junit")
    if summary is not None:
        _write(summary, summary_text(report), "--summary")
    step = os.environ.get(STEP_SUMMARY)
    if step:
        try:
            with Path(step).open("a", encoding="utf-8") as file:
                file.write(summary_text(report) + "\n")
        except OSError as error:
            raise UsageError(f"${STEP_SUMMARY} is {step}, which cannot be written: {error.strerror}") from error


def junit_text(report: GateReport) -> str:
    """Return JUnit XML: one suite, a case for each judged row."""
    count = Counter(case.outcome for case in report.cases)
    totals = {
        "name": _xml(report.title),
        "tests": str(len(report.cases)),
        "failures": str(count["failed"]),
        "errors": "0",
        "time": f"{sum(case.seconds for case in report.cases):.3f}",
    }
    root = ElementTree.Element("testsuites", totals)
    suite = ElementTree.SubElement(root, "testsuite", {**totals, "skipped": str(count["skipped"])})
    for case in report.cases:
        element = ElementTree.SubElement(
            suite,
            "testcase",
            {"name": _xml(case.name), "classname": _xml(case.group), "time": f"{case.seconds:.3f}"},
        )
        message = {"message": _xml(case.reason)}
        if case.outcome == "failed":
            failure = ElementTree.SubElement(element, "failure", {**message, "type": _xml(case.kind)})
            failure.text = _xml(f"{case.status}: {case.value}\n{case.reason}")
        elif case.outcome == "skipped":
            ElementTree.SubElement(element, "skipped", {"message": _xml(f"{case.status}: {case.reason}")})
        else:
            ElementTree.SubElement(element, "system-out").text = _xml(f"{case.status}: {case.value}\n{case.reason}")
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def summary_text(report: GateReport) -> str:
    """Return Markdown: how many passed, the judged rows, then what could not be judged, folded away."""
    count = Counter(case.outcome for case in report.cases)
    lines = [f"## {_md(report.title)}", ""]
    for line in report.lead:
        lines += [_md(line), ""]
    lines += [f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} not judged", ""]
    judged = [case for case in report.cases if case.outcome != "skipped"]
    skipped = [case for case in report.cases if case.outcome == "skipped"]
    judged.sort(key=lambda case: case.outcome != "failed")
    columns = ("bundle", "row", "status", "value", "reason")
    lines += _table(columns, [(c.group, c.name, c.status, c.value, c.reason) for c in judged])
    for table in report.tables:
        lines += [f"### {_md(table.title)}", ""] if table.title else []
        lines += _table(table.columns, table.rows)
    if skipped:
        lines += ["<details>", f"<summary>{len(skipped)} not judged, with the reasons</summary>", ""]
        lines += _table(columns, [(c.group, c.name, c.status, c.value, c.reason) for c in skipped])
        lines += ["</details>", ""]
    return "\n".join(lines)


def _median(side: "ComparedSide") -> str:
    """Return the median of one side; it has none where the two were not timed, as for equal bundles."""
    return milliseconds(side.median_ms if side.medians_ms else None)


def _figure_case(group: str, verdict: "FigureVerdict") -> GateCase:
    figure = verdict.figure
    words = (figure.kind.replace("_", " "), str(figure), figure.precision)
    name = f"{' '.join(word for word in words if word)}: {figure_text(figure)}"
    unit = f" {figure.unit}" if figure.unit else ""
    value = "n/a" if verdict.value is None else f"{verdict.value:.4g}{unit}"
    # A description that is contradicted is nobody's failure, and no test that passed either.
    outcome: Outcome = "skipped" if verdict.status == "refuted" else _outcome(verdict.status)
    return GateCase(group, name, outcome, status_word(verdict.status), value, verdict.reason)


def _outcome(status: str) -> Outcome:
    if status == "missed":
        return "failed"
    return "passed" if status in _PASSED else "skipped"


def _distinct(cases: Sequence[GateCase]) -> tuple[GateCase, ...]:
    """Number the cases that have another's group and name: CI systems take equal ones for one test."""
    seen: Counter[tuple[str, str]] = Counter()

    def numbered() -> Iterator[GateCase]:
        for case in cases:
            seen[case.group, case.name] += 1
            number = seen[case.group, case.name]
            yield case if number == 1 else replace(case, name=f"{case.name} ({number})")

    return tuple(numbered())


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    head = ["| " + " | ".join(_md(column) for column in columns) + " |", "|" + " --- |" * len(columns)]
    return [*head, *("| " + " | ".join(_md(cell) for cell in row) + " |" for row in rows), ""]


def _xml(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _md(text: str) -> str:
    """Return text that Markdown shows as it is, on one line: no markup, no HTML, no mention."""
    return _MARKDOWN.sub(r"\\\1", " ".join(_xml(text).split()))


def _write(path: Path, text: str, option: str) -> None:
    try:
        write_whole(path, text)
    except OSError as error:
        raise _unwritable(path, option, error) from error


def _unwritable(path: Path, option: str, error: OSError) -> UsageError:
    return UsageError(f"{option} {path} cannot be written: {error.strerror}", next_step="name another file")
