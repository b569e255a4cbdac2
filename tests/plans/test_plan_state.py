"""What a plan remembers: a bundle is there only as long as its inputs and its files are what they were."""

import hashlib
import json
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tsexport.bundles.checksums import seal, seal_measurements
from tsexport.cache import code_digest
from tsexport.errors import UsageError
from tsexport.options import BuildOptions
from tsexport.pipeline import plan_build
from tsexport.plans.state import (
    FOLDER,
    StatePlace,
    begin,
    fail,
    finish,
    inputs_digest,
    is_there,
    require_replaceable,
)

INPUTS = "a" * 64


@pytest.fixture
def place(bundle_folder):
    """The place of a bundle that a plan built from INPUTS."""
    place = StatePlace(bundle_folder.parent, bundle_folder.name)
    aside = bundle_folder.with_name("aside")
    bundle_folder.rename(aside)
    state = begin(place, INPUTS)
    aside.rename(bundle_folder)
    finish(place, state, {}, 3.25)
    return place


def refusal(place):
    with pytest.raises(UsageError) as caught:
        require_replaceable(place)
    assert caught.value.next_step == "give --force to build it anew, or take it away"
    return caught.value.message


def test_a_bundle_that_was_built_from_the_same_inputs_is_there(place):
    assert is_there(place, INPUTS)
    assert not is_there(place, "b" * 64)
    require_replaceable(place)  # it is the plan's own, and other inputs replace it
    assert json.loads((place.output / FOLDER / "tiny-cpu4-int8.json").read_text())["seconds"] == 3.25


def test_what_is_attached_or_signed_is_no_change(place):
    (place.bundle / "measurements" / "device-0.json").write_text("{}")
    seal_measurements(place.bundle)
    (place.bundle / "SHA256SUMS.sig").write_text("a signature")
    assert is_there(place, INPUTS)


def changed(place):
    path = place.bundle / "README.md"
    path.write_text(path.read_text() + "more\n")


def changed_and_sealed(place):
    changed(place)
    seal(place.bundle)


def added(place):
    (place.bundle / "more.txt").write_text("more")


def taken_away(place):
    (place.bundle / "artifacts" / "tiny-fp32.onnx").unlink()


def without_sums(place):
    (place.bundle / "SHA256SUMS").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed, "was changed since the plan built it: "),
        (changed_and_sealed, "was changed since the plan built it: its SHA256SUMS is another one"),
        (added, "was changed since the plan built it: "),
        (taken_away, "was changed since the plan built it: "),
        (
            without_sums,
            "was changed since the plan built it: its SHA256SUMS cannot be read (No such file or directory)",
        ),
    ],
)
def test_a_bundle_that_was_changed_since_is_neither_taken_nor_replaced(place, change, message):
    change(place)
    assert not is_there(place, INPUTS)
    assert message in refusal(place)


def test_a_bundle_that_no_plan_built_is_neither_taken_nor_replaced(bundle_folder):
    place = StatePlace(bundle_folder.parent, bundle_folder.name)
    assert not is_there(place, INPUTS)
    assert refusal(place) == f"{bundle_folder} is there already, and no plan built it here"


def test_a_bundle_that_appeared_after_a_build_had_failed_is_not_the_plans(bundle_folder):
    aside = bundle_folder.with_name("aside")
    bundle_folder.rename(aside)
    place = StatePlace(bundle_folder.parent, bundle_folder.name)
    fail(place, begin(place, INPUTS), 1.0)
    require_replaceable(place)
    aside.rename(bundle_folder)
    assert "no plan built it here" in refusal(place)


def test_the_bundle_of_before_a_build_that_failed_is_still_the_plans(place):
    fail(place, begin(place, "b" * 64), 1.0)
    assert not is_there(place, INPUTS)
    require_replaceable(place)
    changed(place)
    assert "was changed since the plan built it" in refusal(place)


def test_what_a_killed_build_left_is_built_again(place):
    """Between the renaming of the bundle and the writing of its state: it is the plan's, and nobody vouches for it."""
    begin(place, INPUTS)
    assert not is_there(place, INPUTS)
    require_replaceable(place)


def test_sources_that_changed_since(place, tmp_path):
    source = tmp_path / "mine.py"
    source.write_text("width = 3")
    digest = hashlib.sha256(b"width = 3").hexdigest()
    finish(place, begin(place, INPUTS), {str(source): digest}, 1.0)
    assert is_there(place, INPUTS)
    source.write_text("width = 4")
    assert not is_there(place, INPUTS)
    source.unlink()
    assert not is_there(place, INPUTS)


@pytest.mark.parametrize("text", ["", "{}", '{"schema_version": 2}', "[1]", '{"schema_version": 1, "status": "built"}'])
def test_a_damaged_state_is_none(place, text):
    place.record.write_text(text)
    assert place.read() is None
    assert not is_there(place, INPUTS)
    assert "no plan built it here" in refusal(place)


def test_a_state_of_another_bundle_is_none(place):
    shutil.copy(place.record, place.record.with_name("other.json"))
    assert StatePlace(place.output, "other").read() is None


def test_one_process_at_a_time_builds_a_bundle(tmp_path):
    place = StatePlace(tmp_path, "tiny")
    code = (
        "import sys; from pathlib import Path; from tsexport.plans.state import StatePlace\n"
        "with StatePlace(Path(sys.argv[1]), 'tiny').locked():\n    print('in')\n"
    )
    held = ExitStack()
    held.enter_context(place.locked())
    with (
        held,
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other,
    ):
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(1.5)
        held.close()
        assert other.wait(300) == 0
        assert other.stdout.read() == "in\n"


# --- what a bundle depends on

LINEAR = BuildOptions("linear", "cpu4-fp32", Path("dist"), settings={"context_length": 8, "horizon": 4, "channels": 2})


def digest(options):
    return inputs_digest(plan_build(options))


def test_the_same_options_have_the_same_digest_wherever_the_bundle_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert digest(LINEAR) == digest(replace(LINEAR, output=tmp_path / "elsewhere", force=True))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"target": "cpu4-int8"},
        {"device": "avx2"},
        {"seconds": 1.0},
        {"batches": (1,)},
        {"name": "mine"},
        {"settings": {"context_length": 8, "horizon": 5, "channels": 2}},
        {"formats": ("onnx",)},
        {"metric": "mae"},
        {"max_degradation": 0.01},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_option_changes_the_digest(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    assert digest(LINEAR) != digest(replace(LINEAR, **change))


def test_the_content_of_files_changes_the_digest_and_their_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = {}
    for folder, seed in (("one", 1), ("other", 1), ("changed", 2)):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "data.npz"
        np.savez(path, series=np.random.default_rng(seed).standard_normal((40, 8, 2)).astype(np.float32))
        found[folder] = digest(replace(LINEAR, calibration=path))
    # np.savez writes no time, so equal arrays are equal files
    assert found["one"] == found["other"]
    assert found["one"] != found["changed"]


def test_code_and_tools_change_the_digest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = digest(LINEAR)
    monkeypatch.setattr("tsexport.plans.state.code_digest", lambda: code_digest() + "0")
    other = digest(LINEAR)
    monkeypatch.setattr("tsexport.plans.state.tool_versions", lambda: {"torch": "0"})
    assert len({before, other, digest(LINEAR)}) == 3
