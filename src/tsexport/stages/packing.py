"""The last stage: everything that a build made, into a bundle that stands whole or not at all."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tsexport.bench.outlook import ProjectionRecord, write_projection
from tsexport.bench.profile_records import ProfileRecord, write_profile
from tsexport.bench.records import MachineRecord, write_record
from tsexport.bundles.bundle import Bundle, open_bundle
from tsexport.bundles.checksums import MEASUREMENTS, seal
from tsexport.bundles.entries import artifact_entry
from tsexport.bundles.golden import write_golden
from tsexport.bundles.manifest import (
    MANIFEST,
    SELECTION,
    AbsentFormat,
    ArtifactEntry,
    FileDigest,
    Golden,
    GoldenTolerance,
    Manifest,
    Provenance,
    RankedArtifact,
    SelectedArtifact,
    Selection,
    manifest_text,
    selection_text,
)
from tsexport.bundles.sbom import write_sbom
from tsexport.bundles.staging import staged_bundle
from tsexport.bundles.triton import write_repository
from tsexport.cache import tool_versions
from tsexport.device.kit import write_kit
from tsexport.quantize.pruning_records import PruningRecord
from tsexport.reports.writing import render_readme, render_report
from tsexport.runtimes.comparison import TOLERANCES, scale_tolerance
from tsexport.runtimes.options import TENSORRT_BATCHES
from tsexport.stages.buildup import BuildUp
from tsexport.stages.compressing import build_recipe
from tsexport.stages.context import Context
from tsexport.stages.covering import coverage_of
from tsexport.stages.exporting import Exports
from tsexport.stages.gpu_scripts import shipped_scripts
from tsexport.stages.measuring import Placed
from tsexport.stages.repeating import all_candidates, basis_of, recipes_of_tables, repeats
from tsexport.stages.samples import Samples
from tsexport.stages.tried import AccuracyResult, Tried
from tsexport.types import Accuracy, AccuracyBudget, Artifact, Candidate, Parity, file_sha256

if TYPE_CHECKING:
    from tsexport.calibration.table import CalibrationTable

GOLDEN_BATCH = 1
GOLDEN_MARGIN = 2.0
"""A quantized artifact may miss the golden outputs by this many times what it missed them by where it was built."""
GOLDEN_FLOOR = 1e-3
REPORT, README = "report.html", "README.md"
CALIBRATION = "artifacts/calibration.json"
"""The ranges that static candidates were made with; `--calibration-table` re-uses them."""
TENSORRT_CACHE = "artifacts/calibration.cache"


@dataclass(frozen=True)
class Packed:
    """What goes into a bundle besides the source's own record."""

    name: str
    exports: Exports
    fp32: tuple[Placed, ...]
    selected: Placed
    why: str
    tried: tuple[Tried, ...]
    order: tuple[tuple[str, str], ...]
    threads: int
    parity: tuple[Parity, ...]
    accuracy: tuple[Accuracy, ...]
    selected_accuracy: AccuracyResult
    budget: AccuracyBudget
    caveats: tuple[str, ...]
    notes: tuple[str, ...]
    pruning: PruningRecord | None = None
    buildups: tuple[BuildUp, ...] = ()
    projected: ProjectionRecord | None = None
    profiled: ProfileRecord | None = None


def _golden_tolerance(samples: Samples, artifact: Artifact, result: AccuracyResult) -> GoldenTolerance:
    if artifact.precision == "fp32":
        named = TOLERANCES["golden"]
        _, outputs = samples.golden
        # One pair of bounds for all outputs: atol in units of the smallest output's RMS.
        atol = min(scale_tolerance(named, array).atol for array in outputs.values())
        return GoldenTolerance(named.name, named.reason, atol=max(atol, 1e-12), rtol=named.rtol)
    return GoldenTolerance(
        f"{artifact.precision}-golden",
        f"{GOLDEN_MARGIN:g} times the error where it was built, since another CPU rounds otherwise",
        max_relative_rms=GOLDEN_MARGIN * result.golden_error + GOLDEN_FLOOR,
    )


def _copy(artifact: Artifact, root: Path) -> Artifact:
    """Copy an artifact's files into the bundle, under the artifact's own name."""
    folder = root / "artifacts"
    folder.mkdir(exist_ok=True)
    files = []
    for path in artifact.files:
        copied = folder / f"{artifact.name}{path.suffix}"
        shutil.copyfile(path, copied)
        files.append(copied)
    return replace(artifact, path=files[0], files=tuple(files))


def _write_tables(
    context: Context, samples: Samples, packed: Packed, root: Path
) -> tuple[FileDigest | None, tuple[str, ...]]:
    """Write the calibration tables that candidates were made with, or nothing where there are none.

    The second value names the recipes they are of.  A repeated selection writes those of the build that it repeats.
    """
    from tsexport.calibration.table_files import read_tables, tables_text
    from tsexport.quantize.candidates import tables_beside

    made = {one.recipe.name: one.artifact for one in packed.tried}
    repeated = repeats(context, samples)
    if repeated is not None:
        recipes = recipes_of_tables(repeated)
        made = {one.name: build_recipe(context, samples, packed.exports, one)[0] for one in recipes}
    tables: list[CalibrationTable] = []
    names = []
    for name, artifact in made.items():
        path = tables_beside(artifact.path) if artifact is not None else None
        fresh = [table for table in read_tables(path) if table not in tables] if path and path.exists() else []
        tables += fresh
        names += [name] if fresh else []
    if not tables:
        return None, ()
    file = root / CALIBRATION
    file.write_text(tables_text(tables), encoding="utf-8")
    _write_tensorrt_cache(context, packed, tables, root)
    return FileDigest(CALIBRATION, file_sha256(file), file.stat().st_size), tuple(names)


def _write_tensorrt_cache(context: Context, packed: Packed, tables: Sequence["CalibrationTable"], root: Path) -> None:
    """Write the ranges as TensorRT's own cache, for engines of the fp32 graph that are built with --int8 --calib.

    Of the tables the one by entropy, as TensorRT itself calibrates; otherwise the first.  There is no cache where the
    graph that was calibrated is not the bundle's: its tensors may have other names.
    """
    from tsexport.calibration.tensorrt_cache import cache_text, has_cache

    version = context.target.tensorrt
    if version is None or not has_cache(version):
        return
    best = next((one for one in tables if one.observer.method == "entropy"), tables[0])
    if best.model_sha256 not in {one.sha256 for one in packed.exports.artifacts}:
        return
    (root / TENSORRT_CACHE).write_text(cache_text(best, version), encoding="utf-8")


def _is_batch_dependent(artifact: Artifact, tried: Sequence[Tried]) -> bool:
    """Whether activations are quantized over the whole batch, so that an answer depends on the other rows."""
    return any(
        one.recipe.activations == "dynamic"
        for one in tried
        if one.artifact is not None and one.artifact.name == artifact.name
    )


def _with_profile(artifact: Artifact, context: Context) -> Artifact:
    """Return an artifact with the batches that a TensorRT engine of it is to be built for, as the kit's is."""
    if context.target.tensorrt is None or artifact.format != "onnx":
        return artifact
    batches = ",".join(map(str, dict.fromkeys(context.options.batches)))
    return replace(artifact, options=(*artifact.options, (TENSORRT_BATCHES, batches)))


def _entries(context: Context, samples: Samples, packed: Packed, root: Path) -> tuple[ArtifactEntry, ...]:
    runtimes: dict[str, list[str]] = {}
    for one in packed.fp32:
        runtimes.setdefault(one.artifact.name, []).append(one.runtime)
    artifacts = [
        (replace(one, runtimes=tuple(runtimes[one.name])), packed.selected_accuracy)
        for one in packed.exports.artifacts
        if one.name in runtimes
    ]
    chosen = packed.selected.artifact
    if chosen.name not in runtimes:
        artifacts.append((replace(chosen, runtimes=(packed.selected.runtime,)), packed.selected_accuracy))
    for script in shipped_scripts(packed.tried):
        assert script.artifact is not None
        artifacts.append((script.artifact, AccuracyResult(script.accuracy, script.golden_error)))
    return tuple(
        artifact_entry(
            _copy(_with_profile(artifact, context), root),
            root,
            _golden_tolerance(samples, artifact, result),
            batch_dependent=_is_batch_dependent(artifact, packed.tried),
        )
        for artifact, result in artifacts
    )


def _without_runtime(packed: Packed) -> tuple[AbsentFormat, ...]:
    """Return the formats that were made, and that no runtime here could run as it should."""
    run = {one.artifact.name for one in packed.fp32}
    reason = "no runtime here ran it within its bounds, see the caveats"
    return tuple(AbsentFormat(one.format, reason) for one in packed.exports.artifacts if one.name not in run)


def _selection(context: Context, samples: Samples, packed: Packed, tried: tuple[Candidate, ...]) -> Selection:
    selected = next((one for one in tried if one.status == "selected"), None)
    return Selection(
        schema_version=1,
        artifact=packed.selected.artifact.name,
        runtime=packed.selected.runtime,
        why=packed.why,
        candidate=selected.name if selected else packed.selected.artifact.name,
        recipe=selected.recipe if selected else {},
        layers_left_in_float=tuple(selected.recipe["float_layers"]) if selected else (),
        order=tuple(RankedArtifact(*pair) for pair in packed.order),
        threads=packed.threads,
        triton_batch_sizes=tuple(context.options.batches),
        rewrites=packed.exports.choices,
        model=context.built,
        tried=tried,
        basis=basis_of(context, samples),
    )


def _manifest(
    context: Context,
    samples: Samples,
    packed: Packed,
    entries: tuple[ArtifactEntry, ...],
    tried: tuple[Candidate, ...],
    calibration_tables: FileDigest | None,
) -> Manifest:
    record = samples.record
    return Manifest(
        schema_version=1,
        name=packed.name,
        model=samples.spec,
        config=samples.spec.config,
        target=context.target,
        artifacts=entries,
        absent_formats=(*packed.exports.absent, *_without_runtime(packed)),
        selected=SelectedArtifact(packed.selected.artifact.name, packed.selected.runtime, packed.why),
        provenance=Provenance(
            checkpoint=record.checkpoint,
            calibration=record.calibration,
            evaluation=record.evaluation,
            seed=context.options.seed,
            versions=tool_versions(),
        ),
        golden=Golden(samples=len(next(iter(samples.golden[0].values()))), batch=GOLDEN_BATCH),
        budget=packed.budget,
        parity=packed.parity,
        accuracy=packed.accuracy,
        candidates=tried,
        rewrites=packed.exports.rewrites,
        caveats=packed.caveats,
        notes=packed.notes,
        pruning=packed.pruning,
        rollouts=tuple(one.rollout for one in packed.buildups if one.rollout is not None),
        quantiles=tuple(one.quantiles for one in packed.buildups if one.quantiles is not None),
        calibration_tables=calibration_tables,
        coverage=coverage_of(context, samples, packed.selected.artifact, packed.selected.runtime),
    )


def pack(context: Context, samples: Samples, packed: Packed, record: Callable[[], MachineRecord]) -> Bundle:
    """Write the bundle and open it.

    `record` is asked as late as can be, so that it holds the time that packing took: all but the report and the sums.

    Raises:
        UsageError: a bundle of that name stands there and --force was not given, or the disk is full or read-only.
    """
    destination = context.options.output / packed.name
    with staged_bundle(destination, force=context.options.force) as root:
        entries = _entries(context, samples, packed, root)
        tables, of_recipes = _write_tables(context, samples, packed, root)
        tried = all_candidates(context, samples, packed.tried, packed.selected.key, packed.why)
        manifest = _manifest(context, samples, packed, entries, tried, tables)
        selection = replace(_selection(context, samples, packed, tried), tables=of_recipes)
        write_golden(root, *samples.golden)
        write_kit(root, manifest, context.options.batches, TENSORRT_CACHE)
        write_repository(root, manifest, selection)
        (root / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")
        (root / SELECTION).write_text(selection_text(selection), encoding="utf-8")
        write_sbom(root, manifest)
        (root / README).write_text(render_readme(manifest, selection), encoding="utf-8")
        write_record(record(), root / MEASUREMENTS)
        if packed.projected is not None:
            write_projection(packed.projected, root / MEASUREMENTS)
        if packed.profiled is not None:
            write_profile(packed.profiled, root / MEASUREMENTS)
        seal(root)  # the report is rendered from the bundle as a reader will find it
        with open_bundle(root) as bundle:
            page = render_report([bundle])
        (root / REPORT).write_text(page, encoding="utf-8")
    return open_bundle(destination)
