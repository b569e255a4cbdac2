"""One bundle as the report shows it: its records as rows, bars and plots.  Nothing is decided here."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median_high

from tsexport.bench.device_records import DeviceRecord
from tsexport.bench.race import RaceResult
from tsexport.bench.records import MachineRecord
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
from tsexport.bundles.bundle import Bundle
from tsexport.bundles.manifest import Manifest, Selection
from tsexport.reports.candidates import CandidateRow, candidate_rows, error_scale, tradeoff_points
from tsexport.reports.explaining import Explanation, explanations
from tsexport.reports.plots import at_both_widths
from tsexport.reports.plots_latency import LatencySeries, latency_plot
from tsexport.reports.plots_tradeoff import tradeoff_plot
from tsexport.reports.profiles import ProfileView, profile_view, read_profiles
from tsexport.reports.projections import ProjectionView, projection_views
from tsexport.reports.scenarios import MachineScenarios, read_scenarios, scenario_views
from tsexport.reports.use_cases import UseCaseTable, device_answers, machine_answers, use_case_table
from tsexport.types import Accuracy
from tsexport.wording import count_text, size_text

JUDGED = ("pass", "miss", "inconclusive", "refuted")


@dataclass(frozen=True)
class Bar:
    """A number with the share of the largest one beside it, in percent."""

    label: str
    text: str
    share_percent: float


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
    profiles: tuple[ProfileView, ...]
    use_cases: UseCaseTable


@dataclass(frozen=True)
class DeviceView:
    """What the device kit measured on one device."""

    record: DeviceRecord
    judged: tuple[VerdictRow, ...]
    not_judged: tuple[VerdictRow, ...]
    measurements: tuple[DeviceRow, ...]
    use_cases: UseCaseTable


@dataclass(frozen=True)
class BundleView:
    """One bundle on the page; `anchor` is where on it.

    `profiled` are profiles of machines that measured no latency, by machine.
    """

    anchor: str
    manifest: Manifest
    selection: Selection
    machines: tuple[MachineView, ...]
    devices: tuple[DeviceView, ...]
    candidates: tuple[CandidateRow, ...]
    explanations: tuple[Explanation, ...]
    sizes: tuple[Bar, ...]
    selected_accuracy: Accuracy | None
    projected: tuple[ProjectionView, ...]
    scenarios: tuple[MachineScenarios, ...]
    profiled: tuple[tuple[ProfileView, ...], ...]

    @property
    def title(self) -> str:
        """The model with its component, as people name it."""
        model = self.manifest.model
        return f"{model.name} {model.component}" if model.component else model.name


def bundle_view(
    bundle: Bundle, number: int, records: Sequence[MachineRecord], devices: Sequence[DeviceRecord]
) -> BundleView:
    """Return a bundle as the report shows it.

    Args:
        number: its place on the page, from 1 on.
        records, devices: what was measured, by machine.

    Raises:
        BundleError: one of its records cannot be read.
    """
    manifest = bundle.manifest
    chosen = (manifest.selected.artifact, manifest.selected.runtime)
    profiles: dict[str, list[ProfileView]] = {}
    for one in read_profiles(bundle):
        profiles.setdefault(one.record.machine.machine_id, []).append(profile_view(one.record, one.path))
    measured = {one.machine.machine_id for one in records}
    return BundleView(
        anchor=f"bundle-{number}",
        manifest=manifest,
        selection=bundle.selection,
        machines=tuple(_machine_view(one, manifest, profiles.get(one.machine.machine_id, ())) for one in records),
        devices=tuple(_device_view(record) for record in devices),
        candidates=candidate_rows(manifest.candidates, ()),
        explanations=explanations(manifest, None),
        sizes=bars([(entry.name, entry.size_bytes, size_text(entry.size_bytes)) for entry in manifest.artifacts]),
        selected_accuracy=next((a for a in manifest.accuracy if (a.artifact, a.runtime) == chosen), None),
        projected=projection_views(bundle),
        profiled=tuple(tuple(views) for machine, views in profiles.items() if machine not in measured),
        scenarios=scenario_views(read_scenarios(bundle)),
    )


def bars(values: Sequence[tuple[str, float, str]]) -> tuple[Bar, ...]:
    """Return (label, value, text) as bars, the largest value the whole width."""
    largest = max((value for _, value, _ in values), default=0.0)
    return tuple(Bar(label, text, 100 * value / largest if largest else 0.0) for label, value, text in values)


def _device_view(record: DeviceRecord) -> DeviceView:
    rows = verdict_rows(record.verdicts)
    return DeviceView(
        record,
        tuple(row for row in rows if row.status in JUDGED),
        tuple(row for row in rows if row.status not in JUDGED),
        device_rows(record),
        use_case_table(device_answers(record)),
    )


def _machine_view(record: MachineRecord, manifest: Manifest, profiles: Sequence[ProfileView]) -> MachineView:
    rows = verdict_rows(record.verdicts)
    measurements = measurement_rows(record.measurements)
    selected = manifest.selected
    return MachineView(
        record=record,
        judged=tuple(row for row in rows if row.status in JUDGED),
        not_judged=tuple(row for row in rows if row.status not in JUDGED),
        measurements=measurements,
        races=tuple(RaceView(_race_title(race), race_rows(race)) for race in record.races),
        latency_plots=_latency_plots(record, manifest),
        tradeoff=_tradeoff(record, manifest),
        candidates=candidate_rows(manifest.candidates, record.races),
        explanations=explanations(manifest, record),
        stages=bars([(name, seconds, f"{seconds:.2f} s") for name, seconds in record.stage_seconds]),
        headline=next(
            (
                row
                for row in measurements
                if (row.artifact, row.runtime, row.batch) == (selected.artifact, selected.runtime, "1")
            ),
            None,
        ),
        profiles=tuple(profiles),
        use_cases=use_case_table(machine_answers(record)),
    )


def _race_title(race: RaceResult) -> str:
    processes = count_text(race.processes, "process", "processes")
    return f"batch {race.batch}, against {race.baseline}, {race.rounds} rounds, {processes} each"


def _latency_plots(record: MachineRecord, manifest: Manifest) -> tuple[tuple[int, str], ...]:
    """Return (batch, SVG) for each batch that was measured, the fastest artifact on top."""
    chosen = (manifest.selected.artifact, manifest.selected.runtime)
    found = []
    for batch in sorted({measurement.batch for measurement in record.measurements}):
        series = [
            LatencySeries(f"{m.artifact} on {m.runtime}", m.samples_ms, (m.artifact, m.runtime) == chosen)
            for m in record.measurements
            if m.batch == batch
        ]
        series.sort(key=lambda one: median_high(one.samples_ms))
        title = f"Latency distributions of {manifest.name} at batch {batch}"
        found.append((batch, at_both_widths(partial(latency_plot, series, title))))
    return tuple(found)


def _tradeoff(record: MachineRecord, manifest: Manifest) -> str:
    """Return the plot of error against latency at batch 1, or "" where nothing has both."""
    points = tradeoff_points(record, manifest)
    if not points:
        return ""
    scale = error_scale(manifest)
    title = f"Accuracy against latency of {manifest.name}"
    return at_both_widths(partial(tradeoff_plot, points, 100 * scale.allowed, scale.budget, title))
