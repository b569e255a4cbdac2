"""Profiles: of real artifacts on real runtimes, in a fresh process; and why there may be none."""

import json
import sys
import warnings
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsexport.bench import profiling
from tsexport.bench.profile_records import (
    PROFILES,
    TOP_NODES,
    NodeTime,
    OperatorTime,
    ProfileRecord,
    by_operator,
    longest,
    read_profile,
    write_profile,
)
from tsexport.bench.profilers import Event, Profiled, faster_half, mean_times, read_events, within
from tsexport.bench.profiling import profile, record_of
from tsexport.errors import BundleError
from tsexport.types import file_sha256

SUM_TOLERANCE = 1e-9
"""Sums of the same floats in another order."""


def assert_consistent(record):
    """What every profile holds: times that add up, the longest first, and the same artifact as was asked for."""
    assert record.reason == ""
    assert record.nodes_ms > 0
    assert record.plain_ms > 0
    assert record.profiled_ms > 0
    assert record.calls >= 1
    for rows in (record.operators, record.nodes):
        times = [row.mean_ms for row in rows]
        assert times == sorted(times, reverse=True)
        assert all(time >= 0 for time in times)
    if record.nodes:
        named = sum(node.mean_ms for node in record.nodes)
        assert named + record.rest_ms == pytest.approx(record.nodes_ms, rel=SUM_TOLERANCE)
        assert len(record.nodes) + record.rest_nodes == sum(one.nodes for one in record.operators)
        assert len(record.nodes) <= TOP_NODES


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_real_profile(long_chain, feeds, machine, runtime):
    record = profile(long_chain, runtime, feeds=feeds, threads=1, machine=machine, batch=4)
    assert_consistent(record)
    assert (record.artifact, record.runtime, record.precision) == (long_chain.name, runtime, "fp32")
    assert (record.batch, record.threads, record.machine) == (4, 1, machine)
    assert "whole microseconds" in record.method
    if runtime == "onnxruntime":
        assert {one.operator: one.nodes for one in record.operators} == {"MatMul": 30}
    else:  # fuses products of constant matrices as its version likes, and says which kernel it took
        assert all(node.kernel for node in record.nodes)


def test_tract_has_no_profile(short_chain, feeds, machine):
    record = profile(short_chain, "tract", feeds=feeds, threads=1, machine=machine)
    assert record.reason == "tract does not tell what its nodes take"
    assert record.operators == ()


def test_an_artifact_that_cannot_be_loaded_has_no_profile(short_chain, feeds, machine, tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model")
    broken = replace(short_chain, path=path, files=(path,))
    record = profile(broken, "onnxruntime", feeds=feeds, threads=1, machine=machine)
    assert record.reason.startswith("onnxruntime could not be profiled: InvalidProtobuf: ")
    assert len(record.reason) <= 200


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit(3)", "the profiling process ended with exit code 3"),
        ("print('hello')", "the profiling process answered garbage: "),
        ("print('{}')", "the profiling process answered garbage: "),
        ("import time; time.sleep(60)", "the profiling process gave no answer in 1 s"),
    ],
)
def test_what_goes_wrong_in_the_process_is_the_reason(short_chain, feeds, machine, monkeypatch, code, reason):
    monkeypatch.setattr(profiling, "PROFILE_COMMAND", (sys.executable, "-c", code))
    if "sleep" in code:
        monkeypatch.setattr(profiling, "TIMEOUT_SECONDS", 1.0)
    record = profile(short_chain, "onnxruntime", feeds=feeds, threads=1, machine=machine)
    assert record.reason.startswith(reason)


def test_no_tick_of_the_clock_is_no_profile(machine):
    asked = ProfileRecord(machine, "a", "onnxruntime", "fp32", 1, 1)
    found = record_of(asked, Profiled("a clock", 5, 1.0, 1.0, (NodeTime("n", "Add", "", 0.0),)))
    assert found.reason == "no node took as long as the clock can tell: a clock"
    assert found.nodes == ()


def test_operators_alone_where_a_profiler_names_no_nodes(machine):
    asked = ProfileRecord(machine, "a", "torchscript", "fp32", 1, 1)
    found = record_of(asked, Profiled("torch's", 5, 3.0, 2.0, (NodeTime("aten::mm", "aten::mm", "", 0.5),), False))
    assert found.nodes == ()
    assert found.operators == (OperatorTime("aten::mm", 1, 0.5),)
    assert found.overhead == pytest.approx(0.5)


NODES = st.lists(st.builds(NodeTime, st.text(), st.sampled_from("abc"), st.just(""), st.floats(0, 1e3)), max_size=80)


@given(NODES, st.integers(1, 40))
def test_nothing_is_lost_among_the_rest(nodes, count):
    named, rest, rest_ms = longest(nodes, count)
    total = sum(node.mean_ms for node in nodes)
    assert len(named) + rest == len(nodes)
    assert sum(node.mean_ms for node in named) + rest_ms == pytest.approx(total, rel=1e-6, abs=1e-9)
    assert sum(one.mean_ms for one in by_operator(nodes)) == pytest.approx(total, rel=1e-6, abs=1e-9)
    assert sum(one.nodes for one in by_operator(nodes)) == len(nodes)


def test_a_loop_counts_without_what_runs_within_it():
    events = [
        Event("before", "Add", "", 0, 5),
        Event("loop", "Loop", "", 10, 100),
        Event("body", "MatMul", "", 12, 30),
        Event("body", "MatMul", "", 50, 40),
        Event("inner", "If", "", 92, 10),
        Event("then", "Relu", "", 93, 4),
        Event("after", "Add", "", 110, 5),
    ]
    times = {node.name: node.mean_ms for node in mean_times(events, calls=1)}
    assert times == pytest.approx(
        {"before": 0.005, "loop": 0.020, "body": 0.070, "inner": 0.006, "then": 0.004, "after": 0.005}
    )


def test_nodes_that_only_seem_to_overlap_keep_their_time():
    """Start and length are rounded on their own, so that one node may seem to begin within another."""
    events = [Event("a", "MatMul", "", 0, 10), Event("b", "Add", "", 9, 1)]
    assert {node.name: node.mean_ms for node in mean_times(events, calls=1)} == pytest.approx({"a": 0.01, "b": 0.001})


def test_slow_calls_are_left_out():
    runs = [(0, 10), (20, 900), (1000, 1011), (1100, 1109)]
    kept = faster_half(runs)
    assert kept == [(0, 10), (1100, 1109)]
    events = [Event(str(at), "Add", "", at, 1) for at in (1, 30, 1001, 1105, 1109, 1200)]
    assert [event.name for event in within(events, kept)] == ["1", "1105", "1109"]
    assert faster_half([(5, 9)]) == [(5, 9)]


def test_what_is_read_of_a_profile_of_onnx_runtime():
    document = [
        {"cat": "Session", "name": "model_loading_uri", "ts": 1, "dur": 9},
        {"cat": "Session", "name": "model_run", "ts": 30, "dur": 9},
        {"cat": "Node", "name": "n_fence_before", "ts": 31, "dur": 0, "args": {"op_name": "Add"}},
        {"cat": "Node", "name": "n_kernel_time", "ts": 31, "dur": 2,
         "args": {"op_name": "Add", "provider": "CPUExecutionProvider"}},
        {"cat": "Node", "name": "m_kernel_time", "ts": 34, "dur": 1, "args": {"op_name": "Mul", "provider": "Dnnl"}},
    ]  # fmt: skip
    runs, events = read_events(document)
    assert runs == [(30, 39)]
    assert events == [Event("n", "Add", "", 31, 2), Event("m", "Mul", "Dnnl", 34, 1)]


def test_a_record_survives_its_file(machine, tmp_path):
    record = ProfileRecord(
        machine, "int8", "openvino", "int8", 1, 2, "a clock", 100, 0.5, 0.4,
        (OperatorTime("FullyConnected", 2, 0.3),), (NodeTime("a", "FullyConnected", "brgemm_avx512_I8", 0.2),), 1, 0.1,
    )  # fmt: skip
    path = write_profile(record, tmp_path)
    assert path == tmp_path / PROFILES / f"{machine.machine_id}.json"
    assert read_profile(path) == record
    document = json.loads(path.read_text())
    assert document["kind"] == "profiled"
    for key, value, message in (
        ("schema_version", 99, "schema_version 99"),
        ("nodess", [], "unknown key 'nodess'"),
        ("kind", "measured", "kind"),
    ):
        path.write_text(json.dumps({**document, key: value}))
        with pytest.raises(BundleError, match=message) as caught:
            read_profile(path)
        assert "build the bundle again" in str(caught.value)


@pytest.mark.slow  # torch takes seconds to import, and longer on a busy machine
def test_torchscript_names_operators(tmp_path, short_chain, feeds, machine):
    torch = pytest.importorskip("torch")
    path = tmp_path / "linear.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch announces the end of TorchScript
        torch.jit.save(torch.jit.trace(torch.nn.Linear(128, 128).eval(), torch.ones(2, 128)), path)
    artifact = replace(
        short_chain, path=path, files=(path,), format="torchscript", opset=None, sha256=file_sha256(path)
    )
    record = profile(artifact, "torchscript", feeds=feeds, threads=1, machine=machine)
    assert_consistent(record)
    assert record.nodes == ()
    assert any(one.operator in ("aten::addmm", "aten::linear", "aten::mm") for one in record.operators)
