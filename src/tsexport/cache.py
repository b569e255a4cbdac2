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
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Generic, TypeVar

import platformdirs

from tsexport import codec
from tsexport.errors import TsexportError, UsageError
from tsexport.locks import holding
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
LEFTOVER_SECONDS = 86_400.0
"""Age at which a folder that was made without a lock is a leftover."""
_ENTRY = "entry.json"
_LOCK, _UNLOCKED = ".lock", ".unlocked"
_HIDDEN = re.compile(r"\.(?P<key>[0-9a-f]{64})(?:\.lock|-[0-9a-f]{8}(?P<unlocked>\.unlocked)?)")
_OLDER_HIDDEN = re.compile(r"\.[0-9a-f]{8}-\w{8}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_BELOW_BYTES = 2**20
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

    versions = {"python": platform.python_version()}
    for tool in ("tsexport", *TOOLS):
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
    """Stages by content, under `root`.  `say` is told when a stage waits for another process that makes it."""

    root: Path
    say: Callable[[str], None] = field(default=_say_nothing, compare=False)

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
        if found is not None:
            return Cached(found, place, True)
        with self._alone(place) as is_locked:
            found = self._read(place, kind)  # made by who held the lock
            if found is not None:
                return Cached(found, place, True)
            return self._make(place, kind, produce, is_locked)

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

        with holding(_lock_of(place), waiting) as state:
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
            raise UsageError(
                f"the cache entry {place} was removed or changed while it was being used",
                next_step="build again, and leave the cache alone meanwhile",
            )
        return Cached(again, place, False)

    def _read(self, place: Path, kind: type[T]) -> T | None:
        """Return an entry's result; None where there is no entry, or a damaged one."""
        try:
            if not stat.S_ISREG((place / _ENTRY).lstat().st_mode):
                return None  # reading a pipe would wait for ever
            entry = json.loads((place / _ENTRY).read_text())
            stated = entry.pop("sha256")
            if stated == digest_of(entry) and entry["key"] == place.name and entry["files"] == _file_digests(place):
                return codec.from_plain(kind, entry["result"], what=f"cache entry {place.name}")
        except Exception:  # whatever a damaged entry raises: it is made again
            return None
        return None

    @contextlib.contextmanager
    def _temporary(self, place: Path, is_locked: bool) -> Iterator[Path]:
        with self._explained():
            _remove_leftovers(place.parent, place.name if is_locked else None)
            folder = _aside(place, is_locked)
            folder.mkdir()
        try:
            with self._explained(folder):
                yield folder
        finally:
            _remove(folder)  # nothing is there any more where it was published

    @contextlib.contextmanager
    def _explained(self, folder: Path | None = None) -> Iterator[None]:
        """Turn a cache that cannot be written into a UsageError: everything, or what happens in `folder`."""
        try:
            yield
        except TsexportError:
            raise
        except OSError as error:
            concerns_us = folder is None or str(error.filename or "").startswith(str(folder))
            if error.errno not in _FULL and not concerns_us:
                raise
            raise self._unwritten(error.strerror or str(error)) from error
        except Exception as error:
            # torch, onnx and openvino report a failed write in their own words, without an errno.
            if shutil.disk_usage(self.root).free < _FULL_BELOW_BYTES:
                raise self._unwritten(os.strerror(errno.ENOSPC)) from error
            raise

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


def _file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of an entry but entry.json; what is no plain file counts as absent."""
    return {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.name != _ENTRY and not path.is_symlink() and path.is_file()
    }


def _lock_of(place: Path) -> Path:
    return place.with_name(f".{place.name}{_LOCK}")


def _aside(place: Path, is_locked: bool) -> Path:
    """Return a new name beside an entry, which says whose leftover it will be."""
    return place.with_name(f".{place.name}-{secrets.token_hex(4)}{'' if is_locked else _UNLOCKED}")


def _discard(place: Path) -> None:
    """Take a damaged entry out of its place, in one step, and remove it."""
    aside = _aside(place, _is_mine(place))
    with contextlib.suppress(FileNotFoundError):  # somebody else did
        place.rename(aside)
    _remove(aside)


def _is_mine(place: Path) -> bool:
    return place in _making.__dict__.get("places", ())


def _remove(path: Path) -> None:
    """Remove a file or folder, whatever permissions are left of it."""
    if path.is_symlink() or not path.is_dir():
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.chmod(0o700)  # where it is still there, a folder may not be entered
        for folder, inside, _ in os.walk(path):
            for one in (Path(folder, name) for name in inside):
                if not one.is_symlink():
                    one.chmod(0o700)
        shutil.rmtree(path, ignore_errors=True)


def _remove_leftovers(folder: Path, mine: str | None) -> None:
    """Remove what killed processes left in a stage's folder; `mine` is the key whose lock is held here."""
    keys: set[str] = set()
    for path in folder.glob(".*"):
        match = _HIDDEN.fullmatch(path.name)
        if match is not None and not match["unlocked"]:
            keys.add(match["key"])
        elif (match is not None or _OLDER_HIDDEN.fullmatch(path.name)) and _is_old(path):
            _remove(path)
    for key in keys:
        if key == mine:
            _remove_made(folder, key)
            continue
        with holding(_lock_of(folder / key)) as state:
            if state == "held":
                _remove_made(folder, key)


def _remove_made(folder: Path, key: str) -> None:
    for path in folder.glob(f".{key}-*"):
        if not path.name.endswith(_UNLOCKED):
            _remove(path)


def _is_old(path: Path) -> bool:
    """Return whether a day lies between now and the last change, either way: a clock may have been set back."""
    with contextlib.suppress(OSError):
        return abs(time.time() - path.stat().st_mtime) > LEFTOVER_SECONDS
    return False


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
