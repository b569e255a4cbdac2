"""The projection of a build: how long the selected artifact would take on the device that is not here.

For GPUs and boards of `devices.toml` alone; of another CPU no peaks are known, so nothing is projected for it.  It
explains and decides nothing: a graph that cannot be counted ends no build, the record says why instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tsexport.bench.outlook import ProjectionRecord, outlooks, rows_of
from tsexport.bench.projection import AnchorError, Projection, fitted, project
from tsexport.bench.rows import milliseconds
from tsexport.bench.tables import LatencyTables, latency_budgets
from tsexport.devices import Device, Peak, list_devices
from tsexport.errors import reason_of
from tsexport.targets import Target
from tsexport.types import Artifact, ModelSpec, Verdict
from tsexport.work import GraphWork

if TYPE_CHECKING:
    from tsexport.quantize.fusing import Fusion

_NAMED_NODES = 3


def project_selected(
    target: Target,
    spec: ModelSpec,
    artifact: Artifact,
    batches: Sequence[int],
    say: Callable[[str], None],
    tables: LatencyTables | None = None,
) -> ProjectionRecord | None:
    """Return the projection of an artifact for a target, None where the target is this machine or another CPU.

    Args:
        batches: of the build; those of the device's published rows are added.
        say: told the estimate at the smallest batch, or why there is none.
        tables: whose rows are answered; by default the published ones.
    """
    if target.here:
        return None
    device = next((one for one in list_devices() if one.name == target.device), None)
    if device is None or target.tensorrt is None:
        say(f"latency is not projected: there is no table of what a {target.device_name} reaches at peak")
        return None
    record = _project(target, device, spec, artifact, batches, tables)
    if record.reason:
        say(f"latency is not projected: {record.reason}")
    for one in _smallest(record.projections):
        say(
            f"projected, not measured: {milliseconds(one.total_ms)} at batch {one.batch} on {device.title} "
            f"({one.mode}), bound by {one.bound}; at least {milliseconds(one.least_ms)} at peak"
        )
    return record


def _project(
    target: Target,
    device: Device,
    spec: ModelSpec,
    artifact: Artifact,
    batches: Sequence[int],
    tables: LatencyTables | None,
) -> ProjectionRecord:
    from tsexport.quantize.fusing import Fusion

    assert target.tensorrt is not None
    fusion = Fusion.of(target.tensorrt, device.compute_capability)
    known = fitted()
    record = ProjectionRecord(
        device=device.name,
        title=device.title,
        tensorrt=target.tensorrt,
        artifact=artifact.name,
        precision=artifact.precision,
        efficiency=known.efficiency,
        error=known.error,
        assumptions=(),
    )
    if artifact.format != "onnx":
        return replace(record, reason=f"{artifact.name} is {artifact.format}, and TensorRT takes ONNX")
    if not device.peak:
        return replace(record, reason=f"nothing is known of what a {device.title} reaches at peak")
    rows = rows_of(latency_budgets(spec.name, spec.family, spec.component, tables=tables), device.name)
    sizes = sorted({*batches, *(row.batch for row in rows if row.batch is not None)})
    try:
        works = _count(artifact, sizes, fusion)
        peaks = [_as_built(peak, artifact) for peak in device.peak]
        found = [project(work, device, peak) for work in works for peak in peaks]
    except (OSError, MemoryError):
        raise  # of the machine at this moment
    except Exception as error:
        # It decides nothing, so what a graph of a user makes it raise must not end a build.
        return replace(record, reason=reason_of(error))
    kept = tuple(one if one.batch == sizes[0] else replace(one, kernels=()) for one in found)
    return replace(
        record,
        assumptions=_assumptions(device, target, fusion, artifact, works[0]),
        projections=kept,
        outlooks=outlooks(rows, kept, artifact.precision),
    )


def _count(artifact: Artifact, sizes: Sequence[int], fusion: "Fusion") -> list[GraphWork]:
    from tsexport.quantize.kernels import count_file

    return [count_file(artifact.path, size, fusion) for size in sizes]


def _as_built(peak: Peak, artifact: Artifact) -> Peak:
    """Return the peak of an engine: fp32 is built with --noTF32, what an int8 or fp16 graph leaves in fp32 without."""
    return replace(peak, tf32_tflops=None) if artifact.precision == "fp32" else peak


def _assumptions(
    device: Device, target: Target, fusion: "Fusion", artifact: Artifact, work: GraphWork
) -> tuple[str, ...]:
    known = fitted()
    e = known.efficiency
    found = [
        f"every kernel reaches {e.tensor_cores:.0%} of the dense peak on tensor cores, {e.plain_cores:.0%} without "
        f"them, and {e.bandwidth:.0%} of the bandwidth, and costs {e.launch_us:g} us to start; nothing else takes "
        "time, nor do transfers to and from the device",
        f"TensorRT {target.tensorrt} fuses bias, activations, residuals and Q/DQ into products"
        + (", and reductions with the pointwise nodes around them" if fusion.rows else "")
        + (", and attention into one kernel where its conditions hold" if fusion.attention else ", and no attention"),
        *(f"{peak.mode}: {peak.basis}" for peak in device.peak),
        error_text(known.error),
        "the lower bound takes the full peaks, counts no launches, and leaves out whatever a cache could hold",
    ]
    if "fp32" in work.macs() and any(peak.tf32_tflops is not None for peak in device.peak):
        if artifact.precision == "fp32":
            found.append("products in fp32 run in full, since an fp32 engine is built with --noTF32")
        else:
            found.append("products that stay in fp32 run as TF32, TensorRT's default")
    if any(kernel.launches > 1 for kernel in work.kernels):
        found.append("a recurrence starts one kernel a step")
    if work.unknown:
        names = ", ".join(work.unknown[:_NAMED_NODES])
        found.append(f"{len(work.unknown)} node(s) of unknown shape or with a body count as nothing: {names}")
    return tuple(found)


def error_text(error: AnchorError) -> str:
    """Return how far projections were from public latencies, in a sentence."""
    return (
        f"on the {error.anchors} public latencies that the efficiencies were fitted on, the median error is "
        f"{error.median:.0%} and the worst ratio {error.worst_ratio:.2f} ({error.worst_anchor}); for a device whose "
        f"own latencies were left out of the fit, the median error is {error.left_out_median:.0%}"
    )


def _smallest(projections: Sequence[Projection]) -> list[Projection]:
    least = min((one.batch for one in projections), default=0)
    return [one for one in projections if one.batch == least]


def with_outlook(verdicts: Sequence[Verdict], record: ProjectionRecord | None) -> tuple[Verdict, ...]:
    """Return verdicts whose reasons say what was projected; their status stays, since a projection judges nothing."""
    said = {one.budget: str(one) for one in record.outlooks} if record is not None else {}
    return tuple(
        replace(one, reason=f"{one.reason}; {said[one.budget]}") if one.budget in said else one for one in verdicts
    )
