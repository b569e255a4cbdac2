"""Scenarios: the open loop by a clock of its own, the search for the highest rate, and real runs of a small graph."""

import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.bench import scenarios
from tsexport.bench.memory_wire import MemoryGrowth, PeakMemory
from tsexport.bench.scenario_records import (
    Memory,
    OfflineRequest,
    ScenarioRecord,
    ServerRun,
    SingleStreamRequest,
    Subject,
    read_scenario,
    write_scenario,
)
from tsexport.bench.scenario_worker import arrivals, from_line, queries_for, run_requests, serve_arrivals, to_line
from tsexport.bench.statistics import P99_SAMPLES
from tsexport.bench.wire import Failed
from tsexport.errors import BundleError, DataError, InconclusiveError


class Clock:
    """Time that only calls and sleeps move."""

    def __init__(self, service_s):
        self.now, self.service_s, self.sizes = 0.0, service_s, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def call(self, size):
        self.sizes.append(size)
        self.now += self.service_s(len(self.sizes))


def serve(due, service_s, *, bound_s=1e9, max_batch=1):
    clock = Clock(service_s)
    found = serve_arrivals(
        np.asarray(due), clock.call, bound_s=bound_s, max_batch=max_batch, clock=clock, sleep=clock.sleep
    )
    return *found, clock


def test_latency_counts_from_the_scheduled_arrival():
    """One slow call makes those behind it late: a loop that waited to send would not see it."""
    latencies, _, _ = serve([0.0, 1.0, 2.0, 3.0], lambda number: 3.0 if number == 1 else 0.1)
    assert latencies == pytest.approx([3.0, 2.1, 1.2, 0.3])


def test_nobody_waits_where_the_session_is_free():
    latencies, _, _ = serve([1.0, 2.0, 3.0], lambda number: 0.25)
    assert latencies == pytest.approx([0.25] * 3)


def test_waiting_queries_go_together_up_to_the_largest_batch():
    latencies, batches, clock = serve([0.0, 0.1, 0.2, 0.3, 0.4], lambda number: 1.0, max_batch=3)
    assert batches == clock.sizes == [1, 3, 1]
    assert latencies == pytest.approx([1.0, 1.9, 1.8, 1.7, 2.6])


def test_a_hopeless_rate_is_cut_short():
    latencies, _, _ = serve(np.arange(1000) * 0.1, lambda number: 1.0, bound_s=1.5)
    assert len(latencies) == 12  # the first holds it, and 11 late ones are more than 1 % of 1,000


@given(st.lists(st.floats(0, 10), min_size=1, max_size=60), st.integers(1, 5), st.floats(0.001, 2))
@settings(deadline=None)
def test_every_query_is_answered_once_and_none_before_it_is_due(due, max_batch, service_s):
    latencies, batches, _ = serve(sorted(due), lambda number: service_s, max_batch=max_batch)
    assert len(latencies) == sum(batches) == len(due)
    assert min(latencies) >= service_s * 0.999
    assert max(batches) <= max_batch


def test_arrivals_are_poisson_and_repeat():
    due = arrivals(50.0, 3, 20_000)
    gaps = np.diff(due)
    assert np.array_equal(due, arrivals(50.0, 3, 20_000))
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # of an exponential distribution they are equal
    assert not np.array_equal(due, arrivals(50.0, 4, 20_000))


def test_a_run_has_as_many_queries_as_a_p99_needs():
    assert queries_for(1.0, 1, 1.0) == P99_SAMPLES
    assert queries_for(1000.0, 1, 2.0) == 2000


def a_run(qps, valid):
    return ServerRun(qps, 700, 700, 1.0, 1.0, 1.0, 1.0, 1.0, 0, False, valid, False)


@given(st.floats(1, 1e5), st.floats(0.01, 100))
@settings(deadline=None)
def test_the_search_encloses_the_highest_valid_rate(start, share):
    truth = start * share
    runs = scenarios.search(start, lambda qps: a_run(qps, qps <= truth), lowest_qps=0.0)
    best = max((run.qps for run in runs if run.valid), default=0.0)
    worst = min((run.qps for run in runs if not run.valid), default=float("inf"))
    assert len(runs) <= scenarios.MOST_RUNS
    assert best <= truth < worst
    if len(runs) < scenarios.MOST_RUNS:
        assert worst / best <= scenarios.CLOSE_ENOUGH


def test_the_search_ends_where_a_p99_would_take_too_long():
    runs = scenarios.search(100.0, lambda qps: a_run(qps, False), lowest_qps=20.0)
    assert [run.qps for run in runs] == [100.0, 50.0, 25.0]


def test_what_is_left_of_a_search_is_known_once_the_rate_is_enclosed():
    assert scenarios.runs_left([]) == 5  # the one that closes the bracket, and 4 that halve a factor of 2 below 5 %
    assert scenarios.runs_left([a_run(100.0, False)]) == 5
    assert scenarios.runs_left([a_run(100.0, False), a_run(50.0, True)]) == 4
    assert scenarios.runs_left([a_run(100.0, False), a_run(94.0, True)]) == 1


@given(st.floats(1, 1e5), st.floats(0.5, 0.999))
@settings(deadline=None)
def test_a_bracket_of_two_takes_as_many_runs_as_were_said(start, share):
    truth, left = start * share, []

    def run_at(qps):
        left.append(scenarios.runs_left(runs))
        runs.append(a_run(qps, qps <= truth))
        return runs[-1]

    runs = []
    scenarios.search(start, run_at, lowest_qps=0.0)
    assert left[2:] == list(range(len(left) - 2, 0, -1))


# --- real runs -------------------------------------------------------------------------------------------------------


def test_single_stream_offline_and_server_of_a_real_graph(short_chain, feeds):
    with scenarios.ScenarioProcess(short_chain, "onnxruntime", 1, feeds) as process:
        single = scenarios.single_stream(process, min_seconds=0.05, min_queries=64)
        assert single.queries >= 64
        assert single.p90_ms is not None
        assert single.p99_ms is None or single.queries >= P99_SAMPLES
        assert not single.long_enough
        offline = scenarios.offline(process, 0.02, batches=(1, 4))
        assert [point.batch for point in offline.points] == [1, 4]
        assert offline.samples_per_s == max(point.samples_per_s for point in offline.points)
        terms = scenarios.ServerTerms(1e4, "as asked", min_seconds=0.1)
        said = []
        served = scenarios.server(process, terms, qps=2000.0, say=said.append)
        assert said == ["2000 queries/s for 0 s; about 0 s left", "2000 queries/s: valid"]
        (run,) = served.runs
        assert run.valid
        assert run.answered == run.queries == P99_SAMPLES
        assert served.max_qps == 2000.0
        hopeless = scenarios.server(process, dataclasses.replace(terms, p99_bound_ms=1e-6), qps=2000.0)
        assert hopeless.max_qps is None
        assert hopeless.runs[0].cut_short


def test_a_runtime_that_fails_is_inconclusive_and_says_why(short_chain, feeds, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    artifact = dataclasses.replace(short_chain, path=broken, files=(broken,))
    with (
        scenarios.ScenarioProcess(artifact, "onnxruntime", 1, feeds) as process,
        pytest.raises(Exception, match="cannot load"),
    ):
        scenarios.single_stream(process, 0.01)


def test_a_process_that_dies_is_inconclusive(short_chain, feeds):
    with scenarios.ScenarioProcess(short_chain, "onnxruntime", 1, feeds) as process:
        process._process.kill()
        process._process.wait()
        with pytest.raises(InconclusiveError, match="the scenario process of short on onnxruntime ended"):
            scenarios.single_stream(process, 0.01)


def test_a_process_that_is_too_slow_is_inconclusive(short_chain, feeds):
    with scenarios.ScenarioProcess(short_chain, "onnxruntime", 1, feeds) as process:
        request = SingleStreamRequest(process.subject, 64, 60.0)
        with pytest.raises(InconclusiveError, match=r"gave no answer in 0\.2 s"):
            process.ask(request, scenarios.SingleStream, 0.2)


def test_what_is_no_message_is_refused(short_chain):
    subject = Subject(short_chain, "onnxruntime", 1, "feeds.npz")
    request = OfflineRequest(subject, (1, 2), 1.0)
    assert from_line(to_line(request)) == request
    with pytest.raises(DataError, match="no message of a scenario process"):
        from_line("{}")
    answers = io.StringIO()
    run_requests(io.StringIO(to_line(request)), answers)
    failed = from_line(answers.getvalue())
    assert isinstance(failed, Failed)
    assert "feeds.npz cannot be read" in failed.message


def test_a_record_comes_back_as_it_was_written(machine, tmp_path):
    memory = Memory(1, PeakMemory(1, 2, 3, 2), MemoryGrowth(10, 1, 2, 3, True))
    record = ScenarioRecord(machine, "tiny", "fp32-onnx", "onnxruntime", 1, "memory", memory=memory)
    path = write_scenario(record, tmp_path)
    assert read_scenario(path) == record
    path.write_text(path.read_text().replace('"memory"', '"memmory"', 1))
    with pytest.raises(BundleError, match="memmory"):
        read_scenario(path)
