"""The parts of a plan that need no build: how many at once, what is said, and what becomes of a process that dies."""

import io
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsexport.bench.device_records import DeviceMeasurement, DeviceRecord, MeasuredDevice, write_device_record
from tsexport.bundles.bundle import open_bundle
from tsexport.options import BuildOptions
from tsexport.plans import local, process, worker
from tsexport.plans.files import PLAN_TABLES, read_plan
from tsexport.plans.headlines import accuracy_text, headline_of, latency_text, with_headline
from tsexport.plans.progress import PlanProgress
from tsexport.plans.records import Accuracy, Headline, Job, Latency, PlanResult, Row, worst_code
from tsexport.types import Budget, Verdict

DOCS = (Path(__file__).resolve().parent.parent.parent / "docs" / "plans.md").read_text()
ROW = Row("linear-t4-fp32", "linear", "t4-fp32", "host", "/dist/linear-t4-fp32", "built", seconds=12.0)


# --- the document


def test_the_example_of_the_document_is_a_plan(tmp_path):
    (example,) = re.findall(r"<!-- read by a test -->\n```toml\n(.*?)```", DOCS, re.DOTALL)
    path = tmp_path / "plan.toml"
    path.write_text(example)
    builds = [one.options for one in read_plan(path, {})]
    assert [(one.model, one.target, one.device) for one in builds] == [
        ("dlinear", "cpu4-int8", "host"),
        ("dlinear", "jetson-int8", "orin-nano@jetpack-6.2"),
        ("patchtst", "cpu4-int8", "host"),
        ("patchtst", "jetson-int8", "orin-nano@jetpack-6.2"),
        ("linear", "cpu4-fp32", "host"),
    ]
    assert builds[2].settings == {"horizon": 24, "width": 64}
    assert builds[2].calibration == tmp_path / "prices.csv"
    assert (builds[4].name, builds[4].settings) == ("linear-small", {"horizon": 24, "context_length": 48})
    assert {one.max_degradation for one in builds} == {0.03}


@pytest.mark.parametrize("table", PLAN_TABLES)
def test_the_document_names_every_table(table):
    assert f"[{table}]" in DOCS


# --- exit codes


@pytest.mark.parametrize(("codes", "worst"), [((), 0), ((0, 0), 0), ((0, 5, 4), 4), ((5, 2, 3), 2), ((1, 2), 1)])
def test_the_worst_code_is_the_smallest_that_is_not_0(codes, worst):
    assert worst_code(codes) == worst
    rows = tuple(replace(ROW, exit_code=code) for code in codes)
    assert PlanResult("plan.toml", "local", rows, 1.0).exit_code == worst


@given(st.lists(st.integers(0, 6)))
def test_a_plan_ends_with_0_only_where_every_row_does(codes):
    assert (worst_code(codes) == 0) == (not any(codes))
    assert worst_code(codes) in (*codes, 0)


# --- how many at once


@pytest.mark.parametrize(
    ("builds", "cores", "free_gib", "limit_gib", "at_once"),
    [
        (9, 4, 64, None, 4),
        (2, 4, 64, None, 2),
        (9, 4, 7, None, 2),
        (9, 4, 64, 7, 2),
        (9, 4, 1, None, 1),
        (0, 4, 64, None, 1),
    ],
)
def test_builds_at_once_are_as_many_as_cores_and_memory_allow(monkeypatch, builds, cores, free_gib, limit_gib, at_once):
    monkeypatch.setattr(local, "cores_here", lambda: cores)
    monkeypatch.setattr(local, "memory_limit", lambda total: limit_gib and limit_gib * 2**30)
    memory = SimpleNamespace(available=free_gib * 2**30, total=64 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert local.jobs_here(builds) == at_once


# --- what is said


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_shows_what_is_running(tmp_path):
    log = tmp_path / "log"
    log.write_text("--- process 7 of process 6 on host builds linear-t4-fp32\n[ 2/6] parity: 0.3 s, about 4 s left\n")
    stream = Terminal()
    progress = PlanProgress({ROW.path: 30.0, "/dist/b": 30.0}, {ROW.path: log}, 2, stream=stream)
    progress.told(ROW.path, None)
    progress.told("/dist/b", None)
    progress.tick()
    shown = stream.getvalue().split("\x1b[2K")[-1]
    assert shown == "linear-t4-fp32: [ 2/6] parity: 0.3 s; b: begins (about 30 s left)"
    progress.told(ROW.path, ROW)
    progress.clear()
    assert stream.getvalue().endswith("[ 1/2 done] linear-t4-fp32: built, 12 s, about 30 s left\n")


def test_progress_without_a_terminal_is_lines_and_quiet_is_nothing(tmp_path):
    stream, silent = io.StringIO(), io.StringIO()
    for progress in (PlanProgress({ROW.path: 30.0}, {}, 1, stream=stream), PlanProgress({}, {}, 1, True, silent)):
        progress.told(ROW.path, None)
        progress.tick()
        progress.told(ROW.path, replace(ROW, status="failed", reason="no data\nmore"))
        progress.note(ROW.path, "not measured: why")
        progress.clear()
    assert stream.getvalue().splitlines() == [
        "[ 0/1 done] linear-t4-fp32: building",
        "[ 1/1 done] linear-t4-fp32: failed: no data, 12 s",
        "[ 1/1 done] linear-t4-fp32: not measured: why",
    ]
    assert silent.getvalue() == ""


LATENCY = Latency(1.25, None, 1, 20, "openvino", 2, "a CPU")


@pytest.mark.parametrize(
    ("headline", "accuracy", "latency"),
    [
        (
            Headline("int8-onnx", "openvino", Accuracy("mse", 0.008), LATENCY),
            "mse 0.8 % worse",
            "measured: p50 1.25 ms, p90 n/a, batch 1, 2 threads, 20 samples on a CPU",
        ),
        (
            Headline("x", "onnxruntime", Accuracy("output error", 0.02), replace(LATENCY, runtime="tensorrt 10.3.0")),
            "output error 2 %",
            "measured: p50 1.25 ms, p90 n/a, batch 1, 20 samples on a CPU, tensorrt 10.3.0",
        ),
        (Headline("x", "onnxruntime", None, None, "built on no t4"), "n/a", "not measured: built on no t4"),
    ],
)
def test_figures_say_how_they_were_obtained(headline, accuracy, latency):
    assert accuracy_text(headline) == accuracy
    assert latency_text(headline) == latency


def test_the_headline_of_a_measured_bundle(measured_folder):
    headline = headline_of(open_bundle(measured_folder))
    assert (headline.selected, headline.runtime) == ("int8-onnx", "onnxruntime")
    assert headline.accuracy == Accuracy("mse", 0.008)
    assert (headline.latency.batch, headline.latency.threads, headline.latency.samples) == (1, 2, 700)
    assert headline.latency.device == "Example CPU"


def test_a_row_that_a_device_missed_ends_with_4(measured_folder):
    budget = Budget("latency", "tiny", "t4", "int8", 1, max_ms=5.0, source="Example Plan")
    device = MeasuredDevice("0" * 12, "Tesla T4", "Tesla T4", "7.5", "", "10.3.0", "", "Linux 6")
    record = DeviceRecord(
        device, "t4-int8", "int8-onnx", "int8", "file", "a" * 64, "b" * 64, 10, "excluded", True, True, 1, 1, 1,
        "c" * 64, (DeviceMeasurement(1, (6.0,) * 700, 6.0),), (Verdict("missed", budget, "6 ms, allowed 5 ms"),),
    )  # fmt: skip
    write_device_record(record, measured_folder / "measurements")
    row = with_headline(ROW, open_bundle(measured_folder))
    assert (row.exit_code, row.reason) == (4, "latency budgets missed: 6 ms, allowed 5 ms")
    assert row.headline.latency.runtime == "tensorrt 10.3.0, without copies"
    assert row.headline.latency.device == "Tesla T4"


# --- processes


@pytest.fixture
def job(tmp_path):
    options = BuildOptions("linear", "t4-fp32", tmp_path / "dist")
    return Job("linear-t4-fp32", options, tmp_path, tmp_path / "cache", tmp_path / "running")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; print('so it goes', file=sys.stderr); sys.exit(7)",
         "its process ended with exit code 7; it wrote last: so it goes"),
        ("import os; os.abort()", "its process ended by SIGABRT"),
        ("import os; os.kill(os.getpid(), 9)",
         "its process ended by SIGKILL, as the kernel does where memory runs out"),
        ("import sys; sys.exit(130)", "interrupted"),
        ("print('garbage')", "its process ended with exit code 0"),
        ("import os, sys; os.close(0); sys.exit(3)", "its process ended with exit code 3"),
    ],
)  # fmt: skip
def test_a_process_that_dies_becomes_a_row(monkeypatch, job, program, reason):
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-c", program))
    row = process.build_in_process(job, lambda: True)
    assert (row.status, row.exit_code, row.reason) == ("failed", 1, reason)
    assert (row.name, row.path) == ("linear-t4-fp32", job.path)
    assert Path(row.log).is_file()


def test_a_process_that_is_no_longer_wanted_is_ended(monkeypatch, job):
    program = "import sys; sys.stdin.readline(); sys.stdin.read(); sys.exit(130)"
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-c", program))
    assert process.build_in_process(job, lambda: False).reason == "interrupted"


def test_a_process_that_does_not_end_is_killed(monkeypatch, job):
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-c", "import time; time.sleep(600)"))
    monkeypatch.setattr(process, "GOODBYE_SECONDS", 0.1)
    monkeypatch.setattr(process, "_KILLED_SECONDS", 0.1)
    assert process.build_in_process(job, lambda: False).reason.startswith("its process ended by SIGKILL")


def test_a_bug_is_a_row_with_exit_code_1(monkeypatch, job, capsys):
    monkeypatch.setattr("tsexport.pipeline.plan_build", lambda options: 1 / 0)
    row = worker.carry_out(job)
    assert (row.status, row.exit_code) == ("failed", 1)
    assert row.reason == "a bug in tsexport: ZeroDivisionError: division by zero"
    assert "Traceback" in capsys.readouterr().err
