"""The goals on INT8 against the other tools' defaults, on synthetic results, and the text that shows them."""

from dataclasses import replace

import numpy as np
import pytest

from tsexport.bench.statistics import Ratio, summarize
from tsexport.bench.suites.goals import Conditions
from tsexport.bench.suites.goals_of_int8 import ISA_SWITCHES, judge_int8, mean_speedup, rivals, switches_set
from tsexport.bench.suites.int8_report import busy_text, by_budget_text, contestants_text, overview_text, tried_text
from tsexport.bench.suites.ratios import PairRatio, RoundMedians
from tsexport.bench.suites.report import goals_text
from tsexport.bench.suites.rows import (
    DEFAULTS,
    FASTEST_FP32,
    NNCF,
    PLAIN_ONNX,
    QUANTIZE_DYNAMIC,
    SELECTED,
    ModelResult,
    Row,
    TriedCandidate,
)

AVX2 = Conditions("avx2", vnni=False, threads=1, batch=1, default_settings=True)
VNNI = Conditions("avx512-vnni", vnni=True, threads=1, batch=1, default_settings=True)
BEHIND, NOT_SLOWER, SIZE, ERROR = (
    "not behind the fastest default within 5 %",
    "not slower than fp32",
    "times smaller than the smallest fp32 file",
    "error at most",
)
OVER_PLAIN = "times faster than plain fp32 ONNX"
MILLISECONDS = {PLAIN_ONNX: 4.0, QUANTIZE_DYNAMIC: 2.0, NNCF: 1.0, FASTEST_FP32: 3.0, SELECTED: 1.6}
ERRORS = {PLAIN_ONNX: 1e-7, QUANTIZE_DYNAMIC: 0.015, NNCF: 0.3, FASTEST_FP32: 1e-7, SELECTED: 0.02}
PRECISIONS = {QUANTIZE_DYNAMIC: "int8", NNCF: "int8", SELECTED: "int8"}


def exact(value):
    return Ratio(value, value, value, 0.95)


def result(model="gru", family="recurrent", *, times=None, errors=None, ratios=None):
    """All contestants took the same milliseconds in every round; NNCF is the fastest default, and 30 % off.

    `ratios` replaces single ratios of the selected artifact, by what it is held against.
    """
    times, errors = MILLISECONDS | (times or {}), ERRORS | (errors or {})
    made = tuple(
        Row(
            name,
            f"what of {name}",
            PRECISIONS.get(name, "fp32"),
            size_bytes=1_000 if name in PRECISIONS else 4_000,
            summary=summarize([value] * 20),
            output_error=errors[name],
            degradation=0.01,
        )
        for name, value in times.items()
    )
    pairs = {name: exact(value / times[SELECTED]) for name, value in times.items() if name != SELECTED}
    pairs |= ratios or {}
    timed = tuple(RoundMedians(name, ((value,) * 5,) * 2) for name, value in times.items())
    return ModelResult(
        model,
        made,
        tuple(PairRatio(SELECTED, than, ratio) for than, ratio in pairs.items()),
        SELECTED,
        FASTEST_FP32,
        64,
        10,
        2,
        (0.1, 0.2),
        rounds_ms=timed,
        family=family,
    )


def changed(measured, name, **changes):
    return replace(measured, rows=tuple(replace(r, **changes) if r.name == name else r for r in measured.rows))


def judged(measured, conditions=VNNI, switches=None):
    return {one.goal: one for one in judge_int8([measured], conditions, switches or {})[:-1]}


def test_only_defaults_within_five_percent_count():
    assert [row.name for row in rivals(result())] == [PLAIN_ONNX, QUANTIZE_DYNAMIC]
    found = judged(result())[BEHIND]
    assert (found.status, found.value) == ("met", pytest.approx(2.0 / 1.6, rel=1e-12))
    assert QUANTIZE_DYNAMIC in found.reason
    accurate = judged(result(errors={NNCF: 0.05}))[BEHIND]
    assert (accurate.status, accurate.value) == ("missed", pytest.approx(1.0 / 1.6, rel=1e-12))
    assert NNCF in accurate.reason
    assert "what was tried" in accurate.reason


@pytest.mark.parametrize(
    ("ratio", "status", "why"),
    [
        (Ratio(1.1, 1.0, 1.2, 0.95), "met", "against"),
        (Ratio(1.0, 0.97, 1.02, 0.95), "met", "as fast as"),
        (Ratio(1.0, 0.96, 1.02, 0.95), "inconclusive", "against"),
        (Ratio(0.98, 0.975, 0.999, 0.95), "missed", "against"),
        (Ratio(1.5, 0.0, None, 0.95), "inconclusive", "against"),
    ],
)
def test_never_behind_and_never_slower_need_a_whole_interval(ratio, status, why):
    found = judged(result(ratios=dict.fromkeys((PLAIN_ONNX, QUANTIZE_DYNAMIC, FASTEST_FP32), ratio)))
    for goal in (BEHIND, NOT_SLOWER):
        assert found[goal].status == status
        assert found[goal].reason.startswith(why)
        assert (found[goal].low, found[goal].high) == (ratio.low, ratio.high)


def test_a_selected_artifact_beyond_the_output_error_says_so():
    found = judged(changed(result(), SELECTED, output_error=0.08))
    assert "8.0% off" in found[BEHIND].reason
    assert found[ERROR].status == "met", "with labels the task metric decides"


@pytest.mark.parametrize(
    ("changes", "status", "value"),
    [
        ({"degradation": 0.05}, "met", 0.05),
        ({"degradation": 0.051}, "missed", 0.051),
        ({"degradation": None, "output_error": 0.051}, "missed", 0.051),
        ({"degradation": None, "output_error": 0.049}, "met", 0.049),
        ({"degradation": None, "output_error": None, "failed": "it crashed"}, "not measured", None),
    ],
)
def test_errors_are_held_to_the_budget(changes, status, value):
    found = judged(changed(result(), SELECTED, **changes))[ERROR]
    assert (found.status, found.value, found.low) == (status, value, None)


def test_size_is_a_goal_of_int8_alone():
    assert judged(result())[SIZE].status == "met"
    large = judged(changed(result(), SELECTED, size_bytes=1_334))[SIZE]
    assert (large.status, large.value) == ("missed", pytest.approx(4_000 / 1_334, rel=1e-12))
    in_bf16 = judged(changed(result(), SELECTED, precision="bf16"))[SIZE]
    assert (in_bf16.status, in_bf16.reason) == ("not measured", "bf16 is selected: the goal is for int8")


def test_fp32_is_not_slower_than_itself():
    same = replace(result(), fp32=SELECTED)
    found = judged(same)[NOT_SLOWER]
    assert (found.status, found.value) == ("met", 1.0)


@pytest.mark.parametrize(
    ("model", "family", "limit"),
    [
        ("patchtst-cpu", "transformer", 1.8),
        ("itransformer", "transformer", 1.2),
        ("hrm-27m", "hrm", 1.2),
        ("lstm", "recurrent", 1.5),
        ("inception-time", "cnn", 1.8),
        ("unet", "unet", 2.0),
    ],
)
def test_avx2_has_goals_against_plain_onnx_of_its_own(model, family, limit):
    measured = result(model, family)
    here = judged(measured, AVX2)[OVER_PLAIN]
    assert (here.status, here.limit, here.cpu) == ("met", limit, "AVX2 alone")
    slower = result(model, family, ratios={PLAIN_ONNX: exact(limit - 0.01)})
    assert judged(slower, AVX2)[OVER_PLAIN].status == "missed"
    wide = result(model, family, ratios={PLAIN_ONNX: Ratio(limit, limit - 0.1, limit + 0.1, 0.95)})
    assert judged(wide, AVX2)[OVER_PLAIN].status == "inconclusive"
    elsewhere = judged(measured, VNNI)[OVER_PLAIN]
    assert (elsewhere.status, elsewhere.value) == ("not measured", None)
    assert "this CPU is avx512-vnni" in elsewhere.reason


def test_models_without_such_a_goal_have_none():
    assert OVER_PLAIN not in judged(result("gru", "recurrent"), AVX2)
    assert judge_int8([], AVX2, {}) == ()


def test_a_switch_on_instructions_makes_no_other_machine():
    set_here = switches_set({"ONEDNN_MAX_CPU_ISA": "AVX2", "HOME": "/root", "DNNL_MAX_CPU_ISA": ""})
    assert set_here == {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert set(ISA_SWITCHES) > set(set_here)
    for conditions in (VNNI, AVX2):
        found = judge_int8([result("lstm")], conditions, set_here)
        assert {one.status for one in found} == {"not measured"}
        assert all("ONEDNN_MAX_CPU_ISA=AVX2 is set" in one.reason for one in found)


def test_other_conditions_are_not_judged():
    for conditions in (replace(VNNI, threads=2), replace(VNNI, default_settings=False)):
        assert {one.status for one in judge_int8([result()], conditions, {})} == {"not measured"}


def test_the_mean_is_geometric_over_models_and_against_the_fastest_that_counts():
    slow = result("tcn", times={SELECTED: 2.0})  # 2.0 / 1.6 and 2.0 / 2.0
    mean = judge_int8([result(), slow], VNNI, {})[-1]
    assert (mean.model, mean.limit) == ("all models", 1.2)
    assert mean.value == pytest.approx((2.0 / 1.6) ** 0.5, rel=1e-12)
    assert (mean.low, mean.high, mean.status) == (mean.value, mean.value, "missed")
    assert mean.reason == "over 2 models"
    assert judge_int8([result(times={SELECTED: 1.6})], VNNI, {})[-1].status == "met"


def test_rounds_that_differ_give_the_mean_an_interval():
    measured = result()
    noisy = tuple(map(tuple, np.random.default_rng(3).uniform(1.5, 2.5, (2, 5))))
    rounds = tuple(
        RoundMedians(QUANTIZE_DYNAMIC, noisy) if r.name == QUANTIZE_DYNAMIC else r for r in measured.rounds_ms
    )
    found = mean_speedup([replace(measured, rounds_ms=rounds)])
    assert found.low < found.value < found.high


def test_a_model_whose_contestants_failed_is_left_out_of_the_mean():
    measured = result("lone")
    for name in DEFAULTS:
        measured = changed(measured, name, failed="it crashed", summary=None, output_error=None)
    measured = replace(measured, ratios=tuple(p for p in measured.ratios if p.than not in DEFAULTS))
    found = judge_int8([measured], AVX2, {})
    assert [one.status for one in found if one.goal == BEHIND] == ["not measured"]
    assert found[-1].status == "not measured"
    assert judge_int8([measured, result()], AVX2, {})[-1].reason == "over 1 model"
    lost = changed(result(), SELECTED, failed="it hung", summary=None, output_error=None)
    lost = replace(lost, ratios=())
    assert {one.reason for one in judge_int8([lost], AVX2, {}) if one.goal in (BEHIND, NOT_SLOWER)} == {"it hung"}


def test_the_report_shows_who_counts_and_why_not(machine):
    measured = changed(result(), NNCF, failed="RuntimeError: no")
    assert "failed" in contestants_text(measured)
    text = contestants_text(result())
    lines = {line.split("|")[1].strip().partition(" (")[0]: line for line in text.splitlines()[2:]}
    assert lines[NNCF].rstrip(" |").endswith("no: above 5 %")
    assert lines[QUANTIZE_DYNAMIC].rstrip(" |").endswith("yes")
    overview = overview_text([result(), replace(result("b"), fp32=SELECTED)])
    assert f"| {QUANTIZE_DYNAMIC} |" in overview
    assert "same" in overview
    assert "1.25 [1.25, 1.25]" in overview
    goals = goals_text(judge_int8([result()], VNNI, {}), machine)
    assert "gru, error at most 5%" in goals
    assert "gru, not behind the fastest default within 5 % 1 " in goals


def test_a_default_that_only_the_task_metric_lets_through_is_told():
    text = by_budget_text(result())
    assert NNCF in text
    assert text.endswith("(30 % off): 0.62 [0.62, 0.62]")
    assert by_budget_text(replace(result(), ratios=())) == ""


def test_what_was_tried_has_ratio_and_reason():
    tried = (
        TriedCandidate(
            "dynamic-s8", "onnxruntime", "int8", "selected", "the fastest", 9, 0.01, None, exact(1.5), 0.875, 12
        ),
        TriedCandidate("nncf", "openvino", "int8", "rejected", "mse|mae +9 %", 9, 0.3, 0.09, None),
    )
    text = tried_text(tried)
    assert "1.50 [1.50, 1.50]" in text
    assert "88%" in text
    assert "| 12 |" in " ".join(text.split())
    assert "mse/mae +9 %" in text
    assert tried_text(()) == ""


def test_a_busy_machine_is_named():
    busy = replace(result("lstm"), load_average=(2.1, 3.0))
    assert "lstm 2.1" in busy_text([result(), busy], cores=2)
    assert busy_text([result()], cores=2) == ""
