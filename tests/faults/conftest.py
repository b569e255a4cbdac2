"""Builds in processes of their own, in folders of their own, and what may be done to their surroundings here."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tsexport.bench.suites.fault_rounds import Place
from tsexport.bundles.bundle import open_bundle

NAME = "dlinear-cpu4-fp32"
BUILD = (
    "build", "dlinear", "--target", "cpu4-fp32", "--seconds", "0.05", "--batch", "1", "--formats", "onnx",
    "--runtime", "onnxruntime",
)  # fmt: skip
WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner", "--inh-caps=-all")


@dataclass(frozen=True)
class Ended:
    """A command that ran to its end."""

    code: int
    stdout: str
    stderr: str

    def refused(self, *words: str) -> bool:
        """Check that it ended as the contract has it, exit 2 with what was wrong and what to do; no traceback."""
        assert self.code == 2, self.stderr
        assert "Traceback" not in self.stderr
        error, _, next_step = self.stderr.partition("error: ")[2].partition("\n")
        for word in words:
            assert word in error, self.stderr
        assert next_step.strip(), f"it does not say what to do: {self.stderr}"
        return True


@dataclass(frozen=True)
class Room(Place):
    """A build's folders: where the bundle goes, the cache, and the folder for temporary files."""

    @property
    def bundle(self) -> Path:
        return self.output / NAME

    def start(
        self,
        *more: str,
        before: Sequence[str] = (),
        program: Sequence[str] = ("-m", "tsexport"),
        arguments: Sequence[str] = BUILD,
        **environment: str,
    ) -> "subprocess.Popen[str]":
        """Start a command, by default the build; `before` are words that run it under something."""
        output = ("-o", str(self.output)) if arguments[:1] == ("build",) else ()
        return subprocess.Popen(
            [*before, sys.executable, *program, *arguments, *output, *more],
            env={**self.environment(), **environment},
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A shell starts what runs in the background with SIGINT ignored, and that is inherited.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )

    def run(
        self, *more: str, before: Sequence[str] = (), arguments: Sequence[str] = BUILD, **environment: str
    ) -> Ended:
        """Run a command to its end."""
        with self.start(*more, before=before, arguments=arguments, **environment) as process:
            try:
                stdout, stderr = process.communicate(timeout=1800)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        return Ended(process.returncode, stdout, stderr)

    def builds_again(self, *more: str) -> bool:
        """Check that the next build succeeds, that its bundle is whole, and that nothing is left behind."""
        force = ("--force",) if self.bundle.exists() else ()
        ended = self.run(*force, *more)
        assert ended.code == 0, ended.stderr
        with open_bundle(self.bundle) as bundle:
            assert bundle.verify()
        assert self.hidden() == []
        return True


def make_room(root: Path) -> Room:
    room = Room(root)
    room.temporary.mkdir(parents=True)
    return room


@pytest.fixture
def room(tmp_path) -> Room:
    """Empty folders."""
    return make_room(tmp_path / "room")


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Room:
    """A room with a bundle and a full cache, which nothing may change."""
    room = make_room(tmp_path_factory.mktemp("faults") / "built")
    ended = room.run()
    assert ended.code == 0, ended.stderr
    return room


@pytest.fixture
def warm(room, built) -> Room:
    """A room with a full cache, and no bundle."""
    shutil.copytree(built.cache, room.cache)
    return room


@pytest.fixture
def small_disk(room):
    """Return a function that mounts a small tmpfs at a folder, and gives a function that makes it large."""
    mounted = []

    def mount(folder: Path, size: str):
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a small tmpfs is not permitted here (needs root)")
        mounted.append(folder)

        def enlarge():
            subprocess.run(["mount", "-o", "remount,size=1g", folder], check=True)

        return enlarge

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def without_rights() -> tuple[str, ...]:
    """Words before a command that take root's right to write everywhere from it; () where there is none to take."""
    if os.geteuid():
        return ()
    if shutil.which("setpriv") is None or subprocess.run([*WITHOUT_RIGHTS, "true"]).returncode:
        pytest.skip("root may write everywhere, and its rights cannot be taken away here (needs setpriv)")
    return WITHOUT_RIGHTS
