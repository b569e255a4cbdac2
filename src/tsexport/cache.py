"""The cache of build stages, by content.

An entry's key is the SHA-256 of everything its result depends on: the stage's name and inputs, the digest of
tsexport's own code, the versions of every tool, and the CPU (what a runtime answers depends on it).  So a changed
file, option, code line or package makes another key, and an entry never serves another model.

    <root>/<stage>/<key>/entry.json     {"files": {name: sha256}, "result": ...}, written last
    <root>/<stage>/<key>/...            the stage's files

Entries are made under a temporary name beside their place and renamed, so two builds at once do not harm each other;
an entry that does not match its digests is thrown away and made again.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Generic, TypeVar

import platformdirs

from tsexport import codec
from tsexport.errors import UsageError
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
    "tract",
    "numpy",
    "safetensors",
    "pyarrow",
)
_ENTRY = "entry.json"
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


@dataclass(frozen=True)
class Cache:
    """Stages by content, under `root`."""

    root: Path

    def stage(self, name: str, inputs: Mapping[str, Any], kind: type[T], produce: Callable[[Path], T]) -> "Cached[T]":
        """Return a stage's result: the cached one for these inputs, or what `produce` makes.

        Args:
            name: of the stage, part of the key and of the path.
            inputs: everything that the result depends on, besides code, versions and CPU.
            kind: the dataclass of the result.
            produce: makes the stage's files in the folder it is given, and returns the result.

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
        with self._temporary(place) as folder:
            result = produce(folder)
            entry = {
                "files": {
                    path.relative_to(folder).as_posix(): file_sha256(path)
                    for path in sorted(folder.rglob("*"))
                    if path.is_file()
                },
                "result": codec.to_plain(result),
            }
            (folder / _ENTRY).write_text(json.dumps(entry, indent=1, sort_keys=True))
            self._publish(folder, place)
        # Read back, so that a fresh result and a reused one are the same value.
        again = self._read(place, kind)
        assert again is not None
        return Cached(again, place, False)

    def _read(self, place: Path, kind: type[T]) -> T | None:
        try:
            entry = json.loads((place / _ENTRY).read_text())
            sound = all(file_sha256(place / name) == digest for name, digest in entry["files"].items())
            if sound:
                return codec.from_plain(kind, entry["result"], what=f"cache entry {place.name}")
        except FileNotFoundError:
            if not place.exists():
                return None
        except Exception:  # a damaged entry, in whatever way: it is made again
            pass
        shutil.rmtree(place, ignore_errors=True)
        return None

    @contextlib.contextmanager
    def _temporary(self, place: Path) -> Iterator[Path]:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f".{place.name[:8]}-", dir=place.parent))
        except OSError as error:
            raise UsageError(
                f"the cache folder {self.root} cannot be written: {error.strerror}",
                next_step="set TSEXPORT_CACHE to a folder that can be written, or make room there",
            ) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # nothing is there any more where it was published

    def _publish(self, folder: Path, place: Path) -> None:
        try:
            folder.rename(place)
        except OSError:
            # Another build has made the same entry meanwhile: theirs is as good.
            if not (place / _ENTRY).exists():
                raise


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
