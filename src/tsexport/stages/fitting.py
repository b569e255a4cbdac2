"""The stages for a target with TensorRT: the graph as its version takes it, and the check of what is made from it.

What a version refuses, or computes wrongly, is written otherwise before anything else is made of the graph (see
`exporters.device_rewrites`), so that parity, candidates and accuracy are those of what the device gets.  A graph that
is refused after that ends the build; a candidate that is refused is out, and listed with the node and the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tsexport.bundles.manifest import RewriteRecord
from tsexport.cache import StoredArtifact, restore_artifact, store_artifact
from tsexport.checking import explain, next_step_of
from tsexport.errors import UnsupportedError
from tsexport.stages.context import Context
from tsexport.stages.exporting import Exports
from tsexport.stages.rewriting import record_of
from tsexport.stages.samples import Samples
from tsexport.stages.tried import Tried
from tsexport.types import Artifact

NEXT_STEP = "change what the node computes, or name a later release with --device; `tsexport check` shows every node"


@dataclass(frozen=True)
class Fitted:
    """An fp32 graph as the target's TensorRT takes it; `artifact` is None where it stays as it is.

    `refused` names the node that stands in the way and says why, "" where there is none; `next_step` says what helps.
    """

    artifact: StoredArtifact | None
    rewrites: tuple[RewriteRecord, ...]
    refused: str = ""
    next_step: str = ""


@dataclass(frozen=True)
class Checked:
    """Why the target's TensorRT refuses an artifact, "" where it does not, and what helps."""

    refused: str
    next_step: str


def fit_to_device(context: Context, samples: Samples, exports: Exports) -> tuple[Exports, bool]:
    """Return the exports with ONNX as the target's TensorRT takes it, and whether all of it came from the cache.

    Raises:
        UnsupportedError: a node is refused, or computed wrongly, and no rewrite helps; names it, with the reason.
    """
    fitted: dict[str, tuple[Artifact, Fitted]] = {}
    reused = True
    for one in (exports.of("onnx"), exports.clean):
        if one is not None and one.sha256 not in fitted:
            made, result, found = _fit(context, samples, one)
            fitted[one.sha256], reused = (made, result), reused and found
    for _, result in fitted.values():
        if result.refused:
            raise UnsupportedError(f"{context.target.name}: {result.refused}", next_step=result.next_step)
    if not fitted:
        return exports, reused

    def place(one: Artifact) -> Artifact:
        return fitted[one.sha256][0] if one.sha256 in fitted else one

    own = exports.of("onnx")
    rewrites = fitted[own.sha256][1].rewrites if own is not None else ()
    return (
        replace(
            exports,
            artifacts=tuple(map(place, exports.artifacts)),
            clean=place(exports.clean) if exports.clean is not None else None,
            rewrites=(*exports.rewrites, *rewrites),
        ),
        reused,
    )


def _fit(context: Context, samples: Samples, onnx: Artifact) -> tuple[Artifact, Fitted, bool]:
    inputs = {"onnx": onnx.sha256, "tensorrt": context.target.tensorrt, "samples": samples.key}
    cached = context.cache.stage("fit", inputs, Fitted, lambda folder: _produce(context, samples, onnx, folder))
    stored = cached.result.artifact
    return (restore_artifact(stored, cached.folder) if stored else onnx), cached.result, cached.reused


def _produce(context: Context, samples: Samples, onnx: Artifact, folder: Path) -> Fitted:
    from tsexport.exporters.conversion import file_name, probes
    from tsexport.exporters.device_rewrites import rewrite_for_device
    from tsexport.exporters.onnx_external import open_model
    from tsexport.exporters.onnx_file import OPSET, finish_onnx

    tensorrt = context.target.tensorrt
    assert tensorrt is not None
    if onnx.opset != OPSET:  # what could not be brought to opset 17 stays as it is
        checked = _check(context, onnx)
        return Fitted(None, (), checked.refused, checked.next_step)
    feeds = probes(samples.spec, samples.real, costly=samples.record.is_costly)
    model, done = rewrite_for_device(open_model(onnx.path), feeds, tensorrt)
    records = tuple(record_of(onnx.name, one, f"TensorRT {tensorrt} needs it") for one in done)
    made = onnx
    if any(one.kept for one in done):
        steps = (*onnx.provenance, *(f"for TensorRT {tensorrt}: {one}" for one in done))
        written = finish_onnx(model, samples.spec, folder / file_name("onnx"), steps, name=onnx.name)
        made = replace(written, runtimes=onnx.runtimes, options=onnx.options)
    checked = _check(context, made)
    stored = store_artifact(made, folder) if made is not onnx else None
    failed = "".join(f"; {one}" for one in done if not one.kept) if checked.refused else ""
    return Fitted(stored, records, checked.refused + failed, checked.next_step)


def _check(context: Context, artifact: Artifact) -> Checked:
    from tsexport.exporters.device_check import check_onnx

    target = context.target
    assert target.tensorrt is not None
    report = check_onnx(
        artifact.path,
        tensorrt=target.tensorrt,
        precision=artifact.precision,
        target=target.name,
        device=target.device,
        compute_capability=target.compute_capability,
    )
    if report.accepted:
        return Checked("", "")
    return Checked(explain(report, artifact.name), next_step_of(report) or NEXT_STEP)


def refusal_by_device(context: Context, artifact: Artifact) -> str:
    """Return why the target's TensorRT does not run an artifact, naming the node; "" where it does, or has none."""
    if context.target.tensorrt is None or artifact.format != "onnx":
        return ""
    inputs = {
        "artifact": artifact.sha256,
        "name": artifact.name,
        "tensorrt": context.target.tensorrt,
        "compute_capability": context.target.compute_capability,
    }
    return context.cache.stage("check", inputs, Checked, lambda folder: _check(context, artifact)).result.refused


def require_one_accepted(context: Context, tried: Sequence[Tried]) -> None:
    """Raise UnsupportedError where no candidate was built that the device takes, and it refused one at least."""
    refused = [one for one in tried if one.refused]
    if refused and all(one.out == "failed" for one in tried):
        raise UnsupportedError(
            f"no candidate for {context.target.name} runs on {context.target.device}: {refused[0].reason}",
            next_step=NEXT_STEP,
        )
