"""What the host adds where it starts kernels one by one: fitted on other models, and nowhere else."""

import pytest

from tsexport.bench.suites.gpu_cases import Way
from tsexport.bench.suites.gpu_host import Run, host_us, with_host
from tsexport.bench.suites.projection_records import Anchor, Row


def a_run(model: str, measured_ms: float, launches: int, way: Way = "eager", projected_ms: float = 0.1) -> Run:
    anchor = Anchor(f"graphs/{model}.onnx", "h200", "bf16", 1, measured_ms, "p50", f"gpu_runs, {way}")
    return Run(model, way, Row(anchor, projected_ms, 0.0, projected_ms / measured_ms, "launch"), launches)


def test_the_fit_finds_what_every_kernel_took():
    assert host_us([a_run("a", 0.3, 10), a_run("b", 0.6, 20), a_run("c", 3.0, 100)]) == 30.0


def test_a_model_is_projected_with_the_microseconds_of_the_others():
    runs = [a_run("a", 0.3, 10), a_run("b", 0.6, 20), a_run("odd", 5.0, 10)]
    rows = with_host(runs)
    assert rows[2].projected_ms == pytest.approx(0.3)  # 30 us of a and b, not the 500 of its own
    assert rows[2].ratio == pytest.approx(0.06)
    assert rows[2].bound == "host"


def test_the_device_bounds_where_it_is_slower():
    runs = [a_run("a", 0.3, 10), a_run("b", 8.0, 10, projected_ms=7.0)]
    assert with_host(runs)[1] == runs[1].row


def test_graphs_and_single_models_are_left_as_they_are():
    graphs = [a_run("a", 0.3, 10, "TorchScript, CUDA graph"), a_run("b", 0.6, 20, "TorchScript, CUDA graph")]
    parts = [a_run("a", 0.3, 10), a_run("a", 0.6, 20)]
    for runs in (graphs, parts):
        assert with_host(runs) == tuple(run.row for run in runs)
