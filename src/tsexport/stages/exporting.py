"""The fp32 stages: export every format, and hold every artifact against its source on every runtime that is here."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tsexport.bench.statistics import Ratio
from tsexport.bundles.manifest import AbsentFormat, RewriteChoice, RewriteRecord
from tsexport.cache import StoredArtifact, restore_artifact, store_artifact
from tsexport.errors import ExportError, ParityError, TsexportError
from tsexport.runtimes.registry import get_runtime
from tsexport.stages.context import Context, portable
from tsexport.stages.rewriting import Variants, choose_rewrites, compare_in_process, left_out, rewrite_records
from tsexport.stages.samples import Samples, SamplesRecord
from tsexport.types import FORMATS, Artifact, Format, Parity, Tolerance

NOT_ASKED = "not asked for"
PARITY_BATCHES = (1, 3, 10)
COSTLY_PARITY_BATCHES = (1, 2)
"""For a model whose every sample takes long (see `SamplesRecord.is_costly`)."""
_DECIDING: Mapping[Format, str] = {"onnx": "onnxruntime", "openvino": "openvino"}
"""The runtime that decides which rewrites a format's artifact is made with; tract runs what ONNX Runtime chose."""


@dataclass(frozen=True)
class ExportResult:
    """One format's artifact in the cache, or the reason why there is none.

    ONNX has two more, which differ from it only where rewrites were left out: `clean` with every rewrite, which INT8
    candidates are made from, and `for_openvino` with those that bring something in OpenVINO.
    """

    artifact: StoredArtifact | None
    rewrites: tuple[RewriteRecord, ...] = ()
    reason: str = ""
    choice: RewriteChoice | None = None
    clean: StoredArtifact | None = None
    for_openvino: StoredArtifact | None = None
    openvino_rewrites: tuple[RewriteRecord, ...] = ()
    openvino_choice: RewriteChoice | None = None


@dataclass(frozen=True)
class Exported:
    """One format's result with its artifacts (see `ExportResult`), and whether it came from the cache."""

    result: ExportResult
    artifact: Artifact | None
    reused: bool
    clean: Artifact | None = None
    for_openvino: Artifact | None = None


@dataclass(frozen=True)
class Exports:
    """The fp32 artifacts by format, and the formats that there are none of.

    `clean` is the ONNX artifact with every rewrite, whether or not a runtime is faster with all of them.
    """

    artifacts: tuple[Artifact, ...]
    absent: tuple[AbsentFormat, ...]
    rewrites: tuple[RewriteRecord, ...]
    choices: tuple[RewriteChoice, ...] = ()
    clean: Artifact | None = None

    def of(self, name: Format) -> Artifact | None:
        return next((one for one in self.artifacts if one.format == name), None)

    def to_quantize(self, name: Format) -> Artifact | None:
        """Return what INT8 candidates of a format are made from: quantizers need a clean graph."""
        return self.clean if name == "onnx" and self.of("onnx") is not None else self.of(name)


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


def _choose(context: Context, samples: Samples, variants: Variants, runtime: str) -> RewriteChoice:
    """Return the choice of the selection.json that is repeated, or one made by measuring where the runtime is here.

    Where the target is not this machine nothing is measured, and every rewrite is applied.
    """
    if context.selection is not None:
        chosen = (one for one in context.selection.rewrites if one.runtime == runtime)
        return next(chosen, RewriteChoice(runtime, False, ()))
    if not context.target.here or not get_runtime(runtime).check().available:
        return RewriteChoice(runtime, False, ())
    compare = compare_in_process(samples.feeds)

    def compare_alone(artifacts: Sequence[Artifact], name: str) -> Sequence[Ratio | None]:
        with context.turns.measuring(f"{context.built}: rewrites on {name}"):
            return compare(artifacts, name)

    return choose_rewrites(variants, runtime, compare_alone)


def _onnx(context: Context, samples: Samples, folder: Path) -> ExportResult:
    from tsexport.exporters.conversion import OnnxConverter, file_name
    from tsexport.exporters.rewrites.order import EVERY, SPEED

    source = context.source
    converter = OnnxConverter(source.module, source.onnx_path, samples.spec, samples.real)
    with tempfile.TemporaryDirectory(prefix=".variants-", dir=folder) as made:
        variants = Variants(Path(made), file_name("onnx"), converter.convert, EVERY, SPEED, converter.costly)
        whole = variants.make()
        chosen = {
            runtime: _choose(context, samples, variants, runtime)
            for name, runtime in _DECIDING.items()
            # a model so large that its weights lie in a second file takes minutes to export, and gigabytes to compare
            if name in context.options.formats and len(whole.artifact.files) == 1
        }
        own = chosen.get("onnxruntime", RewriteChoice("onnxruntime", False, ()))
        other = chosen.get("openvino", RewriteChoice("openvino", False, ()))
        ours, openvinos = (variants.make(left_out(one, EVERY)) for one in (own, other))
        stored = {ours.artifact.sha256: _store(ours.artifact, folder, "")}
        for name, one in (("clean", whole), ("openvino", openvinos)):
            if one.artifact.sha256 not in stored:
                stored[one.artifact.sha256] = _store(one.artifact, folder, name)
    return ExportResult(
        stored[ours.artifact.sha256],
        rewrite_records(ours.artifact.name, whole, ours, own),
        choice=chosen.get("onnxruntime"),
        clean=stored[whole.artifact.sha256],
        for_openvino=stored[openvinos.artifact.sha256],
        openvino_rewrites=rewrite_records("openvino-fp32", whole, openvinos, other),
        openvino_choice=chosen.get("openvino"),
    )


def _store(artifact: Artifact, folder: Path, subfolder: str) -> StoredArtifact:
    """Copy an artifact's files into a stage's folder."""
    (folder / subfolder).mkdir(exist_ok=True)
    files = tuple(Path(shutil.copyfile(path, folder / subfolder / path.name)) for path in artifact.files)
    return store_artifact(replace(artifact, path=files[0], files=files), folder)


def _torchscript(context: Context, samples: Samples, folder: Path) -> ExportResult:
    from tsexport.exporters.conversion import convert_to_torchscript, file_name
    from tsexport.exporters.rewrites.order import MODULE_REWRITES

    module = context.source.module
    if module is None:
        return ExportResult(None, reason="the source is an ONNX file, and there is no torch module to trace")
    every = frozenset(one.name for one in MODULE_REWRITES if one.torchscript)
    with tempfile.TemporaryDirectory(prefix=".variants-", dir=folder) as made:
        variants = Variants(
            Path(made),
            file_name("torchscript"),
            lambda path, without: convert_to_torchscript(module, samples.spec, samples.real, path, without),
            every,
            every,
        )
        whole = variants.make()
        choice = _choose(context, samples, variants, "torchscript")
        ours = variants.make(left_out(choice, every))
        stored = _store(ours.artifact, folder, "")
    return ExportResult(stored, rewrite_records(ours.artifact.name, whole, ours, choice), choice=choice)


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
        onnx: the ONNX artifact that OpenVINO IR is made from, `Exported.for_openvino`.

    Raises:
        ParityError: an export answers otherwise than the module it was made from.
    """
    measured = "measured" if context.target.here else "not measured"
    inputs = {
        "samples": samples.key,
        "onnx": onnx.sha256 if name == "openvino" and onnx is not None else "",
        "formats": context.options.formats if name == "onnx" else (),
        "rewrites": context.selection.rewrites if context.selection is not None and name != "openvino" else measured,
    }
    producers: dict[Format, Callable[[Path], ExportResult]] = {
        "onnx": lambda folder: _onnx(context, samples, folder),
        "torchscript": lambda folder: _torchscript(context, samples, folder),
        "openvino": lambda folder: _openvino(onnx, folder),
    }
    cached = context.cache.stage(f"export-{name}", inputs, ExportResult, _guarded(context, producers[name]))
    artifact, clean, for_openvino = (
        restore_artifact(stored, cached.folder) if stored else None
        for stored in (cached.result.artifact, cached.result.clean, cached.result.for_openvino)
    )
    return Exported(cached.result, artifact, cached.reused, clean, for_openvino)


def _why_not_wanted(context: Context, name: Format) -> str:
    return NOT_ASKED if name in context.target.formats else f"{context.target.name} runs no {name}"


def gather(context: Context, results: Mapping[Format, Exported]) -> Exports:
    """Put the formats together, as far as they were asked for.

    Raises:
        ExportError: no format that was asked for can hold the model.
    """
    wanted = [name for name in FORMATS if name in context.options.formats]
    absent = [AbsentFormat(name, _why_not_wanted(context, name)) for name in FORMATS if name not in wanted]
    absent += [AbsentFormat(name, results[name].result.reason) for name in wanted if results[name].artifact is None]
    artifacts = tuple(one for name in wanted if (one := results[name].artifact) is not None)
    if not artifacts:
        reasons = "; ".join(f"{one.format}: {one.reason}" for one in absent if one.format in wanted)
        raise ExportError(
            f"{context.identity.name} can be exported to none of {', '.join(wanted)}. {reasons}",
            next_step="change the layer that is named, or ask for another format with --formats",
        )
    made = [one.result for one in results.values() if one.artifact in artifacts]
    rewrites = [record for one in made for record in one.rewrites]
    choices = [one.choice for one in made]
    if "openvino" in wanted and "onnx" in results:
        rewrites += results["onnx"].result.openvino_rewrites if results["openvino"].artifact else ()
        choices.append(results["onnx"].result.openvino_choice)
    return Exports(
        artifacts,
        tuple(absent),
        tuple(rewrites),
        tuple(one for one in choices if one is not None and (one.plain or one.verdicts)),
        results["onnx"].clean if "onnx" in results else None,
    )


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


def parity_batches(record: SamplesRecord) -> tuple[int, ...]:
    """Return the batch sizes at which artifacts are compared."""
    return COSTLY_PARITY_BATCHES if record.is_costly else PARITY_BATCHES


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

        batches = parity_batches(samples.record)
        sets = feed_sets(samples.spec.inputs, samples.real, batches=batches, seed=context.options.seed)
        source = context.remembered_source
        try:
            parity = require_parity(
                source,
                artifact,
                runtime,
                sets,
                tolerance,
                scaled=scaled,
                threads=context.threads,
                module=context.source.module,
            )
        except ParityError:
            raise
        except TsexportError as error:
            return ParityResult((), portable(error.message, context.cache))
        return ParityResult(parity)

    cached = context.cache.stage("parity", inputs, ParityResult, produce)
    return cached.result, cached.reused
