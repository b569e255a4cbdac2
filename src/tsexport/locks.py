"""Locks between processes, which the kernel gives back when their process ends, however it ends.

A lock is flock(2) on a file of its own.  The file is made by who asks for the lock and removed by who gives it back;
who gets the lock of a file that was removed meanwhile asks again.  So a lock that nobody holds leaves no file, but for
one whose holder was killed.

No clock decides anything here: a lock is held or it is free, whatever the time is.  Where a file system has no locks
(some network file systems), or the file cannot be made, nothing is locked and everybody goes on.
"""

import contextlib
import fcntl
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

LockState = Literal["held", "busy", "unlockable"]
_MAX_HOLDER_BYTES = 200
_TRIES = 1000


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
        if state == "held" and _is_at(descriptor, path):
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
        if _is_at(descriptor, path):
            path.unlink()


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


def _is_at(descriptor: int, path: Path) -> bool:
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
