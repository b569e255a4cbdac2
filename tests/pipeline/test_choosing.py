"""The pipeline's own part of selecting: which fp32 artifacts may ship, and the reasons where no candidate can."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import tsexport.stages.choosing
from tsexport.bench.race import RaceEntry, RaceResult
from tsexport.bench.statistics import Ratio, summarize
from tsexport.errors import AccuracyError, LatencyError
from tsexport.pipeline import STEPS, bundle_name
from tsexport.progress import Progress
from tsexport.quantize.cpu_recipes import DYNAMIC_U8, STATIC_U8S8
from tsexport.quantize.selection import select
from tsexport.stages.choosing import FP32_ROUNDING, _race_candidates, hold_budget, why_none
from tsexport.stages.exporting import formats_to_export
from tsexport.stages.measuring import Placed, require_budgets
from tsexport.stages.tried import AccuracyResult, Tried
from tsexport.types import Accuracy, AccuracyBudget, Artifact, Budget, TensorSpec, Verdict

SPEC = (TensorSpec("x", "float32", ("batch", 2)),)
ONNX = Artifact("onnx-fp32", Path("a"), "onnx", "fp32", SPEC, SPEC, (Path("a"),), "0" * 64, 1)
HERE = (Placed(ONNX, "onnxruntime"), Placed(ONNX, "tract"))
BUDGET = AccuracyBudget("mse", 0.05, 0.05)


def result(runtime, *, degradation=None, output_error=0.0):
    labelled = degradation is not None
    return AccuracyResult(
        Accuracy("onnx-fp32", runtime, 64, output_error, "mse" if labelled else None, None, None, degradation)
    )


def held(budget=BUDGET, **results):
    judged = {("onnx-fp32", runtime): one for runtime, one in results.items()}
    return hold_budget(budget, HERE, judged)


def test_rounding_misses_no_budget():
    budget = replace(BUDGET, max_degradation=0.0, max_output_error=0.0)
    rounding = FP32_ROUNDING / 2
    artifacts, left_out = held(
        budget,
        onnxruntime=result("onnxruntime", degradation=rounding),
        tract=result("tract", output_error=rounding),
    )
    assert (artifacts, left_out) == (HERE, ())


def test_an_fp32_artifact_that_misses_the_budget_is_left_out():
    artifacts, left_out = held(
        onnxruntime=result("onnxruntime", degradation=0.0), tract=result("tract", degradation=0.2)
    )
    assert artifacts == HERE[:1]
    assert left_out == ("onnx-fp32 on tract is left out: mse +20.00% against the source model, allowed is +5.10%",)


def test_without_labels_the_output_error_decides():
    artifacts, left_out = held(
        onnxruntime=result("onnxruntime"), tract=AccuracyResult(None, reason="its answers are not finite")
    )
    assert artifacts == HERE[:1]
    assert left_out == ("onnx-fp32 on tract is left out: its answers are not finite",)


def test_where_no_fp32_artifact_holds_the_budget_the_build_ends_with_3():
    with pytest.raises(AccuracyError, match="no fp32 artifact holds the accuracy budget: onnx-fp32 on onnxr") as caught:
        held(onnxruntime=result("onnxruntime", output_error=0.2), tract=result("tract", output_error=0.3))
    assert caught.value.exit_code == 3
    assert "--max-degradation" in caught.value.next_step


def tried(out):
    return Tried(DYNAMIC_U8, "onnxruntime", None, None, 0.0, out, "reason")


@pytest.mark.parametrize(
    ("outs", "why"),
    [
        (["failed", "failed"], "no candidate could be built and run: fp32 is selected"),
        (["failed", "rejected"], "no candidate held the accuracy budget: fp32 is selected"),
        (["rejected", ""], "no candidate within the accuracy budget runs on tract: fp32 is selected"),
    ],
)
def test_reasons_without_a_race(outs, why):
    assert why_none([tried(out) for out in outs], "tract") == why


def test_a_candidate_names_its_runtime_where_its_recipe_has_several():
    assert tried("").name == "dynamic-u8"
    assert replace(tried(""), recipe=STATIC_U8S8).name == "static-u8s8 on onnxruntime"


@pytest.mark.parametrize(
    ("asked", "exported"),
    [
        (("onnx",), ("onnx",)),
        (("torchscript",), ("torchscript",)),
        (("openvino",), ("onnx", "openvino")),
        (("openvino", "torchscript"), ("onnx", "torchscript", "openvino")),
    ],
)
def test_openvino_needs_onnx(asked, exported):
    assert formats_to_export(asked) == exported


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("linear", "cpu4-int8", "host"), "linear-cpu4-int8"),
        (("linear", "cpu4-int8", "avx2"), "linear-cpu4-int8-avx2"),
        (("linear", "orin-int8", "orin-nano@jetpack-6.2"), "linear-orin-int8-orin-nano-jetpack-6.2"),
    ],
)
def test_names(arguments, name):
    assert bundle_name(*arguments) == name


def test_every_step_is_expected_to_take_some_time():
    assert all(seconds > 0 for seconds in STEPS.values())


def test_a_missed_row_ends_a_build_with_4():
    budget = Budget("latency", "linear", "cpu4", "fp32", 1, max_ms=1.0)
    verdicts = [
        Verdict("met", budget, "fine"),
        Verdict("inconclusive", budget, "noise"),
        Verdict("not measured", budget, ""),
    ]
    require_budgets(verdicts)
    with pytest.raises(LatencyError, match="latency budgets missed: p90 2 ms; 1 ms allowed") as caught:
        require_budgets([*verdicts, Verdict("missed", budget, "p90 2 ms; 1 ms allowed")])
    assert caught.value.exit_code == 4


# --- the race of candidates ------------------------------------------------------------------------------------------


def race_of(**speedups):
    """A race against openvino-fp32 with hand-made ratios (value, low, high)."""
    times = (1.0,) * 12
    entries = tuple(
        RaceEntry(f"{name} on onnxruntime, 1 thread", name, "onnxruntime", 1, (times,), summarize(times),
                  Ratio(*ratio, 0.95), True, 1.0, 1)
        for name, ratio in {"fp32": (1.0, 1.0, 1.0), **speedups}.items()
    )  # fmt: skip
    return RaceResult(1, entries[0].name, 10, 1, 1.0, entries)


@pytest.mark.parametrize(
    ("objective", "again"),
    [("latency", [["fp32", "large", "small"]]), ("size", [])],
)
def test_noise_is_raced_away_for_latency_and_hides_no_smaller_candidate_for_size(monkeypatch, objective, again):
    """The best alone, once more, may be selected for their speed; the smallest must not be left out by that."""
    raced = []

    def race_placed(context, samples, placed, *rest, **options):
        raced.append([one.artifact.name for one in placed])
        return race_of(large=(1.2, 0.9, 1.5), small=(1.01, 0.95, 1.07))

    monkeypatch.setattr(tsexport.stages.choosing, "race_placed", race_placed)
    fp32, large, small = (
        Placed(replace(ONNX, name=name, size_bytes=size), "onnxruntime")
        for name, size in (("fp32", 100), ("large", 50), ("small", 30))
    )
    context = SimpleNamespace(options=SimpleNamespace(objective=objective))
    step = Progress(()).step("race")
    with step as running:
        races = _race_candidates(context, None, fp32, [large, small], 1, running, print)
    assert raced == [["fp32", "large", "small"], *again]
    choice = select(races[-1], [one.artifact for one in (fp32, large, small)], fp32.key, objective)
    assert choice.artifact == ("fp32" if objective == "latency" else "small")
