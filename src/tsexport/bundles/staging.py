"""Writing a bundle so that there is never half of one.

Everything is written into a hidden folder beside the destination, synced to disk, and renamed.  With `force` the old
bundle changes places with the new one in one step (renameat2 with RENAME_EXCHANGE; where the file system has none, two
renames, and the next build puts the old one back if it was killed between them).

A bundle that stands is changed in the same way: what is changed lies in a hidden copy beside it, whose other files are
links to the old ones, and the two change places.

The hidden folder's name carries the process id and a random part, and its process holds a lock on it.  The kernel gives
the lock back when the process ends, however it ends; a folder whose lock is free is a leftover, and what next writes to
that place removes it.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tsexport.bundles.checksums import SUMS, seal
from tsexport.bundles.manifest import MANIFEST
from tsexport.errors import UsageError
from tsexport.locks import is_at, leftovers, locked_folder, remove_folder
from tsexport.surroundings import writing_explained

_HIDDEN = re.compile(r"\.(?P<name>.+)\.\d+-[0-9a-f]{8}\.(?P<kind>building|replaced)")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}
_FORBIDDEN = {errno.EROFS: "the file system is read-only", errno.EACCES: "not permitted", errno.EPERM: "not permitted"}


@contextmanager
def staged_bundle(destination: Path, *, force: bool) -> Iterator[Path]:
    """Give a folder to write a bundle into; on a clean exit seal it (SHA256SUMS) and put it at `destination`.

    Where the body raises, the folder is removed and what stood at `destination` stays as it was.

    Args:
        destination: the bundle's folder; its parent folders are made.
        force: replace a bundle that stands there.

    Raises:
        UsageError: a bundle stands there and `force` is not given, something else stands there, the disk is full, or
            the folder cannot be written to.
    """
    destination = destination.parent.resolve() / destination.name
    with contextlib.ExitStack() as stack:
        with _explained(destination):
            check_destination(destination, force)
            destination.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(destination.parent)
            staging = stack.enter_context(_hidden_beside(destination))
        with _explained(destination):
            yield staging
            seal(staging)
            _set_permissions(staging)
            _sync_tree(staging)
            with locked(destination.parent):
                check_destination(destination, force)
                _publish(staging, destination)


@contextmanager
def edited_bundle(root: Path) -> Iterator[Path]:
    """Give a copy of a finished bundle to change; on a clean exit it takes the bundle's place in one step.

    The bundle's own lock is held meanwhile (see `locked`).  The copy's files are links to the bundle's where the file
    system has those: put others in their place, and never write into them.

    Args:
        root: the bundle's folder, with no link in its path.

    Raises:
        UsageError: another bundle took its place meanwhile.
        OSError: the folder that holds the bundle cannot be written to.
    """
    with locked(root) as descriptor, contextlib.ExitStack() as stack:
        remove_leftovers(root.parent)
        copy = stack.enter_context(_hidden_beside(root))
        shutil.copytree(root, copy, copy_function=_link, dirs_exist_ok=True)
        yield copy
        _sync_tree(copy)
        with locked(root.parent):
            if not is_at(descriptor, root):
                raise UsageError(
                    f"the bundle {root.name} was replaced meanwhile, and the new one is left as it is",
                    next_step="do it again, to the bundle that stands there now",
                )
            _publish(copy, root)


def _link(source: str, destination: str) -> str:
    try:
        os.link(source, destination, follow_symlinks=False)
    except OSError:  # a file system without links, or a file of somebody else
        return str(shutil.copy2(source, destination, follow_symlinks=False))
    return destination


def remove_leftovers(folder: Path) -> tuple[Path, ...]:
    """Remove the hidden folders of builds that no longer run, and return them.

    A bundle that was caught between two renames is put back instead.
    """
    handled = []
    with locked(folder):
        for path, match in leftovers(folder, _HIDDEN):
            if not path.is_dir():
                continue
            original = folder / match["name"]
            if match["kind"] == "replaced" and not os.path.lexists(original):
                path.rename(original)
            else:
                shutil.rmtree(path, ignore_errors=True)
            handled.append(path)
    return tuple(handled)


def check_destination(destination: Path, force: bool) -> None:
    """Raise where something stands at `destination` that may not be replaced.

    Raises:
        UsageError: a bundle without `force`, or anything else.
    """
    if destination.name.startswith(".") or not destination.name:
        raise UsageError(f"a bundle cannot be named {destination.name!r}; names do not begin with a dot")
    if not os.path.lexists(destination):
        return
    if destination.is_symlink() or not destination.is_dir():
        raise UsageError(f"{destination} is there already and is no folder", next_step="give another name with --name")
    if not force:
        raise UsageError(
            f"{destination} is there already", next_step="give --force to replace it, or another name with --name"
        )
    # --force means "replace my bundle", never "delete my folder".
    is_bundle = (destination / MANIFEST).is_file() and (destination / SUMS).is_file()
    if not is_bundle and any(destination.iterdir()):
        raise UsageError(
            f"{destination} is there already and holds something other than a bundle; --force replaces bundles only",
            next_step="move it away, or give another name with --name",
        )


def check_folder(folder: Path) -> None:
    """Raise where `folder` cannot hold bundles, before any work is done.

    Raises:
        UsageError: it, or the nearest one above that is there, is no folder or cannot be written to.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise UsageError(f"{there} is a file, and a folder is needed", next_step="name another folder with -o")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{there} cannot be written to", next_step="name another folder with -o")


@contextmanager
def _hidden_beside(destination: Path) -> Iterator[Path]:
    """Give an empty hidden folder beside a bundle; what lies under its name at the end is removed."""

    def name_of(part: str) -> Path:
        return destination.with_name(f".{destination.name}.{part}.building")

    with locked_folder(name_of) as staging:
        try:
            yield staging
        finally:
            # After an exchange this is the old bundle; after a plain rename there is nothing here any more.
            remove_folder(staging)


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the folder's lock for a moment, and give its descriptor; without locks on this file system, go on."""
    while True:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), folder.stat()):  # else another took its place meanwhile
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _publish(staging: Path, destination: Path) -> None:
    if not destination.exists():
        staging.rename(destination)
    elif not _exchange(staging, destination):
        _replace_in_two_steps(staging, destination)
    _sync(destination.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; False where this kernel or file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _replace_in_two_steps(staging: Path, destination: Path) -> None:
    replaced = staging.with_name(staging.name.removesuffix("building") + "replaced")
    destination.rename(replaced)
    try:
        staging.rename(destination)
    except BaseException:
        replaced.rename(destination)
        raise
    replaced.rename(staging)  # a half-removed folder must not look like one that is worth putting back


def _set_permissions(root: Path) -> None:
    """Make everything readable by all: some exporters write files that only their owner can read."""
    for path in (root, *root.rglob("*")):
        executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
        path.chmod(0o755 if executable else 0o644)


def _sync_tree(root: Path) -> None:
    for path in (*root.rglob("*"), root):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explained(destination: Path) -> contextlib.AbstractContextManager[None]:
    """Turn a full disk and a folder that cannot be written to into a UsageError."""
    return writing_explained(destination.parent, partial(_unwritten, destination), partial(_reason, destination.parent))


def _reason(folder: Path, error: OSError) -> str | None:
    """Return why nothing can be written to `folder`; None where the error is about something else."""
    concerns_us = str(error.filename or "").startswith(str(folder))
    if concerns_us and error.errno in _FORBIDDEN:
        return f"{error.filename}: {_FORBIDDEN[error.errno]}"
    if concerns_us and isinstance(error, FileExistsError | NotADirectoryError):
        return f"{error.filename} is a file, and a folder is needed"
    # Somebody else put something there between the check and the rename.
    return "it appeared meanwhile" if error.errno == errno.ENOTEMPTY else None


def _unwritten(destination: Path, reason: str) -> UsageError:
    return UsageError(
        f"the bundle {destination.name} could not be written to {destination.parent}: {reason}",
        next_step="free some space or name another folder with -o; what stood there before is unchanged",
    )
