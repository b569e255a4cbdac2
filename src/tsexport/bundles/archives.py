"""Unpacking a bundle from .tar, .tar.gz or .zip, trusting nothing in it.

Members are written one by one by this module, never by the archive library: a path is rebuilt from its checked parts,
links, devices and sparse files are refused, and every byte is counted against limits before it is written.
"""

import contextlib
import gzip
import io
import lzma
import os
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from tsexport.errors import BundleError, UsageError

SUFFIXES = (".tar", ".tar.gz", ".zip")
_BLOCK = 2**16
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, NotImplementedError)


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to.  Weights hardly compress, so a ratio far above that of weights is a bomb.

    The ratio counts only once `free_bytes` are unpacked: small text files compress well.
    """

    members: int = 10_000
    total_bytes: int = 16 * 2**30
    ratio: int = 100
    free_bytes: int = 64 * 2**20
    header_bytes: int = 4 * 2**20

    def bytes_for(self, archive_bytes: int) -> int:
        """Return how many bytes an archive of that size may unpack to."""
        return min(self.total_bytes, max(self.free_bytes, self.ratio * archive_bytes))


LIMITS = Limits()


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def is_archive(path: Path) -> bool:
    """Return whether the file's name is that of an archive that `unpack` reads."""
    return path.name.lower().endswith(SUFFIXES)


def unpack(archive: Path, destination: Path, limits: Limits = LIMITS) -> None:
    """Unpack an archive into an empty folder.

    Raises:
        BundleError: the archive is damaged, encrypted, larger than the limits, or holds a member that is absolute,
            climbs out, stands there twice, or is a link, a device or anything but a plain file or folder.
        UsageError: the archive cannot be read, or the files cannot be written (a full disk).
    """
    try:
        budget = _Budget(archive.name, limits.members, limits.bytes_for(archive.stat().st_size))
        with archive.open("rb") as file:
            members = (
                _zip_members(file, archive)
                if archive.name.lower().endswith(".zip")
                else _tar_members(file, archive, limits)
            )
            _write_members(members, destination, archive.name, budget)
    except gzip.BadGzipFile as error:
        raise _damaged(archive.name, error) from None
    except OSError as error:
        raise UsageError(f"{archive} cannot be unpacked into {destination}: {error.strerror or error}") from error
    except _DAMAGED as error:
        raise _damaged(archive.name, error) from None
    except RuntimeError as error:  # zipfile's word for a member that needs a password
        raise _damaged(archive.name, error) from None


class _Budget:
    """Counts members and bytes down; raises BundleError where one runs out."""

    def __init__(self, name: str, members: int, size_bytes: int) -> None:
        self._name, self._members, self._bytes = name, members, size_bytes
        self._limit = size_bytes

    def member(self) -> None:
        self._members -= 1
        if self._members < 0:
            raise BundleError(f"{self._name} holds more files than a bundle can have; it was not unpacked further")

    def spend(self, size_bytes: int) -> None:
        self._bytes -= size_bytes
        if self._bytes < 0:
            raise BundleError(
                f"{self._name} unpacks to more than {self._limit} bytes, far more than its size allows; "
                "it was not unpacked further"
            )


@dataclass(frozen=True)
class _Member:
    """A checked member: `content` is None for a folder."""

    path: PurePosixPath
    content: _Readable | None


def _write_members(members: Iterator[_Member], destination: Path, name: str, budget: _Budget) -> None:
    seen: set[str] = set()
    for member in members:
        budget.member()
        target = destination / member.path
        if member.content is None:
            _make_folder(target, member.path, name)
            continue
        # Case and the ways to write an accent are folded: some file systems do not tell such names apart.
        folded = unicodedata.normalize("NFC", str(member.path).casefold())
        if folded in seen:
            raise BundleError(f"{name} holds {member.path} twice")
        seen.add(folded)
        _make_folder(target.parent, member.path, name)
        try:
            file = target.open("xb")
        except FileExistsError:
            raise BundleError(f"{name} holds {member.path} as a file and as a folder") from None
        with file:
            while block := member.content.read(_BLOCK):
                budget.spend(len(block))
                file.write(block)


def _make_folder(path: Path, member: PurePosixPath, name: str) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise BundleError(f"{name} holds a file where {member} needs a folder") from None


def _tar_members(file: BinaryIO, archive: Path, limits: Limits) -> Iterator[_Member]:
    with contextlib.ExitStack() as stack:
        stream: BinaryIO = file
        if archive.name.lower().endswith(".gz"):
            stream = stack.enter_context(gzip.open(file, "rb"))  # type: ignore[assignment]
        bounded = _BoundedReader(stream, archive.name, limits, limits.bytes_for(archive.stat().st_size))
        tar = stack.enter_context(tarfile.open(fileobj=bounded, mode="r:"))
        for info in tar:
            path = _member_path(info.name, archive.name)
            if info.size < 0:  # the header may say so, and would lead back to itself
                raise _damaged(archive.name, tarfile.ReadError(f"{path} has a negative size"))
            if not (info.isfile() or info.isdir()) or info.issparse():
                raise BundleError(
                    f"{archive.name} holds {path}, which is {_tar_kind(info)}; bundles hold plain files only"
                )
            if path.parts:
                yield _Member(path, tar.extractfile(info) if info.isfile() else None)


def _tar_kind(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return f"a link to {info.linkname!r}"
    return "a sparse file" if info.issparse() else "a device or pipe"


class _BoundedReader(io.RawIOBase):
    """A stream for tarfile that reads no header larger than the limit into memory, and stops a bomb in the headers."""

    def __init__(self, stream: BinaryIO, name: str, limits: Limits, size_bytes: int) -> None:
        self._stream, self._name, self._limits = stream, name, limits
        # Headers, padding and the content itself; tar adds at most 2 KiB a member (and 10 KiB at the end).
        self._left = size_bytes + limits.members * 2048 + limits.header_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > self._limits.header_bytes:
            raise BundleError(f"{self._name} has a header of {size} bytes, which no bundle needs")
        block = self._stream.read(size)
        self._spend(len(block))
        return block

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET:  # skipping costs as much as reading where the stream is compressed
            self._spend(max(0, offset - self._stream.tell()))
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def _spend(self, size_bytes: int) -> None:
        self._left -= size_bytes
        if self._left < 0:
            raise BundleError(f"{self._name} unpacks to far more than its size allows; it was not unpacked further")


def _zip_members(file: BinaryIO, archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(file) as zipped:
        for info in zipped.infolist():
            path = _member_path(info.filename.removesuffix("/"), archive.name)
            if info.flag_bits & 0x1:
                raise BundleError(
                    f"{archive.name} is encrypted ({path}), and tsexport takes no passwords",
                    next_step="unpack it and give the folder",
                )
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (kind and (kind == stat.S_IFDIR) != info.is_dir()):
                raise BundleError(
                    f"{archive.name} holds {path}, which is a link or a device; bundles hold plain files only"
                )
            if info.is_dir():
                yield _Member(path, None)
            else:
                with zipped.open(info) as content:
                    yield _Member(path, content)


def _member_path(name: str, archive: str) -> PurePosixPath:
    """Return a member's path ("./" dropped), refusing what could leave the folder on any system."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not name.isprintable():
        raise BundleError(f"{archive} holds a member named {name!r}; names are relative, plain and within the bundle")
    if any(len(part.encode()) > 255 for part in path.parts) or len(path.parts) > 32:
        raise BundleError(f"{archive} holds a member with a name that is too long: {name[:60]!r}...")
    return path


def _damaged(name: str, error: Exception) -> BundleError:
    return BundleError(f"{name} is damaged or not the archive that its name says: {error}", next_step="fetch it again")
