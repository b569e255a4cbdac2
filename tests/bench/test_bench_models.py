"""The benchmark of every model: its goals, the mean over models, what is kept, and one whole run on tiny models."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tsexport.bench.statistics import Ratio, summarize
from tsexport.bench.suites import bench_models
from tsexport.bench.suites.contest import Entrant, fewer_windows
from tsexport.bench.suites.goals import Conditions
from tsexport.bench.suites.goals_of_models import judge_models
from tsexport.bench.suites.long_runs import LEFT_OUT, Failure
from tsexport.bench.suites.overview import budgets_text, overview_text
from tsexport.bench.suites.ratios import RoundMedians, mean_over_models
from tsexport.bench.suites.rows import EAGER, FASTEST_FP32, PLAIN_ONNX, PLAIN_TORCHSCRIPT, SELECTED, ModelResult, Row
from tsexport.bench.tables import latency_budgets
from tsexport.bench.verdicts import judge
from tsexport.errors import ConfigurationError, UsageError
from tsexport.models.registry import list_entries
from tsexport.quantize.evaluation import EvaluationSet

SUITE = Path(__file__).resolve().parent.parent.parent / "bench" / "suites" / "bench_models.py"
QUIET = Conditions("avx2", vnni=False, threads=1, batch=1, default_settings=True)
TINY = ("dlinear.context_length=40", "dlinear.horizon=8", "dlinear.channels=2", "dlinear.kernel=5")
PACE = ("--rounds=4", "--processes=2", "--seconds=0.2")


def rounds(name, *milliseconds):
    return RoundMedians(name, (milliseconds, milliseconds))


def result(model, *, plain=1.0, torchscript=2.0, fp32=0.8, ratio=None):
    """A model whose contestants took the same milliseconds in every round."""
    times = {PLAIN_TORCHSCRIPT: torchscript, PLAIN_ONNX: plain, FASTEST_FP32: fp32, SELECTED: fp32 / 2}
    best = ratio or Ratio(
        min(plain, torchscript) / fp32, min(plain, torchscript) / fp32, min(plain, torchscript) / fp32, 0.95
    )
    rows = (
        Row(EAGER, "", "fp32", is_export=False, summary=summarize([4.0] * 20)),
        *(
            Row(
                name,
                name,
                "int8" if name == SELECTED else "fp32",
                size_bytes=2_000_000,
                summary=summarize([value] * 20),
                than_best_plain_fp32=best if name == FASTEST_FP32 else None,
            )
            for name, value in times.items()
        ),
    )
    timed = tuple(rounds(name, *[value] * 5) for name, value in times.items())
    return ModelResult(model, rows, (), SELECTED, FASTEST_FP32, 64, 10, 2, (0.1, 0.2), rounds_ms=timed)


def test_the_mean_is_geometric_and_against_the_best_of_each_model():
    judged = judge_models([result("a", plain=1.0, fp32=0.5), result("b", plain=9.0, torchscript=0.5, fp32=1.0)], QUIET)
    assert [one.model for one in judged] == ["a", "b", "all models"]
    assert judged[-1].value == pytest.approx(1.0, rel=1e-12)  # 2 and 0.5
    assert (judged[-1].low, judged[-1].high, judged[-1].status) == (judged[-1].value, judged[-1].value, "missed")


def test_the_mean_is_met_with_its_whole_interval():
    assert judge_models([result("a", fp32=1 / 1.16)], QUIET)[-1].status == "met"
    assert judge_models([result("a", fp32=1 / 1.14)], QUIET)[-1].status == "missed"


def test_rounds_that_differ_widen_the_interval_of_the_mean():
    generator = np.random.default_rng(1)
    slow = RoundMedians("plain", tuple(map(tuple, generator.uniform(1.0, 2.0, (3, 12)))))
    even = RoundMedians("fp32", ((1.0,) * 12,) * 3)
    alone = mean_over_models([[(slow, even)]])
    assert alone.low < alone.value < alone.high
    with_steady = mean_over_models([[(slow, even)], [(even, even)]])
    assert math.log(with_steady.value) == pytest.approx(math.log(alone.value) / 2, rel=1e-9)
    assert with_steady.high / with_steady.low < alone.high / alone.low


def test_few_rounds_give_the_mean_no_interval():
    few = (rounds("plain", 2.0, 2.0), rounds("fp32", 1.0, 1.0))
    found = mean_over_models([[few]])
    assert (found.value, found.low, found.high) == (2.0, 0.0, None)
    with pytest.raises(ValueError, match="needs a model"):
        mean_over_models([])
    with pytest.raises(ValueError, match="every model a pair"):
        mean_over_models([[]])
    with pytest.raises(ValueError, match="same processes and rounds"):
        mean_over_models([[(rounds("plain", 1.0), rounds("fp32", 1.0, 1.0))]])


@pytest.mark.parametrize(
    ("ratio", "status", "why"),
    [
        (Ratio(1.2, 1.1, 1.3, 0.95), "met", ""),
        (Ratio(0.98, 0.9, 1.02, 0.95), "met", "as fast as"),
        (Ratio(0.9, 0.8, 0.99, 0.95), "missed", ""),
        (Ratio(0.5, 0.0, None, 0.95), "met", "as fast as"),
    ],
)
def test_behind_means_that_the_whole_interval_lies_below_one(ratio, status, why):
    judged = judge_models([result("a", ratio=ratio)], QUIET)[0]
    assert judged.status == status
    assert judged.reason.startswith(why)
    assert bool(judged.reason) == bool(why)


def test_goals_are_not_judged_under_other_conditions():
    judged = judge_models([result("a")], replace(QUIET, threads=2))
    assert {one.status for one in judged} == {"not measured"}
    assert judge_models([], QUIET) == ()


def test_a_model_without_plain_exports_is_left_out_of_the_mean():
    lone = result("lone")
    rows = tuple(
        replace(row, summary=None, than_best_plain_fp32=None, failed="it crashed" if "plain" in row.name else "")
        for row in lone.rows
    )
    judged = judge_models([replace(lone, rows=rows), result("a", fp32=0.5)], QUIET)
    assert [one.status for one in judged] == ["not measured", "met", "met"]
    assert judged[-1].value == pytest.approx(2.0, rel=1e-9)
    assert judge_models([replace(lone, rows=rows)], QUIET)[-1].status == "not measured"


def test_the_overview_has_a_line_for_each_model(machine):
    verdicts = judge(latency_budgets("patchtst-cpu", "transformer"), (), machine=machine)
    results = [result("a"), replace(result("patchtst-cpu"), verdicts=verdicts)]
    text = overview_text(results)
    assert [line.split()[1] for line in text.splitlines()[4:]] == ["a", "patchtst-cpu"]
    assert f"{len([v for v in verdicts if v.status == 'not measured'])} not measured" in text
    assert "p90 <= 100 ms" in budgets_text(results)
    assert budgets_text([result("a")]) == ""


def entrant(call_ms, failed=""):
    return Entrant("one", "", "fp32", "onnxruntime", None, call_ms=call_ms, failed=failed)


@pytest.mark.parametrize(("call_ms", "windows"), [(0.1, 100), (50.0, 40), (5000.0, 8)])
def test_errors_are_over_as_many_windows_as_the_slowest_answers_in_time(call_ms, windows):
    values = np.arange(100.0)
    whole = EvaluationSet({"x": values}, {"y": values + 1}, values + 2, "mse")
    part = fewer_windows(whole, [entrant(0.01), entrant(call_ms), entrant(9e9, failed="it crashed")], 2.0)
    assert part.windows == windows
    np.testing.assert_array_equal(part.outputs["y"], part.feeds["x"] + 1)
    np.testing.assert_array_equal(part.target, part.feeds["x"] + 2)
    assert (part.feeds["x"][0], part.feeds["x"][-1]) == (0.0, 99.0)


def arguments(*given):
    return bench_models._run_of(bench_models._parser().parse_args(given))


def test_all_models_but_the_named_ones_are_taken():
    taken = arguments()
    names = [entry.name for entry in list_entries()]
    assert list(taken.models) == [name for name in names if name not in LEFT_OUT]
    assert {one.model for one in taken.left_out} == set(names) & set(LEFT_OUT)
    assert arguments("--models=lstm,gru").models == ("lstm", "gru")
    assert taken.output.name.startswith("bench_models-")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (["--models=lstmm"], UsageError, "did you mean 'lstm'"),
        (["--models=lstm", "--set=size=small"], ConfigurationError, "MODEL.KEY=VALUE"),
        (["--models=lstm", "--set=gru.size=small"], ConfigurationError, "with a model of this run: lstm"),
        (["--models=lstm", "--set=lstm.sise=small"], ConfigurationError, "did you mean 'size'"),
        (["--rounds=0"], ConfigurationError, "from 1 on"),
        (["--seconds=0"], ConfigurationError, "above 0"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_measured(given, error, message):
    with pytest.raises(error, match=message):
        arguments(*given)


def test_what_was_kept_counts_under_the_same_conditions_only(tmp_path):
    run = arguments("--models=lstm", f"--output={tmp_path / 'out.json'}")
    assert run.found("lstm") is None
    run.keep("lstm", result("lstm"))
    assert run.found("lstm") == result("lstm")
    assert run.found("gru") is None
    for change in ({"seconds": 9.0}, {"seed": 1}, {"settings": {"lstm": {"size": "small"}}}):
        assert replace(run, **change).found("lstm") is None
    assert replace(run, machine=replace(run.machine, python="CPython 2.7")).found("lstm") is None
    (run.partial.folder / "lstm.json").write_text("{")
    assert run.found("lstm") is None


def test_a_model_that_fails_is_listed_and_the_others_are_kept(tmp_path, monkeypatch):
    def measure(run, model, progress):
        if model == "gru":
            raise UsageError("gru cannot be exported")
        return result(model)

    monkeypatch.setattr(bench_models, "_measure", measure)
    run = arguments("--models=lstm,gru,tcn", f"--output={tmp_path / 'out.json'}")
    report = bench_models.measure_all(run, resume=False)
    assert [one.model for one in report.models] == ["lstm", "tcn"]
    assert report.failures == (Failure("gru", "gru cannot be exported"),)
    assert "gru cannot be exported" in bench_models.report_text(report)
    assert sorted(path.name for path in run.partial.folder.iterdir()) == ["lstm.json", "tcn.json"]


def run_suite(output, *given):
    command = [sys.executable, str(SUITE), f"--output={output}", *PACE, *given]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_a_whole_run_measures_keeps_and_resumes(tmp_path):
    output = tmp_path / "models.json"
    settings = [f"--set={one}" for one in TINY]
    done = run_suite(output, "--models=dlinear", *settings)
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text())
    (model,) = document["models"]
    rows = {row["name"]: row for row in model["rows"]}
    assert {EAGER, PLAIN_TORCHSCRIPT, PLAIN_ONNX, SELECTED} <= set(rows)
    assert "quantize_dynamic" not in rows
    for row in rows.values():
        assert row["failed"] == ""
        assert row["summary"]["p50_ms"] > 0
        assert row["memory_bytes"] > 10**6
        assert 0 <= row["output_error"] < 0.2
    assert (model["processes"], model["rounds"]) == (2, 8)
    assert {one["status"] for one in document["goals"]} == {"not measured"}, "the goals are for the default sizes"
    assert output.with_suffix(".md").read_text() in done.stdout
    assert not output.with_suffix(".partial").exists()


@pytest.mark.slow
def test_a_run_goes_on_where_it_ended(tmp_path):
    output = tmp_path / "models.json"
    run = arguments(f"--output={output}", *PACE, "--models=dlinear", *(f"--set={one}" for one in TINY))
    run.keep("dlinear", result("dlinear"))
    done = run_suite(output, "--models=dlinear", "--resume", *(f"--set={one}" for one in TINY))
    assert done.returncode == 0, done.stderr
    assert "dlinear: taken from models.partial" in done.stderr
    assert json.loads(output.read_text())["models"][0]["rows"][0]["summary"]["p50_ms"] == 4.0
