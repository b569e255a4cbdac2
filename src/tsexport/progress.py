"""Progress of long work: the steps on stderr as they begin and end, with an estimate of the time left.

The estimate is what the same steps took in the last build of the same model and target on this machine (kept beside
the cache), or a first guess; steps that were reused from the cache take no time, and the estimate shrinks as they
turn out so.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from tsexport.codec import write_whole


@dataclass
class Step:
    """One step while it runs: `say` shows what is being done, `reused` marks that it came from the cache."""

    name: str
    progress: "Progress"
    reused: bool = False

    def say(self, what: str, fraction: float | None = None) -> None:
        self.progress._show(self, what, fraction)

    def expect(self, seconds: float) -> None:
        """Replace the estimate of how long this step still takes."""
        self.progress._expect(self, seconds)


@dataclass
class Progress:
    """Steps of a build in order.  `expected_s` are their expected seconds by name; quiet shows nothing.

    `around` gives what every step of that name runs in; entering and leaving it does not count as the step's time.
    `clock` gives seconds; one that leaves waiting out leaves it out of the steps.
    """

    steps: Sequence[tuple[str, float]]
    memory: Path | None = None
    quiet: bool = False
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    around: Callable[[str], contextlib.AbstractContextManager[None]] = lambda name: contextlib.nullcontext()
    clock: Callable[[], float] = time.perf_counter
    seconds: dict[str, float] = field(default_factory=dict)
    reused: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._expected = dict(self.steps)
        self._running: tuple[str, float] | None = None
        self._live = not self.quiet and self.stream.isatty()
        if self.memory is not None:
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):  # missing, or damaged in any way
                known = json.loads(self.memory.read_text()) if self.memory.is_file() else {}
                self._expected.update({k: float(v) for k, v in known.items() if k in self._expected})

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Run one step: its time is kept, and shown when it ends."""
        current = Step(name, self)
        with self.around(name):
            self._running = (name, self.clock())
            self._show(current, "", None)
            try:
                yield current
                spent = self.clock() - self._running[1]
            except BaseException:
                self._clear()  # the error has the line to itself
                raise
            finally:
                self._running = None
        self.seconds[name] = self.seconds.get(name, 0.0) + spent
        if current.reused:
            self.reused.add(name)
        self._end(current, spent)

    def remember(self) -> None:
        """Keep the times of steps that were really done, for the next estimate."""
        if self.memory is None:
            return
        done = {name: spent for name, spent in self.seconds.items() if name not in self.reused}
        with contextlib.suppress(OSError):
            write_whole(self.memory, json.dumps({**self._expected, **done}))

    def left_s(self) -> float:
        """Return the expected seconds of the steps that have not ended, without what the running one has taken."""
        left = {name: expected for name, expected in self._expected.items() if name not in self.seconds}
        if self._running is not None and self._running[0] in left:
            name, started = self._running
            left[name] = max(0.0, left[name] - (self.clock() - started))
        return sum(left.values())

    def seconds_so_far(self) -> dict[str, float]:
        """Return the seconds of every step that has ended, and of the one that is running up to now."""
        if self._running is None:
            return dict(self.seconds)
        name, started = self._running
        return {**self.seconds, name: self.seconds.get(name, 0.0) + self.clock() - started}

    def _expect(self, step: Step, seconds: float) -> None:
        if self._running is not None and step.name in self._expected:
            self._expected[step.name] = self.clock() - self._running[1] + max(0.0, seconds)

    def _label(self, step: Step) -> str:
        names = list(self._expected)
        place = f"[{names.index(step.name) + 1:2}/{len(names)}] " if step.name in self._expected else ""
        return f"{place}{step.name}"

    def _show(self, step: Step, what: str, fraction: float | None) -> None:
        if self.quiet or not self._live:
            return
        part = f" {fraction:4.0%}" if fraction is not None else ""
        text = f"{self._label(step)}{': ' + what if what else ''}{part} (about {duration(self.left_s())} left)"
        self.stream.write(f"\r\x1b[2K{text[:110]}")
        self.stream.flush()

    def _clear(self) -> None:
        if self._live:
            self.stream.write("\r\x1b[2K")
            self.stream.flush()

    def _end(self, step: Step, spent: float) -> None:
        if self.quiet:
            return
        how = "reused" if step.reused else duration(spent)
        left = self.left_s()
        rest = f", about {duration(left)} left" if left > 0 else ""
        start = "\r\x1b[2K" if self._live else ""
        self.stream.write(f"{start}{self._label(step)}: {how}{rest}\n")
        self.stream.flush()


def duration(seconds: float) -> str:
    """Return seconds as a person says them: 0.4 s, 12 s, 3 min 5 s."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
