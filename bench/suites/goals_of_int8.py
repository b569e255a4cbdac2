"""The goals on INT8: the selected artifact against what a user gets from the other tools' defaults.

Of the defaults that could be run, those count whose outputs are within 5 % of the source's (relative RMS of the worst
output, on the evaluation windows).  "Never behind" is met where the whole 95 % interval of the speed against the
fastest of them lies at or above 1, or above AS_FAST_AS (then it says so); missed where the whole interval lies below
1; else inconclusive.  A speed-up is met only where its whole interval reaches the goal.  The mean is the geometric one
over all models that were measured, its interval a bootstrap over their processes and rounds.

Goals for AVX2 alone are judged on such a machine and are "not measured" elsewhere.  An environment that keeps oneDNN
from instructions (ONEDNN_MAX_CPU_ISA and the like) makes no AVX2 machine of another: it binds one library's kernels,
not ONNX Runtime's, and clocks and caches stay what they are.  Under such a switch nothing is judged.
"""

from collections.abc import Callable, Mapping, Sequence

from tsexport.bench.statistics import Ratio
from tsexport.bench.suites.default_contest import TRANSFORMERS
from tsexport.bench.suites.goals import Conditions, Cpu, Finding, Judged, judged_of, of_ratio, status_of
from tsexport.bench.suites.goals_of_models import ALL_MODELS
from tsexport.bench.suites.ratios import RoundMedians, least, mean_over_models
from tsexport.bench.suites.rows import DEFAULTS, PLAIN_ONNX, ModelResult, Row
from tsexport.quantize.evaluation import budget_miss
from tsexport.types import Accuracy, AccuracyBudget

MAX_ERROR = 0.05
NEVER_BEHIND = 1.0
AS_FAST_AS = 0.97
"""An interval that holds 1 and stays above this says "as fast as"; a wider one says nothing."""
MEAN_SPEEDUP = 1.2
SIZE_RATIO = 3.0
AVX2_SPEEDUP: Mapping[str, float] = {"patchtst-cpu": 1.8, "lstm": 1.5, "inception-time": 1.8, "unet": 2.0}
AVX2_TRANSFORMER_SPEEDUP = 1.2
SEE_TRIED = "what was tried stands with the model"
ISA_SWITCHES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_CPU_ISA_HINTS", "DNNL_CPU_ISA_HINTS")


def judge_int8(
    results: Sequence[ModelResult], conditions: Conditions, switches: Mapping[str, str]
) -> tuple[Judged, ...]:
    """Return the goals of each model and that of the mean over them; () without results.

    Args:
        switches: those of ISA_SWITCHES that are set, with their values.
    """
    if not results:
        return ()
    judged = [one for result in results for one in _judge_model(result, conditions, switches)]
    return (*judged, _judge_mean(results, _refuse(conditions, "any", switches)))


def switches_set(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of an environment that keep a library from the CPU's instructions."""
    return {name: environment[name] for name in ISA_SWITCHES if environment.get(name)}


def rivals(result: ModelResult) -> tuple[Row, ...]:
    """Return the other tools' defaults that could be run and answer within 5 % of the source."""
    return tuple(row for row in defaults_run(result) if row.output_error is not None and row.output_error <= MAX_ERROR)


def defaults_run(result: ModelResult) -> tuple[Row, ...]:
    """Return the other tools' defaults that could be run, however accurate."""
    return tuple(row for row in result.rows if row.name in DEFAULTS and row.summary and not row.failed)


def against(result: ModelResult, rows: Sequence[Row]) -> tuple[Ratio, Row] | None:
    """Return how many times faster the selected artifact is than the fastest of these rows, and that row."""
    pairs = [(ratio, row) for row in rows if (ratio := result.ratio(result.selected, row.name)) is not None]
    if not pairs:
        return None
    return least([ratio for ratio, _ in pairs]), min(pairs, key=lambda pair: pair[0].value)[1]


def mean_speedup(results: Sequence[ModelResult]) -> Ratio | None:
    """Return the geometric mean of the speed against the fastest default; None where no model had both."""
    models = [pairs for one in results if (pairs := _pairs(one))]
    return mean_over_models(models) if models else None


def _pairs(result: ModelResult) -> list[tuple[RoundMedians, RoundMedians]]:
    if not _timed(result):
        return []
    return [(result.rounds_of(row.name), result.rounds_of(result.selected)) for row in rivals(result)]


def _timed(result: ModelResult) -> bool:
    return result.row(result.selected).summary is not None


def _refuse(conditions: Conditions, cpu: Cpu, switches: Mapping[str, str]) -> str:
    """Return why goals for a CPU are not judged, or ""."""
    refused = conditions.refuse(cpu)
    if switches:
        named = ", ".join(f"{name}={value}" for name, value in sorted(switches.items()))
        own = f"{named} is set: it keeps one library from this CPU's instructions, and makes no other machine of it"
        return "; ".join(part for part in (refused, own) if part)
    return refused


def _judge_model(result: ModelResult, conditions: Conditions, switches: Mapping[str, str]) -> tuple[Judged, ...]:
    rows: list[tuple[str, Cpu, float, Callable[[ModelResult], Finding]]] = [
        ("not behind the fastest default within 5 %", "any", NEVER_BEHIND, _not_behind),
        ("not slower than fp32", "any", NEVER_BEHIND, _not_slower),
        ("times smaller than the smallest fp32 file", "any", SIZE_RATIO, _size),
        ("error at most", "any", MAX_ERROR, _error),
    ]
    speedup = AVX2_SPEEDUP.get(result.model, AVX2_TRANSFORMER_SPEEDUP if result.family in TRANSFORMERS else None)
    if speedup is not None:
        rows.insert(1, ("times faster than plain fp32 ONNX", "AVX2 alone", speedup, _over_plain(speedup)))
    judged = []
    for goal, cpu, limit, find in rows:
        refused = _refuse(conditions, cpu, switches)
        found = Finding("not measured", refused) if refused else find(result)
        judged.append(judged_of(result.model, goal, cpu, limit, found))
    return tuple(judged)


def _judge_never_behind(ratio: Ratio, why: str) -> Finding:
    if ratio.low >= NEVER_BEHIND:
        return of_ratio("met", ratio, why)
    if ratio.high is not None and ratio.high < NEVER_BEHIND:
        return of_ratio("missed", ratio, f"{why}; {SEE_TRIED}")
    if ratio.high is not None and ratio.low >= AS_FAST_AS:
        return of_ratio("met", ratio, f"as fast as, {why}")
    return of_ratio("inconclusive", ratio, why)


def _not_behind(result: ModelResult) -> Finding:
    found = against(result, rivals(result)) if _timed(result) else None
    if found is None:
        return Finding("not measured", result.row(result.selected).failed or "no default within 5 % could be run")
    ratio, rival = found
    own = result.row(result.selected).output_error
    beyond = f"; itself {own:.1%} off, within its budget by the task metric" if own and own > MAX_ERROR else ""
    return _judge_never_behind(ratio, f"against {rival.name}{beyond}")


def _not_slower(result: ModelResult) -> Finding:
    if result.selected == result.fp32:
        return Finding("met", "fp32 is selected: they are the same artifact", 1.0)
    ratio = result.ratio(result.selected, result.fp32)
    if ratio is None:
        return Finding("not measured", _why_not(result, result.fp32))
    return _judge_never_behind(ratio, f"against {result.row(result.fp32).what}")


def _over_plain(limit: float) -> Callable[[ModelResult], Finding]:
    def find(result: ModelResult) -> Finding:
        ratio = result.ratio(result.selected, PLAIN_ONNX)
        if ratio is None:
            return Finding("not measured", _why_not(result, PLAIN_ONNX))
        status = status_of(ratio, limit)
        return of_ratio(status, ratio, SEE_TRIED if status == "missed" else "")

    return find


def _why_not(result: ModelResult, other: str) -> str:
    return result.row(result.selected).failed or f"{other} could not be run: {result.row(other).failed}"


def _size(result: ModelResult) -> Finding:
    selected = result.row(result.selected)
    if selected.precision != "int8":
        return Finding("not measured", f"{selected.precision} is selected: the goal is for int8")
    sizes = [row.size_bytes for row in result.rows if row.precision == "fp32" and row.is_export and row.size_bytes]
    if not sizes or not selected.size_bytes:
        return Finding("not measured", "there is no fp32 file to compare with")
    value = min(sizes) / selected.size_bytes
    return Finding("met" if value >= SIZE_RATIO else "missed", "", value)


def _error(result: ModelResult) -> Finding:
    row = result.row(result.selected)
    if row.output_error is None:
        return Finding("not measured", row.failed or "no errors were taken")
    accuracy = Accuracy(row.name, row.what, result.windows, row.output_error, degradation=row.degradation)
    miss = budget_miss(accuracy, AccuracyBudget("task metric", MAX_ERROR, MAX_ERROR))
    if row.degradation is None:
        return Finding("missed" if miss else "met", "output error: there are no labels", row.output_error)
    return Finding("missed" if miss else "met", "change of the task metric", row.degradation)


def _judge_mean(results: Sequence[ModelResult], refused: str) -> Judged:
    goal = "geometric mean of times faster than the fastest default within 5 %"
    mean = None if refused else mean_speedup(results)
    if mean is None:
        found = Finding("not measured", refused or "no model had a selected artifact and a default within 5 %")
    else:
        count = sum(1 for one in results if _pairs(one))
        found = of_ratio(status_of(mean, MEAN_SPEEDUP), mean, f"over {count} model{'s' if count > 1 else ''}")
    return judged_of(ALL_MODELS, goal, "any", MEAN_SPEEDUP, found)
