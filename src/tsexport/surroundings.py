"""What a command needs around it, a temporary folder and room on its disks, and what is said where it is gone.

A command gets a temporary folder of its own, `.tsexport-<process>-<random>` in $TMPDIR, and so do the processes that it
starts.  It is locked while the command runs and removed at its end; what a kill leaves of it is removed by the next
command.  Libraries report a failed write in their own words, without an errno, so the disks themselves are looked at.
"""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tsexport.errors import TsexportError, UsageError
from tsexport.locks import leftovers, locked_folder, remove_folder

FULL: Mapping[int, str] = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is too large",
}
FULL_BELOW_BYTES = 2**20
"""A disk with less room than this counts as full where something failed."""
_SET_TMPDIR = "free some space there, or set TMPDIR to a folder that can be written to"
_AGAIN = "do it again; TMPDIR names another folder"
_OURS = re.compile(r"\.tsexport-\d+-[0-9a-f]{8}")


@contextlib.contextmanager
def own_temporary_folder() -> Iterator[None]:
    """Let temporary files of this process, and of those that it starts, lie in a folder of its own while the body runs.

    Without a folder to make it in, the body runs all the same: most commands need none.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            parent = Path(tempfile.gettempdir())
            _remove_leftovers(parent)
            folder = stack.enter_context(locked_folder(lambda part: parent / f".tsexport-{part}"))
            stack.callback(remove_folder, folder)
            stack.enter_context(_temporary_folder_is(folder))
        yield


@contextlib.contextmanager
def _temporary_folder_is(folder: Path) -> Iterator[None]:
    before, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
        del os.environ["TMPDIR"]
        if variable is not None:
            os.environ["TMPDIR"] = variable


def _remove_leftovers(parent: Path) -> None:
    for path, _ in leftovers(parent, _OURS):
        with contextlib.suppress(FileNotFoundError):  # another command was faster
            if path.stat().st_uid == os.geteuid():
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def surroundings_explained(*no_faults: type[Exception]) -> Iterator[None]:
    """Turn what fails for want of room, or of the temporary folder, into a UsageError.

    Args:
        no_faults: exceptions that say already what they are about, besides TsexportError.
    """
    said: tuple[type[Exception], ...] = (TsexportError, *no_faults)
    try:
        yield
    except said:
        raise
    except Exception as error:
        explained = _explained(error)
        if explained is None:
            raise
        raise explained from error


def only_temporary_is_full(place: Path) -> bool:
    """Return whether the temporary folder's disk is full and that of `place` is not: then `place` is not to blame."""
    with contextlib.suppress(OSError):
        return is_full(Path(tempfile.gettempdir())) and not is_full(place)
    return False


def is_full(folder: Path) -> bool:
    """Return whether a folder's disk has no room to speak of; false where the folder is not there."""
    return folder.exists() and shutil.disk_usage(folder).free < FULL_BELOW_BYTES


def _explained(error: Exception) -> UsageError | None:
    """Return what is wrong around the command, and what to do; None where nothing is."""
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError as none:
        return UsageError(f"there is no folder for temporary files: {none.strerror}", next_step=_SET_TMPDIR)
    if not temporary.is_dir():
        return UsageError(f"the folder for temporary files {temporary} was removed meanwhile", next_step=_AGAIN)
    if is_full(temporary):
        return UsageError(f"the folder for temporary files {temporary} has no space left", next_step=_SET_TMPDIR)
    if isinstance(error, OSError) and error.errno is not None and error.errno in FULL:
        return UsageError(
            f"{error.filename or 'a file'} cannot be written: {FULL[error.errno]}",
            next_step="free some space, and do it again",
        )
    return None
