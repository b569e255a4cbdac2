"""Many bundles side by side: what was selected, what it gained, what it cost, and which budgets it met.

A row is a bundle on one machine or device that measured it, or the bundle alone where nothing did.  Figures that were
measured, projected and counted have columns of their own.  Ratios are of figures of the same bundle: the speed-up is
the race's own, a size is held against the fp32 ONNX artifact's, an error against its budget.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median_high

from tsexport.bench.device_records import RUNTIME
from tsexport.bench.race import RaceEntry, RaceResult
from tsexport.bench.rows import VerdictRow, interval
from tsexport.bench.statistics import percentile
from tsexport.bench.use_cases import UseCaseAnswer, UseCaseStatus
from tsexport.bundles.manifest import ArtifactEntry, Manifest
from tsexport.reports.candidates import NOT_MEASURED, error_scale, tradeoff_points
from tsexport.reports.plots import at_both_widths
from tsexport.reports.plots_latency import LatencySeries, latency_plot
from tsexport.reports.plots_speedup import SpeedupBar, speedup_plot
from tsexport.reports.plots_tradeoff import TradeoffPoint, tradeoff_plot
from tsexport.reports.scenarios import ScenarioView
from tsexport.reports.use_cases import (
    UseCaseColumn,
    device_answers,
    machine_answers,
    use_case_cells,
    use_case_columns,
)
from tsexport.reports.views import BundleView, DeviceView, MachineView
from tsexport.types import Measurement
from tsexport.wording import change_text, percent_text, size_text

_ORDER = ("miss", "inconclusive", "refuted", "pass")
"""The statuses of budgets that were judged, the one that matters most first."""
PLOTTED = 60
"""So many rows a plot across bundles has at most; tables have all."""


@dataclass(frozen=True)
class Figure:
    """A number as text, its value for sorting (None sorts last), and a word on it."""

    text: str
    order: float | None
    note: str = ""


ABSENT = Figure(NOT_MEASURED, None)


@dataclass(frozen=True)
class OverviewRow:
    """One bundle on one machine or device.

    `status` is that of the budget that matters most; `statuses` counts all that were judged, ("3 pass", "pass").
    `obtained` says of the latencies "measured" or "not measured"; `projected` has a column of its own.
    """

    bundle: BundleView
    place: str
    artifact: ArtifactEntry
    status: str
    statuses: tuple[tuple[str, str], ...]
    obtained: str
    p50: Figure
    projected: Figure
    speedup: Figure
    error: Figure
    size: Figure
    size_share: Figure
    memory: Figure
    load: Figure
    candidates: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class BudgetRow:
    """One published row, of one bundle on one machine or device."""

    bundle: BundleView
    place: str
    verdict: VerdictRow


@dataclass(frozen=True)
class UseCaseOverviewRow:
    """The selected artifact of one bundle on one machine or device; cells as of `UseCaseRow`."""

    bundle: BundleView
    place: str
    artifact: str
    cells: tuple[tuple[tuple[str, UseCaseStatus], ...], ...]


@dataclass(frozen=True)
class SharedCaveat:
    """A caveat, and the bundles that have it."""

    text: str
    bundles: tuple[BundleView, ...]


@dataclass(frozen=True)
class OverviewPlot:
    """A plot across bundles, and the machine that all of it was measured on."""

    place: str
    plot: str
    left_out: int = 0


@dataclass(frozen=True)
class Overview:
    """Everything about many bundles at once."""

    rows: tuple[OverviewRow, ...]
    judged: tuple[BudgetRow, ...]
    not_judged: tuple[BudgetRow, ...]
    use_cases: tuple[UseCaseColumn, ...]
    fast_enough: tuple[UseCaseOverviewRow, ...]
    scenarios: tuple[tuple[BundleView, ScenarioView], ...]
    speedups: tuple[OverviewPlot, ...]
    tradeoffs: tuple[OverviewPlot, ...]
    latencies: tuple[OverviewPlot, ...]
    caveats: tuple[SharedCaveat, ...]


def overview_of(bundles: Sequence[BundleView]) -> Overview:
    """Return bundles side by side, in their order."""
    rows = tuple(row for bundle in bundles for row in _rows(bundle))
    places = dict.fromkeys(str(m.record.machine) for bundle in bundles for m in bundle.machines if m.headline)
    asked = tuple(_asked(bundles))
    columns = use_case_columns([one for *_, answers in asked for one in answers])
    return Overview(
        rows=rows,
        judged=tuple(_budgets(bundles, judged=True)),
        not_judged=tuple(_budgets(bundles, judged=False)),
        use_cases=columns,
        fast_enough=tuple(
            UseCaseOverviewRow(bundle, place, answers[0].artifact, use_case_cells(answers, columns))
            for bundle, place, answers in asked
        ),
        scenarios=tuple((b, one) for b in bundles for part in b.scenarios for one in part.scenarios),
        speedups=tuple(plot for place in places if (plot := _speedups(rows, bundles, place))),
        tradeoffs=tuple(plot for place in places if (plot := _tradeoff(bundles, place))),
        latencies=tuple(plot for place in places if (plot := _latencies(bundles, place))),
        caveats=_caveats(bundles),
    )


def _rows(bundle: BundleView) -> list[OverviewRow]:
    rows = [_row(bundle, machine, None) for machine in bundle.machines if machine.headline]
    rows += [_row(bundle, None, device) for device in bundle.devices]
    return rows or [_row(bundle, None, None)]


def _row(bundle: BundleView, machine: MachineView | None, device: DeviceView | None) -> OverviewRow:
    manifest = bundle.manifest
    entry = manifest.artifact(manifest.selected.artifact)
    view = machine or device
    statuses = _statuses(view.judged if view else ())
    p50 = memory = load = ABSENT
    place = ""
    if machine and (line := machine.headline):
        place = str(machine.record.machine)
        one = _headline(machine, manifest)
        p50 = Figure(line.p50, percentile(one.samples_ms, 0.5), f"p90 {line.p90}, p99 {line.p99}, {line.samples} calls")
        memory = Figure(line.peak_memory, float(one.peak_memory_bytes))
        load = Figure(line.load, one.load_ms)
    elif device and device.measurements:
        place = str(device.record.device)
        first = device.measurements[0]
        note = f"p90 {first.p90}, p99 {first.p99}, {first.samples} calls, batch {first.batch}, copies {first.transfers}"
        p50 = Figure(first.p50, percentile(device.record.measurements[0].samples_ms, 0.5), note)
    return OverviewRow(
        bundle=bundle,
        place=place,
        artifact=entry,
        status=next((status for status in _ORDER if any(kind == status for _, kind in statuses)), "not measured"),
        statuses=statuses,
        obtained="measured" if place else NOT_MEASURED,
        p50=p50,
        projected=_projected(bundle),
        speedup=_speedup(machine, manifest),
        error=_error(bundle),
        size=Figure(size_text(entry.size_bytes), float(entry.size_bytes)),
        size_share=_size_share(manifest, entry),
        memory=memory,
        load=load,
        candidates=tuple(
            (status, count)
            for status in ("selected", "eligible", "rejected", "failed")
            if (count := sum(one.status == status for one in manifest.candidates))
        ),
    )


def _headline(machine: MachineView, manifest: Manifest) -> Measurement:
    """Return the measurement of the selected artifact at batch 1, which the view's headline is of."""
    chosen = (manifest.selected.artifact, manifest.selected.runtime, 1)
    return next(one for one in machine.record.measurements if (one.artifact, one.runtime, one.batch) == chosen)


def _statuses(judged: Iterable[VerdictRow]) -> tuple[tuple[str, str], ...]:
    found = [row.status for row in judged]
    return tuple((f"{found.count(status)} {status}", status) for status in _ORDER if status in found)


def _projected(bundle: BundleView) -> Figure:
    for projected in bundle.projected:
        for row, one in zip(projected.projections[:1], projected.record.projections[:1], strict=True):
            return Figure(row.total, one.total_ms, f"{projected.record.title}, {row.mode}, batch {row.batch}")
    return Figure("", None)


def _speedup(machine: MachineView | None, manifest: Manifest) -> Figure:
    if machine is None:
        return ABSENT
    if _is_plain_fp32(manifest):
        return Figure("fp32 itself", None)
    entry, race = selected_entry(machine.record.races, manifest)
    if entry is None or race is None:
        return ABSENT
    ratio = entry.speedup
    return Figure(f"{ratio.value:.2f}x", ratio.value, f"{interval(ratio)}, over {race.baseline}")


def _is_plain_fp32(manifest: Manifest) -> bool:
    """Return whether the selected artifact is one of those that speed-ups are over."""
    return manifest.pruning is None and manifest.artifact(manifest.selected.artifact).precision == "fp32"


def selected_entry(races: Sequence[RaceResult], manifest: Manifest) -> tuple[RaceEntry | None, RaceResult | None]:
    """Return the selected artifact in the last race at batch 1 against another artifact, and that race."""
    chosen = (manifest.selected.artifact, manifest.selected.runtime)
    for race in reversed(races):
        base = next((one for one in race.entries if one.name == race.baseline), None)
        found = [one for one in race.entries if (one.artifact, one.runtime) == chosen]
        if race.batch == 1 and found and base and base.artifact != chosen[0]:
            return max(found, key=lambda one: one.speedup.value), race
    return None, None


def _error(bundle: BundleView) -> Figure:
    accuracy, scale = bundle.selected_accuracy, error_scale(bundle.manifest)
    error = scale.error_of(accuracy) if accuracy else None
    if error is None:
        return ABSENT
    text = change_text(error) if scale.by_labels else percent_text(error)
    return Figure(text, error, f"{scale.name}, {percent_text(scale.allowed)} allowed")


def _size_share(manifest: Manifest, entry: ArtifactEntry) -> Figure:
    """Return the size against that of the fp32 ONNX artifact, or of the first in fp32 where there is no such."""
    fp32 = [one for one in manifest.artifacts if one.precision == "fp32"]
    base = next((one for one in fp32 if one.format == "onnx"), next(iter(fp32), None))
    if base is None or base.name == entry.name:
        return Figure("", None)
    share = entry.size_bytes / base.size_bytes
    return Figure(percent_text(share), share, f"of {base.name}, {size_text(base.size_bytes)}")


def _budgets(bundles: Sequence[BundleView], *, judged: bool) -> Iterable[BudgetRow]:
    for bundle in bundles:
        views: list[tuple[str, MachineView | DeviceView]] = [
            *((str(one.record.machine), one) for one in bundle.machines),
            *((str(one.record.device), one) for one in bundle.devices),
        ]
        for place, view in views:
            for row in view.judged if judged else view.not_judged:
                yield BudgetRow(bundle, place, row)


def _asked(bundles: Sequence[BundleView]) -> Iterable[tuple[BundleView, str, list[UseCaseAnswer]]]:
    """Yield what the selected artifact of each bundle answers on each machine or device, where there is an answer."""
    for bundle in bundles:
        places = [
            *((str(one.record.machine), machine_answers(one.record)) for one in bundle.machines),
            *((str(one.record.device), device_answers(one.record)) for one in bundle.devices),
        ]
        selected = bundle.manifest.selected
        for place, answers in places:
            found = [one for one in answers if one.artifact == selected.artifact and _runs_on(one, selected.runtime)]
            if found:
                yield bundle, place, found


def _runs_on(one: UseCaseAnswer, runtime: str) -> bool:
    """Return whether it is an answer of the selected runtime, or of a device's, which the build did not have."""
    return one.runtime == runtime or one.runtime.startswith(f"{RUNTIME} ")


def _speedups(rows: Sequence[OverviewRow], bundles: Sequence[BundleView], place: str) -> OverviewPlot | None:
    found = []
    for bundle in bundles:
        for machine in _machines(bundle, place):
            entry, _ = selected_entry(machine.record.races, bundle.manifest)
            if entry is not None and not _is_plain_fp32(bundle.manifest):
                ratio = entry.speedup
                text = f"{ratio.value:.2f}x ({interval(ratio)})"
                found.append(SpeedupBar(bundle.manifest.name, text, ratio.value, ratio.low, ratio.high))
    if len(found) < 2:
        return None
    found.sort(key=lambda bar: -bar.value)
    title = f"Speed-ups of the selected artifacts over fp32 on {place}"
    plot = at_both_widths(partial(speedup_plot, found[:PLOTTED], title))
    return OverviewPlot(place, plot, max(0, len(found) - PLOTTED))


def _tradeoff(bundles: Sequence[BundleView], place: str) -> OverviewPlot | None:
    """Return errors as shares of their budgets, which models share, against latency; a front for each model."""
    points = []
    for bundle in bundles:
        allowed = error_scale(bundle.manifest).allowed
        for machine in _machines(bundle, place):
            for one in tradeoff_points(machine.record, bundle.manifest) if allowed > 0 else ():
                selected = one.kind == "selected"
                label = bundle.manifest.name if selected else f"{bundle.manifest.name}: {one.label}"
                points.append(TradeoffPoint(label, one.latency_ms, one.error_percent / allowed, one.kind, bundle.title))
    if not points:
        return None
    title = f"Error, as a share of what is allowed, against latency of all candidates on {place}"
    draw = partial(tradeoff_plot, points, 100.0, "all that is allowed", title, every_label=False)
    return OverviewPlot(place, at_both_widths(draw))


def _latencies(bundles: Sequence[BundleView], place: str) -> OverviewPlot | None:
    series = []
    for bundle in bundles:
        for machine in _machines(bundle, place):
            one = _headline(machine, bundle.manifest)
            series.append(LatencySeries(f"{bundle.manifest.name}: {one.artifact}", one.samples_ms, False))
    series.sort(key=lambda one: median_high(one.samples_ms))
    title = f"Latencies of the selected artifacts at batch 1 on {place}"
    plot = at_both_widths(partial(latency_plot, series[:PLOTTED], title))
    return OverviewPlot(place, plot, max(0, len(series) - PLOTTED))


def _machines(bundle: BundleView, place: str) -> list[MachineView]:
    return [one for one in bundle.machines if one.headline and str(one.record.machine) == place]


def _caveats(bundles: Sequence[BundleView]) -> tuple[SharedCaveat, ...]:
    """Return every caveat once, those of most bundles first."""
    found: dict[str, list[BundleView]] = {}
    for bundle in bundles:
        for text in dict.fromkeys((*bundle.manifest.model.caveats, *bundle.manifest.caveats)):
            found.setdefault(text, []).append(bundle)
    return tuple(SharedCaveat(text, tuple(having)) for text, having in sorted(found.items(), key=lambda i: -len(i[1])))
