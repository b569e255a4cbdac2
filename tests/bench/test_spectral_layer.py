"""The suite of the spectral layer at a tiny size: every contestant is right and timed, and results are written."""

from dataclasses import replace

import pytest

from tsexport.bench.suites.spectral_layer import DFT, OURS, main, report_text, run

RELATIVE = 1e-5
"""fp32 against float64; ONNX Runtime's DFT is the worst, 3e-6 where the points are no power of two."""


@pytest.fixture(scope="module")
def report():
    return run(channels=3, points=12, modes=4, rounds=2)


def test_every_contestant_computes_the_layer(report):
    names = [one.name for one in report.contestants]
    assert len(names) == len(set(names)) == 9
    assert {OURS, DFT, "eager torch.fft"} < set(names)
    assert {one.name: one.relative_error for one in report.contestants if one.relative_error > RELATIVE} == {}


def test_each_is_timed_once_a_round(report):
    assert all(len(one.samples_ms) == 2 and min(one.samples_ms) > 0 for one in report.contestants)
    assert report.status == "inconclusive"  # two rounds give no interval


def test_the_text_has_a_row_for_each(report):
    text = report_text(report)
    assert all(f"| {one.name}" in text for one in report.contestants)
    assert f"Goal: {OURS} at least 10 times faster than with DFT: inconclusive." in text
    slower = replace(report, status="missed")
    assert "than with DFT: missed." in report_text(slower)


def test_results_are_written(tmp_path, capsys):
    output = tmp_path / "spectral.json"
    assert main(["--channels", "2", "--points", "8", "--modes", "2", "--rounds", "1", "--output", str(output)]) == 0
    assert output.with_suffix(".md").read_text() in capsys.readouterr().out + "\n"
    assert '"suite": "spectral_layer"' in output.read_text()
