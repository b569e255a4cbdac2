"""Measurements that the device kit made on a device, brought back into the bundle they belong to.

They are checked (`tsexport.device.results`), held against the bundle (graph, target, device, version), judged against
the latency tables on that device, and added to `measurements/` (`tsexport.measurements.adding`).

Two kinds of figures decide less than others, and their verdicts say so.  Latencies without the copies to and from the
device (trtexec's default from TensorRT 11 on) are no longer than those with them: they can miss a budget, and cannot
meet one.  An engine whose precisions TensorRT chose by a calibration cache was not verified, so it judges nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tsexport.bench.device_records import (
    DeviceRecord,
    MeasuredDevice,
    measurements_of,
    read_device_record,
    write_device_record,
)
from tsexport.bench.tables import latency_budgets, load_tables
from tsexport.bench.verdicts import judge
from tsexport.bundles.bundle import Bundle, open_bundle
from tsexport.bundles.checksums import MEASUREMENTS
from tsexport.bundles.engines import tensorrt_range
from tsexport.bundles.manifest import ArtifactEntry, Manifest
from tsexport.device.results import DeviceResults, DeviceRun, read_results
from tsexport.errors import DataError, UsageError
from tsexport.measurements.adding import add_records, require_unpacked
from tsexport.targets import Target
from tsexport.types import Budget, Measurement, Precision, Verdict

_ID_CHARACTERS = 12


@dataclass(frozen=True)
class AttachedResults:
    """What was attached: the bundle's name, the file in `measurements/` that holds it, and its record.

    `exit_code` is 4 where a published row is missed on that device, else 0.
    """

    bundle: str
    file: str
    record: DeviceRecord

    @property
    def exit_code(self) -> int:
        """What `tsexport attach` ends with."""
        return 4 if any(verdict.status == "missed" for verdict in self.record.verdicts) else 0


def attach_results(bundle: str | Path | Bundle, results: str | Path) -> AttachedResults:
    """Check results of the device kit, judge them, and keep them in the bundle they belong to.

    Args:
        bundle: a bundle's folder.
        results: the folder that measure.sh wrote.

    Raises:
        BundleError: the bundle is damaged.
        DataError: the results are damaged, or belong to another bundle, device or version.
        UsageError: the bundle is an archive, is for a CPU, cannot be written to, or holds these results already.
    """
    if not isinstance(bundle, Bundle):
        with open_bundle(bundle) as opened:
            return attach_results(opened, results)
    require_unpacked(bundle)
    manifest = bundle.manifest
    if manifest.target.tensorrt is None:
        raise UsageError(
            f"{bundle.name} is for {manifest.target.name}: it has no device kit, so nothing is attached to it",
            next_step="measure it on its CPU with `tsexport bench`",
        )
    read = read_results(Path(results))
    record = _record(manifest, read)

    def write(folder: Path) -> tuple[Path, ...]:
        _check_not_there(bundle, read.sums_sha256)  # two at once wait for each other, and each finds the other's
        return (write_device_record(record, folder),)

    (file,) = add_records(bundle.path, write)
    return AttachedResults(bundle.name, file, record)


def _check_not_there(bundle: Bundle, sums_sha256: str) -> None:
    for path in sorted((bundle.path / MEASUREMENTS).glob("device-*.json")):
        if read_device_record(path).sums_sha256 == sums_sha256:
            raise UsageError(
                f"these results are attached already: {MEASUREMENTS}/{path.name} of {bundle.name} holds them",
                next_step="measure again with measure.sh to add others",
            )


def _record(manifest: Manifest, read: DeviceResults) -> DeviceRecord:
    run = read.run
    entry = _graph(manifest, run)
    device = _device(manifest.target, run, read.sums_sha256[:_ID_CHARACTERS])
    if run.mig == "Enabled" or "MIG" in run.cuda_device.split():  # a slice bears it in its name
        raise DataError(
            f"the results are of a MIG slice of {device.name}: a budget of a device is judged by all of it alone",
            next_step="measure on a GPU that is not cut into slices",
        )
    precision: Precision = entry.precision if run.quantization == "file" else "int8"
    record = DeviceRecord(
        device=device,
        target=manifest.target.name,
        artifact=entry.name,
        precision=precision,
        quantization=run.quantization,
        graph_sha256=run.graph_sha256,
        engine_sha256=run.engine_sha256,
        engine_bytes=run.engine_bytes,
        transfers=run.transfers,
        cuda_graph=run.cuda_graph,
        spin_wait=run.spin_wait,
        warm_up_ms=run.warm_up_ms,
        duration_s=run.duration_s,
        iterations=run.iterations,
        sums_sha256=read.sums_sha256,
        measurements=read.measurements,
        clocks=read.clocks,
        service_levels=load_tables().service_level,
    )
    return replace(record, verdicts=_verdicts(manifest, record))


def _graph(manifest: Manifest, run: DeviceRun) -> ArtifactEntry:
    """Return the artifact that the engine was built of, by its digest and not by its name."""
    onnx = [entry for entry in manifest.artifacts if entry.format == "onnx"]
    entry = next((one for one in onnx if one.files[0].sha256 == run.graph_sha256), None)
    if entry is None:
        raise DataError(
            f"the results are of another graph: its SHA-256 is {run.graph_sha256[:12]}..., of {run.artifact} in "
            f"{run.bundle}, and no ONNX artifact of {manifest.name} has it",
            next_step="attach them to the bundle whose kit made them",
        )
    if run.target != manifest.target.name:
        raise DataError(
            f"the results are for the target {run.target}, and the bundle is for {manifest.target.name}",
            next_step="attach them to the bundle whose kit made them",
        )
    if run.quantization == "implicit" and entry.precision != "fp32":
        raise DataError(
            f"the results name an implicitly calibrated engine of {entry.name}, which is {entry.precision}; "
            "only fp32 graphs are calibrated so",
            next_step="build and measure again with the kit's own scripts",
        )
    if run.quantization == "file" and run.precision != entry.precision:
        raise DataError(
            f"the results say {run.precision}, and the graph {entry.name} is {entry.precision}",
            next_step="build and measure again with the kit's own scripts",
        )
    return entry


def _device(target: Target, run: DeviceRun, machine_id: str) -> MeasuredDevice:
    """Return the device that was measured on.

    Raises:
        DataError: it is not the target's, or its TensorRT is none of those that the kit takes.
    """
    name = run.board or run.cuda_device
    words = set(re.findall(r"[a-z0-9]+", f"{run.board} {run.cuda_device}".lower()))
    if run.compute_capability != target.compute_capability or not set(target.device.split("-")) <= words:
        raise DataError(
            f"the results are of {name or 'a device without a name'} (compute capability "
            f"{run.compute_capability or 'unknown'}), and the bundle is for {target.device} (compute capability "
            f"{target.compute_capability}): a budget of a device is judged by that device alone",
            next_step="build a bundle for that device with --device",
        )
    versions = tensorrt_range(target)
    if not versions.holds(run.tensorrt):
        raise DataError(
            f"the results are of TensorRT {run.tensorrt}, and the bundle's kit takes {versions}",
            next_step=f"build the bundle for that version, with --device @tensorrt-{run.tensorrt.rpartition('.')[0]}",
        )
    return MeasuredDevice(
        machine_id, name, run.cuda_device, run.compute_capability, run.power_mode, run.tensorrt, run.driver, run.kernel
    )


def _verdicts(manifest: Manifest, record: DeviceRecord) -> tuple[Verdict, ...]:
    model, device = manifest.model, record.device
    budgets = latency_budgets(model.name, model.family, model.component)
    if record.quantization == "implicit":
        reason = f"measured on {device} with an implicitly calibrated engine, whose accuracy was not verified"
        return tuple(Verdict("not measured", budget, reason) for budget in budgets)
    timed = measurements_of(record)
    return tuple(_verdict(budget, timed, record, manifest.target.device) for budget in budgets)


def _verdict(budget: Budget, timed: Sequence[Measurement], record: DeviceRecord, device: str) -> Verdict:
    if budget.kind == "memory":  # the measurements above hold times, and nothing of memory
        return Verdict("not measured", budget, "trtexec does not measure memory")
    (verdict,) = judge([budget], timed, machine=record.device, device=device)
    if record.transfers == "included" or verdict.artifact is None:
        return verdict
    label = f"{verdict.reason}; without the copies to and from the device"
    if verdict.status in ("met", "refuted"):
        return replace(
            verdict,
            status="inconclusive",
            reason=f"{label}, which decides nothing: measure again with `measure.sh --with-transfers`",
        )
    return replace(verdict, reason=label)
