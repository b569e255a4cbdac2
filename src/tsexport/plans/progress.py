"""Progress of a plan on stderr: a line for each build that begins or ends, and on a terminal what is running now.

The time left is estimated from what the steps of each build took in its last build here, or a first guess, over as many
builds as run at once.
"""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from tsexport.plans.process import last_lines
from tsexport.plans.records import Row
from tsexport.progress import duration

_WIDTH = 118


@dataclass
class PlanProgress:
    """What is said of a plan while it runs.

    Attributes:
        expected_s: of every build that is to be done, by the bundle's path.
        logs: the file that each build's process writes to, by the bundle's path.
        at_once: how many builds run at once.
        quiet: nothing is said.
    """

    expected_s: Mapping[str, float]
    logs: Mapping[str, Path]
    at_once: int
    quiet: bool = False
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    _began: dict[str, float] = field(default_factory=dict, init=False)
    _done: set[str] = field(default_factory=set, init=False)
    _shown: str = field(default="", init=False)

    def told(self, path: str, row: Row | None) -> None:
        """Say that a build has begun, or with its row that it has ended."""
        name = Path(path).name
        if row is None:
            self._began.setdefault(path, time.monotonic())
            self._say(f"{self._place()} {name}: building")
            return
        self._began.pop(path, None)
        self._done.add(path)
        what = "failed: " + row.reason.split("\n")[0] if row.status == "failed" else row.status
        left = self.left_s()
        rest = f", about {duration(left)} left" if left > 0 else ""
        self._say(f"{self._place()} {name}: {what}, {duration(row.seconds)}{rest}")

    def note(self, path: str, text: str) -> None:
        """Say something of a build that has ended."""
        self._say(f"{self._place()} {Path(path).name}: {text}")

    def tick(self) -> None:
        """On a terminal, show what is running now."""
        if self.quiet or not self.stream.isatty():
            return
        running = "; ".join(f"{Path(path).name}: {_newest(self.logs.get(path))}" for path in self._began)
        text = f"{running} (about {duration(self.left_s())} left)"[:_WIDTH]
        if text != self._shown:
            self._shown = text
            self.stream.write(f"\r\x1b[2K{text}")
            self.stream.flush()

    def left_s(self) -> float:
        """Return the expected seconds until the last build ends."""
        now = time.monotonic()
        left = [
            max(0.0, expected - (now - self._began[path] if path in self._began else 0.0))
            for path, expected in self.expected_s.items()
            if path not in self._done
        ]
        return max([sum(left) / self.at_once, *left], default=0.0)

    def clear(self) -> None:
        """Take the line of what is running off the terminal."""
        if self._shown:
            self._shown = ""
            self.stream.write("\r\x1b[2K")
            self.stream.flush()

    def _place(self) -> str:
        return f"[{len(self._done):2}/{len(self.expected_s)} done]"

    def _say(self, line: str) -> None:
        if not self.quiet:
            self.clear()
            self.stream.write(f"{line}\n")
            self.stream.flush()


def _newest(log: Path | None) -> str:
    lines = last_lines(log, 1) if log is not None else []
    return lines[0].split(", about ")[0].lstrip("- ") if lines else "begins"
