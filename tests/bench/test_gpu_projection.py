"""Projections against the results of GPU runs: the exported graphs, the rows for projection.py, and what is printed."""

import re
from dataclasses import replace

import pytest

from tsexport.bench.statistics import summarize
from tsexport.bench.suites import gpu_runs
from tsexport.bench.suites import projection as projection_suite
from tsexport.bench.suites.gpu_cases import CASES
from tsexport.bench.suites.gpu_records import GpuFacts, GpuReport, GpuRow
from tsexport.bench.suites.projection import load_anchors
from tsexport.codec import encode
from tsexport.gpus import Gpu

H100 = Gpu("NVIDIA H100 80GB HBM3", 85520809984, "580.65.06", "9.0")
BF16 = next(case for case in CASES if case.name == "patchtst-cpu, bf16, batch 1")
FP32 = next(case for case in CASES if case.name == "patchtst-cpu, fp32, batch 1")


def results(tmp_path, gpu=H100, rehearsal=False, rows=None):
    """Write results whose times are made up, and return their path."""
    made = rows if rows is not None else (
        GpuRow(BF16, "compiled, CUDA graph", "measured", summarize([0.1] * 9), summarize([0.2] * 9), 0.01, 4),
        GpuRow(BF16, "eager", "measured", summarize([0.8] * 9), summarize([1.0] * 9), 0.01, 4),
        GpuRow(FP32, "eager", "measured", summarize([0.9] * 9), summarize([1.0] * 9), 1e-7, 4),
        GpuRow(FP32, "compiled", "failed", reason="no compiler"),
    )  # fmt: skip
    facts = GpuFacts(gpu, "2.11.0", "13.0", None, "3.12.3", "a CPU", "2026-11-26")
    path = tmp_path / "gpu-h100.json"
    path.write_text(encode(GpuReport("gpu", rehearsal, (facts,), made)))
    return path


@pytest.mark.slow
def test_every_measured_row_is_projected(tmp_path, capsys):
    """The same rows through projection.py --runs give the same ratios."""
    path = results(tmp_path)
    assert gpu_runs.main(["--project", str(path), "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "Over all 3 runs: median" in out
    assert re.search(r"\| compiled, CUDA graph +\| +1 \|", out)
    assert re.search(r"\| eager +\| +2 \|", out)
    rows = tmp_path / "out" / "gpu-h100-runs.toml"
    anchors = load_anchors(rows)
    assert [(one.precision, one.measured_ms) for one in anchors] == [("bf16", 0.1), ("bf16", 0.8), ("fp32", 0.9)]
    assert projection_suite.main(["--runs", str(rows), "--output", str(tmp_path / "again.json")]) == 0
    again = (tmp_path / "again.json").read_text()
    assert again == (tmp_path / "out" / "projection-gpu-h100.json").read_text()
    placed = projection_suite.place(anchors, rows.parent)
    assert set(placed[0].work.macs()) == {"fp16"}
    assert set(placed[2].work.macs()) == {"fp32"}
    assert placed[2].peak.tf32_tflops is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rehearsal": True}, "the results are a rehearsal, and nothing in them ran on a GPU"),
        ({"gpu": replace(H100, name="NVIDIA GeForce RTX 4090")}, "nothing is known of what a NVIDIA GeForce RTX 4090"),
        ({"rows": ()}, "gpu-h100.json holds no measured row"),
    ],
)
def test_what_cannot_be_projected(tmp_path, capsys, change, message):
    path = results(tmp_path, **change)
    assert gpu_runs.main(["--project", str(path), "--output", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
