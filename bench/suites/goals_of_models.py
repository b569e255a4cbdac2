"""The goals over all models: fp32 is never behind the best plain export, and is faster in the geometric mean.

A model's fp32 artifact is behind where the whole 95 % interval of its speed, against the best of the plain fp32 exports
(TorchScript, ONNX in ONNX Runtime, OpenVINO in f32), lies below 1: an interval that holds 1 says "as fast as".  The
mean is the geometric one over all models that were measured; its goal is met only where its whole interval reaches it.
"""

from collections.abc import Sequence

from tsexport.bench.statistics import Ratio
from tsexport.bench.suites.goals import Conditions, Judged, status_of
from tsexport.bench.suites.ratios import RoundMedians, mean_over_models
from tsexport.bench.suites.rows import ModelResult

NEVER_BEHIND = 1.0
MEAN_SPEEDUP = 1.15
ALL_MODELS = "all models"


def judge_models(results: Sequence[ModelResult], conditions: Conditions) -> tuple[Judged, ...]:
    """Return the goal of each model and that of the mean over them; () without results."""
    if not results:
        return ()
    refused = conditions.refuse("any")
    return (*(_judge_model(one, refused) for one in results), _judge_mean(results, refused))


def mean_speedup(results: Sequence[ModelResult]) -> Ratio | None:
    """Return the geometric mean of fp32 against the best plain export; None where no model had both."""
    models = [pairs for one in results if (pairs := _pairs(one))]
    return mean_over_models(models) if models else None


def _pairs(result: ModelResult) -> list[tuple[RoundMedians, RoundMedians]]:
    """Return (plain, fp32) for each plain export of a model that could be run."""
    if result.row(result.fp32).failed:
        return []
    return [(result.rounds_of(plain), result.rounds_of(result.fp32)) for plain in result.plain_fp32]


def _judge_model(result: ModelResult, refused: str) -> Judged:
    goal = "fp32: not behind the best plain export"
    ratio = result.row(result.fp32).than_best_plain_fp32
    if refused or ratio is None:
        why = refused or result.row(result.fp32).failed or "no plain fp32 export could be run"
        return Judged(result.model, goal, "any", NEVER_BEHIND, "not measured", why)
    behind = ratio.high is not None and ratio.high < NEVER_BEHIND
    reason = "" if behind or ratio.low >= NEVER_BEHIND else "as fast as: the interval holds 1"
    return Judged(
        result.model,
        goal,
        "any",
        NEVER_BEHIND,
        "missed" if behind else "met",
        reason,
        ratio.value,
        ratio.low,
        ratio.high,
    )


def _judge_mean(results: Sequence[ModelResult], refused: str) -> Judged:
    goal = "fp32: geometric mean of times faster than the best plain export"
    mean = None if refused else mean_speedup(results)
    if mean is None:
        why = refused or "no model had an fp32 artifact and a plain export"
        return Judged(ALL_MODELS, goal, "any", MEAN_SPEEDUP, "not measured", why)
    status = status_of(mean, MEAN_SPEEDUP)
    return Judged(ALL_MODELS, goal, "any", MEAN_SPEEDUP, status, "", mean.value, mean.low, mean.high)
