"""Plans of the smallest models, run as they are typed, in processes of their own.

`linear` for a GPU target is the quickest build there is: nothing is measured.  What every test of a plan that was run
needs is run once a session.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

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
PATIENCE_S = 120.0


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
    stdout, stderr = process.communicate(timeout=10 * PATIENCE_S)
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
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def pids_in(log: str) -> list[int]:
    """Return the processes that a log names."""
    return [int(line.split()[2]) for line in log.splitlines() if line.startswith("--- process ")]


FACTORIES = """
import os, signal
import torch

def dies(**settings):
    os.kill(os.getpid(), signal.SIGKILL)

def lives(**settings):
    torch.manual_seed(0)
    module = torch.nn.Linear(4, 3)
    module.example_inputs = {"x": torch.zeros(2, 4)}
    return module
"""


@pytest.fixture
def folder(tmp_path) -> Folder:
    """An empty folder with an empty cache."""
    return Folder(tmp_path, tmp_path / "cache")


@pytest.fixture(scope="session")
def first_run(tmp_path_factory):
    """The session's plan, run once: one that is built, one that cannot be, and one whose process dies."""
    root = tmp_path_factory.mktemp("plan")
    place = Folder(root, root / "cache")
    (root / "mine.py").write_text(FACTORIES)
    place.write(
        """
        [matrix]
        models = ["linear"]
        targets = ["t4-fp32", "t4-bf16"]
        [[builds]]
        model = "mine.py:dies"
        target = "t4-fp32"
        """
    )
    return place, place.run("--jobs", "2", "--json")


@pytest.fixture
def again(first_run, tmp_path) -> Folder:
    """A copy of the session's folder with all that was built, and its cache."""
    place, _ = first_run
    root = tmp_path / "again"
    shutil.copytree(place.root, root, ignore=shutil.ignore_patterns("cache"))
    return Folder(root, place.cache)


@pytest.fixture
def ending():
    """Give a list of processes that are ended at last, whatever happens."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()
