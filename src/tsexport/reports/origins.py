"""How each number of a bundle was obtained (measured, profiled, projected, counted), and where it stands."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tsexport.bench.affinity import threads_text
from tsexport.bench.device_records import device_record_name
from tsexport.bench.outlook import PROJECTED
from tsexport.bench.tables import ServiceLevelRow
from tsexport.bundles.checksums import MEASUREMENTS
from tsexport.bundles.manifest import MANIFEST
from tsexport.reports.profiles import ProfileView
from tsexport.reports.scenarios import scenario_file
from tsexport.reports.views import BundleView, DeviceView, MachineView
from tsexport.wording import count_text


@dataclass(frozen=True)
class Origin:
    """A kind of number; `obtained` is "measured", "projected", "profiled", "counted", "published" or "not measured"."""

    what: str
    obtained: str
    how: str
    where: str


def origins_of(bundle: BundleView) -> tuple[Origin, ...]:
    """Return how each kind of number of a bundle was obtained."""
    manifest = bundle.manifest
    found: list[Origin] = []
    for machine in bundle.machines:
        found += _of_machine(machine)
    for device in bundle.devices:
        found += _of_device(device)
    found += [_of_profile(one) for profiles in bundle.profiled for one in profiles]
    found += _of_scenarios(bundle)
    if not any(machine.record.measurements for machine in bundle.machines) and not bundle.devices:
        reason = "" if manifest.target.here else f": the build ran on no {manifest.target.device_name}"
        found.append(Origin("latency, throughput, memory", "not measured", f"nobody measured them{reason}", ""))
    for projected in bundle.projected:
        record = projected.record
        how = record.reason or f"a roofline over the kernels of {record.artifact} with TensorRT {record.tensorrt}"
        where = f"{MEASUREMENTS}/{PROJECTED}/{record.device}.json"
        state = "not projected" if record.reason else "projected"
        found.append(Origin(f"latency on {record.title}", state, how, where))
    for accuracy in manifest.accuracy[:1]:
        how = f"answers to {accuracy.windows} windows that calibration did not see, held against the source model's"
        found.append(Origin("errors and accuracy", "measured", how, MANIFEST))
    found.append(
        Origin("parity", "measured", "answers held against the source model's, under named tolerances", MANIFEST)
    )
    found.append(Origin("sizes", "counted", "bytes of the artifact's files", MANIFEST))
    if manifest.coverage is not None or any(one.coverage for one in manifest.candidates):
        how = "in the graph that the runtime makes of the artifact, for one sample"
        found.append(Origin("MACs, conversions, bytes moved", "counted", how, MANIFEST))
    found.append(Origin("budgets", "published", "in the documents that the rows name", f"{MEASUREMENTS}/"))
    return tuple(found)


def _of_machine(machine: MachineView) -> Iterator[Origin]:
    record = machine.record
    where = f"{MEASUREMENTS}/{record.machine.machine_id}.json"
    if record.measurements:
        batches = _listed(str(one.batch) for one in record.measurements)
        threads = _listed(threads_text(one.threads) for one in record.measurements)
        processes = _listed(_fresh(one.processes) for one in record.measurements)
        counts = sorted({len(one.samples_ms) for one in record.measurements})
        calls = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        how = (
            f"on {record.machine}: single calls after warm-up, {calls} a row, in {processes}, "
            f"{threads}, batch {batches}"
        )
        yield Origin("latency, throughput, loading, memory", "measured", how, where)
        if record.service_levels:
            yield Origin(
                "use cases", "measured", f"the p90 of those calls against {_sources(record.service_levels)}", where
            )
    for race in record.races:
        how = (
            f"on {record.machine}: {len(race.entries)} artifacts in {race.rounds} interleaved rounds, batch "
            f"{race.batch}; the ratio of medians, its interval by bootstrap"
        )
        yield Origin(f"speed-ups over {race.baseline}", "measured", how, where)
    if record.balance is not None:
        how = f"from what {record.machine.cpu_model} sustained; the lower bound of products and memory"
        yield Origin("bounds of candidates", "projected", how, where)
    yield from map(_of_profile, machine.profiles)


def _of_profile(profile: ProfileView) -> Origin:
    record = profile.record
    how = f"{record.method}; {record.calls} calls of {record.artifact} on {record.runtime}, batch {record.batch}"
    state = "not measured" if record.reason else "profiled"
    return Origin("shares of nodes", state, record.reason or f"on {record.machine}: {how}", profile.file)


def _of_scenarios(bundle: BundleView) -> Iterator[Origin]:
    for part in bundle.scenarios:
        for one in part.scenarios:
            how = f"on {part.machine}: {one.where}; {one.table.conditions}"
            yield Origin(f"scenario {one.record.scenario}", "measured", how, scenario_file(one.record))


def _of_device(device: DeviceView) -> Iterator[Origin]:
    record = device.record
    batches = _listed(one.batch for one in device.measurements)
    samples = _listed(one.samples for one in device.measurements)
    how = (
        f"on {record.device} by trtexec with {record.artifact}: {samples} samples, batch {batches}, copies "
        f"{record.transfers}"
    )
    where = f"{MEASUREMENTS}/{device_record_name(record)}"
    yield Origin("latency on the device", "measured", how, where)
    if device.use_cases.rows:
        how = f"the p90 of those calls against {_sources(record.service_levels)}"
        yield Origin("use cases on the device", "measured", how, where)


def _fresh(processes: int) -> str:
    return count_text(processes, "fresh process", "fresh processes")


def _sources(levels: Sequence[ServiceLevelRow]) -> str:
    """Return what the use cases allow, and where that is published."""
    allowed = _listed(f"{one.max_ms:g} ms" for one in levels)
    return f"the {allowed} that {_listed(one.source for one in levels)} allows a call"


def _listed(values: Iterator[str]) -> str:
    return ", ".join(dict.fromkeys(values))
