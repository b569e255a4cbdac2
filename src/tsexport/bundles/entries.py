"""Artifacts to entries of a manifest, and back: absolute paths on one side, paths within the bundle on the other."""

from pathlib import Path

from tsexport.bundles.manifest import ArtifactEntry, FileDigest, GoldenTolerance
from tsexport.types import Artifact, file_sha256


def artifact_entry(
    artifact: Artifact, root: Path, golden_tolerance: GoldenTolerance, *, batch_dependent: bool = False
) -> ArtifactEntry:
    """Return the manifest's entry for an artifact whose files lie under the bundle's folder `root`."""
    files = tuple(
        FileDigest(path.relative_to(root).as_posix(), file_sha256(path), path.stat().st_size) for path in artifact.files
    )
    return ArtifactEntry(
        name=artifact.name,
        path=artifact.path.relative_to(root).as_posix(),
        files=files,
        format=artifact.format,
        precision=artifact.precision,
        opset=artifact.opset,
        size_bytes=sum(file.size_bytes for file in files),
        sha256=artifact.sha256,
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        runtimes=artifact.runtimes,
        options=artifact.options,
        provenance=artifact.provenance,
        golden_tolerance=golden_tolerance,
        batch_dependent=batch_dependent,
    )


def bundle_artifact(entry: ArtifactEntry, root: Path) -> Artifact:
    """Return the entry as an artifact that a runtime can load, with paths under the bundle's folder `root`."""
    return Artifact(
        name=entry.name,
        path=root / entry.path,
        format=entry.format,
        precision=entry.precision,
        inputs=entry.inputs,
        outputs=entry.outputs,
        files=tuple(root / file.path for file in entry.files),
        sha256=entry.sha256,
        size_bytes=entry.size_bytes,
        opset=entry.opset,
        runtimes=entry.runtimes,
        options=entry.options,
        provenance=entry.provenance,
    )
