"""What the table of a plan says of a bundle, read from the bundle."""

from collections.abc import Sequence
from dataclasses import replace

from tsexport.bench.affinity import threads_text
from tsexport.bench.device_records import RUNTIME, DeviceRecord
from tsexport.bench.records import MachineRecord
from tsexport.bench.statistics import percentile
from tsexport.bundles.bundle import Bundle
from tsexport.bundles.manifest import Manifest
from tsexport.bundles.measured import read_attached, read_measurements
from tsexport.errors import LatencyError
from tsexport.plans.records import Accuracy, Headline, Latency, Row
from tsexport.wording import change_text, percent_text


def headline_of(bundle: Bundle, not_measured: str = "") -> Headline:
    """Return the selected artifact of a bundle, and its accuracy and latency.

    Args:
        bundle: its manifest and measurements are read.
        not_measured: why there is no latency where there is none; by default that this machine is not the target.

    Raises:
        BundleError: a record cannot be read.
    """
    manifest, attached = bundle.manifest, read_attached(bundle)
    latency = _on_device(attached) or _on_machine(manifest, read_measurements(bundle))
    why = not_measured or f"built on no {manifest.target.device_name}"
    selected = manifest.selected
    missed = tuple(one.reason for record in attached for one in record.verdicts if one.status == "missed")
    return Headline(
        selected.artifact, selected.runtime, _accuracy(manifest), latency, "" if latency is not None else why, missed
    )


def with_headline(row: Row, bundle: Bundle, not_measured: str = "") -> Row:
    """Return a row with what its bundle says; a published row that a device missed makes it end with 4, as `attach`.

    Raises:
        BundleError: a record cannot be read.
    """
    headline = headline_of(bundle, not_measured)
    if not headline.missed:
        return replace(row, headline=headline)
    reason = "latency budgets missed: " + "; ".join(headline.missed)
    return replace(row, headline=headline, exit_code=LatencyError.exit_code, reason=reason)


def _accuracy(manifest: Manifest) -> Accuracy | None:
    selected = manifest.selected
    for one in manifest.accuracy:
        if (one.artifact, one.runtime) == (selected.artifact, selected.runtime):
            if one.degradation is not None and one.metric is not None:
                return Accuracy(one.metric, one.degradation)
            return Accuracy("output error", one.output_error)
    return None


def _on_machine(manifest: Manifest, records: Sequence[MachineRecord]) -> Latency | None:
    selected = manifest.selected
    found = [
        (one, record.machine)
        for record in records
        for one in record.measurements
        if (one.artifact, one.runtime) == (selected.artifact, selected.runtime)
    ]
    if not found:
        return None
    one, machine = min(found, key=lambda pair: pair[0].batch)
    return _latency(one.samples_ms, one.batch, one.runtime, one.threads, machine.cpu_model)


def _on_device(records: Sequence[DeviceRecord]) -> Latency | None:
    """Return the latency of the engine that holds the precisions of its file; those that TensorRT chose come after."""
    for record in sorted(records, key=lambda one: one.quantization != "file"):
        one = min(record.measurements, key=lambda measurement: measurement.batch)
        copies = "" if record.transfers == "included" else ", without copies"
        runtime = f"{RUNTIME} {record.device.tensorrt}{copies}"
        return _latency(one.samples_ms, one.batch, runtime, 1, record.device.name)
    return None


def _latency(samples_ms: Sequence[float], batch: int, runtime: str, threads: int, device: str) -> Latency:
    return Latency(
        percentile(samples_ms, 0.5), percentile(samples_ms, 0.9), batch, len(samples_ms), runtime, threads, device
    )


def accuracy_text(headline: Headline) -> str:
    """Return "mse 0.8 % worse", "output error 0.1 %" or "n/a"."""
    if headline.accuracy is None:
        return "n/a"
    loss, metric = headline.accuracy.loss, headline.accuracy.metric
    return f"{metric} {percent_text(loss) if metric == 'output error' else change_text(loss)}"


def latency_text(headline: Headline) -> str:
    """Return the latency with how it was obtained: "measured: ..." or "not measured: ...", never a bare figure."""
    one = headline.latency
    if one is None:
        return f"not measured: {headline.not_measured}"
    p50, p90 = (("n/a" if ms is None else f"{ms:.3g} ms") for ms in (one.p50_ms, one.p90_ms))
    text = f"measured: p50 {p50}, p90 {p90}, batch {one.batch}, "
    if one.runtime.startswith(RUNTIME):
        return f"{text}{one.samples} samples on {one.device}, {one.runtime}"
    return f"{text}{threads_text(one.threads)}, {one.samples} samples on {one.device}"
