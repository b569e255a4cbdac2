"""Recorded results over time: a series for each artifact, runtime, batch size and machine, and where it changed.

A series holds the median latency of each recording; changes are searched in it by `tsexport.bench.change_points`.
Recordings of different days are not interleaved, so a change says that something changed, the machine's software and
neighbours included; whether a commit is at fault is for `tsexport compare` to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tsexport.bench.change_points import MIN_POINTS, SIGNIFICANCE, ChangePoint, change_points
from tsexport.bench.fingerprint import Machine
from tsexport.bench.kept_records import Baseline, BaselineEntry
from tsexport.bench.statistics import percentile, summarize
from tsexport.errors import UsageError
from tsexport.measurements.history_files import Recording, Recordings, SkippedFile, read_recordings
from tsexport.types import Measurement, Precision

MIN_CHANGE = 0.05
"""Smaller changes are not shown: from run to run, a median on a shared machine moves as much."""
MOST_POINTS = 250
"""The search takes the square of their number: a second for 250, a quarter of a minute for 1,000, for each series."""
SEED = 0


@dataclass(frozen=True)
class HistoryPoint:
    """One recording of a series; `p90_ms` is None where there were too few samples."""

    recorded_at: str
    commit: str | None
    modified: bool
    file: str
    artifact_sha256: str
    median_ms: float
    p90_ms: float | None
    samples: int


@dataclass(frozen=True)
class HistoryChange:
    """A change between two recordings that follow each other, with what was recorded before and after it.

    `before_ms` and `after_ms` are the medians of the stretches that it parts, `ratio` is after / before: above 1 the
    artifact became slower.  `p_value` is that of the permutation test.
    """

    last_before: HistoryPoint
    first_after: HistoryPoint
    before_ms: float
    after_ms: float
    ratio: float
    p_value: float
    direction: str


@dataclass(frozen=True)
class HistorySeries:
    """One artifact on one runtime at one batch size on one machine, oldest recording first.

    `baseline` is its entry in the baseline, None without one; `against_baseline` the last median over the baseline's,
    above 1 is slower.  `not_searched` says why no change was looked for, "" where it was.
    """

    bundle: str
    artifact: str
    runtime: str
    precision: Precision
    batch: int
    threads: int
    machine_id: str
    points: tuple[HistoryPoint, ...]
    changes: tuple[HistoryChange, ...]
    not_searched: str
    baseline: BaselineEntry | None
    against_baseline: float | None


@dataclass(frozen=True)
class History:
    """What a folder of kept results tells.

    `significance` is the chance that a series without a change shows one; `min_change` is the smallest change shown;
    changes are looked for in the newest `most_points` recordings of each series.
    """

    folder: str
    machines: tuple[Machine, ...]
    series: tuple[HistorySeries, ...]
    baselines: tuple[Baseline, ...]
    skipped: tuple[SkippedFile, ...]
    min_change: float
    significance: float = SIGNIFICANCE
    most_points: int = MOST_POINTS


def read_history(
    folder: Path, *, bundle: str | None = None, machine: str | None = None, min_change: float = MIN_CHANGE
) -> History:
    """Return the series of a folder and their changes.

    Args:
        folder: what `tsexport bench --record` was given.
        bundle, machine: this bundle's, and those of the machine whose id begins so, alone.
        min_change: the smallest relative change that is shown, 0.05 for 5 %.

    Raises:
        UsageError: no folder, no recordings, none of that bundle or machine, or `min_change` is not allowed.
    """
    if not 0 <= min_change < float("inf"):
        raise UsageError(f"min-change is {min_change:g}; allowed are fractions from 0 on, for example 0.05 for 5 %")
    found = read_recordings(folder, bundle=bundle, machine=machine)
    machines = {one.place[1]: one.kept.record.machine for one in found.recordings}
    return History(
        folder=str(folder),
        machines=tuple(machines.values()),
        series=_series(found, min_change),
        baselines=found.baselines,
        skipped=found.skipped,
        min_change=min_change,
    )


@dataclass(frozen=True)
class _Key:
    bundle: str
    machine_id: str
    artifact: str
    runtime: str
    precision: Precision
    batch: int
    threads: int


def _series(found: Recordings, min_change: float) -> tuple[HistorySeries, ...]:
    points: dict[_Key, list[HistoryPoint]] = {}
    for recording in found.recordings:
        bundle, machine_id = recording.place
        for one in recording.kept.record.measurements:
            key = _Key(bundle, machine_id, one.artifact, one.runtime, one.precision, one.batch, one.threads)
            points.setdefault(key, []).append(_point(recording, one))
    return tuple(_one_series(key, tuple(those), found, min_change) for key, those in points.items())


def _point(recording: Recording, one: Measurement) -> HistoryPoint:
    kept = recording.kept
    return HistoryPoint(
        recorded_at=kept.recorded_at,
        commit=kept.commit,
        modified=kept.modified,
        file=recording.file,
        artifact_sha256=next((known.sha256 for known in kept.artifacts if known.name == one.artifact), ""),
        median_ms=summarize(one.samples_ms).median_ms,
        p90_ms=percentile(one.samples_ms, 0.90),
        samples=len(one.samples_ms),
    )


def _one_series(key: _Key, points: tuple[HistoryPoint, ...], found: Recordings, min_change: float) -> HistorySeries:
    baseline = found.baseline_of((key.bundle, key.machine_id))
    entry = _entry(baseline, key)
    few = f"{len(points)} recordings; a change is looked for from {MIN_POINTS} on" if len(points) < MIN_POINTS else ""
    newest = points[-MOST_POINTS:]
    changes = change_points([one.median_ms for one in newest], min_change=min_change, seed=SEED)
    return HistorySeries(
        bundle=key.bundle,
        artifact=key.artifact,
        runtime=key.runtime,
        precision=key.precision,
        batch=key.batch,
        threads=key.threads,
        machine_id=key.machine_id,
        points=points,
        changes=tuple(_change(one, newest) for one in changes),
        not_searched=few,
        baseline=entry,
        against_baseline=None if entry is None else points[-1].median_ms / entry.median_ms,
    )


def _entry(baseline: Baseline | None, key: _Key) -> BaselineEntry | None:
    for one in baseline.entries if baseline is not None else ():
        if (one.artifact, one.runtime, one.batch, one.threads) == (key.artifact, key.runtime, key.batch, key.threads):
            return one
    return None


def _change(change: ChangePoint, points: Sequence[HistoryPoint]) -> HistoryChange:
    return HistoryChange(
        last_before=points[change.index - 1],
        first_after=points[change.index],
        before_ms=change.before,
        after_ms=change.after,
        ratio=change.ratio,
        p_value=change.p_value,
        direction="slower" if change.ratio > 1 else "faster",
    )
