"""The benchmarks against other tools: their goals and intervals, and one whole run on a tiny model."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import tsexport
from tsexport.bench.statistics import Ratio
from tsexport.bench.suites import build_stages
from tsexport.bench.suites.goals import Conditions, judge_goals, status_of
from tsexport.bench.suites.plain_runtimes import registered
from tsexport.bench.suites.ratios import PairRatio, least, ratio_over_processes
from tsexport.bench.suites.report import goals_text, model_text, table
from tsexport.bench.suites.rows import (
    EAGER,
    FASTEST_FP32,
    PLAIN_ONNX,
    PLAIN_OPENVINO,
    PLAIN_TORCHSCRIPT,
    QUANTIZE_DYNAMIC,
    SELECTED,
    ModelResult,
    Row,
)
from tsexport.runtimes.registry import runtime_names

ROOT = Path(__file__).resolve().parent.parent.parent
SUITES = ROOT / "bench" / "suites"
QUIET = Conditions("avx2", vnni=False, threads=1, batch=1, default_settings=True)


def ratio(value, low=None, high=None):
    return Ratio(value, value if low is None else low, value if low is None else high, 0.95)


def result(model="patchtst-cpu", *, int8=True, fp32=None, over_onnx=None, over_dynamic=None, over_fp32=None):
    """A result whose ratios are chosen; everything else is met by far."""
    fp32, over_onnx = fp32 or ratio(2.0), over_onnx or ratio(2.0)
    rows = (
        Row(EAGER, "", "fp32", is_export=False),
        Row(PLAIN_ONNX, "", "fp32", size_bytes=4_000),
        Row(QUANTIZE_DYNAMIC, "", "int8", size_bytes=900),
        Row(FASTEST_FP32, "", "fp32", size_bytes=3_900, than_best_plain_fp32=fp32),
        Row(SELECTED, "", "int8", size_bytes=1_000, degradation=0.01),
    )
    if not int8:
        rows = (*rows[:3], replace(rows[3], name=SELECTED))
    pairs = (
        PairRatio(SELECTED, PLAIN_ONNX, over_onnx),
        PairRatio(SELECTED, QUANTIZE_DYNAMIC, over_dynamic or ratio(2.0)),
        PairRatio(SELECTED, FASTEST_FP32, over_fp32 or ratio(2.0)),
    )
    selected_fp32 = FASTEST_FP32 if int8 else SELECTED
    return ModelResult(model, rows, pairs, SELECTED, selected_fp32, 64, 24, 3, (0.1, 0.2))


def statuses(judged, cpu="AVX2 alone"):
    return [one.status for one in judged if one.cpu == cpu]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.25, 1.5, "met"),
        (1.2499, 1.5, "inconclusive"),
        (1.0, 1.25, "inconclusive"),
        (1.0, 1.2499, "missed"),
        (0.0, None, "inconclusive"),
        (1.3, None, "met"),
    ],
)
def test_only_a_whole_interval_decides(low, high, expected):
    assert status_of(ratio(1.25, low, high), 1.25) == expected


def test_every_goal_is_judged_by_its_own_ratio():
    assert statuses(judge_goals(result(), QUIET)) == ["met"] * 5
    assert statuses(judge_goals(result(fp32=ratio(1.3, 1.2, 1.4)), QUIET)) == ["inconclusive", *["met"] * 4]
    assert statuses(judge_goals(result(over_onnx=ratio(1.7)), QUIET)) == ["met", "missed", *["met"] * 3]
    assert statuses(judge_goals(result(over_dynamic=ratio(1.2)), QUIET)) == ["met", "met", "missed", "met", "met"]


def test_size_counts_against_the_smallest_fp32_file_and_errors_against_five_percent():
    measured = result()
    large = tuple(
        replace(row, size_bytes=1_301, degradation=0.051) if row.name == SELECTED else row for row in measured.rows
    )
    judged = judge_goals(replace(measured, rows=large), QUIET)
    assert statuses(judged) == ["met", "met", "met", "missed", "missed"]
    assert judged[3].value == pytest.approx(3_900 / 1_301, rel=1e-9)


def test_int8_goals_are_missed_where_fp32_is_selected():
    judged = judge_goals(result(int8=False), QUIET)
    assert statuses(judged) == ["met", *["missed"] * 4]
    assert "selected fp32" in judged[1].reason


def test_goals_for_another_cpu_are_not_measured():
    with_vnni = Conditions("avx512-vnni", vnni=True, threads=1, batch=1, default_settings=True)
    for conditions, here, elsewhere in ((QUIET, "AVX2 alone", "with VNNI"), (with_vnni, "with VNNI", "AVX2 alone")):
        judged = judge_goals(result(), conditions)
        assert statuses(judged, here) == ["met"] * 5
        assert statuses(judged, elsewhere) == ["not measured"] * 5
        assert all(conditions.instruction_set in one.reason for one in judged if one.cpu == elsewhere)


@pytest.mark.parametrize(("change", "why"), [({"threads": 2}, "one thread"), ({"default_settings": False}, "--set")])
def test_goals_hold_for_one_thread_and_default_sizes(change, why):
    judged = judge_goals(result(), replace(QUIET, **change))
    assert {one.status for one in judged} == {"not measured"}
    assert why in judged[0].reason


def test_a_contestant_that_cannot_be_run_leaves_its_goal_unmeasured():
    measured = result()
    rows = tuple(replace(row, failed="it crashed") if row.name == QUANTIZE_DYNAMIC else row for row in measured.rows)
    pairs = tuple(pair for pair in measured.ratios if pair.than != QUANTIZE_DYNAMIC)
    judged = judge_goals(replace(measured, rows=rows, ratios=pairs), QUIET)
    assert statuses(judged) == ["met", "met", "not measured", "met", "met"]
    assert "it crashed" in judged[2].reason


def test_patchtst_is_never_slower_than_fp32():
    assert statuses(judge_goals(result("patchtst"), QUIET), "any") == ["met"]
    assert statuses(judge_goals(result("patchtst", over_fp32=ratio(1.0, 0.98, 1.1)), QUIET), "any") == ["inconclusive"]
    assert statuses(judge_goals(result("patchtst", over_fp32=ratio(0.9)), QUIET), "any") == ["missed"]
    assert statuses(judge_goals(result("patchtst", int8=False), QUIET), "any") == ["met"]
    assert judge_goals(result("linear"), QUIET) == ()


def test_one_ratio_throughout_is_found_exactly():
    blocks = [[[2.0, 2.0, 9.0]] * 6, [[4.0, 4.0, 4.0]] * 6]
    halved = [[[value / 2 for value in block] for block in process] for process in blocks]
    found = ratio_over_processes(blocks, halved)
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)


def test_processes_that_differ_widen_the_interval():
    base = [[[1.0]] * 20 for _ in range(3)]
    lucky = [[[1.0]] * 20, [[1.0]] * 20, [[0.5]] * 20]
    found = ratio_over_processes(base, lucky)
    assert found.value == 1.0
    assert found.low == 1.0
    assert found.high == 2.0, "pooled rounds alone would have given 1.0"


def test_few_rounds_say_nothing():
    found = ratio_over_processes([[[1.0]] * 7], [[[0.5]] * 7])
    assert (found.value, found.low, found.high) == (2.0, 0.0, None)
    with pytest.raises(ValueError, match="same processes and rounds"):
        ratio_over_processes([[[1.0]] * 7], [[[1.0]] * 6])


def test_the_best_of_several_is_the_least_ratio():
    assert least([ratio(2.0, 1.0, 4.0), ratio(3.0, 0.5, 3.5)]) == ratio(2.0, 0.5, 3.5)
    assert least([ratio(2.0, 1.0, None), ratio(3.0, 0.5, 3.5)]).high == 3.5
    assert least([ratio(2.0, 1.0, None)]).high is None


@pytest.mark.parametrize(
    ("seconds", "cores", "expected"),
    [
        ((50.0, 59.0), 2, "met"),
        ((50.0,), 1, "met"),
        ((59.0, 61.0), 2, "inconclusive"),
        ((61.0, 70.0), 2, "missed"),
        ((61.0, 70.0), 1, "inconclusive"),
        ((), 2, "not measured"),
    ],
)
def test_stage_goals(seconds, cores, expected):
    assert build_stages.judge("cold", 60.0, seconds, cores).status == expected


def test_the_measuring_stages_do_not_count():
    build = build_stages.Build("cold", (("model and data", 4.0), ("measure fp32 side by side", 30.0)), 40.0)
    assert build.judged_seconds == 10.0
    assert build.outside_seconds == 6.0


def test_tables_show_failures_and_reasons(machine):
    failed = replace(result(), rows=(Row(PLAIN_OPENVINO, "of plain ONNX", "fp32", failed="no such operator"),))
    text = model_text(failed, machine, threads=1)
    assert "plain OpenVINO failed: no such operator" in text
    assert "2.00 [1.20, 1.40]" not in text
    judged = goals_text(judge_goals(result(fp32=ratio(1.3, 1.2, 1.4)), QUIET), machine)
    line = next(line for line in judged.splitlines() if "best plain fp32" in line and "AVX2" in line)
    assert "1.3 |" in line
    assert "[1.20, 1.40]" in line
    assert "inconclusive" in line
    assert goals_text((), machine) == ""
    widths = {len(line) for line in table(("a", "b"), [("long cell", "1"), ("x", "22")]).splitlines()}
    assert len(widths) == 1


def test_plain_runtimes_are_registered_for_a_while():
    before = os.environ.get("PYTHONPATH"), list(sys.path)
    with registered():
        assert {"eager", "plain-torchscript", "plain-onnxruntime", "plain-openvino"} <= set(runtime_names())
    assert "eager" not in runtime_names()
    assert (os.environ.get("PYTHONPATH"), list(sys.path)) == before


TINY = {"context_length": 32, "patch_length": 8, "width": 16, "heads": 2, "layers": 1, "feed_forward": 32}
NUMBERS = ("p50_ms", "mean_ms", "min_ms")


def run_suite(*arguments):
    command = [sys.executable, str(SUITES / "against_defaults.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def tiny_bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return tsexport.build(
        "patchtst-cpu", "cpu4-fp32", output=folder, set=TINY, threads=1, batch=(1,), formats=("onnx",)
    ).path


@pytest.fixture(scope="module")
def tiny_run(tiny_bundle, tmp_path_factory):
    output = tmp_path_factory.mktemp("results") / "tiny.json"
    settings = [f"--set={key}={value}" for key, value in TINY.items()]
    limits = ["--models=patchtst-cpu", "--rounds=4", "--processes=2", f"--bundle={tiny_bundle}", f"--output={output}"]
    done = run_suite(*settings, *limits)
    assert done.returncode == 0, done.stderr
    return done, output


def test_a_whole_run_has_all_contestants_and_finite_figures(tiny_run):
    done, output = tiny_run
    document = json.loads(output.read_text())
    (model,) = document["models"]
    rows = {row["name"]: row for row in model["rows"]}
    wanted = {EAGER, PLAIN_TORCHSCRIPT, PLAIN_ONNX, QUANTIZE_DYNAMIC, PLAIN_OPENVINO, SELECTED}
    assert wanted <= set(rows)
    assert (model["processes"], model["rounds"]) == (2, 8)
    for row in rows.values():
        assert row["failed"] == ""
        assert all(0 < row["summary"][key] < math.inf for key in NUMBERS), row
        assert 0 <= row["output_error"] < 1
        assert math.isfinite(row["degradation"])
        assert len(row["process_medians_ms"]) == 2
        ratios = [row[key] for key in ("than_eager", "than_best_plain_fp32", "than_plain_onnx") if row[key]]
        assert ratios
        assert all(0 < one["low"] <= one["value"] <= one["high"] < math.inf for one in ratios), row
        assert row["name"] in done.stdout
    assert rows[EAGER]["than_eager"] is None
    assert rows[EAGER]["output_error"] < 1e-5
    assert rows[QUANTIZE_DYNAMIC]["output_error"] > rows[PLAIN_ONNX]["output_error"]
    assert {one["status"] for one in document["goals"]} == {"not measured"}, "the goals are for the default sizes"
    assert output.with_suffix(".md").read_text() in done.stdout
    assert "left" in done.stderr, "progress says how much time is left"


def test_a_bundle_of_another_configuration_is_refused(tiny_bundle):
    done = run_suite("--models=patchtst-cpu", f"--bundle={tiny_bundle}")
    assert done.returncode == 2
    assert "another configuration or checkpoint" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models=patchtst-cpux"], "did you mean 'patchtst-cpu'"),
        (["--models=linear", "--set=widht"], "has no form key=value"),
        (["--models=linear", "--rounds=0"], "from 1 on"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    done = run_suite(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_published_model_builds_its_bundle_and_is_judged(tmp_path):
    output = tmp_path / "real.json"
    done = run_suite("--models=patchtst-cpu", "--rounds=6", "--processes=2", f"--output={output}")
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text())
    assert len(document["goals"]) == 10
    here = "avx2" if document["machine"]["instruction_set"] == "avx2" else None
    judged = [one for one in document["goals"] if one["status"] != "not measured"]
    assert judged or here is None
    assert next(row for row in document["models"][0]["rows"] if row["name"] == SELECTED)["degradation"] <= 0.05


@pytest.mark.slow
def test_the_stages_of_a_build_are_shown_and_judged(tmp_path):
    output = tmp_path / "stages.json"
    command = [sys.executable, str(SUITES / "build_stages.py"), "--warm", "1", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text())
    cold, warm = document["builds"]
    assert dict(warm["stages"])["export ONNX"] < dict(cold["stages"])["export ONNX"]
    assert [one["kind"] for one in document["goals"]] == ["cold", "warm"]
    assert all(name in done.stdout for name in ("export ONNX", "the whole without measuring"))
