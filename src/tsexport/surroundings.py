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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tsexport.errors import TsexportError, UsageError
from tsexport.locks import leftovers, locked_folder, remove_folder

_FULL: Mapping[int, str] = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is too large",
}
_FULL_BELOW_BYTES = 2**20
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


def surroundings_explained(*no_faults: type[Exception]) -> contextlib.AbstractContextManager[None]:
    """Turn what fails for want of room, or of the temporary folder, into a UsageError.

    Args:
        no_faults: exceptions that say already what they are about, besides TsexportError.
    """
    return _explained(_what_is_wrong, no_faults)


def writing_explained(
    place: Path, unwritten: Callable[[str], UsageError], reason: Callable[[OSError], str | None]
) -> contextlib.AbstractContextManager[None]:
    """Turn a failed write into a UsageError.

    Args:
        place: a folder on the disk that is written to.  Where only that of temporary files is full, it is not to blame.
        unwritten: gives the error for a reason.
        reason: what an error of the system says of what is written, besides a full disk; None where it is about
            something else.
    """

    def explain(error: Exception) -> UsageError | None:
        if not isinstance(error, OSError):
            # torch, onnx and openvino report a failed write in their own words, without an errno.
            return unwritten(_FULL[errno.ENOSPC]) if _is_full(place) else None
        found = _fullness(error) or reason(error)
        return None if found is None or _only_temporary_is_full(place) else unwritten(found)

    return _explained(explain)


@contextlib.contextmanager
def _explained(
    explain: Callable[[Exception], UsageError | None], no_faults: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Raise what `explain` makes of a failure in its place; where that is None, the failure itself."""
    said: tuple[type[Exception], ...] = (TsexportError, *no_faults)
    try:
        yield
    except said:
        raise
    except Exception as error:
        explained = explain(error)
        if explained is None:
            raise
        raise explained from error


def _fullness(error: OSError) -> str | None:
    """Return in words that a disk, a quota or a file is full; None where the error is another."""
    return None if error.errno is None else _FULL.get(error.errno)


def _only_temporary_is_full(place: Path) -> bool:
    """Return whether the temporary folder's disk is full and that of `place` is not: then `place` is not to blame."""
    with contextlib.suppress(OSError):
        return _is_full(Path(tempfile.gettempdir())) and not _is_full(place)
    return False


def _is_full(folder: Path) -> bool:
    """Return whether a folder's disk has no room to speak of; false where the folder is not there."""
    return folder.exists() and shutil.disk_usage(folder).free < _FULL_BELOW_BYTES


def _what_is_wrong(error: Exception) -> UsageError | None:
    """Return what is wrong around the command, and what to do; None where nothing is."""
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError as none:
        return UsageError(f"there is no folder for temporary files: {none.strerror}", next_step=_SET_TMPDIR)
    if not temporary.is_dir():
        return UsageError(f"the folder for temporary files {temporary} was removed meanwhile", next_step=_AGAIN)
    if _is_full(temporary):
        return UsageError(f"the folder for temporary files {temporary} has no space left", next_step=_SET_TMPDIR)
    if isinstance(error, OSError) and (reason := _fullness(error)):
        return UsageError(
            f"{error.filename or 'a file'} cannot be written: {reason}",
            next_step="free some space, and do it again",
        )
    return None
