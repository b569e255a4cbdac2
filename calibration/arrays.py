"""Datasets over arrays: in memory, or the members of an .npz read as streams.

An .npz is a zip of .npy members.  Each member is decompressed and read front to back, one batch at a time, so an
archive larger than memory can be used.  Pickles are never read: members that hold Python objects are refused.
"""

import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy_format

from tsexport.calibration.datasets import Batch, digest_of, index_batches, read_range
from tsexport.errors import DataError
from tsexport.types import Array, file_sha256

TARGET = "target"
"""Name of the array that holds labels, beside the inputs."""
BLOCK_BYTES = 1 << 20
"""How much is hashed or skipped at once."""
KINDS = "fiub"
"""numpy kinds that a model can take: floating point, integers, booleans."""


def sample_ids(indices: Iterable[int], prefix: str = "sample") -> tuple[str, ...]:
    return tuple(f"{prefix}:{index:06d}" for index in indices)


class ArrayDataset:
    """Arrays in memory, [samples, ...] each, under the names of a model's inputs; `prefix` begins the samples' ids.

    Raises:
        DataError: no arrays, an array without samples, arrays of different lengths, or a dtype no model takes.
    """

    def __init__(self, arrays: Mapping[str, Array], target: Array | None = None, *, prefix: str = "sample") -> None:
        self._arrays = dict(arrays)
        self._target = target
        self._prefix = prefix
        everything = dict(self._arrays) if target is None else {**self._arrays, TARGET: target}
        for name, array in everything.items():
            check_dtype("the arrays", name, array.dtype)
        self._count = common_count("the arrays", {name: array.shape for name, array in everything.items()})

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._arrays)

    @property
    def count(self) -> int:
        return self._count

    @property
    def has_target(self) -> bool:
        return self._target is not None

    @cached_property
    def digest(self) -> str:
        parts = {name: array_digest(array) for name, array in self._arrays.items()}
        return digest_of({"arrays": parts, "target": None if self._target is None else array_digest(self._target)})

    def ids(self, indices: Iterable[int]) -> tuple[str, ...]:
        return sample_ids(indices, self._prefix)

    def read(self, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
        for part in index_batches(indices, batch_size, self.count):
            target = None if self._target is None else self._target[part]
            yield Batch(
                {name: array[part] for name, array in self._arrays.items()}, target, sample_ids(part, self._prefix)
            )

    def batches(self, batch_size: int, *, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        return read_range(self, batch_size, start, stop)


@dataclass(frozen=True)
class Member:
    """One array of an archive: its header, read without its data.  `offset` is where the data begins in the member."""

    name: str
    entry: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    offset: int

    @property
    def sample_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class NpzDataset:
    """The arrays of an .npz, streamed: inputs under their names, and optionally `target`.

    Raises:
        DataError: not an .npz, damaged, encrypted, or an array that cannot be streamed or fed to a model.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with opened(path) as archive:
            members = tuple(read_header(archive, path, info) for info in archive.infolist())
        names = [member.name for member in members]
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"{path.name} holds two arrays named {name!r}.", next_step="Write the file again.")
        self._members = members
        self._count = common_count(path.name, {member.name: member.shape for member in members})

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self._members if member.name != TARGET)

    @property
    def count(self) -> int:
        return self._count

    @property
    def has_target(self) -> bool:
        return any(member.name == TARGET for member in self._members)

    @cached_property
    def digest(self) -> str:
        return digest_of({"npz": file_sha256(self.path)})

    def ids(self, indices: Iterable[int]) -> tuple[str, ...]:
        return sample_ids(indices)

    def read(self, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
        with opened(self.path) as archive, ExitStack() as stack:
            streams = {m.name: SampleStream(stack.enter_context(archive.open(m.entry)), m) for m in self._members}
            for part in index_batches(indices, batch_size, self.count):
                arrays = {name: stream.take(part) for name, stream in streams.items()}
                target = arrays.pop(TARGET, None)
                yield Batch(arrays, target, sample_ids(part))

    def batches(self, batch_size: int, *, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        return read_range(self, batch_size, start, stop)


class SampleStream:
    """Reads samples of one .npy member front to back."""

    def __init__(self, stream: IO[bytes], member: Member) -> None:
        self._stream = stream
        self._member = member
        self._next = 0
        self._skip(member.offset)

    def take(self, indices: Array) -> Array:
        """Return the samples at increasing indices, none of them before what was already read."""
        member = self._member
        samples = np.empty((len(indices), *member.shape[1:]), dtype=member.dtype)
        runs = np.split(np.arange(len(indices)), np.flatnonzero(np.diff(indices) != 1) + 1)
        for run in runs:
            first = int(indices[run[0]])
            self._skip((first - self._next) * member.sample_bytes)
            self._fill(samples[run[0] : run[-1] + 1])
            self._next = first + len(run)
        return samples.astype(member.dtype.newbyteorder("="), copy=False)

    def _fill(self, samples: Array) -> None:
        view = samples.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(view):
            got = self._stream.readinto(view[done : done + BLOCK_BYTES])  # type: ignore[attr-defined]
            if not got:
                raise EOFError(f"{self._member.name!r} ends early")
            done += got

    def _skip(self, size: int) -> None:
        while size > 0:
            got = len(self._stream.read(min(size, BLOCK_BYTES)))
            if not got:
                raise EOFError(f"{self._member.name!r} ends early")
            size -= got


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an .npz, and turn what can be wrong with the file, now or while it is read, into a DataError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        # RuntimeError is zipfile's word for an encrypted member, NotImplementedError for an unknown compression.
        raise DataError(
            f"{path.name} cannot be read as an .npz: {error}.",
            next_step="Write it with numpy.savez or numpy.savez_compressed.",
        ) from error


def read_header(archive: zipfile.ZipFile, path: Path, info: zipfile.ZipInfo) -> Member:
    """Read one member's name, dtype and shape."""
    if not info.filename.endswith(".npy"):
        raise DataError(
            f"{path.name} holds {info.filename!r}, which is no array.",
            next_step="An .npz holds one .npy per input; write it with numpy.savez.",
        )
    name = info.filename.removesuffix(".npy")
    with archive.open(info) as stream:
        try:
            version = npy_format.read_magic(stream)
            readers = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
            if version not in readers:
                raise ValueError(f"format version {version[0]}.{version[1]} is not supported")
            shape, fortran_order, dtype = readers[version](stream)
        except ValueError as error:
            raise DataError(
                f"{path.name}: the array {name!r} has no valid header: {error}", next_step="Write the file again."
            ) from error
        offset = stream.tell()
    check_dtype(path.name, name, dtype)
    if fortran_order and len(shape) > 1:
        raise DataError(
            f"{path.name}: the array {name!r} is stored column by column (Fortran order), so its samples cannot be "
            f"read one after the other.",
            next_step=f"Save numpy.ascontiguousarray({name}) instead.",
        )
    member = Member(name, info.filename, dtype, shape, offset)
    expected = offset + (shape[0] * member.sample_bytes if shape else dtype.itemsize)
    if info.file_size != expected:
        raise DataError(
            f"{path.name}: the array {name!r} should take {expected} bytes and takes {info.file_size}: it is damaged.",
            next_step="Write the file again.",
        )
    return member


def check_dtype(source: str, name: str, dtype: np.dtype[np.generic]) -> None:
    if dtype.kind not in KINDS:
        what = "Python objects (a pickle), which are not read" if dtype.hasobject else f"{dtype}"
        raise DataError(
            f"{source}: the array {name!r} holds {what}; allowed are floating-point numbers, integers and booleans.",
            next_step=f"Convert {name!r} to numbers, for example with .astype('float32').",
        )


def common_count(source: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the number of samples that all arrays share."""
    if not set(shapes) - {TARGET}:
        raise DataError(f"{source} hold no input arrays." if source == "the arrays" else f"{source} holds no input.")
    for name, shape in shapes.items():
        if not shape:
            raise DataError(
                f"{source}: {name!r} is a single number; expected an array [samples, ...].",
                next_step="Stack the samples along a first axis.",
            )
    counts = {name: shape[0] for name, shape in shapes.items()}
    if len(set(counts.values())) > 1:
        given = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(
            f"{source}: the arrays have different numbers of samples: {given}.",
            next_step="Every array, the target too, needs one row per sample.",
        )
    return next(iter(counts.values()))


def array_digest(array: Array) -> str:
    """Return the SHA-256 (hex) of dtype, shape and values, read in blocks."""
    sha = hashlib.sha256(f"{array.dtype.newbyteorder('=').str} {array.shape}".encode())
    step = max(1, BLOCK_BYTES // max(1, array[:1].nbytes))
    for at in range(0, len(array), step):
        block = array[at : at + step]
        sha.update(np.ascontiguousarray(block, dtype=block.dtype.newbyteorder("=")).tobytes())
    return sha.hexdigest()
