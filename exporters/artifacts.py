"""Writing exported files: under a temporary name, renamed when complete, described by an `Artifact`."""

import os
import tempfile
from pathlib import Path

from tsexport.types import Artifact, Format, ModelSpec, Precision, files_sha256


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`: after an interrupt there is the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        # mkstemp makes files private; an artifact is an ordinary file
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def describe(
    files: tuple[Path, ...],
    file_format: Format,
    spec: ModelSpec,
    provenance: tuple[str, ...],
    *,
    name: str,
    precision: Precision,
    runtimes: tuple[str, ...],
    opset: int | None = None,
    options: tuple[tuple[str, str], ...] = (),
) -> Artifact:
    """Return the record of an artifact whose files are on disk; `files[0]` is what a runtime opens."""
    return Artifact(
        name=name,
        path=files[0],
        format=file_format,
        precision=precision,
        inputs=spec.inputs,
        outputs=spec.outputs,
        files=files,
        sha256=files_sha256(files),
        size_bytes=sum(file.stat().st_size for file in files),
        opset=opset,
        runtimes=runtimes,
        options=options,
        provenance=provenance,
    )
