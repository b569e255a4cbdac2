"""report.html and the bundle's README.md.

The report shows what stands in the manifest and in `measurements/`, and nothing else: every number is one of theirs, or
a quantile, ratio or share of them.  It is one page without any reference to the network.  The README belongs to the
signed part of a bundle, so it holds no time and no latency.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsexport import plots
from tsexport.bench.device_records import PREFIX, DeviceRecord, read_device_record
from tsexport.bench.race import RaceResult
from tsexport.bench.records import MachineRecord, read_record
from tsexport.bench.rows import (
    DeviceRow,
    MeasurementRow,
    RaceRow,
    VerdictRow,
    device_rows,
    measurement_rows,
    race_rows,
    verdict_rows,
)
from tsexport.bundles import Bundle, open_bundle
from tsexport.checksums import MEASUREMENTS
from tsexport.device_kit import graph_of
from tsexport.errors import BundleError, MissingDependencyError, UsageError
from tsexport.explaining import Explanation, explanations
from tsexport.manifest import Manifest, Selection
from tsexport.projecting import ProjectionView, projection_views
from tsexport.triton import served_models
from tsexport.types import Accuracy, Candidate
from tsexport.wording import change_text, compact_json, figure_text, markdown_cell, percent_text, size_text

TEMPLATES = Path(__file__).parent / "templates"
_JUDGED = ("met", "missed", "inconclusive", "refuted")


@dataclass(frozen=True)
class Bar:
    """A number with the share of the largest one beside it, in percent."""

    label: str
    text: str
    share_percent: float


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


@dataclass(frozen=True)
class RaceView:
    """A race as a table."""

    title: str
    rows: tuple[RaceRow, ...]


@dataclass(frozen=True)
class MachineView:
    """What was measured on one machine.  Plots are SVG text; `tradeoff` is "" where no candidate was measured."""

    record: MachineRecord
    judged: tuple[VerdictRow, ...]
    not_judged: tuple[VerdictRow, ...]
    measurements: tuple[MeasurementRow, ...]
    races: tuple[RaceView, ...]
    latency_plots: tuple[tuple[int, str], ...]
    tradeoff: str
    candidates: tuple[CandidateRow, ...]
    explanations: tuple[Explanation, ...]
    stages: tuple[Bar, ...]
    headline: MeasurementRow | None


@dataclass(frozen=True)
class DeviceView:
    """What the device kit measured on one device."""

    record: DeviceRecord
    judged: tuple[VerdictRow, ...]
    not_judged: tuple[VerdictRow, ...]
    measurements: tuple[DeviceRow, ...]


@dataclass(frozen=True)
class BundleView:
    """One bundle on the page."""

    manifest: Manifest
    selection: Selection
    machines: tuple[MachineView, ...]
    devices: tuple[DeviceView, ...]
    candidates: tuple[CandidateRow, ...]
    explanations: tuple[Explanation, ...]
    sizes: tuple[Bar, ...]
    selected_accuracy: Accuracy | None
    projected: tuple[ProjectionView, ...]


def render_report(bundles: Sequence[Bundle]) -> str:
    """Return report.html for one bundle or several.

    Raises:
        BundleError: a manifest, a selection or a measurement cannot be read.
        MissingDependencyError: jinja2 is not installed.
    """
    views = [_bundle_view(bundle) for bundle in bundles]
    return _render("report.html.j2", {"bundles": views}, autoescape=True)


def report_bundles(bundles: Sequence[str | Path | Bundle], output: str | Path) -> Path:
    """Write the page about bundles (folders, archives or open ones) to a file, whole or not at all; return its path.

    Raises:
        BundleError: a bundle is damaged.
        UsageError: the file cannot be written.
        MissingDependencyError: jinja2 is not installed.
    """
    with contextlib.ExitStack() as stack:
        opened = [b if isinstance(b, Bundle) else stack.enter_context(open_bundle(b)) for b in bundles]
        page = render_report(opened)
    path = Path(output)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UsageError(f"the report {path} cannot be written: {error.strerror}") from error
    return path


def render_readme(manifest: Manifest, selection: Selection) -> str:
    """Return the bundle's README.md.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    values = {
        "manifest": manifest,
        "selection": selection,
        "kit": graph_of(manifest) is not None,
        "triton": bool(served_models(manifest, selection)),
    }
    return render_markdown("README.md.j2", values)


def render_markdown(template: str, values: Mapping[str, Any]) -> str:
    """Return a template of Markdown with its values.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    return _render(template, values, autoescape=False)


def read_measurements(bundle: Bundle) -> tuple[MachineRecord, ...]:
    """Return the record of every machine the bundle was measured on, by file name.

    Raises:
        BundleError: one of them cannot be read.
    """
    paths = sorted((bundle.path / MEASUREMENTS).glob("*.json"))
    records = tuple(read_record(path) for path in paths if not path.name.startswith(PREFIX))
    for record in records:
        for measurement in record.measurements:
            if not measurement.samples_ms or min(measurement.samples_ms) <= 0:
                raise BundleError(
                    f"{MEASUREMENTS}: {measurement.artifact} on {measurement.runtime} has no valid samples"
                )
    return records


def read_attached(bundle: Bundle) -> tuple[DeviceRecord, ...]:
    """Return the record of every attached run of the device kit, by file name.

    Raises:
        BundleError: one of them cannot be read.
    """
    return tuple(read_device_record(path) for path in sorted((bundle.path / MEASUREMENTS).glob(f"{PREFIX}*.json")))


def _render(template: str, values: Mapping[str, Any], *, autoescape: bool) -> str:
    try:
        import jinja2
    except ImportError:
        raise MissingDependencyError(
            "reports are made with jinja2, which is not installed", next_step='pip install "tsexport[report]"'
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "size": size_text,
        "percent": percent_text,
        "cell": markdown_cell,
        "compact": compact_json,
        "change": change_text,
        "figure": figure_text,
        "literal": json.dumps,  # a string as it is written in Python
        "shape": repr,
    }
    return environment.get_template(template).render(values)


def _bundle_view(bundle: Bundle) -> BundleView:
    manifest, selection = bundle.manifest, bundle.selection
    chosen = (manifest.selected.artifact, manifest.selected.runtime)
    return BundleView(
        manifest=manifest,
        selection=selection,
        machines=tuple(_machine_view(record, manifest) for record in read_measurements(bundle)),
        devices=tuple(_device_view(record) for record in read_attached(bundle)),
        candidates=candidate_rows(manifest.candidates, ()),
        explanations=explanations(manifest, None),
        sizes=_bars([(entry.name, entry.size_bytes, size_text(entry.size_bytes)) for entry in manifest.artifacts]),
        selected_accuracy=next((a for a in manifest.accuracy if (a.artifact, a.runtime) == chosen), None),
        projected=projection_views(bundle),
    )


def _device_view(record: DeviceRecord) -> DeviceView:
    rows = verdict_rows(record.verdicts)
    return DeviceView(
        record,
        tuple(row for row in rows if row.status in _JUDGED),
        tuple(row for row in rows if row.status not in _JUDGED),
        device_rows(record),
    )


def _machine_view(record: MachineRecord, manifest: Manifest) -> MachineView:
    rows = verdict_rows(record.verdicts)
    measurements = measurement_rows(record.measurements)
    selected = manifest.selected
    return MachineView(
        record=record,
        judged=tuple(row for row in rows if row.status in _JUDGED),
        not_judged=tuple(row for row in rows if row.status not in _JUDGED),
        measurements=measurements,
        races=tuple(
            RaceView(
                f"batch {race.batch}, against {race.baseline}, {race.rounds} rounds, {race.processes} process(es) each",
                race_rows(race),
            )
            for race in record.races
        ),
        latency_plots=_latency_plots(record, manifest),
        tradeoff=_tradeoff(record, manifest),
        candidates=candidate_rows(manifest.candidates, record.races),
        explanations=explanations(manifest, record),
        stages=_bars([(name, seconds, f"{seconds:.2f} s") for name, seconds in record.stage_seconds]),
        headline=next(
            (
                row
                for row in measurements
                if (row.artifact, row.runtime, row.batch) == (selected.artifact, selected.runtime, "1")
            ),
            None,
        ),
    )


def _latency_plots(record: MachineRecord, manifest: Manifest) -> tuple[tuple[int, str], ...]:
    """Return (batch, SVG) for each batch that was measured, the fastest artifact on top."""
    chosen = (manifest.selected.artifact, manifest.selected.runtime)
    found = []
    for batch in sorted({measurement.batch for measurement in record.measurements}):
        series = [
            plots.LatencySeries(f"{m.artifact} on {m.runtime}", m.samples_ms, (m.artifact, m.runtime) == chosen)
            for m in record.measurements
            if m.batch == batch
        ]
        series.sort(key=lambda one: sorted(one.samples_ms)[len(one.samples_ms) // 2])
        found.append((batch, plots.latency_plot(series, f"latency distributions at batch {batch}")))
    return tuple(found)


def _tradeoff(record: MachineRecord, manifest: Manifest) -> str:
    """Return the plot of error against latency at batch 1, or "" where nothing has both."""
    accuracies = _judged_accuracies(manifest)
    by_labels = any(accuracy.degradation is not None for accuracy, _, _ in accuracies)
    budget = manifest.budget
    points = []
    for accuracy, label, kind in accuracies:
        error = accuracy.degradation if by_labels else accuracy.output_error
        latency = _latency(record, accuracy, label)
        if error is not None and latency is not None:
            points.append(plots.TradeoffPoint(label, latency, 100 * error, kind))
    if not points:
        return ""
    bound, name = (
        (budget.max_degradation, f"worse {budget.metric}") if by_labels else (budget.max_output_error, "output error")
    )
    return plots.tradeoff_plot(points, 100 * bound, name, "accuracy against latency of the candidates")


def _judged_accuracies(manifest: Manifest) -> list[tuple[Accuracy, str, str]]:
    """Return (accuracy, label, kind) of each candidate, then of each artifact that is no candidate's."""
    found: list[tuple[Accuracy, str, str]] = [
        (c.accuracy, c.name, c.status) for c in manifest.candidates if c.accuracy and c.status != "failed"
    ]
    taken = {(candidate.artifact, candidate.runtime) for candidate in manifest.candidates}
    found += [
        (accuracy, f"{accuracy.artifact} on {accuracy.runtime}", "reference")
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
            return sorted(measurement.samples_ms)[len(measurement.samples_ms) // 2]
    return None


def candidate_rows(candidates: Sequence[Candidate], races: Sequence[RaceResult]) -> tuple[CandidateRow, ...]:
    """Return a row for each candidate, with its latency from the last race at batch 1 that it ran in."""
    return tuple(_candidate_row(candidate, races) for candidate in candidates)


def _candidate_row(candidate: Candidate, races: Sequence[RaceResult]) -> CandidateRow:
    names = {
        name
        for name in (candidate.name, candidate.artifact, candidate.accuracy and candidate.accuracy.artifact)
        if name
    }
    latency = speedup = "not measured"
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


def _bars(values: Sequence[tuple[str, float, str]]) -> tuple[Bar, ...]:
    largest = max((value for _, value, _ in values), default=0.0)
    return tuple(Bar(label, text, 100 * value / largest if largest else 0.0) for label, value, text in values)
