"""Scenarios of a bundle as the report shows them: by machine, each with its figure, its plot and its table."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from tsexport.bench.affinity import threads_text
from tsexport.bench.fingerprint import Machine
from tsexport.bench.scenario_records import FOLDER, SCENARIOS, ScenarioRecord, read_scenario
from tsexport.bench.scenario_rows import ScenarioTable, scenario_table
from tsexport.bundles.bundle import Bundle
from tsexport.bundles.checksums import MEASUREMENTS
from tsexport.reports.plots import at_both_widths
from tsexport.reports.plots_scenarios import offline_plot, server_plot

_MEANINGS = {
    "single-stream": "A client that waits for each answer, as in SingleStream of MLPerf Inference.",
    "offline": "All samples are there at once, as in Offline of MLPerf Inference: how many a second, at which batch.",
    "server": "Queries come at random (Poisson), as in Server of MLPerf Inference, and a latency runs from the moment "
    "that its query was due, waiting included.",
    "memory": "What a fresh process holds beyond an idle session of the runtime, and whether it grows with the calls.",
}


@dataclass(frozen=True)
class ScenarioView:
    """One scenario; `plot` is SVG text, "" where there is none, `failure` why it failed, "" where it did not."""

    record: ScenarioRecord
    meaning: str
    where: str
    table: ScenarioTable
    plot: str
    failure: str


@dataclass(frozen=True)
class MachineScenarios:
    """The scenarios that ran on one machine."""

    machine: Machine
    scenarios: tuple[ScenarioView, ...]


def scenario_file(record: ScenarioRecord) -> str:
    """Return where a record lies in its bundle."""
    return f"{MEASUREMENTS}/{FOLDER}/{record.scenario}-{record.machine.machine_id}.json"


def read_scenarios(bundle: Bundle) -> tuple[ScenarioRecord, ...]:
    """Return the scenarios of a bundle, by file name.

    Raises:
        BundleError: one of them cannot be read.
    """
    return tuple(map(read_scenario, sorted((bundle.path / MEASUREMENTS / FOLDER).glob("*.json"))))


def scenario_views(records: Sequence[ScenarioRecord]) -> tuple[MachineScenarios, ...]:
    """Return scenarios by machine, on each in the order of `SCENARIOS`."""
    machines: dict[str, list[ScenarioRecord]] = {}
    for record in records:
        machines.setdefault(record.machine.machine_id, []).append(record)
    return tuple(
        MachineScenarios(found[0].machine, tuple(map(_view, sorted(found, key=_order)))) for found in machines.values()
    )


def _order(record: ScenarioRecord) -> int:
    return SCENARIOS.index(record.scenario)


def _view(record: ScenarioRecord) -> ScenarioView:
    return ScenarioView(
        record=record,
        meaning=_MEANINGS[record.scenario],
        where=f"{record.artifact} on {record.runtime}, {threads_text(record.threads)}",
        table=scenario_table(record),
        plot=_plot(record),
        failure=record.failure,
    )


def _plot(record: ScenarioRecord) -> str:
    if record.offline is not None and len(record.offline.points) > 1:
        title = f"Throughput of {record.artifact} over batch sizes"
        return at_both_widths(partial(offline_plot, record.offline, title))
    if record.server is not None and len(record.server.runs) > 1:
        title = f"Latency of {record.artifact} from the scheduled arrival over rates"
        return at_both_widths(partial(server_plot, record.server, title))
    return ""
