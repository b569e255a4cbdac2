"""Budgets judged by measurements.

A budget is judged by the p90 (a row that says "mean" by the mean) of the fastest measurement of its own precision and
batch.  A budget of a device is judged only by a measurement on that device; `cpu` and `any` include cpu4.  A cpu4
budget that is met on fewer cores is met; missed on fewer cores it is inconclusive.  What cannot be judged says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tsexport.bench.affinity import threads_text
from tsexport.bench.device_records import MeasuredDevice
from tsexport.bench.fingerprint import Machine
from tsexport.bench.statistics import P90_SAMPLES, percentile, summarize, throughput_per_s
from tsexport.runtimes.registry import TORCH_CUDA
from tsexport.types import Budget, Measurement, Verdict, VerdictStatus

Place = Machine | MeasuredDevice
"""Where something was measured: a machine that ran Python, or a device that ran the device kit."""
CPU4 = "cpu4"
CPU4_CORES = 4
_INCLUDES = {"cpu": frozenset({CPU4}), "any": frozenset({CPU4})}
_CANNOT_BE_MET = "cannot be met there"
"""How a caveat of the tables says that no artifact can hold a row on its device."""
_MB = 10**6


def judge(
    budgets: Sequence[Budget],
    measurements: Sequence[Measurement],
    *,
    machine: Place,
    device: str = CPU4,
) -> tuple[Verdict, ...]:
    """Return one verdict for each budget, in their order.

    Args:
        budgets: of the model that was measured (`tables.latency_budgets`).
        measurements: of this model's artifacts, all made on `machine`; others are ignored.
        machine: where they were made; the usable cores of a machine decide what "fewer cores" is.
        device: what the machine stands for in the tables.
    """
    here = tuple(m for m in measurements if m.machine == machine.machine_id)
    return tuple(_with_caveat(_judge_one(budget, here, machine, device)) for budget in budgets)


def exit_code(verdicts: Sequence[Verdict]) -> int:
    """Return what `bench` ends with: 4 if a row is missed, else 6 if none could be judged, else 0."""
    statuses = {verdict.status for verdict in verdicts}
    if "missed" in statuses:
        return 4
    return 0 if statuses & {"met", "refuted"} else 6


@dataclass(frozen=True)
class _Judged:
    """The judged value of one measurement, and how it reads."""

    measurement: Measurement
    value: float
    text: str


def _judge_one(budget: Budget, measurements: tuple[Measurement, ...], machine: Place, device: str) -> Verdict:
    if _CANNOT_BE_MET in budget.caveat:
        return Verdict("not possible", budget, f"no artifact can meet this on {budget.device}")
    if budget.via is not None:
        return _not_measured(budget, f"a budget over {budget.via}; the benchmark of `tsexport serve` judges it")
    if budget.formula:
        return _not_measured(budget, f"a formula over other models ({budget.formula}), which were not measured")
    if not measurements:
        return _not_measured(budget, f"a budget of {budget.device or 'any device'}; nothing was measured")
    if budget.device != device and device not in _INCLUDES.get(budget.device or "any", ()):
        return _not_measured(budget, _of_another_device(budget, measurements, machine, device))
    eligible = _eligible(budget, measurements, device)
    if not eligible:
        return _not_measured(budget, _why_nothing(budget, measurements, device))
    if budget.kind == "memory":
        return _judge_memory(budget, eligible, machine)
    if budget.kind == "throughput":
        return _judge_throughput(budget, eligible, machine)
    return _judge_latency(budget, eligible, machine)


def _of_another_device(budget: Budget, measurements: tuple[Measurement, ...], machine: Place, device: str) -> str:
    """Say where it was measured instead; a GPU's latency is told beside the row, and decides nothing."""
    text = f"a budget of {budget.device or 'any device'}; measured on {device}: {_place(machine, device)}"
    eligible = _eligible(budget, measurements, device)
    if device == CPU4 or not isinstance(machine, Machine) or budget.kind != "latency" or not eligible:
        return text
    fastest = min(eligible, key=lambda m: summarize(m.samples_ms).median_ms)
    summary = summarize(fastest.samples_ms)
    name, value = ("p90", summary.p90_ms) if summary.p90_ms is not None else ("median", summary.median_ms)
    return f"{text}, {name} {value:.3g} ms of {fastest.artifact} on {fastest.runtime}, which decides nothing here"


def _place(machine: Place, device: str) -> str:
    on_gpu = isinstance(machine, Machine) and machine.gpu is not None and device != CPU4
    return str(machine.gpu if on_gpu and isinstance(machine, Machine) else machine)


def _eligible(budget: Budget, measurements: tuple[Measurement, ...], device: str) -> tuple[Measurement, ...]:
    return tuple(
        m
        for m in measurements
        if budget.precision in (None, m.precision)
        and budget.batch in (None, m.batch)
        and (device != CPU4 or m.threads <= CPU4_CORES)
    )


def _why_nothing(budget: Budget, measurements: tuple[Measurement, ...], device: str) -> str:
    batch = "" if budget.batch is None else f" at batch {budget.batch}"
    same = [m for m in measurements if budget.precision in (None, m.precision) and budget.batch in (None, m.batch)]
    if same and device == CPU4:
        return f"measured with {min(m.threads for m in same)} threads or more; cpu4 has {CPU4_CORES} cores"
    return f"no {budget.precision or 'artifact'} measurement{batch} on this machine"


def _judge_latency(budget: Budget, measurements: tuple[Measurement, ...], machine: Place) -> Verdict:
    fastest = min(measurements, key=lambda m: summarize(m.samples_ms).median_ms)
    needed = P90_SAMPLES if budget.statistic == "p90" else (budget.samples or 1)
    if len(fastest.samples_ms) < needed:
        reason = f"{len(fastest.samples_ms)} samples of {fastest.artifact}; the {budget.statistic} needs {needed}"
        return _verdict("inconclusive", budget, reason, fastest)
    value = summarize(fastest.samples_ms).mean_ms if budget.statistic == "mean" else _p90(fastest)
    text = f"{budget.statistic} {value:.3g} ms {_how(fastest, machine)}"
    judged = _Judged(fastest, value, text)
    if budget.max_ms is None:
        return replace(_judge_claim(budget, judged), value_ms=value)
    limit = f"{budget.max_ms:g} ms allowed"
    return replace(_decide(budget, judged, value <= budget.max_ms, limit, machine), value_ms=value)


def _judge_claim(budget: Budget, judged: _Judged) -> Verdict:
    """A row with only `min_ms` claims slowness.  It can be refuted, it cannot be missed."""
    claim = f"the document expects {budget.min_ms:g} ms or more: a figure to refute, no budget"
    if budget.min_ms is not None and judged.value < budget.min_ms:
        return _verdict("refuted", budget, f"{judged.text}; {claim}", judged.measurement)
    return _verdict("inconclusive", budget, f"{judged.text}; {claim}, and not refuted here", judged.measurement)


def _judge_throughput(budget: Budget, measurements: tuple[Measurement, ...], machine: Place) -> Verdict:
    best = max(measurements, key=lambda m: throughput_per_s(m.samples_ms, m.batch))
    if budget.min_samples_per_s is not None:
        value, limit = throughput_per_s(best.samples_ms, best.batch), budget.min_samples_per_s
        unit = "samples/s"
    elif budget.min_requests_per_s is not None:
        value, limit = throughput_per_s(best.samples_ms, 1), budget.min_requests_per_s
        unit = "requests/s"
    else:
        return _not_measured(budget, "the row names no figure")
    judged = _Judged(best, value, f"{value:.4g} {unit} {_how(best, machine)}")
    verdict = _decide(budget, judged, value >= limit, f"{limit:g} {unit} asked for", machine)
    return replace(verdict, value_per_s=value)


def _judge_memory(budget: Budget, measurements: tuple[Measurement, ...], machine: Place) -> Verdict:
    if budget.max_memory_mb is None:
        return _not_measured(budget, "the row names no figure")
    if measurements[0].runtime == TORCH_CUDA:
        return _not_measured(budget, "a session on a GPU keeps the model there, and the process's memory is the host's")
    fastest = min(measurements, key=lambda m: (m.batch, summarize(m.samples_ms).median_ms))
    same = [m for m in measurements if (m.artifact, m.runtime) == (fastest.artifact, fastest.runtime)]
    largest = max(same, key=lambda m: m.peak_memory_bytes - m.idle_memory_bytes)
    value = (largest.peak_memory_bytes - largest.idle_memory_bytes) / _MB
    text = f"{value:.4g} MB for model and runtime together, {_how(largest, machine)}"
    if value <= budget.max_memory_mb:
        verdict = _verdict("met", budget, f"{text}; {budget.max_memory_mb:g} MB allowed for the model alone", largest)
    else:
        # The row bounds the model without its runtime, and a process shows the two together only.
        reason = f"{text}; {budget.max_memory_mb:g} MB are allowed for the model alone, which is part of it"
        verdict = _verdict("inconclusive", budget, reason, largest)
    return replace(verdict, value_mb=value)


def _decide(budget: Budget, judged: _Judged, met: bool, limit: str, machine: Place) -> Verdict:
    if met:
        return _verdict("met", budget, f"{judged.text}; {limit}", judged.measurement)
    cores = _cores(judged.measurement, machine)
    if budget.device == CPU4 and cores < CPU4_CORES:
        reason = f"{judged.text}; {limit}, and {cores} of {CPU4_CORES} cores decide nothing"
        return _verdict("inconclusive", budget, reason, judged.measurement)
    return _verdict("missed", budget, f"{judged.text}; {limit}", judged.measurement)


def _p90(measurement: Measurement) -> float:
    value = percentile(measurement.samples_ms, 0.90)
    assert value is not None, "callers check the number of samples"
    return value


def _cores(measurement: Measurement, machine: Place) -> int:
    return min(measurement.threads, machine.usable_cores) if isinstance(machine, Machine) else measurement.threads


def _how(measurement: Measurement, machine: Place) -> str:
    if isinstance(machine, MeasuredDevice):
        return (
            f"measured with {measurement.artifact} on {measurement.runtime}, batch {measurement.batch}, "
            f"{len(measurement.samples_ms)} samples, on {machine}"
        )
    if measurement.runtime == TORCH_CUDA and machine.gpu is not None:
        return (
            f"measured with {measurement.artifact} on {measurement.runtime}, batch {measurement.batch}, "
            f"{len(measurement.samples_ms)} samples, both copies included, on {machine.gpu}"
        )
    threads, cores = measurement.threads, machine.usable_cores
    return (
        f"measured with {measurement.artifact} on {measurement.runtime}, {threads_text(threads)}, "
        f"batch {measurement.batch}, {len(measurement.samples_ms)} samples, on {cores} core{'s' if cores > 1 else ''} "
        f"({machine.cpu_model}, {machine.instruction_set})"
    )


def _verdict(status: VerdictStatus, budget: Budget, reason: str, measurement: Measurement) -> Verdict:
    return Verdict(
        status=status,
        budget=budget,
        reason=reason,
        artifact=measurement.artifact,
        runtime=measurement.runtime,
        threads=measurement.threads,
    )


def _not_measured(budget: Budget, reason: str) -> Verdict:
    return Verdict("not measured", budget, reason)


def _with_caveat(verdict: Verdict) -> Verdict:
    caveat = verdict.budget.caveat
    return replace(verdict, reason=f"{verdict.reason}. Caveat: {caveat}") if caveat else verdict
