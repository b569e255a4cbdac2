"""A bundle on disk: a folder, or a .tar, .tar.gz or .zip of one."""

import functools
import shutil
import stat
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from tsexport.bundles.archives import SUFFIXES, is_archive, unpack
from tsexport.bundles.entries import bundle_artifact
from tsexport.bundles.manifest import (
    MANIFEST,
    SELECTION,
    Manifest,
    Selection,
    parse_manifest,
    parse_selection,
)
from tsexport.bundles.signatures import check_signature
from tsexport.codec import read_plain
from tsexport.errors import BundleError, UsageError
from tsexport.types import Artifact, Closing

if TYPE_CHECKING:
    from tsexport.bundles.verification import VerificationReport

_MAX_JSON_BYTES = 256 * 2**20


class Bundle(Closing):
    """A bundle that was opened.

    An archive is unpacked into a temporary folder, which is removed by `close()`, at the end of a `with` block, when
    the object is gone, or at the latest when Python ends.

    Attributes:
        path: the folder that holds the bundle.
        source: what was given: the folder or the archive.
    """

    def __init__(self, path: Path, source: Path, temporary: Path | None = None) -> None:
        self.path, self.source = path, source
        self._remove = weakref.finalize(self, shutil.rmtree, temporary, True) if temporary else None

    @functools.cached_property
    def manifest(self) -> Manifest:
        """manifest.json.  Raises BundleError where it is missing, damaged or of another schema."""
        return parse_manifest(self._read(MANIFEST))

    @functools.cached_property
    def selection(self) -> Selection:
        """selection.json.  Raises BundleError where it is missing, damaged, or names artifacts that are not there."""
        selection = parse_selection(self._read(SELECTION))
        for name, runtime in (
            (selection.artifact, selection.runtime),
            *((ranked.artifact, ranked.runtime) for ranked in selection.order),
        ):
            if runtime not in self.manifest.artifact(name).runtimes:
                raise BundleError(f"{SELECTION} names {name} on {runtime}, and {MANIFEST} does not")
        return selection

    @property
    def name(self) -> str:
        """The folder's name, or the archive's without its suffix."""
        name = self.source.name
        return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), name)

    def artifact(self, name: str) -> Artifact:
        """Return an artifact with absolute paths, ready for a runtime.

        Raises:
            BundleError: there is none of that name.
        """
        return bundle_artifact(self.manifest.artifact(name), self.path)

    def verify(self, key: str | Path | None = None) -> "VerificationReport":
        """Check digests, the signature where a key is given, and golden outputs; see `tsexport.verify`."""
        from tsexport.bundles.verification import verify_bundle

        return verify_bundle(self, key=key)

    def close(self) -> None:
        """Remove the temporary folder, if there is one."""
        if self._remove:
            self._remove()

    def keep_until_gone(self, user: object) -> None:
        """Let the temporary folder live as long as `user` does (a session that may still open files in it)."""
        if self._remove and (kept := self._remove.detach()):
            weakref.finalize(user, kept[1], *kept[2])

    def __repr__(self) -> str:
        return f"Bundle({str(self.source)!r})"

    def _read(self, name: str) -> bytes:
        return read_plain(self.path / name, what=f"{name} of the bundle {self.name}", most_bytes=_MAX_JSON_BYTES)


def open_bundle(path: str | Path, key: str | Path | None = None) -> Bundle:
    """Open a bundle: a folder, or a .tar, .tar.gz or .zip of one (unpacked into a temporary folder).

    Only the manifest is read; nothing is checked against digests yet (see `Bundle.verify`).

    Args:
        path: of the folder or archive.
        key: a PEM file with the Ed25519 public key that the bundle must be signed by; told before anything is read.

    Raises:
        BundleError: it holds no manifest.json or a damaged one, the archive is damaged or not safe to unpack, or it is
            not signed by that key.
        UsageError: nothing is there, it is neither a folder nor such an archive, or the key cannot be used.
        MissingDependencyError: a key is given, and cryptography is not installed; names the pip command.
    """
    source = Path(path)
    try:
        mode = source.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"there is no bundle {source}: {reason}") from None
    if not _is_text(source.resolve()):
        raise UsageError(f"the path of {source} is not UTF-8, which runtimes need", next_step="rename or move it")
    if stat.S_ISDIR(mode):
        _require_manifest(source)
        return _checked(Bundle(source.resolve(), source.resolve()), key)
    if not is_archive(source) or not stat.S_ISREG(mode):
        raise UsageError(f"{source} is no bundle; a bundle is a folder or a file that ends in {', '.join(SUFFIXES)}")
    return _open_archive(source, key)


def _checked(bundle: Bundle, key: str | Path | None) -> Bundle:
    if key is not None:
        check_signature(bundle.path, key)
    _ = bundle.manifest
    return bundle


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _require_manifest(folder: Path) -> None:
    try:
        there = (folder / MANIFEST).exists()
    except OSError as error:
        raise BundleError(f"{folder} cannot be looked into: {error.strerror}") from None
    if not there:
        raise BundleError(f"{folder} holds no {MANIFEST}; it is no bundle")


def _open_archive(source: Path, key: str | Path | None) -> Bundle:
    temporary = Path(tempfile.mkdtemp(prefix="tsexport-"))
    try:
        unpack(source, temporary)
        return _checked(Bundle(_bundle_root(temporary, source), source, temporary), key)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _bundle_root(folder: Path, source: Path) -> Path:
    """Return the folder with the manifest: the unpacked one, or its only folder."""
    if (folder / MANIFEST).exists():
        return folder
    inside = list(folder.iterdir())
    nested = [path.name for path in inside if path.is_file() and is_archive(path)]
    if nested:
        raise BundleError(
            f"{source} holds another archive, {nested[0]}; archives within archives are not unpacked",
            next_step="unpack it, and give the archive in it",
        )
    if len(inside) == 1 and (inside[0] / MANIFEST).exists():
        return inside[0]
    raise BundleError(f"{source} holds no bundle: {MANIFEST} is neither at its top nor in its only folder")
