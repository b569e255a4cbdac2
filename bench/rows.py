"""Verdicts, measurements and races as rows of text, for terminals and reports alike.  Nothing is decided here."""

from collections.abc import Sequence
from dataclasses import dataclass

from tsexport.bench.device_records import DeviceRecord
from tsexport.bench.race import RaceResult
from tsexport.bench.statistics import Ratio, percentile, summarize, throughput_per_s
from tsexport.types import Budget, Measurement, Verdict

NOT_AVAILABLE = "n/a"
_MB = 10**6


@dataclass(frozen=True)
class VerdictRow:
    """One published row and what became of it.

    `obtained` is "measured" or "not measured"; `status` is the verdict's as it is shown (see `status_word`).
    """

    model: str
    component: str
    device: str
    precision: str
    batch: str
    budget: str
    published: str
    value: str
    obtained: str
    status: str
    artifact: str
    runtime: str
    threads: str
    reason: str
    caveat: str
    source: str


@dataclass(frozen=True)
class MeasurementRow:
    """One measurement; a percentile with too few samples is "n/a".  Those of the `device` are without copies."""

    artifact: str
    runtime: str
    precision: str
    batch: str
    threads: str
    samples: str
    p50: str
    p90: str
    p99: str
    mean: str
    throughput: str
    load: str
    peak_memory: str
    device_p50: str
    device_p90: str


@dataclass(frozen=True)
class DeviceRow:
    """One batch size that the device kit measured; `transfers` says whether latencies hold the copies."""

    artifact: str
    precision: str
    batch: str
    samples: str
    p50: str
    p90: str
    p99: str
    mean: str
    computing: str
    transfers: str


@dataclass(frozen=True)
class RaceRow:
    """One contestant, with its speed-up over the race's baseline and the 95 % interval of that."""

    name: str
    runtime: str
    threads: str
    samples: str
    p50: str
    speedup: str
    interval: str
    note: str


def verdict_rows(verdicts: Sequence[Verdict]) -> tuple[VerdictRow, ...]:
    """Return one row for each verdict, in their order."""
    return tuple(_verdict_row(verdict) for verdict in verdicts)


def measurement_rows(measurements: Sequence[Measurement]) -> tuple[MeasurementRow, ...]:
    """Return one row for each measurement, in their order."""
    rows: list[MeasurementRow] = []
    for m in measurements:
        summary = summarize(m.samples_ms)
        rows.append(
            MeasurementRow(
                artifact=m.artifact,
                runtime=m.runtime,
                precision=m.precision,
                batch=str(m.batch),
                threads=str(m.threads),
                samples=str(summary.samples),
                p50=milliseconds(summary.p50_ms),
                p90=milliseconds(summary.p90_ms),
                p99=milliseconds(summary.p99_ms),
                mean=milliseconds(summary.mean_ms),
                throughput=per_second(throughput_per_s(m.samples_ms, m.batch)),
                load=milliseconds(m.load_ms),
                peak_memory=megabytes(m.peak_memory_bytes),
                device_p50=milliseconds(percentile(m.device_ms, 0.50)),
                device_p90=milliseconds(percentile(m.device_ms, 0.90)),
            )
        )
    return tuple(rows)


def device_rows(record: DeviceRecord) -> tuple[DeviceRow, ...]:
    """Return one row for each batch size that was measured on a device, in their order."""
    summaries = [(one, summarize(one.samples_ms)) for one in record.measurements]
    label = " (implicit)" if record.quantization == "implicit" else ""
    return tuple(
        DeviceRow(
            artifact=record.artifact,
            precision=record.precision + label,
            batch=str(one.batch),
            samples=str(summary.samples),
            p50=milliseconds(summary.p50_ms),
            p90=milliseconds(summary.p90_ms),
            p99=milliseconds(summary.p99_ms),
            mean=milliseconds(summary.mean_ms),
            computing=milliseconds(one.compute_ms),
            transfers=record.transfers,
        )
        for one, summary in summaries
    )


def race_rows(result: RaceResult) -> tuple[RaceRow, ...]:
    """Return one row for each contestant, the fastest first."""
    return tuple(
        RaceRow(
            name=entry.name,
            runtime=entry.runtime,
            threads=str(entry.threads),
            samples=str(entry.summary.samples),
            p50=milliseconds(entry.summary.p50_ms),
            speedup=f"{entry.speedup.value:.2f}x",
            interval=interval(entry.speedup),
            note="" if entry.stable_warmup else "still drifting when its warm-up was capped",
        )
        for entry in sorted(result.entries, key=lambda entry: -entry.speedup.value)
    )


def milliseconds(value: float | None) -> str:
    """Return "1.23 ms" with three significant digits or whole milliseconds, "n/a" for None."""
    if value is None:
        return NOT_AVAILABLE
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def per_second(value: float) -> str:
    """Return "12,300/s" with four significant digits, never with an exponent."""
    rounded = float(f"{value:.4g}")
    return f"{rounded:,.0f}/s" if rounded >= 10_000 else f"{rounded:g}/s"


def megabytes(size_bytes: int) -> str:
    """Return "123 MB" (10^6 bytes)."""
    return f"{size_bytes / _MB:.0f} MB"


def interval(ratio: Ratio) -> str:
    """Return "1.20-1.31", or "n/a" where there were too few rounds."""
    return NOT_AVAILABLE if ratio.high is None else f"{ratio.low:.2f}-{ratio.high:.2f}"


def budget_text(budget: Budget) -> str:
    """Return what a row asks for, as "p90 <= 100 ms"."""
    if budget.formula:
        return budget.formula
    if budget.max_ms is not None:
        return f"{budget.statistic} <= {budget.max_ms:g} ms"
    if budget.min_ms is not None:
        return f"claims >= {budget.min_ms:g} ms"
    if budget.min_requests_per_s is not None:
        return f">= {budget.min_requests_per_s:g} requests/s"
    if budget.min_samples_per_s is not None:
        return f">= {budget.min_samples_per_s:g} samples/s"
    if budget.max_memory_mb is not None:
        return f"<= {budget.max_memory_mb:g} MB"
    return ""


def expected_text(budget: Budget) -> str:
    """Return what the document expects to see, as "50-80 ms" or "12-15/s"; "" where it does not say."""
    span, unit = (budget.range_ms, " ms") if budget.range_ms is not None else (budget.range_per_s, "/s")
    return "" if span is None else f"{span[0]:g}-{span[1]:g}{unit}"


def status_word(status: str) -> str:
    """Return a verdict's status as it is shown: pass, miss, refuted, inconclusive, not measured, not possible."""
    return {"met": "pass", "missed": "miss"}.get(status, status)


def _verdict_row(verdict: Verdict) -> VerdictRow:
    budget = verdict.budget
    return VerdictRow(
        model=budget.model,
        component=budget.component or "",
        device=budget.device or "",
        precision=budget.precision or "any",
        batch="" if budget.batch is None else str(budget.batch),
        budget=budget_text(budget),
        published=expected_text(budget),
        value=_value_text(verdict),
        obtained="not measured" if verdict.artifact is None else "measured",
        status=status_word(verdict.status),
        artifact=verdict.artifact or "",
        runtime=verdict.runtime or "",
        threads="" if verdict.threads is None else str(verdict.threads),
        reason=verdict.reason,
        caveat=budget.caveat,
        source=budget.source,
    )


def _value_text(verdict: Verdict) -> str:
    if verdict.value_ms is not None:
        return milliseconds(verdict.value_ms)
    if verdict.value_per_s is not None:
        return f"{verdict.value_per_s:.4g}/s"
    if verdict.value_mb is not None:
        return f"{verdict.value_mb:.0f} MB"
    return NOT_AVAILABLE
