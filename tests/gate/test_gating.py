"""JUnit XML and the Markdown summary: structure, counts, and text that would break either."""

import html
import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsexport.bench.compare_records import ComparedSide, ComparisonResult, Slowdown
from tsexport.bench.figure_verdicts import FigureVerdict
from tsexport.bench.figures import Figure
from tsexport.bench.noise import MachineNoise
from tsexport.bench.records import read_record
from tsexport.bench.tables import load_tables
from tsexport.bench.use_cases import answer_use_cases
from tsexport.bench.verdicts import judge
from tsexport.errors import UsageError
from tsexport.measurements.benchmarking import BenchmarkResult
from tsexport.measurements.gating import (
    GateCase,
    GateReport,
    bench_report,
    compare_report,
    junit_text,
    publish,
    summary_text,
)

_SPEC = importlib.util.spec_from_file_location("junit_schema", Path(__file__).with_name("junit_schema.py"))
junit_schema = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(junit_schema)


def test_junit_holds_a_case_for_each_row(report):
    (suite,) = junit_schema.parse(junit_text(report))
    assert [(c.get("classname"), c.get("name"), c[0].tag) for c in suite] == [
        ("bundle-a", "latency", "system-out"),
        ("bundle-a", "memory", "failure"),
        ("bundle-b", "throughput", "skipped"),
    ]
    assert suite[1][0].get("type") == "budget missed"
    assert suite[1][0].get("message") == "9 MB; 5 MB allowed"
    assert suite[2][0].get("message") == "not measured: over http"
    assert suite.get("time") == "1.500"


def test_the_summary_shows_failures_first_and_folds_what_was_not_judged(report):
    text = summary_text(report)
    assert text.startswith("## a title\n\nmeasured here\n\n1 passed, 1 failed, 1 not judged\n")
    assert text.index("| memory |") < text.index("| latency |") < text.index("### use cases")
    assert "| fp32 | yes |" in text
    folded = text[text.index("<details>") : text.index("</details>")]
    assert "over http" in folded
    assert "memory" not in folded


def test_an_empty_report_is_valid_too():
    empty = GateReport("nothing", ())
    assert len(junit_schema.parse(junit_text(empty))[0]) == 0
    assert "0 passed, 0 failed, 0 not judged" in summary_text(empty)


EVIL = st.text() | st.sampled_from(["<script>", "]]>", "a|b\n|c|", "&amp;", "\x00\x1b[31m", "\ud800", "`x`", "![a](b)"])


@given(st.lists(st.tuples(EVIL, EVIL, EVIL, EVIL, st.sampled_from(["passed", "failed", "skipped"])), max_size=4), EVIL)
def test_text_of_users_breaks_neither(values, title):
    cases = tuple(GateCase(group, name, outcome, "s", value, reason) for group, name, value, reason, outcome in values)
    report = GateReport(title, cases)
    (suite,) = junit_schema.parse(junit_text(report))
    assert len(suite) == len(cases)
    lines = summary_text(report).encode().decode().split("\n")
    rows = [line for line in lines if line.startswith("| ")]
    heads = sum(line == "| bundle | row | status | value | reason |" for line in rows)
    rows = [row for row in rows if "| --- |" not in row]
    assert len(rows) - heads == len(cases)
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 6 for row in rows)
    tags = [tag for line in lines for tag in re.findall(r"(?<!\\)(?:\\\\)*(<[a-z/])", line)]
    assert set(tags) <= {"<d", "</", "<s"}
    assert not any("<script" in re.sub(r"\\.", "", line) for line in lines)


def test_what_xml_can_hold_is_kept():
    case = GateCase("g", 'ä 漢 \N{GRINNING FACE} "quoted" <&>', "failed", "s", "v", "line 1\nline 2\x07")
    (suite,) = junit_schema.parse(junit_text(GateReport("t", (case,))))
    assert suite[0].get("name") == case.name
    assert suite[0][0].text.endswith("line 1\nline 2\N{REPLACEMENT CHARACTER}")
    assert html.unescape(junit_text(GateReport("t", (case,)))).count("<&>") == 1


# --- of bench --------------------------------------------------------------------------------------------------------


def figure_verdict(status, is_budget=False):
    return FigureVerdict(status, Figure("memory", "m", "weights", "MB", 1.0, 1.0, is_budget, source="s"), "why", 2.0)


def test_every_status_has_its_outcome(example):
    result = replace(
        example, figures=tuple(map(figure_verdict, ("met", "missed", "refuted", "inconclusive", "not possible")))
    )
    report = bench_report([result])
    outcomes = {case.status: case.outcome for case in report.cases if case.name.startswith("memory")}
    assert outcomes == {
        "pass": "passed",
        "miss": "failed",
        "refuted": "skipped",
        "inconclusive": "skipped",
        "not possible": "skipped",
    }
    rows = {case.name.partition(":")[0]: (case.status, case.outcome) for case in report.cases}
    assert rows["latency tiny cpu4 int8 batch 1"] == ("pass", "passed")
    assert rows["latency tiny orin-nano int8 batch 1"] == ("not measured", "skipped")
    assert len({(case.group, case.name) for case in report.cases}) == len(report.cases)
    assert "(2)" in "".join(case.name for case in report.cases)
    junit_schema.parse(junit_text(report))
    assert "real-time (10 ms)" in summary_text(report)


@pytest.fixture
def example(measured_folder):
    (path,) = (measured_folder / "measurements").glob("*.json")
    record = read_record(path)
    answers = answer_use_cases(load_tables().service_level, record.measurements)
    return BenchmarkResult("tiny-cpu4-int8", "tiny", record, answers, (), 0)


# --- of compare ------------------------------------------------------------------------------------------------------


def comparison(verdict, machine):
    base = ComparedSide("main/dist", "tiny", "fp32-onnx", "onnxruntime", "fp32", (1.0, 1.1))
    candidate = ComparedSide("dist", "tiny", "int8-onnx", "openvino", "int8", (1.3, 1.4))
    noise = MachineNoise(1.0, (0,), 100, 200.0, 0.01, 1.0, 2.0, 0.0, 0.1, 2000.0, 3000.0, 0.5)
    return ComparisonResult(
        base=base, candidate=candidate, verdict=verdict, reason=f"because of {verdict}", confirmed=False,
        ratio=Slowdown(1.29, 1.2, 1.35, 0.95), threshold=0.05, noise_floor=0.02, processes=12, threads=2, cpus=(0,),
        batch=1, seconds=30.0, runs=(), machine=machine, noise=noise,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("verdict", "child"),
    [("regression", "failure"), ("inconclusive", "skipped"), ("improved", "system-out"), ("unchanged", "system-out")],
)
def test_a_comparison_is_one_case(verdict, child, example):
    result = comparison(verdict, example.record.machine)
    report = compare_report(result)
    ((case,),) = junit_schema.parse(junit_text(report))
    assert case[0].tag == child
    assert case.get("time") == "30.000"
    assert f"because of {verdict}" in case[0].get("message", "") + (case[0].text or "")
    if verdict == "regression":
        assert case[0].get("type") == "regression"
    text = summary_text(report)
    assert "+29.0 %" in text
    assert "threshold 5 %, noise floor 2 %" in text
    assert f"| base | main/dist | fp32-onnx | onnxruntime | fp32 | {median((1.0, 1.1)):.3g} ms |" in text


# --- files -----------------------------------------------------------------------------------------------------------


def test_reports_are_written_and_appended(report, tmp_path, monkeypatch):
    step = tmp_path / "step"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))
    publish(report, junit=tmp_path / "a" / "junit.xml", summary=tmp_path / "summary.md")
    publish(report)
    assert (tmp_path / "a" / "junit.xml").read_text() == junit_text(report)
    assert (tmp_path / "summary.md").read_text() == summary_text(report)
    assert step.read_text() == 2 * (summary_text(report) + "\n")


@pytest.mark.parametrize("option", ["junit", "summary"])
def test_a_file_that_cannot_be_written_is_named(report, tmp_path, option, monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=f"--{option} .*file/below cannot be written"):
        publish(report, **{option: tmp_path / "file" / "below"})


def test_without_a_place_nothing_is_written(report, tmp_path, monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.chdir(tmp_path)
    publish(report)
    assert list(tmp_path.iterdir()) == []


def test_a_verdict_of_the_published_tables_reads_the_same_in_both(example):
    verdict = judge([example.record.verdicts[0].budget], example.record.measurements, machine=example.record.machine)[0]
    report = bench_report([replace(example, record=replace(example.record, verdicts=(verdict,)))])
    assert verdict.reason in junit_text(report)
