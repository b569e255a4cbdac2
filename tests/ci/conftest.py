"""A git repository as a user's, with a base commit and a change, and the scripts of this project beside it."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Repository:
    """A git repository in a folder of its own."""

    path: Path

    def git(self, *arguments):
        identity = ("-c", "user.name=tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", *identity, *arguments], cwd=self.path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def commit(self, **files):
        """Write files (named with _ for .) and commit them; return the hash."""
        for name, text in files.items():
            (self.path / name.replace("_", ".")).write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", "a change")
        return self.git("rev-parse", "HEAD")

    def run(self, *command, **environment):
        """Run a command at the top, with this environment's tsexport first in PATH."""
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(("TSEXPORT_GATE", "GITHUB_", "CI_"))
        }
        path = os.pathsep.join([str(Path(sys.executable).parent), inherited["PATH"]])
        return subprocess.run(
            command, cwd=self.path, capture_output=True, text=True, env={**inherited, "PATH": path, **environment}
        )


@pytest.fixture
def repository(tmp_path):
    path = tmp_path / "theirs"
    path.mkdir()
    made = Repository(path)
    made.git("init", "--quiet", "--initial-branch=main")
    return made


@pytest.fixture
def changed(repository):
    """A branch with one change against main."""
    repository.commit(model_txt="base")
    repository.git("switch", "--quiet", "-c", "change")
    repository.commit(model_txt="candidate")
    return repository


@pytest.fixture
def gate():
    """Run ci/gate.sh in a repository; keywords are its variables without the prefix."""

    def run(repository, **variables):
        environment = {f"TSEXPORT_GATE_{key}": str(value) for key, value in variables.items() if key.isupper()}
        extra = {key: value for key, value in variables.items() if not key.isupper()}
        extra = {key.removeprefix("env_"): value for key, value in extra.items()}
        return repository.run("bash", str(ROOT / "ci/gate.sh"), **{"TSEXPORT_GATE_BASE": "main"} | environment | extra)

    return run


_MODEL = """
import torch
from torch import nn


class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        self.tsexport_inputs = {{"bars": ("batch", 8, 3)}}
        middle = [nn.Linear({width}, {width}) for _ in range({layers})]
        self.layers = nn.Sequential(nn.Linear(24, {width}), nn.ReLU(), *middle, nn.Linear({width}, 4))

    def forward(self, bars):
        return self.layers(bars.flatten(1))


def make():
    return Forecaster()
"""


@pytest.fixture
def tiny_model():
    """Return the text of a module whose `make` gives a model of linear layers."""
    return lambda width, layers: _MODEL.format(width=width, layers=layers)
