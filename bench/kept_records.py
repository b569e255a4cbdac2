"""Results that are kept over time: one file a run, by bundle and machine, and the baseline that they are held against.

    <folder>/<bundle>/<machine id>/<time>-<commit>-<digest>.json
    <folder>/<bundle>/<machine id>/baseline.json

`<digest>` begins the SHA-256 of the content, so that no file takes the place of another: two files
of one name have one content.  The baseline is written by an explicit command alone (`tsexport history --set-baseline`).
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tsexport.bench.figure_verdicts import FigureVerdict
from tsexport.bench.records import MachineRecord
from tsexport.bench.use_cases import UseCaseAnswer
from tsexport.codec import decode_versioned, encode, read_text, try_folder, write_whole
from tsexport.errors import UsageError
from tsexport.types import Precision

SCHEMA_VERSION = 1
BASELINE = "baseline.json"
NO_COMMIT = "no-commit"
_COMMIT = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")
_SHORT_COMMIT = 12
_DIGEST = 8
_NEXT_STEP = "measure again with `tsexport bench --record`, or use the tsexport version that wrote it"


@dataclass(frozen=True)
class KeptArtifact:
    """An artifact as it was when it was measured; another digest is another file under the same name."""

    name: str
    precision: Precision
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class KeptRecord:
    """One run of `tsexport bench` over one bundle.

    `recorded_at` is UTC as ISO 8601 ("2026-11-26T13:05:00Z").  `commit` is that of the repository that the command was
    called in, None without one; `modified` says that tracked files differed from it.
    """

    bundle: str
    model: str
    family: str
    component: str | None
    recorded_at: str
    commit: str | None
    modified: bool
    artifacts: tuple[KeptArtifact, ...]
    record: MachineRecord
    use_cases: tuple[UseCaseAnswer, ...] = ()
    figures: tuple[FigureVerdict, ...] = ()
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class BaselineEntry:
    """What one artifact did on one runtime at one batch size when the baseline was taken."""

    artifact: str
    runtime: str
    precision: Precision
    batch: int
    threads: int
    median_ms: float
    p90_ms: float | None
    samples: int


@dataclass(frozen=True)
class Baseline:
    """The recording that later ones of the bundle on the machine are held against; `source` is its file's name."""

    bundle: str
    model: str
    component: str | None
    machine_id: str
    source: str
    recorded_at: str
    commit: str | None
    set_at: str
    entries: tuple[BaselineEntry, ...]
    schema_version: int = SCHEMA_VERSION


def time_text(moment: datetime) -> str:
    """Return a moment as UTC in ISO 8601, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def check_commit(commit: str) -> str:
    """Return a commit that was named by hand.

    Raises:
        UsageError: it cannot be part of a file's name.
    """
    if not _COMMIT.fullmatch(commit):
        raise UsageError(
            f"commit is {commit!r}; allowed are 1 to 64 letters, digits, '.', '_' and '-', the first a letter or digit"
        )
    return commit


def kept_name(record: KeptRecord) -> str:
    """Return the name of a record's file, by which files sort in the order of their times."""
    digest = hashlib.sha256(encode(record).encode()).hexdigest()[:_DIGEST]
    stamp = record.recorded_at.replace("-", "").replace(":", "")
    return f"{stamp}-{(record.commit or NO_COMMIT)[:_SHORT_COMMIT]}-{digest}.json"


def require_folder(folder: Path) -> None:
    """Raise where results could not be kept in a folder, before they are measured; it is made where absent.

    Raises:
        UsageError: the folder cannot be written to.
    """
    try:
        try_folder(folder)
    except OSError as error:
        raise not_kept(folder, error) from error


def not_kept(folder: Path, error: OSError) -> UsageError:
    """Return the error of a folder for results that cannot be written to."""
    return UsageError(
        f"the result cannot be kept in {folder}: {error.strerror}", next_step="name another folder with --record"
    )


def write_kept(record: KeptRecord, folder: Path) -> Path:
    """Write a record into its place under `folder` (made where absent), whole or not at all; return its path.

    Raises:
        UsageError: the folder cannot be written to.
    """
    path = folder / record.bundle / record.record.machine.machine_id / kept_name(record)
    try:
        return write_whole(path, encode(record))
    except OSError as error:
        raise not_kept(folder, error) from error


def read_kept(path: Path) -> KeptRecord:
    """Return the record of a file.

    Raises:
        BundleError: it cannot be read, is no JSON, has another schema version, or holds something else.
    """
    text = read_text(path)
    return decode_versioned(KeptRecord, text, version=SCHEMA_VERSION, what=path.name, next_step=_NEXT_STEP)


def write_baseline(baseline: Baseline, folder: Path) -> Path:
    """Write a baseline into its place under `folder`, whole or not at all; return its path.

    Raises:
        UsageError: the folder cannot be written to.
    """
    path = folder / baseline.bundle / baseline.machine_id / BASELINE
    try:
        return write_whole(path, encode(baseline))
    except OSError as error:
        raise UsageError(f"the baseline {path} cannot be written: {error.strerror}") from error


def read_baseline(path: Path) -> Baseline:
    """Return the baseline of a file.

    Raises:
        BundleError: as `read_kept`.
    """
    again = "set it again with `tsexport history DIR --set-baseline latest`"
    return decode_versioned(Baseline, read_text(path), version=SCHEMA_VERSION, what=path.name, next_step=again)
