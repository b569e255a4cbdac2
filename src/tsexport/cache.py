"""The cache of build stages, by content.

An entry's key is the SHA-256 of everything its result depends on: the stage's name and inputs, the digest of
tsexport's own code, the versions of every tool, and the CPU (what a runtime answers depends on it).  So a changed
file, option, code line or package makes another key, and an entry never serves another model.

    <root>/<stage>/<key>/entry.json     {"key": ..., "files": {name: sha256}, "result": ..., "sha256": of these},
                                        written last
    <root>/<stage>/<key>/...            the stage's files

An entry is made once: who makes it holds the lock of its key, and who wants it meanwhile waits and reads it.  Stages
may ask for others while they are made; since no stage needs itself, the waiting has an end.  Entries are made under a
temporary name beside their place and renamed, so that builds which cannot lock (a file system without locks) do not
harm each other either; an entry that does not match its digests is made again and takes the other's place.

    <root>/<stage>/.<key>.lock          while the entry is being made
    <root>/<stage>/.<key>-<random>/     where it is made

What a kill leaves are these two.  The kernel frees the lock of a process that ended, and what belongs to a free lock is
a leftover: the next stage of that name which is made removes it, whatever the clock says.  What was made without a lock
(`.<key>-<random>.unlocked`) is removed when it is a day old.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Generic, TypeVar

import platformdirs

from tsexport import __version__, codec
from tsexport.cache_leftovers import aside_of, lock_of, remove, remove_leftovers
from tsexport.errors import UsageError
from tsexport.locks import holding
from tsexport.surroundings import writing_explained
from tsexport.targets import host_cpu
from tsexport.types import Artifact, Format, Precision, TensorSpec, file_sha256

TOOLS = (
    "torch",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "nncf",
    "neural-compressor",
    "nvidia-modelopt",
    "torch-pruning",
    "tract",
    "numpy",
    "safetensors",
    "pyarrow",
    "jinja2",
    "cyclonedx-python-lib",
)
_ENTRY = "entry.json"
_PUBLISH_TRIES = 5
T = TypeVar("T")


def default_root() -> Path:
    """Return $TSEXPORT_CACHE, otherwise the user's cache folder."""
    given = os.environ.get("TSEXPORT_CACHE")
    return Path(given) if given else Path(platformdirs.user_cache_dir("tsexport", appauthor=False))


@functools.cache
def tool_versions() -> Mapping[str, str]:
    """Return the versions of Python, tsexport and every installed tool that a build uses, without importing them."""
    import platform

    # Not the installed package's: the code that runs may be another checkout's.
    versions = {"python": platform.python_version(), "tsexport": __version__}
    for tool in TOOLS:
        try:
            versions[tool] = version(tool)
        except PackageNotFoundError:
            continue
    return versions


@functools.cache
def code_digest() -> str:
    """Return the SHA-256 over every Python file of tsexport and its rooms."""
    digest = hashlib.sha256()
    for room in ("", ".models", ".runtimes", ".exporters", ".calibration", ".bench", ".quantize"):
        root = Path(str(package_files(f"tsexport{room}")))
        for path in sorted(root.rglob("*.py")):
            if {"suites", "training"} & set(path.relative_to(root).parts):
                continue
            digest.update(f"{room}/{path.relative_to(root).as_posix()}\n{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def digest_of(parts: object) -> str:
    """Return the SHA-256 of a value made of dataclasses, mappings, sequences and plain values, as canonical JSON."""
    text = json.dumps(codec.to_plain(parts), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Cached(Generic[T]):
    """A stage's result, the folder with its files, and whether it was there already."""

    result: T
    folder: Path
    reused: bool


_making = threading.local()
"""The places of the entries that this thread is making."""


def _say_nothing(line: str) -> None:
    pass


@dataclass(frozen=True)
class Cache:
    """Stages by content, under `root`.

    `say` is told when a stage waits for another process that makes it; `used` are the entries that were given out.
    """

    root: Path
    say: Callable[[str], None] = field(default=_say_nothing, compare=False)
    used: set[Path] = field(default_factory=set, compare=False, repr=False)

    def stage(self, name: str, inputs: Mapping[str, Any], kind: type[T], produce: Callable[[Path], T]) -> "Cached[T]":
        """Return a stage's result: the cached one for these inputs, or what `produce` makes.

        Where another process or thread is making the same stage, its result is waited for.

        Args:
            name: of the stage, part of the key and of the path.
            inputs: everything that the result depends on, besides code, versions and CPU.
            kind: the dataclass of the result.
            produce: makes the stage's files in the folder it is given, and returns the result.  It may ask for other
                stages.

        Raises:
            UsageError: the cache folder cannot be written.
        """
        key = digest_of(
            {
                "stage": name,
                "inputs": dict(inputs),
                "code": code_digest(),
                "versions": dict(tool_versions()),
                "cpu": host_cpu(),
            }
        )
        place = self.root / name / key
        found = self._read(place, kind)
        if found is None:
            with self._alone(place) as is_locked:
                found = self._read(place, kind)  # made by who held the lock
                if found is None:
                    made = self._make(place, kind, produce, is_locked)
                    self.used.add(place)
                    return made
        self.used.add(place)
        return Cached(found, place, True)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Turn whatever fails because an entry that was given out is gone into a UsageError that says so."""
        try:
            yield
        except Exception as error:
            try:
                self.require_used()
            except UsageError as gone:
                raise gone from error
            raise

    def require_used(self) -> None:
        """Raise where an entry that was given out is not there any more.

        Raises:
            UsageError: the cache was emptied while it was being used.
        """
        gone = next((place for place in sorted(self.used) if not (place / _ENTRY).exists()), None)
        if gone is not None:
            raise _gone(gone)

    @contextlib.contextmanager
    def _alone(self, place: Path) -> Iterator[bool]:
        """Hold the lock of an entry's key; False where this file system has no locks."""
        with self._explained():
            place.parent.mkdir(parents=True, exist_ok=True)
        mine: set[Path] = _making.__dict__.setdefault("places", set())
        if place in mine:
            raise RuntimeError(f"the stage {place.parent.name} asks for itself while it is made")

        def waiting(holder: str) -> None:
            self.say(f"{holder} is making the same {place.parent.name}: waiting for it")

        with holding(lock_of(place), waiting) as state:
            if state != "held":
                yield False
                return
            mine.add(place)
            try:
                yield True
            finally:
                mine.discard(place)

    def _make(self, place: Path, kind: type[T], produce: Callable[[Path], T], is_locked: bool) -> "Cached[T]":
        with self._temporary(place, is_locked) as folder:
            result = produce(folder)
            entry = {"key": place.name, "files": _file_digests(folder), "result": codec.to_plain(result)}
            text = json.dumps({**entry, "sha256": digest_of(entry)}, indent=1, sort_keys=True)
            (folder / _ENTRY).write_text(text)
            self._publish(folder, place, kind)
        # Read back, so that a fresh result and a reused one are the same value.
        again = self._read(place, kind)
        if again is None:
            raise _gone(place)
        return Cached(again, place, False)

    def _read(self, place: Path, kind: type[T]) -> T | None:
        """Return an entry's result; None where there is no entry, or a damaged one."""
        try:
            entry = sound_entry(place)
            return None if entry is None else codec.from_plain(kind, entry["result"], what=f"cache entry {place.name}")
        except Exception:  # a result of another kind: it is made again
            return None

    @contextlib.contextmanager
    def _temporary(self, place: Path, is_locked: bool) -> Iterator[Path]:
        with self._explained():
            remove_leftovers(place.parent, place.name if is_locked else None)
            folder = aside_of(place, is_locked)
            folder.mkdir()
        try:
            with self._explained(folder):
                yield folder
        finally:
            remove(folder)  # nothing is there any more where it was published

    def _explained(self, folder: Path | None = None) -> contextlib.AbstractContextManager[None]:
        """Turn a cache that cannot be written into a UsageError: everything, or what happens in `folder`."""

        def reason(error: OSError) -> str | None:
            concerns_us = folder is None or str(error.filename or "").startswith(str(folder))
            return error.strerror or str(error) if concerns_us else None

        return writing_explained(self.root, self._unwritten, reason)

    def _unwritten(self, reason: str) -> UsageError:
        return UsageError(
            f"the cache folder {self.root} cannot be written: {reason}",
            next_step="set TSEXPORT_CACHE to a folder that can be written, or make room there",
        )

    def _publish(self, folder: Path, place: Path, kind: type[T]) -> None:
        """Put a finished entry into its place; another build's sound entry, made meanwhile, is as good."""
        for _ in range(_PUBLISH_TRIES):
            try:
                folder.rename(place)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                if self._read(place, kind) is not None:
                    return
                _discard(place)
            else:
                return


def sound_entry(place: Path) -> Mapping[str, Any] | None:
    """Return what entry.json of an entry says; None where there is no entry, or one that does not match its digests."""
    try:
        if not stat.S_ISREG((place / _ENTRY).lstat().st_mode):
            return None  # reading a pipe would wait for ever
        entry: dict[str, Any] = json.loads((place / _ENTRY).read_text())
        stated = entry.pop("sha256")
        if stated == digest_of(entry) and entry["key"] == place.name and entry["files"] == _file_digests(place):
            return entry
    except Exception:  # whatever a damaged entry raises
        return None
    return None


def _gone(place: Path) -> UsageError:
    return UsageError(
        f"the cache entry {place} was removed or changed while it was being used",
        next_step="build again, and leave the cache alone meanwhile",
    )


def _file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of an entry but entry.json; what is no plain file counts as absent."""
    return {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.name != _ENTRY and not path.is_symlink() and path.is_file()
    }


def _discard(place: Path) -> None:
    """Take a damaged entry out of its place, in one step, and remove it."""
    aside = aside_of(place, _is_mine(place))
    with contextlib.suppress(FileNotFoundError):  # somebody else did
        place.rename(aside)
    remove(aside)


def _is_mine(place: Path) -> bool:
    return place in _making.__dict__.get("places", ())


@dataclass(frozen=True)
class StoredArtifact:
    """An artifact inside a cache entry: as `tsexport.types.Artifact`, with paths relative to the entry."""

    name: str
    files: tuple[str, ...]
    format: Format
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sha256: str
    size_bytes: int
    opset: int | None
    runtimes: tuple[str, ...]
    options: tuple[tuple[str, str], ...]
    provenance: tuple[str, ...]


def store_artifact(artifact: Artifact, folder: Path) -> StoredArtifact:
    """Return the record of an artifact whose files lie in an entry's folder."""
    same = {f.name: getattr(artifact, f.name) for f in fields(StoredArtifact) if f.name != "files"}
    return StoredArtifact(**same, files=tuple(path.relative_to(folder).as_posix() for path in artifact.files))


def restore_artifact(stored: StoredArtifact, folder: Path) -> Artifact:
    """Return a stored artifact with paths under its entry's folder."""
    same = {f.name: getattr(stored, f.name) for f in fields(StoredArtifact) if f.name != "files"}
    files = tuple(folder / name for name in stored.files)
    return Artifact(**same, files=files, path=files[0])
