"""Two builds of the same thing at once: nothing is made twice, both succeed, and both bundles are the same."""

from pathlib import Path

import pytest

from tsexport.bundles.bundle import open_bundle

BUILDER = Path(__file__).with_name("counting_build.py")
pytestmark = pytest.mark.slow


def start(room, made, name, *more):
    return room.start("--name", name, *more, program=(str(BUILDER), str(made)))


def outside_measurements(bundle):
    """Return the lines of SHA256SUMS whose files hold no name of the bundle and no choice by speed."""
    lines = (bundle / "SHA256SUMS").read_text().splitlines()
    return [line for line in lines if line.partition("  ")[2].startswith(("artifacts/onnx-fp32", "golden/"))]


def test_two_builds_at_once_make_nothing_twice(room):
    made = room.root / "made.txt"
    running = [start(room, made, name) for name in ("one", "two")]
    ended = [process.communicate(timeout=1800) for process in running]
    for process, (_, stderr) in zip(running, ended, strict=True):
        assert process.returncode == 0, stderr
    stages = made.read_text().splitlines()
    assert len(stages) == len(set(stages)), "a stage was made twice"
    assert any("waiting for it" in stderr for _, stderr in ended), "the two never wanted the same stage at once"
    bundles = [room.output / name for name in ("one", "two")]
    for bundle in bundles:
        with open_bundle(bundle) as opened:
            assert opened.verify()
    assert outside_measurements(bundles[0]) == outside_measurements(bundles[1]) != []
    assert room.hidden() == []


def test_two_builds_of_one_bundle_at_once(warm, tmp_path):
    """One of them finds the other's bundle, or both have written it with --force: it is whole either way."""
    running = [start(warm, tmp_path / "made.txt", "one", "--force") for _ in range(2)]
    for process in running:
        _, stderr = process.communicate(timeout=1800)
        assert process.returncode == 0, stderr
    with open_bundle(warm.output / "one") as bundle:
        assert bundle.verify()
    assert warm.hidden() == []
