"""The suite that exports sfno-hybrid, on a tiny one: every stage runs, and the exports answer as the model."""

from dataclasses import replace

import pytest

from tsexport.bench.suites.sfno_hybrid_export import STAGES, main, report_text, run
from tsexport.errors import InconclusiveError

TINY = ("latitudes=16", "longitudes=16", "widths=4,8", "layers=1", "heads=2", "feed_forward=8")
RELATIVE = 1e-5


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return run(TINY, "dynamic", 1, tmp_path_factory.mktemp("stages"))


@pytest.mark.slow
def test_every_stage_says_what_it_took(report):
    assert [stage.name for stage in report.stages] == list(STAGES)
    assert all(stage.seconds > 0 and stage.peak_bytes > 0 for stage in report.stages)
    files = {stage.name: [name for name, _ in stage.files] for stage in report.stages if stage.files}
    assert files == {"onnx": ["model-fp32.onnx"], "openvino": ["model-fp32.xml", "model-fp32.bin"]}
    for stage in report.stages[-2:]:
        assert stage.call_seconds > 0
        assert stage.relative_rms < RELATIVE
        assert stage.notes == ("within the tolerance fp32-export",)


@pytest.mark.slow
def test_the_text_holds_every_stage(report):
    text = report_text(replace(report, settings=()))
    assert "# Exporting sfno-hybrid, batch dynamic" in text
    assert all(f"| {stage.name}" in text for stage in report.stages)
    assert "rewrite spectral-as-matrix-products: 4 places" in text


@pytest.mark.slow
def test_a_stage_that_fails_ends_the_run():
    with pytest.raises(InconclusiveError, match="the stage source ended with exit code 2"):
        run(("latitudes=15",), "dynamic", 1)


@pytest.mark.slow
def test_the_command_ends_with_the_error_s_code(capsys):
    assert main(["--set", "latitudes=15"]) == InconclusiveError("").exit_code
    assert "error: the stage source ended with exit code 2" in capsys.readouterr().err
