"""What the tests of plans share: what every test of a plan that was run needs is run once a session."""

import shutil
import subprocess

import pytest
from clusters import Cluster
from plan_folders import Folder

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
    # As if builds had taken an hour here: however busy the machine is, time is left of what is not done.
    (place.cache / "times").mkdir(parents=True)
    for name in ("linear-t4-fp32", "dies-t4-fp32"):
        (place.cache / "times" / f"{name}.json").write_text('{"pack": 3600.0}')
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
        process.kill()
        process.communicate()


@pytest.fixture
def cluster(tmp_path):
    """A Dask scheduler without workers; what a test starts on it ends with the test."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    made = Cluster(folder)
    try:
        made.start_scheduler()
        yield made
    finally:
        made.stop()
