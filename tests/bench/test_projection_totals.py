"""Public latencies and GPU runs taken together."""

import pytest

from tsexport.bench.projection import AnchorError, Efficiency
from tsexport.bench.suites.projection_records import Anchor, Report, Row
from tsexport.bench.suites.projection_totals import (
    EVERY,
    FASTEST,
    PUBLIC,
    fastest,
    read_gpu_runs,
    totals,
    totals_text,
    way_of,
)
from tsexport.codec import encode
from tsexport.errors import DataError

EFFICIENCY = Efficiency(0.4, 0.6, 0.7, 6.5)


def row(measured_ms, projected_ms, source="demo", model="bert", batch=1):
    anchor = Anchor(model, "h200", "bf16", batch, measured_ms, "p50", source)
    return Row(anchor, projected_ms, 0.0, projected_ms / measured_ms, "compute")


PUBLISHED = [row(1.0, 1.1), row(1.0, 1.2), row(1.0, 0.5)]
GPU = [
    row(4.0, 1.0, "gpu_runs, eager"),
    row(1.0, 1.0, "gpu_runs, TorchScript, CUDA graph"),
    row(2.0, 1.0, "gpu_runs, TorchScript, CUDA graph", batch=2),
]


def report(rows, efficiency=EFFICIENCY):
    error = AnchorError(len(rows), 0.5, 0.5, 2.0, "none")
    return Report("projection", efficiency, tuple(rows), (), (), error, 0.35, "missed", False)


def test_alone_and_together():
    public, every, best, both, with_best = totals(PUBLISHED, GPU)
    assert (public.name, public.rows, public.median) == (PUBLIC, 3, pytest.approx(0.2))
    assert (every.name, every.rows, every.median) == (EVERY, 3, pytest.approx(0.5))
    assert (every.worst_ratio, every.worst) == (0.25, "bert on h200, bf16, batch 1 (gpu_runs, eager)")
    assert (best.name, best.rows, best.median) == (FASTEST, 2, pytest.approx(0.25))
    assert (both.rows, both.median) == (6, pytest.approx(0.35))  # of 0.1, 0.2, 0.5, 0.75, 0, 0.5
    assert (with_best.rows, with_best.median) == (5, pytest.approx(0.2))
    text = totals_text([every, public], 0.35)
    assert "| every GPU run" in text
    assert text.index("missed") < text.index("met ")


def test_without_gpu_runs_there_are_public_latencies_alone():
    assert [one.name for one in totals(PUBLISHED, ())] == [PUBLIC]


def test_the_fastest_way_of_each_model():
    assert [(way_of(one), one.anchor.batch) for one in fastest(GPU)] == [
        ("TorchScript, CUDA graph", 1), ("TorchScript, CUDA graph", 2),
    ]  # fmt: skip


def test_results_are_read_where_they_were_projected_alike(tmp_path):
    (tmp_path / "projection-gpu-h200.json").write_text(encode(report(GPU)))
    (tmp_path / "projection.json").write_text("not one of them")
    assert read_gpu_runs(EFFICIENCY, tmp_path) == tuple(GPU)
    with pytest.raises(DataError, match="was projected with other efficiencies than these") as found:
        read_gpu_runs(Efficiency(0.4, 0.6, 0.7, 5.0), tmp_path)
    assert found.value.next_step == "run gpu_runs.py --project gpu-h200.json again"
