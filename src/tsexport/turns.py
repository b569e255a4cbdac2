"""Turns on one machine: who measures is alone, all others work at the same time.

A latency that was taken while another build exported a model says little.  So every build holds a shared turn while it
works, and an exclusive one while it measures; `bench`, `compare` and the device kit on a worker measure in an exclusive
turn too.  Turns are locks of the kernel (flock) on two files below the cache:

    <cache>/turns/<machine>/room        held shared by who works, exclusively by who measures
    <cache>/turns/<machine>/turnstile   passed by who wants into the room; who waits to measure holds it, so that
                                        nobody who works goes in before: a measurement never waits for more than what
                                        is running

The kernel gives a lock back when its process ends, however it ends.  `<machine>` is the running kernel's id, so that
machines that share a cache over a network do not wait for each other, and containers on one machine do.

A build leaves the room while it asks the cache for a stage, and is back in it while it makes one (`CacheInTurns`): two
builds that want the same stage wait for each other outside, so nobody in the room waits for somebody out of it, and
who waits to measure gets its turn between two stages.

Limits: only processes of tsexport with the same cache folder see each other.  Where the files cannot be made or locked,
there are no turns, and one line says so.
"""

import contextlib
import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from tsexport.cache import Cache, Cached, default_root

T = TypeVar("T")
Held = Literal["", "shared", "exclusive"]
TOLD_AFTER_SECONDS = 1.0
_POLL_SECONDS = 0.02
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LONGEST_NOTE_BYTES = 300


def machine_name() -> str:
    """Return what is the same for all processes that share this machine's processors: the id of the running kernel."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:  # not Linux
        return platform.node() or "machine"


class Turns:
    """The turns of one build, or of one command that measures; for one thread."""

    def __init__(self, root: Path | None = None, say: Callable[[str], None] = lambda line: None) -> None:
        """Hold no turn yet.

        Args:
            root: the cache folder; None for no turns at all.
            say: told once when there can be no turns, and when one is waited for longer than a second.
        """
        self._root, self._say = root, say
        self._held: Held = ""
        self._room: int | None = None
        self._useless = False
        self._waited_s = 0.0

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What a process inherits that is to keep this turn until it ends, even where this one dies before."""
        return () if self._room is None else (self._room,)

    def clock(self) -> float:
        """Return the seconds of `time.perf_counter` without those in which a turn was waited for."""
        return time.perf_counter() - self._waited_s

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold a shared turn: others work too, and nobody measures."""
        with self._holding("shared", "to go on"):
            yield

    @contextmanager
    def measuring(self, what: str) -> Iterator[None]:
        """Hold an exclusive turn in place of a shared one, which comes back afterwards.

        Args:
            what: is measured, for those who wait meanwhile; a step's name, say.
        """
        with self._holding("exclusive", what):
            yield

    @contextmanager
    def away(self) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
        """Give the turn back, to wait for what another build may be making; gives how to hold it again meanwhile."""
        held = self._held
        with self._holding("", "to go on"):
            yield lambda: self._holding(held, "to go on")

    @contextmanager
    def _holding(self, wanted: Held, purpose: str) -> Iterator[None]:
        before = self._held
        if wanted == before or self._useless or self._root is None:
            yield
            return
        try:
            self._change(wanted, purpose)
            yield
        except Exception:
            self._change(before, "to go on")
            raise
        except BaseException:  # an interrupt waits for nobody
            self._leave()
            raise
        else:
            self._change(before, "to go on")

    def _change(self, wanted: Held, purpose: str) -> None:
        self._leave()
        if not wanted or self._useless:
            return
        try:
            self._enter(wanted, purpose)
        except OSError as error:
            self._leave()
            self._useless = True
            self._say(
                f"builds that run at the same time may disturb what is measured: {self._root} takes no locks "
                f"({error.strerror})"
            )

    def _enter(self, wanted: Held, purpose: str) -> None:
        folder = self._folder
        folder.mkdir(parents=True, exist_ok=True)
        exclusive = wanted == "exclusive"
        how = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        began = time.monotonic()
        turnstile = _open(folder / "turnstile")
        try:
            self._wait_for(turnstile, how, began, purpose)
            self._room = _open(folder / "room")
            self._wait_for(self._room, how, began, purpose)
        finally:
            os.close(turnstile)
        self._held = wanted
        # Whoever is in knows that nobody else measures: a note that is there is of a process that was killed.
        _write_note(self._room, f"process {os.getpid()} measures {purpose}" if exclusive else "")
        self._waited_s += time.monotonic() - began

    def _wait_for(self, descriptor: int, how: int, began: float, purpose: str) -> None:
        """Take a lock: look for it now and then for a second, then say what is waited for and wait."""
        while True:
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() - began >= TOLD_AFTER_SECONDS:
                    break
            time.sleep(_POLL_SECONDS)
        self._say(f"waiting for a turn on this machine ({purpose}): {self._who()}")
        fcntl.flock(descriptor, how)

    def _who(self) -> str:
        note = _read_note(self._folder / "room")
        return note or "other builds are at work, and end their stages first"

    @property
    def _folder(self) -> Path:
        assert self._root is not None, "without a root nothing is held"
        return self._root / "turns" / machine_name()

    def _leave(self) -> None:
        measured, self._held = self._held == "exclusive", ""
        if self._room is not None:
            room, self._room = self._room, None
            if measured:
                _write_note(room, "")
            os.close(room)


def measuring_alone(what: str, say: Callable[[str], None]) -> contextlib.AbstractContextManager[None]:
    """Return an exclusive turn for a command that measures and does nothing else.

    Args:
        what: is measured.
        say: told once when there can be no turns, and when one is waited for longer than a second.
    """
    return Turns(default_root(), say).measuring(what)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _write_note(room: int, note: str) -> None:
    with contextlib.suppress(OSError):  # it only informs
        if note or os.fstat(room).st_size:
            os.ftruncate(room, 0)
            os.pwrite(room, note.encode()[:_LONGEST_NOTE_BYTES], 0)


def _read_note(path: Path) -> str:
    """Return what the one who measures says of itself; "" where nobody measures."""
    try:
        return path.read_bytes()[:_LONGEST_NOTE_BYTES].decode(errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True)
class CacheInTurns(Cache):
    """A cache whose stages are made in a turn, and looked up and waited for outside of it."""

    turns: Turns = field(default_factory=Turns, compare=False)

    def stage(self, name: str, inputs: Mapping[str, Any], kind: type[T], produce: Callable[[Path], T]) -> Cached[T]:
        """Return a stage as `Cache.stage` does."""
        with self.turns.away() as back:

            def produce_in_turn(folder: Path) -> T:
                with back():
                    return produce(folder)

            return super().stage(name, inputs, kind, produce_in_turn)
