"""Locks between processes, which the kernel gives back when their process ends, however it ends; and files and folders
under temporary names that are told from leftovers by such a lock.

A lock is flock(2) on a file of its own (`holding`), or on what is being written itself (`writing_beside`,
`locked_folder`).  The file is made by who asks for the lock and removed by who gives it back;
who gets the lock of a file that was removed meanwhile asks again.  So a lock that nobody holds leaves no file, but for
one whose holder was killed.

No clock decides anything here: a lock is held or it is free, whatever the time is.  Where a file system has no locks
(some network file systems), or the file cannot be made, nothing is locked and everybody goes on.
"""

import contextlib
import fcntl
import os
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

LockState = Literal["held", "busy", "unlockable"]
_MAX_HOLDER_BYTES = 200
_TRIES = 1000
_WRITING = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.writing", re.DOTALL)


@contextlib.contextmanager
def holding(path: Path, waiting: Callable[[str], None] | None = None) -> Iterator[LockState]:
    """Hold the lock of a file while the body runs.

    A thread that holds it and asks again waits for itself, for ever.

    Args:
        path: of the lock's file, in a folder that is there.
        waiting: told who holds the lock ("process 12 on host"), once, where somebody does; then it is waited for.
            None does not wait.

    Yields:
        "held"; "busy" where another holds it and `waiting` is None; "unlockable" where there are no locks.
    """
    descriptor, state = _acquire(path, waiting)
    try:
        yield state
    finally:
        if descriptor is not None:
            _release(descriptor, path)


def _acquire(path: Path, waiting: Callable[[str], None] | None) -> tuple[int | None, LockState]:
    for _ in range(_TRIES):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError:
            return None, "unlockable"
        try:
            state = _lock(descriptor, waiting)
        except BaseException:  # an interrupt while waiting
            os.close(descriptor)
            raise
        if state == "held" and is_at(descriptor, path):
            _sign(descriptor)
            return descriptor, state
        if state == "unlockable" and not os.fstat(descriptor).st_size:  # nobody has signed it
            _unlink(descriptor, path)
        os.close(descriptor)
        if state != "held":
            return None, state
    return None, "unlockable"  # a file system that gives a file another number each time


def _release(descriptor: int, path: Path) -> None:
    _unlink(descriptor, path)
    with contextlib.suppress(OSError):
        # Not by closing alone: a process that was forked meanwhile has the same open file.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _unlink(descriptor: int, path: Path) -> None:
    with contextlib.suppress(OSError):
        if is_at(descriptor, path):
            path.unlink()


@contextlib.contextmanager
def writing_beside(path: Path) -> Iterator[tuple[int, Path]]:
    """Give an empty file beside `path`, as (descriptor, hidden name); at the end it is removed unless it was renamed.

    What killed processes left of theirs in that folder is removed first.

    Raises:
        OSError: the folder is not there, or cannot be written to.
    """
    for left, _ in leftovers(path.parent, _WRITING):
        with contextlib.suppress(OSError):  # a folder of that name among them
            left.unlink()
    descriptor, temporary = _locked(lambda: _open_new(path.with_name(f".{path.name}.{_unique()}.writing")))
    try:
        yield descriptor, temporary
    finally:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked_folder(name_of: Callable[[str], Path]) -> Iterator[Path]:
    """Make a folder and hold its lock; `name_of` gives its path for a part of a name that is unique ("12-0123abcd").

    Raises:
        OSError: it cannot be made.
    """
    descriptor, path = _locked(lambda: _make_new(name_of(_unique())))
    try:
        yield path
    finally:
        os.close(descriptor)


def leftovers(folder: Path, names: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
    """Yield what lies in a folder under such hidden names and no process holds, with the match; links never.

    Each is locked until the next one is asked for: whoever has just made it, and was about to lock it, waits for its
    removal and makes another.
    """
    for path in sorted(folder.glob(".*")):
        match = names.fullmatch(path.name)
        if match is None:
            continue
        descriptor = _lock_free(path)
        if descriptor is None:
            continue
        try:
            yield path, match
        finally:
            os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a folder as far as that is possible; an interrupt that comes meanwhile is raised when it is done."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:  # a second one is obeyed at once
        shutil.rmtree(folder, ignore_errors=True)
        raise


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock of a file or folder itself; true where that cannot be told."""
    descriptor = _lock_free(path)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def _lock_free(path: Path) -> int | None:
    """Lock a file or folder itself, and return its descriptor; None where a process holds it, or that is not known."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _unique() -> str:
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def _open_new(path: Path) -> tuple[int, Path]:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), path


def _make_new(path: Path) -> tuple[int, Path] | None:
    path.mkdir(mode=0o700)
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY), path
    except FileNotFoundError:  # somebody took it for a leftover
        return None


def _locked(make: Callable[[], tuple[int, Path] | None]) -> tuple[int, Path]:
    """Make and lock; again where somebody took it for a leftover before it was locked."""
    while True:
        made = make()
        if made is None:
            continue
        descriptor, path = made
        with contextlib.suppress(OSError):  # a file system without locks: then nobody removes it either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if is_at(descriptor, path):
            return descriptor, path
        os.close(descriptor)


def _lock(descriptor: int, waiting: Callable[[str], None] | None) -> LockState:
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                return "busy"
            waiting(_holder(descriptor))
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return "unlockable"
    return "held"


def is_at(descriptor: int, path: Path) -> bool:
    """Return whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False


def _sign(descriptor: int) -> None:
    """Write who holds the lock into its file, for who waits and for who looks."""
    with contextlib.suppress(OSError):  # a full disk: the lock is held all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)


def _holder(descriptor: int) -> str:
    with contextlib.suppress(OSError):
        text = os.pread(descriptor, _MAX_HOLDER_BYTES, 0).decode(errors="replace").strip()
        if text.isprintable() and text:
            return text
    return "another process"
