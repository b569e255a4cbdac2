"""The same inputs and the same selection give the same bytes, whatever differs around the build.

Two builds from empty caches, in processes of their own: other folders, other clocks, other hash seeds, other locales.
What may differ is `measurements/` and the report, whose list of digests lies in `measurements/`.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from pickled import pickles

from tsexport.bundles.bundle import open_bundle
from tsexport.types import FORMATS

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ("measurements/", "report.html")
MODEL = ["patchtst-cpu", "--set", "width=16", "--set", "layers=1", "--set", "feed_forward=32", "--set", "heads=2"]


@dataclass(frozen=True)
class Surroundings:
    """What should not matter.  The two time zones are 26 hours apart, so the local date always differs."""

    name: str
    time_zone: str
    hash_seed: str
    locale: str
    name_of_output: str


ONE = Surroundings("one", "Pacific/Kiritimati", "1", "C.UTF-8", "dist")
OTHER = Surroundings("other", "Etc/GMT+12", "2", "C", "deeper/and deeper/é")


def build(folder, surroundings, selection):
    """Build in a process of its own, with everything around it in a folder of its own; return the bundle's folder."""
    place = folder / surroundings.name
    for name in ("home", "tmp", "work"):
        (place / name).mkdir(parents=True)
    environment = {
        **os.environ, "TSEXPORT_CACHE": str(place / "cache"), "HOME": str(place / "home"), "TMPDIR": str(place / "tmp"),
        "TZ": surroundings.time_zone, "PYTHONHASHSEED": surroundings.hash_seed, "LC_ALL": surroundings.locale,
        "PYTHONUTF8": "1",
    }  # fmt: skip
    output = place / "work" / surroundings.name_of_output
    done = subprocess.run(
        [sys.executable, "-m", "tsexport", "build", *MODEL, "--target", "cpu4-fp32", "-o", output, "--batch", "1",
         "--batch", "4", "--seconds", "0.1", "--selection", selection, "--name", "again"],
        env=environment, cwd=place / "work", capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return output / "again"


def contents(folder):
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if not name.startswith(MEASURED)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("artifact", "runtime"),
    [("onnx-fp32", "onnxruntime"), ("openvino-fp32", "openvino"), ("torchscript-fp32", "torchscript")],
)
def test_two_builds_give_the_same_bytes(one_selection, tmp_path, artifact, runtime):
    selection = one_selection(artifact, runtime)
    first, second = (build(tmp_path, surroundings, selection) for surroundings in (ONE, OTHER))
    manifest = open_bundle(first).manifest
    assert {entry.format for entry in manifest.artifacts} == set(FORMATS)
    assert manifest.selected.artifact == artifact
    one, other = contents(first), contents(second)
    assert sorted(one) == sorted(other)
    assert [name for name in one if one[name] != other[name]] == []
    assert any(name.startswith("triton/") for name in one)
    served = {"triton/patchtst-cpu/1/model.pt"} if runtime == "torchscript" else set()
    assert pickles(first) == {"artifacts/torchscript-fp32.pt"} | served
    for name, content in one.items():
        for word in (str(tmp_path), str(ROOT), ONE.time_zone):
            assert word.encode() not in content, (name, word)
