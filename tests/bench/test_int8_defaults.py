"""The suite on INT8 as a program: its arguments, what is kept, the other tools in their processes, one whole run."""

import json
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from tsexport.bench.race import RaceEntry, RaceResult
from tsexport.bench.statistics import Ratio, summarize
from tsexport.bench.suites import default_tools, int8_defaults
from tsexport.bench.suites.default_tools import (
    NNCF_IR,
    OLIVE_ONNX,
    STATIC,
    WITHOUT_OLIVE,
    make_default,
    make_olive,
    read_windows,
    remove_windows,
    write_windows,
)
from tsexport.bench.suites.one_model import tried_candidates
from tsexport.bench.suites.plain_exports import ONNX
from tsexport.bench.suites.rows import (
    DEFAULTS,
    FASTEST_FP32,
    NNCF,
    NNCF_TRANSFORMER,
    OLIVE,
    PLAIN_OPENVINO_F32,
    SELECTED,
    ModelResult,
    Row,
)
from tsexport.calibration.arrays import ArrayDataset
from tsexport.errors import ConfigurationError, UsageError
from tsexport.types import Accuracy, Candidate

SUITE = Path(__file__).resolve().parent.parent.parent / "bench" / "suites" / "int8_defaults.py"
TINY = ("dlinear.context_length=40", "dlinear.horizon=8", "dlinear.channels=2", "dlinear.kernel=5")
PATIENCE_S = 900.0
PACE = ("--rounds=4", "--processes=2", "--seconds=0.2")
PRODUCT = """
<ir_version: 8, opset_import: ["" : 17]>
product (float[batch, 4] x, float[batch, 4] z) => (float[batch, 4] y)
<float[4, 4] w = {1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 3, 0, 0, 0, 0, 4}>
{
  h = MatMul(x, w)
  y = Add(h, z)
}
"""


def arguments(*given):
    return int8_defaults.run_of(int8_defaults._parser().parse_args(given))


def test_all_models_but_the_very_large_are_taken():
    taken = arguments()
    assert "patchtst-cpu" in taken.models
    assert "sfno-hybrid" not in taken.models
    assert [one.model for one in taken.left_out] == ["sfno-hybrid"]
    assert arguments("--models=lstm,gru").models == ("lstm", "gru")
    assert taken.output.name.startswith("int8_defaults-")
    assert taken.olive is None


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (["--models=lstmm"], UsageError, "did you mean 'lstm'"),
        (["--models=lstm", "--set=lstm.sise=small"], ConfigurationError, "did you mean 'size'"),
        (["--processes=0"], ConfigurationError, "from 1 on"),
        (["--olive-python=no/such/python"], UsageError, "--olive-python no/such/python is not a file"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_measured(given, error, message):
    with pytest.raises(error, match=message):
        arguments(*given)


def test_an_error_ends_the_program_with_its_exit_code(capsys):
    assert int8_defaults.main(["--olive-python=no/such/python"]) == 2
    assert "error: --olive-python" in capsys.readouterr().err


def empty(model):
    return ModelResult(model, (Row(SELECTED, "", "fp32"),), (), SELECTED, SELECTED, 1, 1, 1, (0.0, 0.0))


def test_what_was_kept_counts_with_the_same_tools_only(tmp_path):
    run = arguments("--models=lstm", f"--output={tmp_path / 'out.json'}")
    run.keep("lstm", empty("lstm"))
    assert run.found("lstm") == empty("lstm")
    for change in ({"olive": Path(sys.executable)}, {"switches": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}, {"seed": 1}):
        assert replace(run, **change).found("lstm") is None
    run.partial.clear()
    assert run.found("lstm") is None


def test_a_run_goes_on_and_a_failure_is_a_row(tmp_path, monkeypatch):
    def measure(run, model, progress):
        if model == "gru":
            raise UsageError("gru has no calibration data")
        return empty(model)

    monkeypatch.setattr(int8_defaults, "_measure", measure)
    run = arguments("--models=lstm,gru,tcn", f"--output={tmp_path / 'out.json'}")
    run.keep("lstm", replace(empty("lstm"), why="kept"))
    report = int8_defaults.measure_all(run, resume=True)
    assert [(one.model, one.why) for one in report.models] == [("lstm", "kept"), ("tcn", "")]
    assert [(one.model, one.reason) for one in report.failures] == [("gru", "gru has no calibration data")]
    assert "gru has no calibration data" in int8_defaults.report_text(report)
    assert int8_defaults.measure_all(run, resume=False).models[0].why == ""


@pytest.fixture
def product(tmp_path):
    (tmp_path / ONNX).write_bytes(onnx.parser.parse_model(PRODUCT).SerializeToString())
    draw = np.random.default_rng(7)
    feeds = {name: draw.standard_normal((12, 4)).astype(np.float32) for name in ("x", "z")}
    assert write_windows(ArrayDataset(feeds), tmp_path) == 12
    return tmp_path, feeds


def test_calibration_windows_come_back_one_by_one(product):
    folder, feeds = product
    read = list(read_windows(folder))
    assert [sorted(one) for one in read] == [["x", "z"]] * 12
    for name, array in feeds.items():
        np.testing.assert_array_equal(np.concatenate([one[name] for one in read]), array)
    remove_windows(folder)
    assert not (folder / "calibration").exists()


def test_a_tool_makes_its_file_in_its_own_process(product):
    folder, _ = product
    assert make_default(STATIC, folder, seconds=PATIENCE_S) == ""
    operators = {node.op_type for node in onnx.load(folder / STATIC).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators


def test_a_tool_that_fails_says_why(product):
    folder, _ = product
    (folder / ONNX).write_bytes(b"no graph")
    assert "Error" in make_default(STATIC, folder, seconds=PATIENCE_S) or "Fail" in make_default(
        STATIC, folder, seconds=120.0
    )
    assert not (folder / STATIC).exists()


def test_a_tool_that_takes_too_long_is_stopped(product):
    folder, _ = product
    assert make_default(NNCF_IR, folder, seconds=0.05) == "it took longer than 0.05 s"


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_olive_runs_in_its_own_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "ours")
    assert make_olive(None, tmp_path, seconds=PATIENCE_S) == WITHOUT_OLIVE
    broken = script(tmp_path / "broken", "echo no module named olive >&2; exit 3")
    assert make_olive(broken, tmp_path, seconds=PATIENCE_S) == "its process ended with 3: no module named olive"
    silent = script(tmp_path / "silent", "exit 0")
    assert make_olive(silent, tmp_path, seconds=PATIENCE_S) == "it ended without an error, and without model.onnx"
    assert "cannot be run" in make_olive(tmp_path / "absent", tmp_path, seconds=PATIENCE_S)
    works = script(tmp_path / "works", 'mkdir -p olive; echo "$PYTHONPATH $HF_HUB_OFFLINE $*" > olive/model.onnx')
    assert make_olive(works, tmp_path, seconds=PATIENCE_S) == ""
    written = (tmp_path / OLIVE_ONNX).read_text()
    assert written.startswith(" 1 -m olive auto-opt"), "without our PYTHONPATH, and offline"
    assert "--precision int8" in written


def test_requirements_pin_what_the_suite_was_written_against():
    lines = (Path(default_tools.__file__).parent / "requirements.txt").read_text().splitlines()
    assert "olive-ai==0.13.0" in lines


def test_candidates_carry_the_speed_of_their_last_race():
    def raced(value):
        speedup = Ratio(value, value, value, 0.95)
        entry = RaceEntry("a", "int8-a", "onnxruntime", 1, ((1.0,),), summarize([1.0]), speedup, True, 1.0, 1)
        return RaceResult(1, "fp32", 1, 1, 1.0, (entry,))

    accuracy = Accuracy("int8-a", "onnxruntime", 8, 0.02, degradation=0.01)
    candidates = (
        Candidate("a", {}, "onnxruntime", "int8", 10, accuracy, "selected", "fastest", "int8-a"),
        Candidate("b", {}, "openvino", "int8", None, None, "failed", "it crashed"),
    )
    found = tried_candidates(candidates, (raced(1.1), raced(1.3)))
    assert [(one.name, one.speedup.value if one.speedup else None) for one in found] == [("a", 1.3), ("b", None)]
    assert (found[0].output_error, found[0].degradation, found[1].reason) == (0.02, 0.01, "it crashed")


@pytest.mark.slow
def test_a_whole_run_holds_every_default_beside_the_selected_artifact(tmp_path):
    output = tmp_path / "int8.json"
    settings = [f"--set={one}" for one in TINY]
    command = [sys.executable, str(SUITE), f"--output={output}", *PACE, "--models=dlinear", *settings]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text())
    (model,) = document["models"]
    rows = {row["name"]: row for row in model["rows"]}
    assert set(DEFAULTS) - {NNCF_TRANSFORMER, PLAIN_OPENVINO_F32} <= set(rows)
    assert rows[OLIVE]["failed"] == WITHOUT_OLIVE
    for name, row in rows.items():
        if name == OLIVE:
            continue
        assert row["failed"] == ""
        assert row["summary"]["p50_ms"] > 0
        assert 0 <= row["output_error"] < 0.5
    assert rows[NNCF]["precision"] == "int8"
    assert rows[SELECTED]["output_error"] <= 0.05 or rows[SELECTED]["degradation"] <= 0.05
    assert model["fp32"] in (SELECTED, FASTEST_FP32)
    assert {one["status"] for one in document["goals"]} == {"not measured"}, "the goals are for the default sizes"
    assert all(one["reason"] for one in model["tried"])
    assert output.with_suffix(".md").read_text() in done.stdout
    assert not output.with_suffix(".partial").exists()
    assert "left" in done.stderr, "progress says how much time is left"
