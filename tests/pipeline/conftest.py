"""Whole builds of a small model, made once a session, and what builds in processes of their own need.

The small model is `patchtst-cpu` with one narrow layer: untrained, so it has the reference series and no checkpoint.
Measuring is kept short by `--seconds`, and repeated builds by `--selection`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import tsexport
from tsexport.bundles.bundle import Bundle, open_bundle

ROOT = Path(__file__).resolve().parent.parent.parent
SHARED = Path(os.environ.get("TSEXPORT_SHARED", ROOT.parent / "shared"))
FACTORIES = ROOT / "tests" / "models" / "factories"
SMALL = {"width": 16, "layers": 1, "feed_forward": 32, "heads": 2}
SMALL_OPTIONS = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
SECONDS = 0.4
PATIENCE_S = 1800.0
"""A whole build takes a minute; six were seen on a machine whose two cores had ten other programs to run."""
SHORT = ["--seconds", str(SECONDS), "--batch", "1"]


@dataclass(frozen=True)
class Run:
    """A command line that ran in a process of its own."""

    code: int
    stdout: str
    stderr: str


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "tsexport", *map(str, arguments)]


def run(*arguments: str | Path, cache: Path, cwd: Path | None = None, timeout: float = PATIENCE_S) -> Run:
    """Run `tsexport ARGUMENTS` with a cache of its own."""
    done = subprocess.run(
        command(*arguments),
        env={**os.environ, "TSEXPORT_CACHE": str(cache)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return Run(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Built:
    """The session's cold build: its cache, what it printed, and the bundle."""

    cache: Path
    ran: Run
    path: Path

    @property
    def bundle(self) -> Bundle:
        return open_bundle(self.path)

    @property
    def selection(self) -> Path:
        return self.path / "selection.json"

    @property
    def measurements(self) -> dict:
        (record,) = (path for path in (self.path / "measurements").glob("*.json"))
        return json.loads(record.read_text())


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Built:
    """`tsexport build patchtst-cpu --target cpu4-int8 --json` of the small model, with an empty cache."""
    folder = tmp_path_factory.mktemp("built")
    cache = folder / "cache"
    ran = run(
        "build", "patchtst-cpu", "--target", "cpu4-int8", "-o", folder / "dist", *SMALL_OPTIONS, "--json",
        "--seconds", SECONDS * 2, "--batch", "1", "--batch", "3", cache=cache,
    )  # fmt: skip
    assert ran.code == 0, ran.stderr
    return Built(cache, ran, folder / "dist" / "patchtst-cpu-cpu4-int8")


@pytest.fixture
def use_cache(built, monkeypatch):
    """Builds in this process use the session's cache."""
    monkeypatch.setenv("TSEXPORT_CACHE", str(built.cache))


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    """Builds in this process use an empty cache."""
    monkeypatch.setenv("TSEXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def one_selection(tmp_path_factory):
    """Write a selection.json that selects an fp32 artifact: then a build races nothing."""
    from tsexport.bundles.manifest import RankedArtifact, Selection, selection_text

    folder = tmp_path_factory.mktemp("selection")

    def write(artifact: str = "onnx-fp32", runtime: str = "onnxruntime") -> Path:
        path = folder / f"{artifact}-{runtime}.json"
        order = (RankedArtifact(artifact, runtime),)
        path.write_text(
            selection_text(Selection(1, artifact, runtime, "chosen by a test", artifact, {}, (), order, 1, (1,)))
        )
        return path

    return write


@pytest.fixture
def small_build(tmp_path, one_selection):
    """Build in this process, measuring for a moment; keywords as those of `tsexport.build`."""

    def build(model: str, target: str = "cpu4-fp32", *, races: bool = False, **options) -> Bundle:
        given = {"output": tmp_path / "dist", "batch": [1], "seconds": SECONDS, **options}
        if not races and "selection" not in given:
            given["selection"] = one_selection()
        return tsexport.build(model, target, **given)

    return build


@pytest.fixture
def arrays(tmp_path):
    """Write an .npz of arrays drawn from a normal distribution, [samples, *shape] each."""

    def write(name: str, samples: int, seed: int = 0, **shapes: Sequence[int]) -> Path:
        generator = np.random.default_rng(seed)
        path = tmp_path / name
        drawn = {key: generator.standard_normal((samples, *shape)).astype(np.float32) for key, shape in shapes.items()}
        np.savez(path, **drawn)
        return path

    return write


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"the public data and checkpoints are not in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def context_of():
    """Return a function that plans a build with --include-preprocessing, and returns its context."""
    from tsexport.options import BuildOptions
    from tsexport.pipeline import plan_build

    def plan(model, settings=None, **options):
        given = {"output": Path("dist"), "name": "prepared", "include_preprocessing": True, **options}
        return plan_build(BuildOptions(model, "cpu4-fp32", settings=settings or {}, **given)).context

    return plan
