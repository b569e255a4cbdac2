"""Published figures held against what is known of a bundle: parameters, files, memory, and speeds of its artifacts.

A description is met where the value lies in its range, or within `ROUNDING` of its one value; it is refuted elsewhere.
Of what a thing costs, less than described is met; of what a gain brings, more is.  A budget is met or missed.  A figure
of a device is judged on that device alone, and sizes of files by the files.  What cannot be judged says why.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from tsexport.bench.figures import ENSEMBLE_PREFIX, Figure, figure_text
from tsexport.bench.statistics import P50_SAMPLES, summarize
from tsexport.bench.verdicts import CPU4
from tsexport.types import Format, Measurement, Precision, VerdictStatus

ROUNDING = 0.05
"""The documents print two or three digits, and a container format adds its own to the weights."""
_MB, _GB = 10**6, 10**9
_HERE = frozenset({None, CPU4, "cpu", "any"})


@dataclass(frozen=True)
class ArtifactSize:
    """What the manifest says of an artifact's files."""

    name: str
    precision: Precision
    format: Format
    size_bytes: int


@dataclass(frozen=True)
class Subject:
    """What is known of one bundle.

    `pruned_parameters` are after / before where the bundle is of a pruned model, else None.  `measurements` are those
    of one machine, which stands for cpu4.
    """

    parameters: int
    artifacts: tuple[ArtifactSize, ...]
    measurements: tuple[Measurement, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    pruned_parameters: float | None = None


@dataclass(frozen=True)
class FigureVerdict:
    """A figure judged; `value` is in the figure's unit, None where nothing was measured."""

    status: VerdictStatus
    figure: Figure
    reason: str
    value: float | None = None


@dataclass(frozen=True)
class _Found:
    """A value with where it comes from, or the reason why there is none."""

    value: float | None
    text: str


def judge_figures(figures: Sequence[Figure], subject: Subject) -> tuple[FigureVerdict, ...]:
    """Return one verdict for each figure, in their order."""
    return tuple(_with_caveat(_judge(figure, subject)) for figure in figures)


def _judge(figure: Figure, subject: Subject) -> FigureVerdict:
    if figure.quantity == "parameters in int8":
        return FigureVerdict(
            "not possible", figure, "quantization keeps the number of parameters and shrinks their bytes"
        )
    if figure.kind in _ELSEWHERE:
        return FigureVerdict("not measured", figure, _ELSEWHERE[figure.kind])
    if figure.quantity.startswith("training memory"):
        return FigureVerdict("not measured", figure, "memory of training; a bundle is not trained")
    if figure.quantity == "memory of the GPU":
        return FigureVerdict("not measured", figure, "memory of a GPU; measured on a CPU")
    if figure.model.startswith(ENSEMBLE_PREFIX) and figure.quantity != "model in the process":
        return FigureVerdict("not measured", figure, "all members in one process; each bundle was measured in its own")
    if figure.kind == "gain" and figure.transform in _NOT_IN_A_BUNDLE:
        return FigureVerdict("not measured", figure, _NOT_IN_A_BUNDLE[figure.transform])
    if figure.device not in _HERE:
        return FigureVerdict("not measured", figure, f"a figure of {figure.device}; measured on {CPU4}")
    found = _FIND[figure.quantity](figure, subject)
    if found.value is None:
        return FigureVerdict("not measured", figure, found.text)
    return _decide(figure, found.value, found.text)


def _decide(figure: Figure, value: float, text: str) -> FigureVerdict:
    low, high = figure.low, figure.high
    says = f"{text}; the document says {figure_text(figure)}"
    if figure.quantity == "memory of the machine":
        assert low is not None
        met = value <= low
    elif low is not None and low == high:
        room = ROUNDING * abs(low)
        better = (_is_gain(figure) and value >= low) or (_is_cost(figure) and value <= low)
        met = better or abs(value - low) <= room
    elif _is_gain(figure):
        met = low is None or value >= low
    else:
        met = high is None or value <= high
    if met:
        return FigureVerdict("met", figure, says, value)
    if figure.quantity == "model in the process":
        reason = f"{says} for the model alone, and a process shows it with its runtime only"
        return FigureVerdict("inconclusive", figure, reason, value)
    return FigureVerdict("missed" if figure.is_budget else "refuted", figure, says, value)


def _is_gain(figure: Figure) -> bool:
    return figure.kind == "gain" and "after / before" not in figure.quantity


def _is_cost(figure: Figure) -> bool:
    return "after / before" in figure.quantity or figure.quantity in ("disk", "model in the process")


def _with_caveat(verdict: FigureVerdict) -> FigureVerdict:
    caveat = verdict.figure.caveat
    return replace(verdict, reason=f"{verdict.reason}. Caveat: {caveat}") if caveat else verdict


_ELSEWHERE = {
    "cpu_load": "a load over HTTP; the benchmark of `tsexport serve` judges it",
    "parity": "a checkpoint saved and loaded in torch; a bundle holds no checkpoint, `build` judges its own parity",
    "published_estimate": "a printed estimate, with its formula's inputs; `tsexport estimate` computes memory",
}
_NOT_IN_A_BUNDLE = {
    "torchscript-trace": "against eager mode, which is no artifact of a bundle; `make bench` measures it",
    "flash-attention": "an attention kernel of training on a GPU",
    "flash-attention-2": "an attention kernel of a GPU",
    "gpu-over-cpu": "a GPU against a CPU; measured on a CPU alone",
}


# --- values ----------------------------------------------------------------------------------------------------------


def _parameters(figure: Figure, subject: Subject) -> _Found:
    if not subject.parameters:
        return _Found(None, "the bundle does not say how many parameters its model has")
    return _Found(float(subject.parameters), f"{subject.parameters:,} parameters")


def _weights(figure: Figure, subject: Subject) -> _Found:
    """The ONNX file holds weights and little else; of other formats the smallest stands for it."""
    same = [one for one in subject.artifacts if figure.precision in (None, one.precision)]
    if not same:
        return _Found(None, f"the bundle has no {figure.precision} artifact")
    best = min(same, key=lambda one: (one.format != "onnx", one.size_bytes))
    return _Found(best.size_bytes / _MB, f"{best.size_bytes / _MB:.4g} MB, the files of {best.name}")


def _disk(figure: Figure, subject: Subject) -> _Found:
    largest = max(subject.artifacts, key=lambda one: one.size_bytes)
    return _Found(
        largest.size_bytes / _MB, f"{largest.size_bytes / _MB:.4g} MB, the files of {largest.name}, the largest"
    )


def _process_memory(figure: Figure, subject: Subject) -> _Found:
    same = [one for one in subject.measurements if figure.precision in (None, one.precision) and one.peak_memory_bytes]
    if not same:
        return _Found(None, f"no {figure.precision or 'artifact'} measurement with memory")
    largest = max(same, key=lambda one: one.peak_memory_bytes)
    gb = largest.peak_memory_bytes / _GB
    return _Found(
        gb, f"{gb:.3g} GB at most in a process ({largest.artifact} on {largest.runtime}, batch {largest.batch})"
    )


def _torch_process(figure: Figure, subject: Subject) -> _Found:
    same = [one for one in subject.measurements if one.runtime == "torchscript" and one.precision == "fp32"]
    if not same:
        return _Found(None, "nothing was measured in PyTorch")
    largest = max(same, key=lambda one: one.peak_memory_bytes)
    mb = largest.peak_memory_bytes / _MB
    return _Found(mb, f"{mb:.4g} MB at most in a process of PyTorch (batch {largest.batch})")


def _model_memory(figure: Figure, subject: Subject) -> _Found:
    same = [one for one in subject.measurements if figure.precision in (None, one.precision) and one.peak_memory_bytes]
    if not same:
        return _Found(None, f"no {figure.precision or 'artifact'} measurement with memory")
    least = min(same, key=lambda one: (one.batch, one.peak_memory_bytes - one.idle_memory_bytes))
    mb = (least.peak_memory_bytes - least.idle_memory_bytes) / _MB
    return _Found(mb, f"{mb:.4g} MB for model and runtime together ({least.artifact} on {least.runtime})")


def _speedup(figure: Figure, subject: Subject) -> _Found:
    if figure.transform.startswith("prune"):
        return _Found(None, "the unpruned model is not in this bundle; `build --prune` races the two")
    precision = figure.transform.partition("+")[0]
    before, after = (_fastest(subject.measurements, name) for name in ("fp32", precision))
    if before is None or after is None:
        return _Found(
            None, f"needs fp32 and {precision} measurements at batch 1, {P50_SAMPLES} samples or more of each"
        )
    ratio = median(before.samples_ms) / median(after.samples_ms)
    return _Found(ratio, f"{ratio:.3g} x by medians, {after.artifact} against {before.artifact}, not interleaved")


def _fastest(measurements: Sequence[Measurement], precision: str) -> Measurement | None:
    same = [
        one
        for one in measurements
        if one.precision == precision and one.batch == 1 and len(one.samples_ms) >= P50_SAMPLES
    ]
    return min(same, key=lambda one: summarize(one.samples_ms).median_ms, default=None)


def _size_ratio(figure: Figure, subject: Subject) -> _Found:
    """fp32 files over those of the precision, in the same format."""
    precision, _, pruned = figure.transform.partition("+")
    if pruned and subject.pruned_parameters is None:
        return _Found(None, "the bundle is of a model that was not pruned")
    pairs = [
        (before, after)
        for after in subject.artifacts
        for before in subject.artifacts
        if after.precision == precision and before.precision == "fp32" and after.format == before.format
    ]
    if not pairs:
        return _Found(None, f"needs fp32 and {precision} artifacts of one format")
    before, after = max(pairs, key=lambda pair: pair[0].size_bytes / pair[1].size_bytes)
    ratio = before.size_bytes / after.size_bytes
    # fp32 files of a pruned bundle are of the pruned model: the rest of the gain is the parameters that went.
    ratio = ratio / subject.pruned_parameters if pruned and subject.pruned_parameters else ratio
    return _Found(ratio, f"{ratio:.3g} x, the files of {before.name} against {after.name}")


def _memory_ratio(figure: Figure, subject: Subject) -> _Found:
    found = _size_ratio(replace(figure, transform=figure.precision or figure.transform), subject)
    if found.value is None:
        return found
    return _Found(1 / found.value, f"{1 / found.value:.3g} of the weights' bytes ({found.text})")


def _parameter_ratio(figure: Figure, subject: Subject) -> _Found:
    if subject.pruned_parameters is None:
        return _Found(None, "the bundle is of a model that was not pruned")
    return _Found(subject.pruned_parameters, f"{subject.pruned_parameters:.3g} of the parameters are left")


def _attention_ratio(figure: Figure, subject: Subject) -> _Found:
    """Attention between steps costs steps^2, between patches (steps / patch_length)^2."""
    patch = subject.config.get("patch_length")
    if not isinstance(patch, int):
        return _Found(None, "the model's configuration has no patch_length")
    return _Found(float(patch**2), f"patches of {patch} steps: {patch}^2 times fewer pairs, by the configuration")


def _throughput_gain(figure: Figure, subject: Subject) -> _Found:
    return _speedup(replace(figure, transform=figure.precision or figure.transform), subject)


_FIND: Mapping[str, Callable[[Figure, Subject], _Found]] = {
    "parameters": _parameters,
    "parameters, rounded": _parameters,
    "weights": _weights,
    "host memory": _process_memory,
    "model in the process": _model_memory,
    "process with the PyTorch runtime": _torch_process,
    "memory of the machine": _process_memory,
    "disk": _disk,
    "speedup": _speedup,
    "throughput gain": _throughput_gain,
    "size before / after": _size_ratio,
    "memory after / before": _memory_ratio,
    "parameters after / before": _parameter_ratio,
    "attention operations before / after": _attention_ratio,
}
