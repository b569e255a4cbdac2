"""The fp32 stages: export every format, and hold every artifact against its source on every runtime that is here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tsexport.cache import StoredArtifact, restore_artifact, store_artifact
from tsexport.context import Context, portable
from tsexport.errors import ExportError, ParityError, TsexportError
from tsexport.manifest import AbsentFormat, RewriteRecord
from tsexport.samples import Samples
from tsexport.types import FORMATS, Artifact, Format, Parity, Tolerance

NOT_ASKED = "not asked for"
PARITY_BATCHES = (1, 3, 10)


@dataclass(frozen=True)
class ExportResult:
    """One format's artifact in the cache, or the reason why there is none."""

    artifact: StoredArtifact | None
    rewrites: tuple[RewriteRecord, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Exported:
    """One format's result, its artifact, and whether it came from the cache."""

    result: ExportResult
    artifact: Artifact | None
    reused: bool


@dataclass(frozen=True)
class Exports:
    """The fp32 artifacts by format, and the formats that there are none of."""

    artifacts: tuple[Artifact, ...]
    absent: tuple[AbsentFormat, ...]
    rewrites: tuple[RewriteRecord, ...]

    def of(self, name: Format) -> Artifact | None:
        return next((one for one in self.artifacts if one.format == name), None)


@dataclass(frozen=True)
class ParityResult:
    """Comparisons of one artifact on one runtime, or why the runtime could not run it."""

    parity: tuple[Parity, ...]
    refused: str = ""


def _guarded(context: Context, produce: Callable[[Path], ExportResult]) -> Callable[[Path], ExportResult]:
    """Turn an ExportError into a result: another format may hold the model.  A parity miss still fails the build."""

    def run(folder: Path) -> ExportResult:
        try:
            return produce(folder)
        except ExportError as error:
            return ExportResult(None, reason=portable(error.message, context.cache))

    return run


def _onnx(context: Context, samples: Samples, folder: Path) -> ExportResult:
    from tsexport.exporters.conversion import convert_to_onnx, file_name

    source = context.source
    converted = convert_to_onnx(source.module, source.onnx_path, samples.spec, samples.real, folder / file_name("onnx"))
    rewrites = tuple(
        RewriteRecord(
            artifact=converted.artifact.name,
            name=one.name,
            matches=one.changes if one.kept else 0,
            nodes_before=one.nodes_before,
            nodes_after=one.nodes_after,
            max_abs_error=one.max_abs_error if one.kept else 0.0,
        )
        for one in converted.rewrites
    )
    return ExportResult(store_artifact(converted.artifact, folder), rewrites)


def _torchscript(context: Context, samples: Samples, folder: Path) -> ExportResult:
    from tsexport.exporters.conversion import convert_to_torchscript, file_name

    module = context.source.module
    if module is None:
        return ExportResult(None, reason="the source is an ONNX file, and there is no torch module to trace")
    path = folder / file_name("torchscript")
    converted = convert_to_torchscript(module, samples.spec, samples.real, path)
    return ExportResult(store_artifact(converted.artifact, folder))


def _openvino(onnx: Artifact | None, folder: Path) -> ExportResult:
    from tsexport.exporters.conversion import convert_to_openvino, file_name

    if onnx is None:
        return ExportResult(None, reason="OpenVINO IR is made from ONNX, and there is no ONNX artifact")
    converted = convert_to_openvino(onnx, folder / file_name("openvino"))
    return ExportResult(store_artifact(converted.artifact, folder))


def formats_to_export(asked: tuple[Format, ...]) -> tuple[Format, ...]:
    """Return what has to be exported for the formats asked for, in order: OpenVINO IR is made from ONNX."""
    needed = {*asked, "onnx"} if "openvino" in asked else set(asked)
    return tuple(name for name in FORMATS if name in needed)


def export_format(context: Context, samples: Samples, name: Format, onnx: Artifact | None) -> Exported:
    """Return the result of one format.

    Args:
        onnx: the ONNX artifact that OpenVINO IR is made from.

    Raises:
        ParityError: an export answers otherwise than the module it was made from.
    """
    inputs = {
        "samples": samples.key,
        "onnx": onnx.sha256 if name == "openvino" and onnx is not None else "",
    }
    producers: dict[Format, Callable[[Path], ExportResult]] = {
        "onnx": lambda folder: _onnx(context, samples, folder),
        "torchscript": lambda folder: _torchscript(context, samples, folder),
        "openvino": lambda folder: _openvino(onnx, folder),
    }
    cached = context.cache.stage(f"export-{name}", inputs, ExportResult, _guarded(context, producers[name]))
    artifact = restore_artifact(cached.result.artifact, cached.folder) if cached.result.artifact else None
    return Exported(cached.result, artifact, cached.reused)


def gather(context: Context, results: Mapping[Format, Exported]) -> Exports:
    """Put the formats together, as far as they were asked for.

    Raises:
        ExportError: no format that was asked for can hold the model.
    """
    wanted = [name for name in FORMATS if name in context.options.formats]
    absent = [AbsentFormat(name, NOT_ASKED) for name in FORMATS if name not in wanted]
    absent += [AbsentFormat(name, results[name].result.reason) for name in wanted if results[name].artifact is None]
    artifacts = tuple(one for name in wanted if (one := results[name].artifact) is not None)
    if not artifacts:
        reasons = "; ".join(f"{one.format}: {one.reason}" for one in absent if one.reason != NOT_ASKED)
        raise ExportError(
            f"{context.identity.name} can be exported to none of {', '.join(wanted)}. {reasons}",
            next_step="change the layer that is named, or ask for another format with --formats",
        )
    rewrites = tuple(
        rewrite for one in results.values() if one.artifact in artifacts for rewrite in one.result.rewrites
    )
    return Exports(artifacts, tuple(absent), rewrites)


def fp32_tolerance(context: Context, artifact: Artifact) -> tuple[Tolerance, bool]:
    """Return the parity tolerance of an fp32 artifact, and whether its atol is in units of each output's RMS."""
    from tsexport.exporters.formats import EXPORT_FORMATS
    from tsexport.runtimes.comparison import TOLERANCES

    named = TOLERANCES[EXPORT_FORMATS[artifact.format].tolerance]
    atol, rtol = context.options.atol, context.options.rtol
    if atol is None and rtol is None:
        return named, True
    chosen = Tolerance(
        "user",
        named.atol if atol is None else atol,
        named.rtol if rtol is None else rtol,
        "given with --atol and --rtol",
    )
    return chosen, False


def check_on_runtime(context: Context, samples: Samples, artifact: Artifact, runtime: str) -> tuple[ParityResult, bool]:
    """Hold one artifact on one runtime against the source model, on random and on real inputs.

    A runtime that refuses the file is no parity miss: the result says why, and the artifact is not used there.

    Raises:
        ParityError: the artifact answers otherwise; names the worst output and the first layer that departs.
    """
    tolerance, scaled = fp32_tolerance(context, artifact)
    inputs = {
        "artifact": artifact.sha256,
        "runtime": runtime,
        "tolerance": tolerance,
        "samples": samples.key,
        "threads": context.threads,
    }

    def produce(folder: Path) -> ParityResult:
        from tsexport.exporters.checks import feed_sets, require_parity

        sets = feed_sets(samples.spec.inputs, samples.real, batches=PARITY_BATCHES, seed=context.options.seed)
        source = context.source
        try:
            parity = require_parity(
                source, artifact, runtime, sets, tolerance, scaled=scaled, threads=context.threads, module=source.module
            )
        except ParityError:
            raise
        except TsexportError as error:
            return ParityResult((), portable(error.message, context.cache))
        return ParityResult(parity)

    cached = context.cache.stage("parity", inputs, ParityResult, produce)
    return cached.result, cached.reused
