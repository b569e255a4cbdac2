"""Pairs of real processes, in ONNX Runtime: who is timed when, when it ends, and what becomes of failures."""

from dataclasses import replace

import pytest

from tsexport.bench import comparing
from tsexport.bench.affinity import choose_cpus
from tsexport.bench.compare_records import (
    ComparedSide,
    ComparisonResult,
    Slowdown,
    result_from_text,
    result_to_text,
)
from tsexport.bench.comparing import (
    Contender,
    Limits,
    Setting,
    calls_for,
    compare_contenders,
    order_of,
    rounds_for,
    time_pair,
)
from tsexport.bench.comparing_rule import LOOKS, PairTimes
from tsexport.bench.noise import NoiseWatch
from tsexport.bench.process import write_feeds
from tsexport.errors import BundleError, InconclusiveError


@pytest.fixture
def setting(feeds):
    return Setting(feeds, 1, 1, choose_cpus(1))


@pytest.fixture
def watch(setting):
    return NoiseWatch(setting.cpus)


def drawn(ratio):
    """A pair that was not timed, whose candidate takes `ratio` times as long."""
    base, candidate, idle = (((value, value),) * 6 for value in (1.0, ratio, 100.0))
    return PairTimes(base, candidate, idle, idle, 2)


def run_drawn(monkeypatch, setting, short_chain, ratios, *, pair_s=0.0, **limits):
    """Compare by drawn pairs, each of which takes `pair_s` on a clock of its own; return the runs."""
    clock, left = [0.0], list(ratios)

    def next_pair(sides, feeds, setting, watch):
        clock[0] += pair_s
        return drawn(left.pop(0))

    monkeypatch.setattr(comparing, "time_pair", next_pair)
    monkeypatch.setattr(comparing.time, "perf_counter", lambda: clock[0])
    contender = Contender(short_chain, "onnxruntime")
    return compare_contenders(
        contender, contender, setting, replace(Limits(0.05, 120.0), **limits), watch=NoiseWatch(setting.cpus)
    )


# --- when it ends ----------------------------------------------------------------------------------------------------


def test_two_alike_are_decided_at_the_first_look(monkeypatch, setting, short_chain):
    (run,) = run_drawn(monkeypatch, setting, short_chain, [1.0, 1.01, 0.99] * 10)
    assert (run.verdict, run.processes, run.looks) == ("unchanged", LOOKS[0], 1)
    assert run.pair_ratios == pytest.approx([1.0, 1.01, 0.99] * 2)


def test_a_red_run_is_followed_by_a_second_one_of_its_own_processes(monkeypatch, setting, short_chain):
    first, second = run_drawn(monkeypatch, setting, short_chain, [1.1] * 6 + [1.2] * 6)
    assert (first.verdict, second.verdict) == ("regression", "regression")
    assert (first.ratio.value, second.ratio.value) == (pytest.approx(1.1), pytest.approx(1.2))


def test_a_red_run_may_be_contradicted(monkeypatch, setting, short_chain):
    first, second = run_drawn(monkeypatch, setting, short_chain, [1.1] * 6 + [1.0] * 6)
    assert (first.verdict, second.verdict) == ("regression", "unchanged")


def test_undecided_runs_go_on_until_the_last_look(monkeypatch, setting, short_chain):
    (run,) = run_drawn(monkeypatch, setting, short_chain, [0.9, 1.2] * 20)
    assert (run.verdict, run.processes, run.looks) == ("inconclusive", LOOKS[-1], len(LOOKS))


def test_the_first_run_leaves_time_to_confirm(monkeypatch, setting, short_chain):
    """120 s hold 12 pairs of 10 s, of which 5 are kept for a second run."""
    (run,) = run_drawn(monkeypatch, setting, short_chain, [0.9, 1.2] * 20, pair_s=10.0)
    assert (run.verdict, run.processes, run.looks) == ("inconclusive", 7, 2)
    first, second = run_drawn(monkeypatch, setting, short_chain, [1.1] * 6 + [0.9, 1.2] * 9, pair_s=10.0)
    assert (first.processes, second.processes) == (6, 6)
    assert second.verdict == "inconclusive"
    assert first.seconds + second.seconds <= 120.0


def test_five_pairs_are_judged_where_no_sixth_fits(monkeypatch, setting, short_chain):
    (run,) = run_drawn(monkeypatch, setting, short_chain, [1.0] * 9, pair_s=20.0)
    assert (run.verdict, run.processes) == ("unchanged", 5)
    assert run.ratio.confidence == pytest.approx(1 - 2**-4)


def test_a_regression_that_nothing_can_confirm_is_inconclusive(monkeypatch, setting, short_chain):
    """Five pairs of 20 s fit into 120 s, and five more do not."""
    (run,) = run_drawn(monkeypatch, setting, short_chain, [1.3] * 9, pair_s=20.0)
    assert (run.verdict, run.processes) == ("inconclusive", 5)
    assert run.ratio.low > 1.05
    assert run.reason.endswith("no time is left to confirm it")


def test_a_model_too_slow_for_five_pairs_is_given_up_at_once(monkeypatch, setting, short_chain):
    (run,) = run_drawn(monkeypatch, setting, short_chain, [1.5] * 9, pair_s=30.0)
    assert (run.verdict, run.processes, run.looks) == ("inconclusive", 1, 0)
    assert run.reason == "the time was up after 1 of 5 pairs of processes, each of which took 30 s"
    assert (run.ratio.value, run.ratio.low, run.ratio.high) == (pytest.approx(1.5), 0.0, None)


def test_one_pair_is_timed_however_short_the_time_is(monkeypatch, setting, short_chain):
    (run,) = run_drawn(monkeypatch, setting, short_chain, [1.5], pair_s=2.0, seconds=1e-9)
    assert (run.verdict, run.processes) == ("inconclusive", 1)


def test_progress_is_told_of_every_pair(monkeypatch, setting, short_chain, watch):
    told = []
    monkeypatch.setattr(comparing, "time_pair", lambda *arguments: drawn(1.2))
    contender = Contender(short_chain, "onnxruntime")
    compare_contenders(
        contender, contender, setting, Limits(0.05, 60.0), watch=watch, progress=lambda *one: told.append(one)
    )
    assert [what for what, _ in told] == [
        f"{what}, pair {number}" for what in ("comparing", "confirming") for number in range(1, 7)
    ]
    assert all(0 <= fraction <= 1 for _, fraction in told)


# --- one pair --------------------------------------------------------------------------------------------------------


def test_a_pair_of_processes_in_rounds(setting, short_chain, long_chain, watch, tmp_path):
    sides = Contender(short_chain, "onnxruntime"), Contender(long_chain, "onnxruntime")
    pair = time_pair(sides, write_feeds(setting.feeds, tmp_path), setting, watch)
    assert [len(one) for one in (pair.base_ms, pair.candidate_ms, pair.idle_base_us, pair.idle_candidate_us)] == [6] * 4
    assert pair.ratio > 2  # thirty times the work
    assert pair.base_median_ms < pair.candidate_median_ms
    assert 0 <= pair.stable_warmups <= 2
    assert watch.record().idle_loops == 4 * 6 * 9


def test_sides_take_turns():
    assert [order_of(number) for number in range(2)] == [(0, 1, 1, 0), (1, 0, 0, 1)]


@pytest.mark.parametrize(("call_ms", "calls", "rounds"), [(1e-9, 500, 6), (1, 20, 6), (300, 1, 3), (5000, 1, 2)])
def test_slow_models_have_fewer_calls_and_rounds(call_ms, calls, rounds):
    assert (calls_for(call_ms), rounds_for(call_ms)) == (calls, rounds)


def test_a_process_that_fails_says_so(setting, short_chain, watch, tmp_path):
    broken = replace(short_chain, path=tmp_path / "broken.onnx", files=(tmp_path / "broken.onnx",))
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    sides = Contender(short_chain, "onnxruntime"), Contender(broken, "onnxruntime")
    with pytest.raises(Exception, match="short on onnxruntime"):
        compare_contenders(*sides, setting, Limits(0.05, 30.0), watch=watch)
    dead = Contender(short_chain, "onnxruntime", ("false",))
    with pytest.raises(InconclusiveError, match=r"the measuring process of short on onnxruntime ended \(exit code 1\)"):
        compare_contenders(sides[0], dead, setting, Limits(0.05, 30.0), watch=watch)


# --- records ---------------------------------------------------------------------------------------------------------


def test_a_result_is_written_and_read_back(monkeypatch, setting, short_chain, machine):
    runs = run_drawn(monkeypatch, setting, short_chain, [1.1] * 12)
    side = ComparedSide("dist/short", "short", "fp32-onnx", "onnxruntime", "fp32", runs[-1].base_medians_ms)
    result = ComparisonResult(
        side, side, "regression", "slower", True, runs[-1].ratio, 0.05, runs[-1].noise_floor, 6, 1, (1,), 1, 30.0, runs,
        machine, NoiseWatch((0,)).record(),
    )  # fmt: skip
    text = result_to_text(result)
    assert result_from_text(text, name="result.json") == result
    assert (result.exit_code, side.median_ms) == (4, 1.0)
    with pytest.raises(BundleError, match=r"result\.json"):
        result_from_text(text.replace('"confirmed"', '"conformed"'), name="result.json")


def test_ratios_as_text():
    assert str(Slowdown(1.032, 1.01, 1.05, 0.97)) == "+3.2 % [+1.0 %, +5.0 %]"
    assert str(Slowdown(0.9, 0.0, None, 0.0)) == "-10.0 % [-100.0 %, no bound]"
