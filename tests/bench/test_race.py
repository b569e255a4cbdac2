"""Races and measurements of real models in ONNX Runtime, OpenVINO and tract."""

from collections import Counter

import pytest

from tsexport.bench import race as race_module
from tsexport.bench.fingerprint import fingerprint
from tsexport.bench.measure import measure
from tsexport.bench.process import WorkerProcess
from tsexport.bench.race import Contestant, block_calls_for, order_of_round, race
from tsexport.bench.statistics import RATIO_MIN_ROUNDS
from tsexport.errors import InconclusiveError, UsageError


@pytest.mark.parametrize("contestants", [1, 2, 3, 5])
def test_every_contestant_is_equally_often_at_every_place(contestants):
    rounds = [order_of_round(i, contestants) for i in range(2 * contestants)]
    assert all(sorted(order) == list(range(contestants)) for order in rounds)
    for place in range(contestants):
        assert set(Counter(order[place] for order in rounds).values()) == {2}


def test_rounds_begin_with_abba():
    assert [order_of_round(i, 2) for i in range(4)] == [(0, 1), (1, 0), (1, 0), (0, 1)]


@pytest.mark.parametrize(("call_ms", "calls"), [(0.001, 500), (0.1, 300), (30.0, 1), (3000.0, 1), (0.0, 500)])
def test_a_block_takes_about_thirty_milliseconds(call_ms, calls):
    assert block_calls_for(call_ms) == calls


@pytest.fixture(scope="module")
def result(short_chain, long_chain, feeds):
    told: list[float] = []
    contestants = [
        Contestant(long_chain, "onnxruntime", 1),
        Contestant(short_chain, "onnxruntime", 1),
        Contestant(long_chain, "onnxruntime", 1, "long again"),
    ]
    outcome = race(
        contestants, feeds, 4, rounds=10, block_calls=30, max_seconds=600, progress=lambda _, part: told.append(part)
    )
    assert told == sorted(told)
    assert told[-1] == 1.0
    return outcome


def test_a_race_finds_the_one_with_less_work(result):
    assert result.fastest.name == "short on onnxruntime"
    assert result.baseline == "long on onnxruntime"
    # 30 times the work: the interval is far from 1 even on a noisy machine.
    assert result.entry("short on onnxruntime").speedup.low > 1.5


def test_a_contestant_against_itself_is_about_equal(result):
    assert result.entry("long on onnxruntime").speedup.value == 1.0
    again = result.entry("long again").speedup
    assert 0.6 < again.value < 1.6


def test_a_race_keeps_every_block(result):
    assert (result.rounds, result.processes, result.batch) == (10, 1, 4)
    for entry in result.entries:
        assert [len(block) for block in entry.blocks_ms] == [30] * 10
        assert entry.summary.samples == len(entry.samples_ms) == 300
        assert entry.summary.p90_ms is not None
        assert entry.summary.p99_ms is None
        assert entry.load_ms > 0
        assert entry.peak_memory_bytes > 10**7


def test_time_ends_a_race_and_few_rounds_have_no_interval(short_chain, feeds):
    outcome = race([Contestant(short_chain, "onnxruntime", 1)], feeds, 1, max_seconds=0.0)
    assert outcome.rounds == 1
    assert outcome.entries[0].speedup.high is None


def test_patience_waits_for_rounds_enough_for_an_interval(short_chain, feeds):
    patient = [Contestant(short_chain, "onnxruntime", 1)]
    outcome = race(patient, feeds, 1, max_seconds=0.0, patience_seconds=60.0)
    assert outcome.rounds == RATIO_MIN_ROUNDS
    assert outcome.entries[0].speedup.high == 1.0
    assert race(patient, feeds, 1, rounds=3, max_seconds=0.0, patience_seconds=60.0).rounds == 3
    assert race(patient, feeds, 1, max_seconds=0.0, patience_seconds=1e-6).rounds == 1


def test_slow_calls_are_all_timed(short_chain, feeds, monkeypatch):
    led_in = []
    time_block = WorkerProcess.time_block

    def watched(self, batch, calls, *, lead_in, quiet):
        led_in.append(lead_in)
        return time_block(self, batch, calls, lead_in=lead_in, quiet=quiet)

    monkeypatch.setattr(WorkerProcess, "time_block", watched)
    alone = [Contestant(short_chain, "onnxruntime", 1)]
    race(alone, feeds, 1, rounds=1)
    monkeypatch.setattr(race_module, "SLOW_CALL_MS", 0.0)
    race(alone, feeds, 1, rounds=1)
    assert led_in == [1, 0]


def test_rounds_of_several_processes_are_pooled(short_chain, feeds):
    outcome = race([Contestant(short_chain, "onnxruntime", 1)], feeds, 1, processes=2, block_calls=200)
    assert outcome.processes == 2
    assert outcome.rounds >= RATIO_MIN_ROUNDS
    assert outcome.entries[0].summary.p99_ms is not None


def test_other_runtimes_race_too(short_chain, feeds):
    contestants = [Contestant(short_chain, name, 1) for name in ("onnxruntime", "openvino", "tract")]
    outcome = race(contestants, feeds, 2, rounds=2, block_calls=5)
    assert [entry.runtime for entry in outcome.entries] == ["onnxruntime", "openvino", "tract"]
    assert all(entry.summary.samples == 10 for entry in outcome.entries)


def test_a_race_is_called_off_when_a_contestant_cannot_run(short_chain, feeds):
    with pytest.raises(UsageError, match="short on torchscript"):
        race([Contestant(short_chain, "onnxruntime", 1), Contestant(short_chain, "torchscript", 1)], feeds, 1)


def test_misuse_of_race_is_refused(short_chain, feeds):
    one = Contestant(short_chain, "onnxruntime", 1)
    with pytest.raises(ValueError, match="different names"):
        race([one, one], feeds, 1)
    with pytest.raises(ValueError, match="different names"):
        race([], feeds, 1)
    with pytest.raises(ValueError, match="baseline 'x' is not among"):
        race([one], feeds, 1, baseline="x")
    with pytest.raises(ValueError, match="at least 1"):
        race([one], feeds, 0)


def test_a_measurement_pools_fresh_processes(long_chain, feeds):
    told: list[tuple[str, float]] = []
    here = fingerprint()
    measured = measure(
        long_chain, "onnxruntime", feeds=feeds, threads=1, machine=here, batches=(10, 1), samples=101,
        progress=lambda what, part: told.append((what, part)),
    )  # fmt: skip
    assert [m.batch for m in measured] == [1, 10]
    one, ten = measured
    for m in measured:
        assert (m.artifact, m.runtime, m.precision, m.threads) == ("long", "onnxruntime", "fp32", 1)
        assert (m.machine, m.processes) == (here.machine_id, 2)
        assert len(m.samples_ms) == 102  # 51 of each process
        assert m.warmup_runs >= 6
        assert 0 < m.idle_memory_bytes < m.peak_memory_bytes
        assert m.load_ms > min(m.samples_ms)
    assert ten.peak_memory_bytes >= one.peak_memory_bytes
    assert one.load_ms == ten.load_ms
    assert [part for _, part in told] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_slow_models_stop_at_the_time_with_ten_samples(short_chain, feeds):
    (m,) = measure(short_chain, "onnxruntime", feeds=feeds, threads=1, machine=fingerprint(), batches=(1,),
                   samples=10**6, max_seconds=0.0, processes=1)  # fmt: skip
    assert 10 <= len(m.samples_ms) <= 500


@pytest.mark.parametrize("batches", [(), (0,), (-1, 1)])
def test_impossible_batch_sizes_are_refused(short_chain, feeds, batches, machine):
    with pytest.raises(UsageError, match="batch sizes are whole numbers from 1 on"):
        measure(short_chain, "onnxruntime", feeds=feeds, threads=1, machine=machine, batches=batches)


def test_a_runtime_that_fails_is_no_measurement(tmp_path, short_chain, feeds, machine):
    import dataclasses

    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    artifact = dataclasses.replace(short_chain, path=broken, files=(broken,))
    with pytest.raises((UsageError, InconclusiveError), match="short on onnxruntime"):
        measure(artifact, "onnxruntime", feeds=feeds, threads=1, machine=machine)
