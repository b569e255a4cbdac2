"""Scenarios as tables of text and a sentence, for terminals and reports alike.  Nothing is decided here."""

from collections.abc import Sequence
from dataclasses import dataclass

from tsexport.bench.rows import milliseconds, per_second
from tsexport.bench.scenario_records import (
    MLPERF_OFFLINE_SAMPLES,
    MLPERF_SECONDS,
    Memory,
    Offline,
    ScenarioRecord,
    Server,
    ServerRun,
    SingleStream,
)

MIB = 1 << 20
SHORT = (
    f"shorter than the {MLPERF_SECONDS:g} s (Offline: and {MLPERF_OFFLINE_SAMPLES:,} samples) of MLPerf Inference; "
    "no MLPerf result"
)


@dataclass(frozen=True)
class ScenarioTable:
    """A scenario as text.

    rows: cells as many as `columns`.
    figure: the scenario's figure as a sentence.
    conditions: what a latency of the table runs from, and what it is held to; "" where that goes without saying.
    notes: what a reader must know besides.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    figure: str
    conditions: str = ""
    notes: tuple[str, ...] = ()


def scenario_table(record: ScenarioRecord) -> ScenarioTable:
    """Return what one scenario gave, as text."""
    if record.single_stream is not None:
        return _single_stream(record.single_stream)
    if record.offline is not None:
        return _offline(record.offline)
    if record.server is not None:
        return _server(record.server)
    assert record.memory is not None
    return _memory(record.memory)


def run_status(run: ServerRun) -> str:
    """Return "valid", "not valid", or "cut short" where too many queries were late for the rest to be sent."""
    return "valid" if run.valid else "cut short" if run.cut_short else "not valid"


def _rate(value: float) -> str:
    return per_second(value).removesuffix("/s")


def _short(enough: Sequence[bool]) -> tuple[str, ...]:
    return () if all(enough) else (SHORT,)


def _single_stream(found: SingleStream) -> ScenarioTable:
    times = (found.mean_ms, found.p50_ms, found.p90_ms, found.p99_ms)
    return ScenarioTable(
        ("queries", "seconds", "mean", "p50", "p90", "p99"),
        ((f"{found.queries:,}", f"{found.seconds:.1f}", *map(milliseconds, times)),),
        f"SingleStream: p90 {milliseconds(found.p90_ms)}",
        "one query after another",
        _short([found.long_enough]),
    )


def _offline(found: Offline) -> ScenarioTable:
    return ScenarioTable(
        ("batch", "calls", "p50 of a call", "p90 of a call", "samples/s"),
        tuple(
            (
                str(one.batch),
                f"{one.calls:,}",
                milliseconds(one.p50_ms),
                milliseconds(one.p90_ms),
                _rate(one.samples_per_s),
            )
            for one in found.points
        ),
        f"Offline: {_rate(found.samples_per_s)} samples/s at batch {found.best_batch}, over {found.samples:,} samples",
        "calls without a pause at each batch size",
        _short([found.long_enough]),
    )


def _server(found: Server) -> ScenarioTable:
    figure = "no rate is valid"
    if found.max_qps is not None:
        figure = f"{_rate(found.max_qps)} queries/s is the highest valid rate that was tried"
    together = f"; up to {found.max_batch} that wait are answered together" if found.max_batch > 1 else ""
    return ScenarioTable(
        ("queries/s", "queries", "mean batch", "p50", "p90", "p99", "over the bound", "status"),
        tuple(
            (
                _rate(run.qps),
                f"{run.answered:,} of {run.queries:,}",
                f"{run.mean_batch:.2f}",
                *map(milliseconds, (run.p50_ms, run.p90_ms, run.p99_ms)),
                f"{run.over_bound:,}",
                run_status(run),
            )
            for run in sorted(found.runs, key=lambda run: run.qps)
        ),
        f"Server: {figure}",
        f"p99 within {found.p99_bound_ms:g} ms ({found.bound_from}), from the scheduled arrival{together}",
        _short([run.long_enough for run in found.runs]),
    )


def _memory(found: Memory) -> ScenarioTable:
    peak, growth = found.peak, found.growth
    sizes = (peak.idle_bytes, peak.peak_bytes, peak.above_idle_bytes)
    marks = (growth.half_bytes, growth.end_bytes)
    grown = f"{growth.growth_bytes / MIB:+.2f} MiB"
    return ScenarioTable(
        ("batch", "idle session", "peak", "above idle", "calls", "at half", "at the end", "growth"),
        (
            (
                str(found.batch),
                *(f"{size / MIB:,.1f} MiB" for size in sizes),
                f"{growth.calls:,}",
                *(f"{size / MIB:,.2f} MiB" for size in marks),
                grown,
            ),
        ),
        f"Memory: peak {peak.above_idle_bytes / MIB:,.1f} MiB above an idle session at batch {found.batch}, growth "
        f"{grown} over the second half of {growth.calls:,} calls",
        "in fresh processes, one for the peak and one for the growth",
        ()
        if growth.trimmed
        else ("this C library gives no free memory back on request, so what is free counts as held",),
    )
