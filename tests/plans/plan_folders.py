"""Folders with a plan in them, which is run as it is typed, in processes of their own; and what they left there.

`linear` for a GPU target is the quickest build there is: nothing is measured.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SHARED = """
[build]
output = "dist"
seconds = 0.05
batch = [1]
threads = 1
formats = ["onnx"]

[model]
context_length = 8
horizon = 4
channels = 2
"""
"""Options of all builds here: small models, and moments of measuring."""
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Ran:
    """A command line that ran."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self):
        return json.loads(self.stdout)

    @property
    def rows(self):
        return {row["name"] or f"{row['model']} {row['target']}": row for row in self.document["rows"]}

    @property
    def statuses(self):
        return {name: row["status"] for name, row in self.rows.items()}


@dataclass(frozen=True)
class Building:
    """A process that built a bundle, or tried to, and the one that started it."""

    pid: int
    parent: int


@dataclass(frozen=True)
class Folder:
    """A folder with a plan in it, and its cache."""

    root: Path
    cache: Path

    @property
    def dist(self) -> Path:
        return self.root / "dist"

    @property
    def state(self) -> Path:
        return self.dist / ".tsexport-plan"

    def write(self, text: str, name: str = "plan.toml") -> Path:
        path = self.root / name
        path.write_text(SHARED + text)
        return path

    def start(self, *arguments: str | Path, **environment: str) -> "subprocess.Popen[str]":
        """Start `tsexport build --plan plan.toml ARGUMENTS` here."""
        command = [sys.executable, "-m", "tsexport", "build", "--plan", "plan.toml", *map(str, arguments)]
        return subprocess.Popen(
            command,
            cwd=self.root,
            env={**os.environ, "TSEXPORT_CACHE": str(self.cache), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str | Path, **environment: str) -> Ran:
        return ended(self.start(*arguments, **environment))

    def log(self, name: str) -> str:
        return (self.state / f"{name}.log").read_text()

    def builds_of(self, name: str) -> int:
        """Return how often a process built a bundle to the end."""
        return self.log(name).count("\n--- built in ")

    def builders(self, name: str) -> list[Building]:
        """Return the processes that built a bundle or tried to, in order."""
        lines = self.log(name).splitlines()
        return [Building(int(one[2]), int(one[5])) for one in map(str.split, lines) if one[:2] == ["---", "process"]]

    def made_steps(self, name: str) -> dict[str, int]:
        """Return how often each step was done for a bundle, not taken from the cache."""
        steps: dict[str, int] = {}
        for line in self.log(name).splitlines():
            if line.startswith("[") and not line.split(": ")[1].startswith("reused"):
                step = line.partition("] ")[2].split(":")[0]
                steps[step] = steps.get(step, 0) + 1
        return steps

    def leftovers(self) -> list[str]:
        """Return hidden folders that a build left beside the bundles."""
        return [path.name for path in self.dist.glob(".*") if path.name != ".tsexport-plan"]

    def wait_for_log(self, name: str, text: str) -> None:
        """Wait until a building process has written a text."""
        wait_until(lambda: (self.state / f"{name}.log").exists() and text in self.log(name), f"{text!r} of {name}")


def ended(process: "subprocess.Popen[str]") -> Ran:
    stdout, stderr = process.communicate(timeout=3 * PATIENCE_S)
    return Ran(process.returncode, stdout, stderr)


def wait_until(condition, what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it ended, and was waited for, between the two looks
        return False
