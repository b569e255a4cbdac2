"""What a bundle selects from hand-made races."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsexport.bench.race import RaceEntry, RaceResult
from tsexport.bench.statistics import Ratio, summarize
from tsexport.quantize.selection import (
    UNDECIDED_FROM,
    finalists,
    order_by_speed,
    select,
    select_fp32,
    select_unmeasured,
)
from tsexport.types import Accuracy, Artifact

BASELINE = ("fp32", "openvino")


def entry(artifact, runtime, speedup, low=None, high=None, threads=1, calls=12):
    times = (1.0 / speedup,) * calls
    return RaceEntry(
        name=f"{artifact} on {runtime}",
        artifact=artifact,
        runtime=runtime,
        threads=threads,
        blocks_ms=(times,),
        summary=summarize(times),
        speedup=Ratio(speedup, speedup - 0.02 if low is None else low, speedup + 0.02 if high is None else high, 0.95),
        stable_warmup=True,
        load_ms=1.0,
        peak_memory_bytes=1,
    )


def race_of(*rivals):
    entries = (entry(*BASELINE, 1.0, 1.0, 1.0), *rivals)
    return RaceResult(1, "fp32 on openvino", 10, 1, 1.0, entries)


def artifacts(**sizes):
    return [
        Artifact(name, Path(name), "onnx", "int8", (), (), (), "", size)
        for name, size in {"fp32": 100, **sizes}.items()
    ]


def chosen(choice):
    return choice.artifact, choice.runtime


def test_the_fastest_candidate_is_selected():
    result = race_of(entry("a", "onnxruntime", 1.3), entry("b", "onnxruntime", 1.6), entry("b", "openvino", 1.1))
    choice = select(result, artifacts(a=30, b=40), BASELINE)
    assert chosen(choice) == ("b", "onnxruntime")
    assert "faster than the fastest fp32 artifact, fp32 on openvino" in choice.why
    assert choice.measured == "1.60 times the speed of fp32 on openvino (1.58 to 1.62)"
    assert not any(digit in choice.why.replace("fp32", "") for digit in "0123456789")


def test_a_lead_within_the_noise_does_not_count():
    noisy = entry("a", "onnxruntime", 1.5, low=0.99, high=2.1)
    choice = select(race_of(noisy, entry("b", "onnxruntime", 1.2)), artifacts(a=30, b=30), BASELINE)
    assert chosen(choice) == ("b", "onnxruntime")
    alone = select(race_of(noisy), artifacts(a=30), BASELINE)
    assert chosen(alone) == BASELINE
    assert "beyond the measuring noise: fp32 is selected" in alone.why
    assert (
        alone.measured == "the nearest, a on onnxruntime, had 1.50 times the speed of fp32 on openvino (0.99 to 2.10)"
    )


def test_an_interval_that_touches_one_does_not_count():
    choice = select(race_of(entry("a", "onnxruntime", 1.2, low=1.0)), artifacts(a=30), BASELINE)
    assert chosen(choice) == BASELINE


def test_slower_candidates_leave_fp32():
    choice = select(race_of(entry("a", "onnxruntime", 0.4), entry("b", "openvino", 0.9)), artifacts(a=1, b=1), BASELINE)
    assert chosen(choice) == BASELINE
    assert choice.measured.startswith("the nearest, b on openvino, had 0.90")


@pytest.mark.parametrize("objective", ["latency", "size"])
def test_nothing_eligible(objective):
    choice = select(race_of(), artifacts(), BASELINE, objective)
    assert chosen(choice) == BASELINE
    assert choice.why == "no candidate held the accuracy budget: fp32 is selected"
    assert choice.measured == "nothing to compare"


def test_for_size_the_smallest_that_is_no_slower():
    result = race_of(
        entry("large", "onnxruntime", 2.0),
        entry("small", "onnxruntime", 0.99, high=1.01),
        entry("small", "openvino", 1.05),
        entry("tiny but slow", "onnxruntime", 0.8),
        entry("as large", "onnxruntime", 1.5),
    )
    sizes = {"large": 60, "small": 30, "tiny but slow": 5, "as large": 100}
    choice = select(result, artifacts(**sizes), BASELINE, "size")
    assert chosen(choice) == ("small", "openvino")  # of equal files the faster runtime
    assert choice.why.startswith("the smallest candidate")
    assert chosen(select(result, artifacts(**sizes), BASELINE)) == ("large", "onnxruntime")


@given(
    st.lists(
        st.tuples(st.integers(1, 200), st.floats(0.2, 5), st.floats(0, 0.5), st.floats(0, 0.5)),
        min_size=0,
        max_size=12,
    )
)
def test_for_size_nothing_smaller_was_as_fast(rivals):
    """Of any candidates: what is selected is no slower than fp32 and smaller, and no other such is smaller still."""
    entries = [
        entry(f"c{index}", "onnxruntime", value, value - low, value + high)
        for index, (_, value, low, high) in enumerate(rivals)
    ]
    sizes = {f"c{index}": size for index, (size, *_) in enumerate(rivals)}
    choice = select(race_of(*entries), artifacts(**sizes), BASELINE, "size")
    good = {one.artifact for one in entries if one.speedup.high >= 1 and sizes[one.artifact] < 100}
    if good:
        assert sizes[choice.artifact] == min(sizes[name] for name in good)
        assert choice.artifact in good
    else:
        assert chosen(choice) == BASELINE


def test_for_size_nothing_smaller():
    choice = select(race_of(entry("a", "onnxruntime", 1.5)), artifacts(a=100), BASELINE, "size")
    assert chosen(choice) == BASELINE
    assert choice.why == (
        "no candidate within the accuracy budget was smaller than fp32 and no slower: fp32 is selected"
    )


@pytest.mark.parametrize(
    ("rivals", "names"),
    [
        ((), ()),
        ((entry("a", "onnxruntime", 1.3),), ()),  # settled: ahead
        ((entry("a", "onnxruntime", 0.9),), ()),  # settled: behind
        ((entry("a", "onnxruntime", 1.3), entry("b", "openvino", 1.2)), ()),  # ahead of the other too
        ((entry("a", "onnxruntime", 1.2, low=0.9),), ("a on onnxruntime",)),
        (
            (entry("a", "onnxruntime", 1.2, low=0.9), entry("b", "openvino", 1.3, low=0.8)),
            ("b on openvino", "a on onnxruntime"),
        ),
        (
            (entry("a", "onnxruntime", 1.31), entry("b", "openvino", 1.3), entry("c", "openvino", 1.2)),
            ("a on onnxruntime", "b on openvino"),
        ),
        ((entry("a", "onnxruntime", UNDECIDED_FROM - 0.01, low=0.9),), ()),  # not worth another race
    ],
)
def test_finalists(rivals, names):
    assert finalists(race_of(*rivals), BASELINE) == names


def test_of_many_that_noise_does_not_tell_apart_three_are_raced_again():
    rivals = [entry(name, "onnxruntime", 1.5 + index / 100, low=1.0, high=2.0) for index, name in enumerate("abcde")]
    assert finalists(race_of(*rivals), BASELINE) == ("e on onnxruntime", "d on onnxruntime", "c on onnxruntime")


def test_a_race_too_short_for_an_interval():
    """Few rounds: no upper end, and nothing that says the candidate is ahead."""
    short = replace(entry("a", "onnxruntime", 1.5), speedup=Ratio(1.5, 0.0, None, 0.95))
    choice = select(race_of(short), artifacts(a=30), BASELINE)
    assert chosen(choice) == BASELINE
    assert choice.measured.endswith("1.50 times the speed of fp32 on openvino (too few rounds for an interval)")
    assert chosen(select(race_of(short), artifacts(a=30), BASELINE, "size")) == ("a", "onnxruntime")
    slow = replace(short, speedup=Ratio(0.4, 0.0, None, 0.95))
    assert chosen(select(race_of(slow), artifacts(a=30), BASELINE, "size")) == BASELINE
    assert finalists(race_of(short), BASELINE) == ("a on onnxruntime",)


def test_fp32_by_speed():
    result = race_of(
        entry("onnx", "onnxruntime", 1.2), entry("onnx", "tract", 0.5), entry("onnx", "onnxruntime", 1.9, threads=2)
    )
    assert order_by_speed(result, 1) == (("onnx", "onnxruntime"), BASELINE, ("onnx", "tract"))
    assert order_by_speed(result, 2) == (("onnx", "onnxruntime"),)
    choice = select_fp32(result, 1)
    assert chosen(choice) == ("onnx", "onnxruntime")
    assert choice.measured == "0.833 ms median at batch 1"
    assert select_fp32(result, 2).measured == "0.526 ms median at batch 1"


def test_the_fastest_may_have_been_called_a_few_times_only():
    result = race_of(entry("onnx", "onnxruntime", 2.0, threads=2, calls=3))
    assert select_fp32(result, 2).measured == "0.500 ms median at batch 1"


def accuracy(artifact, runtime, output_error, degradation=None):
    return Accuracy(artifact, runtime, 64, output_error, None, None, None, degradation)


SIZES = {"a": 300, "b": 400, "c": 300}


def test_without_speed_the_smallest_is_selected_where_size_is_asked_for():
    judged = [accuracy("b", "openvino", 0.01), accuracy("a", "onnxruntime", 0.03), accuracy("c", "onnxruntime", 0.02)]
    choice = select_unmeasured(judged, "int8", "t4", SIZES, "size")
    assert (choice.artifact, choice.runtime) == ("c", "onnxruntime")
    assert choice.why == (
        "the smallest of the int8 artifacts within the accuracy budget; latency not measured, since this is no t4"
    )
    assert choice.measured == "300 bytes, latency not measured"


def test_without_speed_the_smallest_error_is_selected():
    judged = [accuracy("a", "onnxruntime", 0.02), accuracy("b", "openvino", 0.01), accuracy("c", "onnxruntime", 0.03)]
    choice = select_unmeasured(judged, "int8", "orin-nano", SIZES)
    assert (choice.artifact, choice.runtime) == ("b", "openvino")
    assert choice.why == (
        "the smallest error of the int8 artifacts within the accuracy budget; latency not measured, since this is no "
        "orin-nano"
    )
    assert choice.measured == "output error 0.01, latency not measured"


def test_of_the_same_error_the_first_is_selected():
    judged = [accuracy("a", "onnxruntime", 0.01), accuracy("a", "openvino", 0.01)]
    choice = select_unmeasured(judged, "int8", "t4", SIZES)
    assert (choice.artifact, choice.runtime) == ("a", "onnxruntime")


def test_a_lucky_metric_does_not_hide_a_larger_error():
    judged = [accuracy("a", "x", 0.04, degradation=-0.03), accuracy("b", "x", 0.01, degradation=0.02)]
    assert select_unmeasured(judged, "int8", "t4", SIZES).artifact == "b"


def test_nothing_is_selected_of_nothing():
    assert select_unmeasured([], "fp16", "t4", SIZES) is None
