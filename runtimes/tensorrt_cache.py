"""Engines and timing caches of TensorRT, kept in tsexport's cache folder.

    <cache>/tensorrt/<key>/engine.plan     what TensorRT built
    <cache>/tensorrt/<key>/engine.json     the record of what it was built of and with, written last
    <cache>/tensorrt/timing-<key>.cache    what TensorRT measured of kernels, by version and GPU

An engine belongs to one ONNX file, one version of TensorRT, one kind of GPU, one driver and one set of flags: the key
is the SHA-256 over all of them, and an engine whose record says something else is refused with what differs.  Engines
are made on the machine that runs them; none is ever part of a bundle.
"""

import contextlib
import hashlib
import json
import os
import secrets
from dataclasses import dataclass, fields
from pathlib import Path

import platformdirs

from tsexport import codec
from tsexport.errors import BundleError, UsageError
from tsexport.types import file_sha256

SCHEMA_VERSION = 1
ENGINE, RECORD = "engine.plan", "engine.json"


@dataclass(frozen=True)
class GpuFacts:
    """What an engine depends on besides its file: `driver` is the kernel module's version where it is told."""

    name: str
    compute_capability: str
    driver: str


@dataclass(frozen=True)
class EngineRequest:
    """Everything an engine depends on.

    onnx_sha256: over the artifact's files.  flags: network flags, builder flags, and "-" before those cleared.
    profile: one line an input, "x 1x128x8 1x128x8 8x128x8"; () where every shape is frozen.
    """

    onnx_sha256: str
    tensorrt: str
    gpu: GpuFacts
    precision: str
    flags: tuple[str, ...]
    profile: tuple[str, ...]
    workspace_bytes: int

    @property
    def key(self) -> str:
        """The SHA-256 over all of it, in hex."""
        return hashlib.sha256(json.dumps(codec.to_plain(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class EngineRecord:
    """engine.json: what the engine beside it was built of and with, and its own digest."""

    schema_version: int
    request: EngineRequest
    engine_sha256: str
    build_seconds: float


_SAID = {
    "onnx_sha256": "the ONNX file",
    "tensorrt": "TensorRT",
    "gpu": "the GPU or driver",
    "precision": "the precision",
    "flags": "the flags",
    "profile": "the optimization profile",
    "workspace_bytes": "the workspace",
}


def differences(built: EngineRequest, wanted: EngineRequest) -> str:
    """Return what an engine was built with other than wanted ("TensorRT is 10.3.0, wanted is 10.7.0"), or ""."""
    found = []
    for field in fields(EngineRequest):
        one, other = getattr(built, field.name), getattr(wanted, field.name)
        if one != other:
            found.append(f"{_SAID[field.name]} is {_shown(one)}, wanted is {_shown(other)}")
    return "; ".join(found)


def _shown(value: object) -> str:
    if isinstance(value, GpuFacts):
        return f"{value.name} (compute capability {value.compute_capability}, driver {value.driver})"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def cache_folder() -> Path:
    """Return where engines are kept: `tensorrt` in $TSEXPORT_CACHE, otherwise in the user's cache folder."""
    given = os.environ.get("TSEXPORT_CACHE")
    return (Path(given) if given else Path(platformdirs.user_cache_dir("tsexport", appauthor=False))) / "tensorrt"


def engine_folder(root: Path, request: EngineRequest) -> Path:
    """Return the folder of an engine in a cache."""
    return root / request.key


def timing_cache_path(root: Path, request: EngineRequest) -> Path:
    """Return the timing cache that a build shares with every other of the same TensorRT and GPU."""
    text = json.dumps([request.tensorrt, codec.to_plain(request.gpu)])
    return root / f"timing-{hashlib.sha256(text.encode()).hexdigest()[:16]}.cache"


def read_engine(folder: Path, wanted: EngineRequest) -> bytes:
    """Return an engine's bytes.

    Raises:
        UsageError: the engine was built of something else, with another TensorRT or for another GPU, or it is damaged;
            says what.
    """
    again = "build it again on this machine"
    try:
        text, engine = codec.read_text(folder / RECORD), (folder / ENGINE).read_bytes()
        record = codec.decode_versioned(EngineRecord, text, version=SCHEMA_VERSION, what=RECORD, next_step=again)
    except (BundleError, OSError) as error:
        reason = error.message if isinstance(error, BundleError) else f"{ENGINE}: {error.strerror or error}"
        raise UsageError(f"{folder} holds no engine that can be used: {reason}", next_step=again) from None
    stale = differences(record.request, wanted)
    if stale:
        raise UsageError(f"the engine in {folder} is refused: {stale}", next_step=again)
    found = hashlib.sha256(engine).hexdigest()
    if found != record.engine_sha256:
        raise UsageError(
            f"the engine in {folder} is refused: its digest is {found}, its record says {record.engine_sha256}",
            next_step=again,
        )
    return engine


def write_engine(folder: Path, request: EngineRequest, engine: bytes, build_seconds: float) -> None:
    """Write an engine and, after it, its record; each under a temporary name and renamed.

    Raises:
        UsageError: the folder cannot be written.
    """
    write_file(folder / ENGINE, engine)
    digest = file_sha256(folder / ENGINE)
    record = EngineRecord(SCHEMA_VERSION, request, digest, round(build_seconds, 3))
    write_file(folder / RECORD, codec.encode(record).encode("utf-8"))


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    aside = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise UsageError(
            f"{path} cannot be written: {error.strerror or error}",
            next_step="set TSEXPORT_CACHE to a folder that can be written, or make room there",
        ) from error


def read_timing_cache(path: Path) -> bytes:
    """Return a timing cache's bytes, none where there is none yet."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
