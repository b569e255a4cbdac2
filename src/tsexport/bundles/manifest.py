"""manifest.json and selection.json: what a bundle holds, how it came about, and what was selected.

Both are records that `tsexport.codec` writes and reads strictly.  Neither holds a time, a latency or an absolute path:
the same inputs and the same selection give the same bytes.  What was measured stands in `measurements/`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from tsexport import codec
from tsexport.errors import BundleError
from tsexport.quantize.buildup_records import QuantileRecord, RolloutRecord
from tsexport.quantize.pruning_records import PruningRecord
from tsexport.targets import Target
from tsexport.types import (
    Accuracy,
    AccuracyBudget,
    Candidate,
    Format,
    ModelSpec,
    Parity,
    Precision,
    TensorSpec,
)
from tsexport.work import Coverage

SCHEMA_VERSION = 1
MANIFEST, SELECTION = "manifest.json", "selection.json"
_NEXT_STEP = "use the tsexport that wrote the bundle, or build it again"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileDigest:
    """One file of an artifact; `path` is relative to the bundle, with "/"."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class GoldenTolerance:
    """How far an artifact's answers to the golden inputs may be from the golden outputs, wherever it runs.

    Both bounds hold where both are given: elementwise |actual - golden| <= atol + rtol * |golden|, and for each output
    sqrt(mean((actual - golden)^2)) / sqrt(mean(golden^2)) <= max_relative_rms.  `reason` says where
    the sizes come from.
    """

    name: str
    reason: str
    atol: float | None = None
    rtol: float | None = None
    max_relative_rms: float | None = None


@dataclass(frozen=True)
class ArtifactEntry:
    """One packed artifact, as `tsexport.types.Artifact`, with the digest of every file.

    `batch_dependent` is true where activations are quantized dynamically over the whole batch, so that an answer
    depends on the other rows; such an artifact is compared, and served, at a stated batch only.
    """

    name: str
    path: str
    files: tuple[FileDigest, ...]
    format: Format
    precision: Precision
    opset: int | None
    size_bytes: int
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    runtimes: tuple[str, ...]
    options: tuple[tuple[str, str], ...]
    provenance: tuple[str, ...]
    golden_tolerance: GoldenTolerance
    batch_dependent: bool = False


@dataclass(frozen=True)
class AbsentFormat:
    """A format that the bundle does not hold, and why ("not asked for", or what the exporter said)."""

    format: Format
    reason: str


@dataclass(frozen=True)
class SelectedArtifact:
    """What `tsexport.load` opens, and why it was chosen."""

    artifact: str
    runtime: str
    why: str


@dataclass(frozen=True)
class CheckpointRecord:
    """The checkpoint: its file name and digest, and how it was wrapped ("state_dict", "module. prefix", "plain").

    `reference` is true for the reference checkpoint that comes with the project.
    """

    name: str
    sha256: str
    wrapping: str
    reference: bool


@dataclass(frozen=True)
class DataRecord:
    """Calibration or evaluation data: where from, digest of what was read, and the windows used ("0-511,600").

    `regimes` counts the calibration windows of each regime they were drawn by, for example "volatility 5 of 5".
    """

    source: str
    sha256: str
    windows: int
    window_ids: str
    regimes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """What went in.  `versions` maps each tool, Python and tsexport to the version that was used."""

    checkpoint: CheckpointRecord | None
    calibration: DataRecord | None
    evaluation: DataRecord | None
    seed: int
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Golden:
    """golden/inputs.npz and outputs.npz: `samples` rows, fed `batch` rows at a time (the last call may be smaller)."""

    samples: int
    batch: int


@dataclass(frozen=True)
class RewriteRecord:
    """One rewrite of an artifact: its matches, node counts, and the largest output difference it made.

    `reason` says why it was applied or not: what it brought where it was measured, or how it failed its proof.
    """

    artifact: str
    name: str
    matches: int
    nodes_before: int
    nodes_after: int
    max_abs_error: float
    applied: bool = True
    reason: str = ""


@dataclass(frozen=True)
class RewriteVerdict:
    """Whether a rewrite for speed is applied, and why, without a figure."""

    rewrite: str
    applied: bool
    why: str


@dataclass(frozen=True)
class RewriteChoice:
    """The rewrites for speed on one runtime; `plain` where the export without any rewrite was faster than with."""

    runtime: str
    plain: bool
    verdicts: tuple[RewriteVerdict, ...]


@dataclass(frozen=True)
class Manifest:
    """manifest.json, schema 1.

    `coverage` is what the selected artifact computes on its runtime, None where that was not counted.
    `calibration_tables` is the file of ranges that static candidates were made with, None where there are none.
    """

    schema_version: Literal[1]
    name: str
    model: ModelSpec
    config: Mapping[str, Any]
    target: Target
    artifacts: tuple[ArtifactEntry, ...]
    absent_formats: tuple[AbsentFormat, ...]
    selected: SelectedArtifact
    provenance: Provenance
    golden: Golden
    budget: AccuracyBudget
    parity: tuple[Parity, ...]
    accuracy: tuple[Accuracy, ...]
    candidates: tuple[Candidate, ...]
    rewrites: tuple[RewriteRecord, ...]
    caveats: tuple[str, ...]
    notes: tuple[str, ...]
    pruning: PruningRecord | None = None
    rollouts: tuple[RolloutRecord, ...] = ()
    quantiles: tuple[QuantileRecord, ...] = ()
    calibration_tables: FileDigest | None = None
    coverage: Coverage | None = None

    def artifact(self, name: str) -> ArtifactEntry:
        """Return the entry of that name.

        Raises:
            BundleError: there is none.
        """
        for entry in self.artifacts:
            if entry.name == name:
                return entry
        names = ", ".join(entry.name for entry in self.artifacts)
        raise BundleError(f"the bundle has no artifact {name!r}; it has {names}")


@dataclass(frozen=True)
class RankedArtifact:
    """An artifact on a runtime, in the order of speed."""

    artifact: str
    runtime: str


@dataclass(frozen=True)
class Selection:
    """selection.json, schema 1: the choices that depended on measuring, so that `--selection` can repeat them.

    `why` has no figure; `candidate` and `recipe` are the selected candidate's (for fp32: the artifact's name and {});
    `order` starts with the fastest; `rewrites` are those of each runtime's fp32 artifact; `model` is what was measured
    with `threads`, with its component, "" for any.  `tried` are all candidates as the manifest has them, and `basis` is
    the digest of source, data and budget that they were judged with: a build that repeats the selection builds the
    selected one alone, and gives these records of the others where its own basis is the same.  `tables` names the
    recipes whose calibration tables the bundle holds, where several share one the first.
    """

    schema_version: Literal[1]
    artifact: str
    runtime: str
    why: str
    candidate: str
    recipe: Mapping[str, Any]
    layers_left_in_float: tuple[str, ...]
    order: tuple[RankedArtifact, ...]
    threads: int
    triton_batch_sizes: tuple[int, ...]
    rewrites: tuple[RewriteChoice, ...] = ()
    model: str = ""
    tried: tuple[Candidate, ...] = ()
    basis: str = ""
    tables: tuple[str, ...] = ()


def manifest_text(manifest: Manifest) -> str:
    """Return manifest.json's text.  Equal manifests give equal text.

    Raises:
        BundleError: the manifest contradicts itself.
        ValueError: it holds NaN or infinity.
    """
    _check_manifest(manifest)
    return codec.encode(manifest)


def parse_manifest(text: str | bytes) -> Manifest:
    """Return the manifest that manifest.json's text holds.

    Raises:
        BundleError: no JSON, another schema, unknown or missing keys, wrong types, or entries that contradict each
            other.
    """
    manifest = codec.from_plain(Manifest, _schema_1(text, MANIFEST), what=MANIFEST, next_step=_NEXT_STEP)
    _check_manifest(manifest)
    return manifest


def selection_text(selection: Selection) -> str:
    """Return selection.json's text."""
    return codec.encode(selection)


def parse_selection(text: str | bytes) -> Selection:
    """Return the selection that selection.json's text holds.

    Raises:
        BundleError: as `parse_manifest`.
    """
    selection = codec.from_plain(Selection, _schema_1(text, SELECTION), what=SELECTION, next_step=_NEXT_STEP)
    if selection.threads < 1:
        raise BundleError(f"{SELECTION}: threads is {selection.threads}, needed is 1 or more")
    return selection


def relative_path(text: str, *, what: str) -> PurePosixPath:
    """Return a path that stays within the bundle.

    Raises:
        BundleError: it is absolute, climbs with "..", is empty, or is written in a way that some systems read
            otherwise.
    """
    path = PurePosixPath(text)
    plain = text == str(path) and text not in ("", ".") and "\\" not in text and text.isprintable()
    if not plain or path.is_absolute() or ".." in path.parts:
        raise BundleError(f"{what}: the path {text!r} is not allowed; paths are relative, plain and within the bundle")
    return path


def _schema_1(text: str | bytes, what: str) -> Any:
    """Return the parsed text of a schema-1 document: another schema is named before any of its keys is judged."""
    value = codec.parse_json(text, what=what)
    if not isinstance(value, dict) or "schema_version" not in value:
        raise BundleError(f"{what} has no schema_version; it is no {what} of tsexport")
    version = value["schema_version"]
    if type(version) is not int or version != SCHEMA_VERSION:
        raise BundleError(
            f"{what} has schema_version {version!r}; this tsexport reads schema_version {SCHEMA_VERSION}",
            next_step=_NEXT_STEP,
        )
    return value


def _check_manifest(manifest: Manifest) -> None:
    """Raise BundleError where entries contradict each other."""
    name = manifest.name
    if not name or name.startswith(".") or "/" in name or "\0" in name:  # results are kept in a folder of that name
        raise BundleError(
            f"{MANIFEST}: name is {name!r}; allowed is a folder's name, without '/' and not beginning with a dot"
        )
    if not manifest.artifacts:
        raise BundleError(f"{MANIFEST}: artifacts is empty, a bundle holds at least one")
    _check_unique((entry.name for entry in manifest.artifacts), "artifact name")
    _check_unique((file.path for entry in manifest.artifacts for file in entry.files), "artifact file")
    if (tables := manifest.calibration_tables) is not None:
        relative_path(tables.path, what=f"{MANIFEST}: calibration_tables")
        _check_digest(tables.sha256, f"{MANIFEST}: calibration_tables")
    for entry in manifest.artifacts:
        _check_entry(entry)
        for kind, specs in (("inputs", entry.inputs), ("outputs", entry.outputs)):
            expected = getattr(manifest.artifacts[0], kind)
            if [spec.name for spec in specs] != [spec.name for spec in expected]:
                raise BundleError(
                    f"{MANIFEST}: the {kind} of {entry.name} are named otherwise than in the other artifacts"
                )
    selected = manifest.selected
    if selected.runtime not in manifest.artifact(selected.artifact).runtimes:
        raise BundleError(f"{MANIFEST}: selected.runtime {selected.runtime!r} is none of those of {selected.artifact}")
    if manifest.golden.samples < 1 or manifest.golden.batch < 1:
        raise BundleError(f"{MANIFEST}: golden needs at least one sample and a batch of at least one")


def _check_entry(entry: ArtifactEntry) -> None:
    what = f"{MANIFEST}: artifact {entry.name!r}"
    for file in entry.files:
        relative_path(file.path, what=what)
    if not entry.files or entry.path != entry.files[0].path:
        raise BundleError(f"{what}: path is {entry.path!r}, needed is the first of its files")
    if entry.size_bytes != sum(file.size_bytes for file in entry.files):
        raise BundleError(f"{what}: size_bytes is {entry.size_bytes}, not the sum over its files")
    for digest in (entry.sha256, *(file.sha256 for file in entry.files)):
        _check_digest(digest, what)
    tolerance = entry.golden_tolerance
    if (tolerance.atol is None) != (tolerance.rtol is None) or (
        tolerance.atol is None and tolerance.max_relative_rms is None
    ):
        raise BundleError(f"{what}: golden_tolerance needs atol and rtol, or max_relative_rms, or all three")


def _check_digest(digest: str, what: str) -> None:
    if not _SHA256.fullmatch(digest):
        raise BundleError(f"{what}: {digest!r} is no SHA-256 in lower-case hex")


def _check_unique(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BundleError(f"{MANIFEST}: the {what} {name!r} stands there twice")
        seen.add(name)
