"""Projections against public latencies: the anchors, their models, the fit, and what is committed of them."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.bench.projection import Efficiency, Fitted, fitted, project
from tsexport.bench.suites import projection
from tsexport.bench.suites.anchor_models import anchor_model
from tsexport.bench.suites.projection import GOAL, PLUGINS, fit, fitted_text, load_anchors, place, report_text, run
from tsexport.bench.suites.projection_totals import read_gpu_runs, totals, totals_text
from tsexport.bench.suites.report import RESULTS
from tsexport.devices import list_devices
from tsexport.errors import ConfigurationError
from tsexport.quantize.kernels import count

PUBLISHED_MACS = {
    # torchvision's table of models gives 1.81, 3.66, 4.09, 7.80 and 11.51 GFLOPS, its word for MACs.
    ("resnet18", 0): 1.81e9,
    ("resnet34", 0): 3.66e9,
    ("resnet50", 0): 4.09e9,
    ("resnet101", 0): 7.80e9,
    ("resnet152", 0): 11.51e9,
    # 12 layers of 12 * tokens * width^2 and 2 * tokens^2 * width products
    ("bert-base", 128): 11.2e9,
}
MACS_TOLERANCE = 0.01
SAME = 1e-4


@pytest.fixture(scope="module")
def placed():
    return place(load_anchors())


@pytest.fixture(scope="module")
def report(placed):
    return run(load_anchors(), placed, fitted().efficiency)


@pytest.mark.parametrize(("model", "tokens"), PUBLISHED_MACS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_models_do_the_operations_that_are_published(model, tokens, precision):
    work = count(anchor_model(model, precision, tokens), 1, PLUGINS)
    assert set(work.macs()) == {precision}
    assert work.macs()[precision] == pytest.approx(PUBLISHED_MACS[model, tokens], rel=MACS_TOLERANCE)
    assert work.unknown == ()


def test_operations_grow_with_the_batch_and_weights_do_not():
    model = anchor_model("resnet18", "fp16")
    one, eight = count(model, 1, PLUGINS), count(model, 8, PLUGINS)
    assert eight.macs()["fp16"] == 8 * one.macs()["fp16"]
    assert eight.least_bytes < 1.6 * one.least_bytes


@given(st.integers(1, 64), st.integers(1, 64), st.sampled_from([("resnet18", 0), ("bert-base", 32)]))
@settings(deadline=None, max_examples=15)
def test_a_larger_batch_is_never_faster_in_total(first, second, which):
    name, tokens = which
    device = next(one for one in list_devices() if one.name == "a100")
    model = anchor_model(name, "int8", tokens)
    small, large = (project(count(model, batch, PLUGINS), device, device.peak[0]) for batch in sorted((first, second)))
    assert small.total_ms <= large.total_ms
    assert small.least_ms <= large.least_ms


def test_bert_has_seven_kernels_a_layer():
    for precision in ("fp16", "int8"):
        base, large = (
            len(count(anchor_model(name, precision, 128), 1, PLUGINS).kernels) for name in ("bert-base", "bert-large")
        )
        assert large - base == 12 * 7


def test_every_anchor_is_projected_or_says_why_not(report):
    anchors = load_anchors()
    assert len(report.rows) + len(report.left_out) == len(anchors)
    assert all(one.left_out for one in report.left_out)
    assert all(one.source and one.measured_ms > 0 for one in anchors)
    devices = {device.name for device in list_devices()}
    written = ("resnet", "bert-base", "bert-large")
    for one in report.left_out:
        if one.device in devices and one.model.startswith(written):
            assert one.statistic == "throughput" or "lengths" in one.left_out


def test_the_goal_is_judged_by_the_median_over_all_anchors(report):
    ratios = [row.ratio for row in report.rows]
    assert report.error.median == pytest.approx(np.median(np.abs(np.array(ratios) - 1)), abs=SAME)
    assert report.error.worst_ratio == pytest.approx(max(ratios, key=lambda one: abs(np.log(one))), abs=SAME)
    assert report.status == ("met" if report.error.median <= GOAL else "missed")
    for row in report.rows:
        assert row.ratio == pytest.approx(row.projected_ms / row.anchor.measured_ms, rel=SAME)


def test_no_anchor_was_measured_below_its_lower_bound(report):
    assert [str(row.anchor) for row in report.rows if row.least_ms > row.anchor.measured_ms] == []


def test_poor_efficiencies_miss_the_goal(placed):
    poor = run((), placed[::9], Efficiency(0.01, 0.01, 0.01, 100.0))
    assert poor.status == "missed"
    assert "missed" in report_text(poor)


def test_the_committed_efficiencies_and_their_error_are_those_of_the_fit(placed, report):
    known = fitted()
    assert fit(placed) == known.efficiency
    assert report.error == known.error
    assert (projection.DATA / "projection.toml").read_text(encoding="utf-8") == fitted_text(known)


def test_the_committed_results_are_those_of_the_suite(report):
    gpu = totals_text(totals(report.rows, read_gpu_runs(report.efficiency)), projection.GOAL)
    told = f"{report_text(report)}\n{gpu}"
    assert (RESULTS / "projection.md").read_text(encoding="utf-8").rstrip() == told.rstrip()
    committed = json.loads((RESULTS / "projection.json").read_text(encoding="utf-8"))
    assert committed["error"]["median"] == report.error.median
    assert committed["status"] == report.status


def test_the_error_for_an_unknown_device_is_told_beside_that_of_the_fit(report):
    text = report_text(report)
    assert "not measured" in text
    assert f"{100 * report.error.left_out_median:.0f} %" in text
    assert {name for name, *_ in report.of_devices} == {row.anchor.device for row in report.rows}


def test_a_fit_finds_the_efficiencies_that_made_the_figures(placed):
    truth = Efficiency(0.5, 0.6, 0.7, 8.0)
    made = [
        dataclasses.replace(one, anchor=dataclasses.replace(one.anchor, measured_ms=one.anchor.measured_ms * ratio))
        for one in placed
        if (ratio := one.ratio(truth))
    ]
    assert fit(made) == truth


def test_an_anchor_on_an_unknown_device_or_mode_is_an_error():
    anchor = next(one for one in load_anchors() if not one.left_out)
    with pytest.raises(ConfigurationError, match=r"devices\.toml has no 'abacus'"):
        place([dataclasses.replace(anchor, device="abacus")])
    with pytest.raises(ConfigurationError, match="in mode '1 W'"):
        place([dataclasses.replace(anchor, mode="1 W")])


def test_the_suite_writes_what_it_found(tmp_path, capsys, monkeypatch):
    shutil.copyfile(projection.DATA / "anchors.toml", tmp_path / "anchors.toml")
    monkeypatch.setattr(projection, "DATA", tmp_path)
    assert projection.main(["--fit", "--output", str(tmp_path / "p.json")]) == 0
    assert "median error" in capsys.readouterr().out
    assert (tmp_path / "p.md").exists()
    known = fitted()
    assert (tmp_path / "projection.toml").read_text() == fitted_text(Fitted(1, known.efficiency, known.error))


RUN = """schema = 1
[[anchor]]
model = "chain.onnx"
device = "h100"
mode = "SXM, 700 W"
precision = "fp32"
batch = 1
measured_ms = 0.01
statistic = "mean"
source = "a run of this test"
"""


def test_other_measurements_are_judged_by_the_efficiencies_as_they_are(short_chain, tmp_path, capsys):
    (tmp_path / "chain.onnx").write_bytes(short_chain.path.read_bytes())
    (tmp_path / "runs.toml").write_text(RUN)
    output = tmp_path / "judged.json"
    assert projection.main(["--runs", str(tmp_path / "runs.toml"), "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "chain.onnx on h100, fp32, batch 1 (a run of this test)" in shown
    assert "fitted on public latencies, and on none of these" in shown
    (row,) = json.loads(output.read_text())["rows"]
    # one kernel of a few bytes: a launch
    assert row["projected_ms"] == pytest.approx(fitted().efficiency.launch_us / 1e3, rel=0.01)
    assert row["bound"] == "launch"


WRONG = {
    "chain.onnx": ("chain.onnx", "there is no file"),
    "another model": ("alexnet", "models are resnet18, resnet34"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_model_that_is_not_here_is_an_error(case, tmp_path, capsys):
    model, message = WRONG[case]
    (tmp_path / "runs.toml").write_text(RUN.replace("chain.onnx", model))
    arguments = ["--runs", str(tmp_path / "runs.toml"), "--output", str(tmp_path / "judged.json")]
    assert projection.main(arguments) == ConfigurationError.exit_code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "judged.json").exists()


def test_rows_that_cannot_be_read_are_an_error(tmp_path, capsys):
    path = tmp_path / "runs.toml"
    for text in (None, "[", "schema = 1\nanchr = []"):
        if text is not None:
            path.write_text(text)
        code = projection.main(["--runs", str(path), "--output", str(tmp_path / "judged.json")])
        assert code == ConfigurationError.exit_code
        assert "runs.toml" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--fit", "--output", "o.json"]])
def test_other_measurements_never_become_the_committed_results_or_the_fit(more, tmp_path, capsys):
    with pytest.raises(SystemExit):
        projection.main(["--runs", str(tmp_path / "runs.toml"), *more])
    assert "needs an --output of its own" in capsys.readouterr().err
