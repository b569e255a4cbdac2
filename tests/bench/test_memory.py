"""Memory of real sessions in fresh processes: the peak above an idle one, growth, and what goes wrong."""

import dataclasses
import io
import sys

import numpy as np
import onnx
import pytest

from tsexport.bench import memory
from tsexport.bench.memory_wire import GROWTH_LIMIT_BYTES, MemoryGrowth, PeakRequest, Progress, from_line, to_line
from tsexport.bench.memory_worker import IDLE_ONNX, IDLE_WIDTH, answer
from tsexport.bench.wire import Failed
from tsexport.errors import DataError, InconclusiveError, UsageError

MIB = 1 << 20
_OFTEN = "from tsexport.bench import memory_worker as worker; worker.PROGRESS_SECONDS = 0.0; worker.main()"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux alone")


def test_the_idle_model_is_one_product():
    model = onnx.load(io.BytesIO(IDLE_ONNX))
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["ConstantOfShape", "MatMul", "Relu"]
    assert model.graph.input[0].type.tensor_type.shape.dim[1].dim_value == IDLE_WIDTH


def test_the_peak_holds_the_activations_of_the_batch(long_chain):
    """30 products of [batch, 128]: two tensors live at once, and a second run's block beside the first one's."""
    small = memory.measure_peak(long_chain, "onnxruntime", threads=1, batch=1)
    large = memory.measure_peak(long_chain, "onnxruntime", threads=1, batch=16_384)
    tensor = 16_384 * 128 * 4
    grown = large.above_idle_bytes - small.above_idle_bytes
    assert small.above_idle_bytes < 20 * MIB
    assert 2 * tensor <= grown <= 8 * tensor
    assert large.idle_bytes <= large.loaded_peak_bytes <= large.peak_bytes


def test_a_session_that_keeps_nothing_does_not_grow(short_chain, feeds):
    found = memory.measure_growth(short_chain, "onnxruntime", feeds=feeds, threads=1, calls=2000)
    assert found.calls == 2000
    assert found.holds
    assert found.growth_bytes == found.end_bytes - found.half_bytes


def test_growth_tells_how_far_it_is(short_chain, feeds, monkeypatch):
    told = []
    monkeypatch.setattr(memory, "_COMMAND", (sys.executable, "-P", "-c", _OFTEN))
    found = memory.measure_growth(short_chain, "onnxruntime", feeds=feeds, threads=1, calls=20, tell=told.append)
    assert found.calls == 20
    assert [one.done for one in told] == list(range(21))
    assert {one.calls for one in told} == {20}
    assert told[0].left_s is None
    assert told[-1].left_s == 0
    assert Progress(5, 20, 2.0).left_s == pytest.approx(6.0)


def test_more_than_a_mebibyte_fails():
    grown = MemoryGrowth(10_000, 0, 100 * MIB, 100 * MIB + GROWTH_LIMIT_BYTES, True)
    assert grown.holds
    assert not dataclasses.replace(grown, end_bytes=grown.end_bytes + 1).holds


def test_a_file_that_the_runtime_refuses_is_the_runtime_s_error(short_chain, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    artifact = dataclasses.replace(short_chain, path=broken, files=(broken,))
    with pytest.raises(UsageError, match="short on onnxruntime: onnxruntime cannot load"):
        memory.measure_peak(artifact, "onnxruntime", threads=1, batch=1)


def test_no_answer_in_time_is_inconclusive(short_chain):
    with pytest.raises(InconclusiveError, match=r"memory of short on onnxruntime gave no answer in 0\.01 s"):
        memory.measure_peak(short_chain, "onnxruntime", threads=1, batch=1, timeout_s=0.01)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended .signal SIGKILL."),
        ("raise SystemExit(3)", "ended .exit code 3."),
        ("print('hello')", "answered garbage"),
    ],
)
def test_a_process_that_dies_or_talks_nonsense_is_inconclusive(short_chain, monkeypatch, code, message):
    monkeypatch.setattr(memory, "_COMMAND", (sys.executable, "-c", code))
    with pytest.raises(InconclusiveError, match=message):
        memory.measure_peak(short_chain, "onnxruntime", threads=1, batch=1)


def test_messages_come_back_and_garbage_is_refused(short_chain):
    request = PeakRequest(short_chain, "onnxruntime", 1, 4, 3, 7)
    assert from_line(to_line(request)) == request
    with pytest.raises(DataError, match="no message of a process whose memory is measured"):
        from_line("{}")
    assert isinstance(answer("{}"), Failed)


def test_feeds_are_part_of_neither(short_chain):
    """The caller's own 16 MiB of inputs are there before the session is idle."""
    found = memory.measure_peak(short_chain, "onnxruntime", threads=1, batch=32_768)
    assert found.idle_bytes > np.float32().itemsize * 128 * 32_768
