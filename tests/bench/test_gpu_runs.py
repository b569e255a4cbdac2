"""The suite of GPU runs: cases, processes and results, rehearsed on the CPU; on the GPU where there is one."""

import os
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tsexport.bench.statistics import summarize
from tsexport.bench.suites import gpu_runs
from tsexport.bench.suites.gpu_cases import CASES, WAYS
from tsexport.bench.suites.gpu_process import GpuProcess
from tsexport.bench.suites.gpu_records import OUTPUT_LIMITS, GpuFacts, GpuReport, GpuRow
from tsexport.bench.suites.gpu_runs import Run, resumed
from tsexport.bench.suites.gpu_text import report_name, report_text
from tsexport.bench.suites.gpu_worker import Begun, Done, Job, from_line, prepare, run_job, time_calls, to_line
from tsexport.codec import decode, encode
from tsexport.devices import device_of
from tsexport.errors import DataError, TsexportError
from tsexport.gpus import Gpu
from tsexport.models.definition import component_of
from tsexport.models.registry import get_entry
from tsexport.runtimes.cuda_build import cuda_obstacle

OBSTACLE = cuda_obstacle()
FP32 = next(i for i, case in enumerate(CASES) if case.name == "patchtst, fp32, batch 1")
FP16 = next(i for i, case in enumerate(CASES) if case.name == "patchtst-cpu, fp16, batch 1")
H100 = Gpu("NVIDIA H100 80GB HBM3", 85520809984, "580.65.06", "9.0", 700.0, 1980)


def report(gpu=H100, rehearsal=False, runs=1):
    case = CASES[0]
    rows = (
        GpuRow(case, "compiled, CUDA graph", "measured", summarize([0.5] * 70), summarize([0.75] * 20), 0.01, 4,
               10**8, 2.5, ("torch.compile broke the module in 2 places",), clock_mhz=1980, run=runs - 1),
        GpuRow(case, "eager", "failed", reason="RuntimeError: no kernel image"),
        GpuRow(case, "TorchScript", "wrong", output_error=0.2, checked=4, reason="its error is 0.2, 0.05 allowed"),
    )  # fmt: skip
    facts = GpuFacts(gpu, "2.11.0", "13.0", "3.6.0", "3.12.3", "a CPU", "2026-11-26")
    return GpuReport("gpu", rehearsal, (facts,) * runs, rows, ("the room was warm",))


def test_every_case_has_its_model():
    """Names, settings and components are those of the registry; what stays in fp32 is checked where a case is cast."""
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        definition = get_entry(case.model).definition()
        definition.Config(**dict(case.settings))
        if case.component:
            component_of(definition, case.component, model=case.model)
        assert case.precision in OUTPUT_LIMITS


def test_the_published_points_are_there():
    """hrm-27m and its parts in bf16 (days in batches of 1 and 128, windows of 256), both sfno, both patchtst."""
    points = {(case.model, case.component, case.precision, case.batch) for case in CASES}
    parts = (None, "h-module", "l-module", "conditioning-heads")
    assert {("hrm-27m", part, "bf16", 1) for part in parts} <= points
    assert {("hrm-27m", None, "bf16", 128), ("hrm-27m", "l-module", "bf16", 256)} <= points
    assert {("sfno-edge", None, "fp16", 1), ("sfno-hybrid", None, "fp16", 1)} <= points
    patchtst = {(name, None, precision, 1) for name in ("patchtst", "patchtst-cpu") for precision in OUTPUT_LIMITS}
    assert patchtst <= points


@pytest.mark.parametrize("name", ["patchtst, bf16, batch 1", "hrm-27m conditioning-heads, bf16, batch 1"])
def test_what_stays_in_fp32(name):
    prepared = prepare(next(case for case in CASES if case.name == name))
    kinds = {name: value.dtype for name, value in prepared.module.named_parameters()}
    wide = {name for name, kind in kinds.items() if kind == torch.float32}
    assert torch.bfloat16 in kinds.values()
    assert {name.split(".")[-2] for name in wide} == ({"film", "q_head"} if "hrm" in name else set())


def test_messages_travel():
    for message in (Job(3, ("eager",), "cuda", 0.5, True), Begun(1, "TorchScript"), Done(report().rows[0])):
        assert from_line(to_line(message)) == message
    with pytest.raises(DataError, match="'nonsense' is no message of a GPU worker"):
        from_line("nonsense")


def test_a_case_on_the_cpu():
    messages = list(run_job(Job(FP32, ("eager", "TorchScript", "TorchScript, CUDA graph"), "cpu", 0.01)))
    assert [type(one).__name__ for one in messages] == ["Begun", "Done"] * 3
    eager, script, graph = (one.row for one in messages if isinstance(one, Done))
    for row in (eager, script):
        assert row.status == "measured", row.reason
        assert row.output_error <= OUTPUT_LIMITS["fp32"].limit
        assert row.device is None  # there are no events on a CPU
        assert row.wall.samples >= 10
    assert (graph.status, graph.reason) == ("not run", "a rehearsal on the CPU has no CUDA graphs")


def test_a_wrong_answer_is_not_timed(monkeypatch):
    tight = {**OUTPUT_LIMITS, "fp16": replace(OUTPUT_LIMITS["fp16"], limit=1e-9)}
    monkeypatch.setattr("tsexport.bench.suites.gpu_worker.OUTPUT_LIMITS", tight)
    row = list(run_job(Job(FP16, ("TorchScript",), "cpu", 0.01)))[-1].row
    assert row.status == "wrong"
    assert row.wall is None
    assert row.reason.endswith("gpu-fp16 allows 1e-09")


def test_as_many_calls_as_the_time_allows():
    assert time_calls(lambda: 1.0, 5.0).samples == 662
    slow = time_calls(lambda: time.sleep(0.01) or 10.0, 0.0)
    assert slow.samples == 10
    assert slow.p90_ms is None


@pytest.mark.slow
def test_a_process_that_ends_costs_one_way():
    """The worker is killed while it runs its first way: that one failed, the next runs in a fresh process."""
    job = Job(FP32, ("eager", "TorchScript"), "cpu", 60.0)
    with GpuProcess(120.0) as process:
        rows = process.run(job, time.monotonic() + 120.0)
        threading.Timer(2.0, lambda: os.kill(process._process.pid, signal.SIGKILL)).start()
        first = next(rows)
    assert (first.way, first.status) == ("eager", "failed")
    assert first.reason.startswith("its process ended with -9")


@pytest.mark.slow
def test_what_is_late_is_ended():
    with GpuProcess(0.1) as process:  # no machine imports torch in that time
        row = next(process.run(Job(FP32, ("eager",), "cpu", 1.0), time.monotonic() + 60.0))
    assert (row.status, row.reason) == ("failed", "it did not answer in 0.1 s")


def test_what_the_time_does_not_suffice_for():
    with GpuProcess(1.0) as process:
        rows = list(process.run(Job(FP32, WAYS, "cpu", 1.0), time.monotonic()))
    assert [row.way for row in rows] == list(WAYS)
    assert {(row.status, row.reason) for row in rows} == {("not run", "the time was up")}


def test_a_report_is_read_as_it_was_written():
    assert decode(GpuReport, encode(report()), what="report") == report()


def test_a_result_bears_the_gpu_s_name():
    assert report_name(report()) == "gpu-h100"
    assert report_name(report(gpu=replace(H100, name="NVIDIA H200"))) == "gpu-h200"
    assert report_name(report(rehearsal=True)) == "gpu-rehearsal"
    assert device_of(replace(H100, name="NVIDIA GeForce RTX 4090")) == "nvidia-geforce-rtx-4090"
    text = report_text(report())
    assert text.startswith("# torch on a GPU: NVIDIA H100 80GB HBM3\n")
    for part in ("power limit 700 W", "0.500", "n/a", "- eager: failed, RuntimeError: no kernel image", "in 2 places",
                 "- TorchScript: wrong, its error is 0.2", "- run 1: 2026-11-26; NVIDIA H100", "- the room was warm",
                 ):  # fmt: skip
        assert part in text
    assert "| run |" not in text
    assert next(line for line in report_text(report(runs=2)).splitlines() if "CUDA graph" in line).endswith("|   2 |")
    assert "REHEARSAL" in report_text(report(rehearsal=True)).splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu"], "a rehearsal is no result: give it an --output of its own"),
        (["--device", "cpu", "--output", "OUT", "--only", "gpt"], "no case is called gpt; there are: hrm-27m"),
    ],
)
def test_what_the_command_refuses(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        gpu_runs.main([str(tmp_path) if word == "OUT" else word for word in arguments])
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(not OBSTACLE, reason="this machine has a GPU")
def test_no_gpu_is_no_result(capsys):
    with pytest.raises(SystemExit):
        gpu_runs.main([])
    assert "this machine has no NVIDIA GPU" in " ".join(capsys.readouterr().err.split())


def test_a_resumed_run_takes_only_what_is_not_measured(tmp_path):
    """What was measured, or found wrong, stays as it is; a new row stands in place of the one that failed."""
    before = report()
    facts = before.runs[0]
    (tmp_path / "gpu-h100.json").write_text(encode(before))
    assert resumed(tmp_path / "gpu-h100.json", facts) == before
    run = Run("cuda", 0.1, time.monotonic(), tmp_path, (*before.runs, facts), list(before.rows), before.remarks)
    assert [job.ways for job in run.jobs([0], WAYS)] == [("eager", "TorchScript, CUDA graph", "compiled")]
    assert [job.case for job in run.jobs([0, 1], ("TorchScript",))] == [1]
    run.add(GpuRow(CASES[0], "eager", "measured", summarize([0.5] * 10), summarize([0.7] * 10), 0.01, 4))
    written = decode(GpuReport, (tmp_path / "gpu-h100.json").read_text(), what="report")
    assert {(row.way, row.status, row.run) for row in written.rows} == {
        ("compiled, CUDA graph", "measured", 0), ("TorchScript", "wrong", 0), ("eager", "measured", 1),
    }  # fmt: skip
    assert len(written.runs) == 2
    assert written.remarks == before.remarks


@pytest.mark.parametrize(
    ("change", "rehearsal", "message"),
    [
        ({"torch": "2.13.0"}, False, "gpu-h100.json was taken on NVIDIA H100 80GB HBM3 with torch 2.13.0, CUDA 13.0; "
         "here is NVIDIA H100 80GB HBM3 with torch 2.11.0, CUDA 13.0"),
        ({"gpu": replace(H100, name="NVIDIA H200")}, False, "was taken on NVIDIA H200 with torch 2.11.0"),
        ({}, True, "gpu-h100.json is a rehearsal, which no run goes on with"),
    ],
)  # fmt: skip
def test_what_cannot_be_resumed(tmp_path, change, rehearsal, message):
    before = report(rehearsal=rehearsal)
    path = tmp_path / "gpu-h100.json"
    path.write_text(encode(replace(before, runs=(replace(before.runs[0], **change),))))
    with pytest.raises(TsexportError, match=re.escape(message)):
        resumed(path, before.runs[0])


def test_the_command_says_what_cannot_be_resumed(tmp_path, capsys):
    path = tmp_path / "gpu-h100.json"
    path.write_text(encode(report()))
    with pytest.raises(SystemExit):
        gpu_runs.main(["--device", "cpu", "--output", str(tmp_path), "--resume", str(path)])
    message = " ".join(capsys.readouterr().err.split())
    assert "gpu-h100.json was taken on NVIDIA H100 80GB HBM3" in message
    assert "leave --resume out, and give the results an --output of their own" in message


@pytest.mark.slow
def test_a_rehearsal_from_end_to_end(tmp_path):
    only = ["--only", "patchtst, fp32"]
    assert gpu_runs.main(["--device", "cpu", "--output", str(tmp_path), "--seconds", "0.05", *only]) == 0
    found = decode(GpuReport, (tmp_path / "gpu-rehearsal.json").read_text(), what="report")
    assert found.rehearsal
    assert {row.way: row.status for row in found.rows} == {
        way: "not run" if way.endswith("CUDA graph") else "measured" for way in WAYS
    }
    assert Path(tmp_path / "gpu-rehearsal.md").read_text().startswith("# torch on a GPU: REHEARSAL")


@pytest.mark.gpu
@pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE)
@pytest.mark.parametrize("case", [FP32, FP16])
def test_a_case_on_the_gpu(case):
    rows = [one.row for one in run_job(Job(case, WAYS[:3], "cuda", 0.05)) if isinstance(one, Done)]
    for row in rows:
        assert row.status == "measured", row.reason
        assert row.device.samples >= 10
        weights = sum(value.numel() for value in prepare(CASES[case]).module.parameters())
        assert weights < row.memory_bytes < 2**30  # both models have a few million weights of 2 or 4 bytes
