"""Candidates of a bundle as rows and as points of a plot: what was tried, what it gave, and why it was not taken."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_high

from tsexport.bench.race import RaceResult
from tsexport.bench.records import MachineRecord
from tsexport.bench.rows import race_rows
from tsexport.bundles.manifest import Manifest
from tsexport.reports.plots_tradeoff import TradeoffPoint
from tsexport.types import Accuracy, Candidate
from tsexport.wording import compact_json, percent_text

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class CandidateRow:
    """A candidate of the manifest with the latency that a race on this machine gave it, "not measured" without one.

    `float_layers` are how many of its layers were left in floating point, "" for none.
    """

    candidate: Candidate
    recipe: str
    latency: str
    speedup: str
    float_layers: str
    int8_share: str
    conversions: str


def candidate_rows(candidates: Sequence[Candidate], races: Sequence[RaceResult]) -> tuple[CandidateRow, ...]:
    """Return a row for each candidate, with its latency from the last race at batch 1 that it ran in."""
    return tuple(_row(candidate, races) for candidate in candidates)


def _row(candidate: Candidate, races: Sequence[RaceResult]) -> CandidateRow:
    names = {
        name
        for name in (candidate.name, candidate.artifact, candidate.accuracy and candidate.accuracy.artifact)
        if name
    }
    latency = speedup = NOT_MEASURED
    for race in races:
        for entry, row in zip(sorted(race.entries, key=lambda e: -e.speedup.value), race_rows(race), strict=True):
            if race.batch == 1 and entry.runtime == candidate.runtime and {entry.artifact, entry.name} & names:
                latency, speedup = row.p50, f"{row.speedup} ({row.interval})"
    layers, coverage = candidate.recipe.get("float_layers", ()), candidate.coverage
    return CandidateRow(
        candidate,
        compact_json(candidate.recipe),
        latency,
        speedup,
        str(len(layers)) if layers else "",
        coverage.int8_text if coverage else "",
        f"{coverage.conversions} of {coverage.operators}" if coverage else "",
    )


@dataclass(frozen=True)
class ErrorScale:
    """What errors of a bundle are held against: `allowed` of `name`, by labels or by the output error alone."""

    by_labels: bool
    allowed: float
    name: str

    @property
    def budget(self) -> str:
        """The budget in words."""
        allowed = percent_text(self.allowed)
        return f"budget: {allowed} worse {self.name}" if self.by_labels else f"budget: {allowed} {self.name}"

    def error_of(self, accuracy: Accuracy) -> float | None:
        """Return the error that is judged, a fraction; None where there is none."""
        return accuracy.degradation if self.by_labels else accuracy.output_error


def error_scale(manifest: Manifest) -> ErrorScale:
    """Return what errors of a bundle are held against."""
    budget = manifest.budget
    if any(accuracy.degradation is not None for accuracy, _, _ in _judged(manifest)):
        return ErrorScale(True, budget.max_degradation, budget.metric)
    return ErrorScale(False, budget.max_output_error, "output error")


def tradeoff_points(record: MachineRecord, manifest: Manifest) -> tuple[TradeoffPoint, ...]:
    """Return each candidate and artifact that has an error, and a latency at batch 1 on this machine."""
    scale = error_scale(manifest)
    points = []
    for accuracy, label, kind in _judged(manifest):
        error, latency = scale.error_of(accuracy), _latency(record, accuracy, label)
        if error is not None and latency is not None:
            points.append(TradeoffPoint(label, latency, 100 * error, kind))
    return tuple(points)


def _judged(manifest: Manifest) -> list[tuple[Accuracy, str, str]]:
    """Return (accuracy, label, kind) of each candidate, then of each artifact that is no candidate's."""
    chosen = (manifest.selected.artifact, manifest.selected.runtime)
    found: list[tuple[Accuracy, str, str]] = [
        (c.accuracy, c.name, c.status) for c in manifest.candidates if c.accuracy and c.status != "failed"
    ]
    taken = {(candidate.artifact, candidate.runtime) for candidate in manifest.candidates}
    found += [
        (
            accuracy,
            f"{accuracy.artifact} on {accuracy.runtime}",
            "selected" if (accuracy.artifact, accuracy.runtime) == chosen else "reference",
        )
        for accuracy in manifest.accuracy
        if (accuracy.artifact, accuracy.runtime) not in taken
    ]
    return found


def _latency(record: MachineRecord, accuracy: Accuracy, label: str) -> float | None:
    """Return the median latency at batch 1 in ms: from a race, where all ran side by side, else measured alone."""
    for race in record.races:
        for entry in race.entries:
            if race.batch == 1 and entry.runtime == accuracy.runtime and entry.artifact in (accuracy.artifact, label):
                return entry.summary.median_ms
    for measurement in record.measurements:
        if (measurement.artifact, measurement.runtime, measurement.batch) == (accuracy.artifact, accuracy.runtime, 1):
            return median_high(measurement.samples_ms)
    return None
