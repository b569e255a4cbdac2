"""The goals that the project set itself, judged by what was measured side by side.

A goal on speed is met only where the whole 95 % interval lies at or above it, missed where the whole interval lies
below, inconclusive where the interval straddles it.  Sizes and errors are exact and have no interval.  A goal that
names an instruction set is judged only on a CPU that has it, and is "not measured" elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tsexport.bench.statistics import Ratio
from tsexport.bench.suites.rows import ModelResult

Status = Literal["met", "missed", "inconclusive", "not measured"]
Cpu = Literal["AVX2 alone", "with VNNI", "any"]

FP32_SPEEDUP = 1.25
INT8_SPEEDUP = 1.8
INT8_OVER_QUANTIZE_DYNAMIC = 1.25
INT8_SIZE_RATIO = 3.0
MAX_MSE_DEGRADATION = 0.05


@dataclass(frozen=True)
class Conditions:
    """What was measured on: goals hold for one thread, batch 1, and the model's own sizes."""

    instruction_set: str
    vnni: bool
    threads: int
    batch: int
    default_settings: bool

    def refuse(self, cpu: Cpu) -> str:
        """Return why a goal is not judged under these conditions, or ""."""
        if (self.threads, self.batch) != (1, 1):
            return f"the goal is for one thread and batch 1; measured with {self.threads} and batch {self.batch}"
        if not self.default_settings:
            return "the goal is for the model's default sizes; --set changed them"
        if cpu == "with VNNI" and not self.vnni:
            return f"this CPU has no VNNI ({self.instruction_set})"
        if cpu == "AVX2 alone" and self.instruction_set != "avx2":
            return f"this CPU is {self.instruction_set}"
        return ""


@dataclass(frozen=True)
class Judged:
    """One goal: `value` with its interval where there is one, against `limit`; `high` None means no upper bound."""

    model: str
    goal: str
    cpu: Cpu
    limit: float
    status: Status
    reason: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Finding:
    """What was found for a goal; a size or an error is exact and has no interval."""

    status: Status
    reason: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None


def of_ratio(status: Status, ratio: Ratio, reason: str = "") -> Finding:
    """Return a finding with a ratio's value and interval."""
    return Finding(status, reason, ratio.value, ratio.low, ratio.high)


def judged_of(model: str, goal: str, cpu: Cpu, limit: float, found: Finding) -> Judged:
    """Return a goal judged as it was found."""
    return Judged(model, goal, cpu, limit, found.status, found.reason, found.value, found.low, found.high)


def status_of(ratio: Ratio, at_least: float) -> Status:
    """Return "met" where the whole interval is at or above the goal, "missed" where it is below, else
    "inconclusive"."""
    if ratio.low >= at_least:
        return "met"
    return "missed" if ratio.high is not None and ratio.high < at_least else "inconclusive"


def judge_goals(result: ModelResult, conditions: Conditions) -> tuple[Judged, ...]:
    """Return the goals of a model, judged; () for a model that has none."""
    if result.model == "patchtst-cpu":
        rows: tuple[tuple[str, float, Callable[[ModelResult], Finding]], ...] = (
            ("fp32: times faster than the best plain fp32 export", FP32_SPEEDUP, _fp32_speedup),
            ("int8: times faster than plain ONNX export", INT8_SPEEDUP, _int8_speedup),
            ("int8: times faster than quantize_dynamic", INT8_OVER_QUANTIZE_DYNAMIC, _over_quantize_dynamic),
            ("int8: times smaller than the smallest fp32 file", INT8_SIZE_RATIO, _size),
            ("int8: task MSE up by at most", MAX_MSE_DEGRADATION, _task_error),
        )
        cpus: tuple[Cpu, ...] = ("AVX2 alone", "with VNNI")
    elif result.model == "patchtst":
        rows, cpus = (("selected for int8: never slower than fp32", 1.0, _not_slower),), ("any",)
    else:
        return ()
    return tuple(_judge(result, conditions, cpu, *row) for cpu in cpus for row in rows)


def _judge(
    result: ModelResult,
    conditions: Conditions,
    cpu: Cpu,
    goal: str,
    limit: float,
    find: Callable[[ModelResult], Finding],
) -> Judged:
    refused = conditions.refuse(cpu)
    found = Finding("not measured", refused) if refused else find(result)
    return judged_of(result.model, goal, cpu, limit, found)


def _by_ratio(result: ModelResult, name: str, than: str, at_least: float) -> Finding:
    ratio = result.ratio(name, than)
    if ratio is None:
        return Finding("not measured", f"{than} could not be run: {result.row(than).failed}")
    return of_ratio(status_of(ratio, at_least), ratio)


def _no_int8(result: ModelResult) -> Finding | None:
    if result.row(result.selected).precision == "int8":
        return None
    return Finding("missed", f"the bundle selected {result.row(result.selected).precision}: no int8 to speak of")


def _fp32_speedup(result: ModelResult) -> Finding:
    ratio = result.row(result.fp32).than_best_plain_fp32
    if ratio is None:
        return Finding("not measured", "no plain fp32 export could be run")
    return of_ratio(status_of(ratio, FP32_SPEEDUP), ratio)


def _int8_speedup(result: ModelResult) -> Finding:
    return _no_int8(result) or _by_ratio(result, result.selected, "plain ONNX Runtime", INT8_SPEEDUP)


def _over_quantize_dynamic(result: ModelResult) -> Finding:
    return _no_int8(result) or _by_ratio(result, result.selected, "quantize_dynamic", INT8_OVER_QUANTIZE_DYNAMIC)


def _size(result: ModelResult) -> Finding:
    if refused := _no_int8(result):
        return refused
    sizes = [row.size_bytes for row in result.rows if row.precision == "fp32" and row.size_bytes and row.is_export]
    own = result.row(result.selected).size_bytes
    if not sizes or not own:
        return Finding("not measured", "there is no fp32 file to compare with")
    value = min(sizes) / own
    return Finding("met" if value >= INT8_SIZE_RATIO else "missed", "", value)


def _task_error(result: ModelResult) -> Finding:
    if refused := _no_int8(result):
        return refused
    value = result.row(result.selected).degradation
    if value is None:
        return Finding("not measured", "there are no labels")
    return Finding("met" if value <= MAX_MSE_DEGRADATION else "missed", "", value)


def _not_slower(result: ModelResult) -> Finding:
    if result.selected == result.fp32:
        return Finding("met", "fp32 is selected: they are the same artifact", 1.0)
    return _by_ratio(result, result.selected, result.fp32, 1.0)
