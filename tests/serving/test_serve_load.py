"""The suite that puts load on the server: what it judges, what it refuses, and one whole run on a tiny model."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from tsexport.bench.statistics import summarize
from tsexport.bench.suites import http_load, serve_load
from tsexport.bench.suites.http_load import Call, Load, ServerProcess, calls_of, rates_of, same_answer
from tsexport.bench.suites.serve_load import Served, judge_goals, judge_row
from tsexport.bench.tables import latency_budgets, load_tables
from tsexport.bench.verdicts import judge
from tsexport.errors import InconclusiveError, UsageError
from tsexport.serving.protocol import parse_request
from tsexport.types import TensorSpec

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
LOAD = Load("/predict", 10, 30.0, 15_000, 0, 10.0, 20.0, 30.0, 50.0, 10**8, 2**20)
ROWS = [budget for budget in latency_budgets("patchtst-cpu", "transformer") if budget.via == "http"]
ROWS.sort(key=lambda budget: budget.kind, reverse=True)  # throughput, latency


def served(*, requests=15_000, errors=0, growth=2**20, mean_ms=4.0):
    load = replace(LOAD, requests=requests, errors=errors, growth_bytes=growth)
    return Served("onnx-fp32", "onnxruntime", "fp32", 1, True, (load,), summarize([mean_ms] * 700), ())


@pytest.fixture
def machine():
    from tsexport.bench.fingerprint import fingerprint

    return fingerprint()


@pytest.mark.parametrize(
    ("changes", "statuses"),
    [
        ({}, ["met", "met", "met"]),
        ({"requests": 3000}, ["met", "met", "met"]),
        ({"requests": 2999}, ["missed", "met", "met"]),
        ({"errors": 1}, ["met", "missed", "met"]),
        ({"growth": 5 * 2**20}, ["met", "met", "missed"]),
    ],
)
def test_goals(changes, statuses):
    assert [goal.status for goal in judge_goals(served(**changes), comparable=True)] == statuses
    assert {goal.status for goal in judge_goals(served(**changes), comparable=False)} == {"not measured"}


def test_the_published_rows_over_http_are_those_that_bench_leaves_to_this_suite(machine):
    assert [(row.kind, row.min_requests_per_s, row.max_ms) for row in ROWS] == [
        ("throughput", 10.0, None),
        ("latency", None, 100.0),
    ]
    for verdict in judge(ROWS, (), machine=machine):
        assert (verdict.status, "`tsexport serve` judges it" in verdict.reason) == ("not measured", True)


@pytest.mark.parametrize(
    ("changes", "cores", "statuses"),
    [
        ({}, 2, ["met", "met"]),
        ({"requests": 299}, 2, ["inconclusive", "met"]),
        ({"requests": 299}, 4, ["missed", "met"]),
        ({"errors": 1}, 4, ["missed", "met"]),
        ({"mean_ms": 101.0}, 2, ["met", "inconclusive"]),
        ({"mean_ms": 101.0}, 4, ["met", "missed"]),
    ],
)
def test_published_rows(machine, changes, cores, statuses):
    here = replace(machine, usable_cores=cores)
    verdicts = [judge_row(row, served(**changes), here) for row in ROWS]
    assert [verdict.status for verdict in verdicts] == statuses
    assert "requests/s in 30 s" in verdicts[0].reason
    assert "700 calls, one after another" in verdicts[1].reason
    for verdict in verdicts:
        assert ("of 4 cores decide nothing" in verdict.reason) == (verdict.status == "inconclusive")


def test_the_rates_of_the_published_cpu_loads():
    (row,) = [row for row in load_tables().cpu_load if row.via == "http"]
    assert rates_of(tuple(row.percent_by_rps)) == (0.0, 2.0, 7.5, 12.5)


def test_all_calls_ask_the_same():
    feeds = {"x": np.array([[1.5, 2.0]], np.float32), "on": np.array([[True]])}
    specs = (TensorSpec("x", "float32", ("batch", 2)), TensorSpec("on", "bool", ("batch", 1)))
    _, plain, binary = calls_of("m", feeds)
    for call in (plain, binary):
        asked = parse_request(call.body, call.header_length, specs, specs)
        for name, array in feeds.items():
            np.testing.assert_array_equal(asked.feeds[name], array)


def test_an_answer_that_is_another_is_noticed():
    expected = {"y": np.array([[1.0, -2.0]])}
    assert same_answer({"outputs": {"y": [[1.0, -2.0001]]}}, expected, 1e-4)
    assert not same_answer({"outputs": {"y": [[1.0, -2.001]]}}, expected, 1e-4)
    assert not same_answer({"outputs": {"z": [[1.0, -2.0]]}}, expected, 1e-4)


def test_without_wrk(monkeypatch, tiny, tmp_path, capsys):
    monkeypatch.setattr(http_load.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="the load is made with wrk, which is not installed"):
        http_load.find_wrk()
    assert serve_load.main(["--bundle", str(tiny), "--output", str(tmp_path / "load.json")]) == 2
    assert capsys.readouterr().err.endswith("apt install wrk\n")


def test_a_server_that_does_not_start(tiny, tmp_path):
    with (
        ServerProcess(tiny, tmp_path, "--precision", "fp23") as server,
        pytest.raises(InconclusiveError, match="the server did not start: error: the bundle has nothing for precision"),
    ):
        server.start()


@pytest.mark.slow
@needs_wrk
def test_what_fails_under_load(tiny, tmp_path):
    call = Call("/nothing", "/nothing", b"{}", "application/json")
    with ServerProcess(tiny, tmp_path) as server:
        server.start()
        with pytest.raises(InconclusiveError, match=r'/nothing was answered 404: \{"error":"Not Found"\}'):
            server.one_after_another(call, 10)
        load = server.load(call, connections=1, seconds=1, warmup_seconds=1)
        assert load.errors == load.requests > 0
        server.__exit__(None, None, None)
        with pytest.raises(InconclusiveError, match="wrk ended with 1: unable to connect"):
            server.load(call, connections=1, seconds=1, warmup_seconds=1)


@needs_wrk
def test_an_answer_that_is_another_ends_the_suite(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(serve_load, "same_answer", lambda *arguments: False)
    with pytest.raises(InconclusiveError, match="int8-onnx answers otherwise over HTTP than in a session"):
        serve_load.serve_and_measure(tiny, None, tmp_path, 1.0, 1, ())


@pytest.mark.slow
@needs_wrk
def test_a_run_on_a_tiny_model(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(serve_load, "use_at_most", lambda cores: None)  # the tests that follow use all cores
    output = tmp_path / "load.json"
    arguments = ["--bundle", str(tiny), "--seconds", "1", "--connections", "2", "--output", str(output)]
    assert serve_load.main(arguments) == 0
    report = json.loads(output.read_text())
    assert [one["artifact"] for one in report["served"]] == ["int8-onnx", "fp32-onnx"]
    for one in report["served"]:
        assert [load["call"] for load in one["loads"]] == ["/predict", "V2, JSON", "V2, binary"]
        assert all(load["errors"] == 0 and load["requests"] > 0 for load in one["loads"])
    assert {goal["status"] for goal in report["goals"]} == {"not measured"}
    assert report["verdicts"] == []
    assert "one call after another" in capsys.readouterr().out
