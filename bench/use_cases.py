"""What an artifact is fast enough for: the use cases of the published tables, answered by its p90.

The tables (`[[service_level]]`) allow 10 ms a call for real-time (1-minute bars), 50 ms for near-real-time (5-minute
bars) and 1 s for batch (end of day).  A call is one batch of the measured size, so batch 32 answers for 32 samples
together.  A use case names no device: the answer is that of the machine that measured, and is no budget missed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tsexport.bench.statistics import P90_SAMPLES, percentile
from tsexport.bench.tables import ServiceLevelRow
from tsexport.types import Measurement

UseCaseStatus = Literal["met", "missed", "inconclusive"]


@dataclass(frozen=True)
class UseCaseAnswer:
    """Whether one artifact on one runtime holds a use case at one batch size.

    `p90_ms` is None, and the answer inconclusive, where `samples` are too few for a p90.
    """

    use_case: str
    max_ms: float
    artifact: str
    runtime: str
    batch: int
    threads: int
    status: UseCaseStatus
    p90_ms: float | None
    samples: int
    reason: str
    note: str
    source: str


def answer_use_cases(
    levels: Sequence[ServiceLevelRow], measurements: Sequence[Measurement]
) -> tuple[UseCaseAnswer, ...]:
    """Return one answer for each measurement and use case, measurements in their order."""
    return tuple(_answer(level, one) for one in measurements for level in levels)


def _answer(level: ServiceLevelRow, one: Measurement) -> UseCaseAnswer:
    samples = len(one.samples_ms)
    p90_ms = percentile(one.samples_ms, 0.90)
    status: UseCaseStatus
    if p90_ms is None:
        status, reason = "inconclusive", f"{samples} samples; the p90 needs {P90_SAMPLES}"
    else:
        status = "met" if p90_ms <= level.max_ms else "missed"
        reason = f"p90 {p90_ms:.3g} ms of {samples} samples; {level.max_ms:g} ms allowed"
    return UseCaseAnswer(
        use_case=level.name,
        max_ms=level.max_ms,
        artifact=one.artifact,
        runtime=one.runtime,
        batch=one.batch,
        threads=one.threads,
        status=status,
        p90_ms=p90_ms,
        samples=samples,
        reason=reason,
        note=level.note,
        source=level.source,
    )


def use_case_rows(answers: Sequence[UseCaseAnswer]) -> tuple[tuple[str, ...], ...]:
    """Return (artifact, runtime, batch, p90, samples, one cell for each use case) as text, one row a measurement."""
    from tsexport.bench.rows import milliseconds

    grouped: dict[tuple[str, str, int, int], list[UseCaseAnswer]] = {}
    for one in answers:
        grouped.setdefault((one.artifact, one.runtime, one.batch, one.threads), []).append(one)
    words = {"met": "yes", "missed": "no", "inconclusive": "inconclusive"}
    return tuple(
        (
            artifact,
            runtime,
            str(batch),
            milliseconds(same[0].p90_ms),
            str(same[0].samples),
            *(words[one.status] for one in same),
        )
        for (artifact, runtime, batch, _), same in grouped.items()
    )


def use_case_titles(answers: Sequence[UseCaseAnswer]) -> tuple[str, ...]:
    """Return the use cases in the tables' order, as "real-time (10 ms)"."""
    return tuple(dict.fromkeys(f"{one.use_case} ({one.max_ms:g} ms)" for one in answers))
