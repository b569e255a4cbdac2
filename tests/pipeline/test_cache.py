"""The cache: what makes another key, damage, two processes at once, kills, and folders that cannot be written."""

import errno
import json
import os
import shutil
import sys
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsexport import cache as module
from tsexport.bundles.manifest import DataRecord
from tsexport.cache import Cache, code_digest, default_root, digest_of, tool_versions
from tsexport.errors import ExportError, UsageError
from tsexport.targets import host_cpu
from tsexport.types import TensorSpec

MAKER = Path(__file__).with_name("stage_maker.py")
RESULT = DataRecord("made", "0" * 64, 1, "0")


@dataclass
class Maker:
    """Makes a stage and counts how often it really did."""

    cache: Cache
    made: int = 0

    def __call__(self, **inputs):
        def produce(folder):
            self.made += 1
            (folder / "part").mkdir()
            (folder / "part" / "data.bin").write_text("content")
            return RESULT

        return self.cache.stage("probe", inputs, DataRecord, produce)


@pytest.fixture
def make(tmp_path):
    return Maker(Cache(tmp_path / "cache"))


def entries(root):
    return sorted(path.name for path in (root / "probe").iterdir())


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_stage_is_made_once(make):
    first, second = make(source="a"), make(source="a")
    assert (first.reused, second.reused, make.made) == (False, True, 1)
    assert first.result == second.result == RESULT
    assert first.folder == second.folder
    assert (second.folder / "part" / "data.bin").read_text() == "content"


@pytest.mark.parametrize(
    "inputs",
    [
        {"source": "b"},
        {"source": "a", "more": ""},
        {"other": "a"},
        {"source": ["a"]},
        {"source": TensorSpec("a", "float32", ("batch",))},
        {"source": None},
    ],
)
def test_other_inputs_make_another_entry(make, inputs):
    make(source="a")
    assert not make(**inputs).reused
    assert make.made == 2


def test_another_stage_makes_another_entry(make):
    make(source="a")
    assert not make.cache.stage("other", {"source": "a"}, DataRecord, lambda folder: RESULT).reused


def test_other_code_versions_and_cpus_make_other_entries(make, monkeypatch):
    make(source="a")
    with monkeypatch.context() as patch:
        patch.setattr(module, "code_digest", lambda: "other code")
        assert not make(source="a").reused
    with monkeypatch.context() as patch:
        patch.setattr(module, "tool_versions", lambda: {**tool_versions(), "onnxruntime": "0.0.1"})
        assert not make(source="a").reused
    with monkeypatch.context() as patch:
        patch.setattr(module, "host_cpu", lambda: replace(host_cpu(), vnni=not host_cpu().vnni))
        assert not make(source="a").reused
    assert make(source="a").reused
    assert make.made == 4


def test_the_code_digest_covers_every_room(monkeypatch, tmp_path):
    """Each room is replaced by a copy with one line more, one at a time."""
    seen = {code_digest()}
    for room in ("", ".models", ".runtimes", ".exporters", ".calibration", ".bench", ".quantize"):
        copy = tmp_path / f"room{room}"
        shutil.copytree(str(module.package_files(f"tsexport{room}")), copy, symlinks=False)
        target = next(path for path in sorted(copy.rglob("*.py")) if path.name != "__init__.py")
        target.write_text(target.read_text() + "\n# one line more\n")
        folders = {f"tsexport{room}": copy}
        with monkeypatch.context() as patch:
            patch.setattr(
                module, "package_files", partial(lambda folders, name: folders.get(name) or files(name), folders)
            )
            seen.add(code_digest.__wrapped__())
    assert len(seen) == 8


def test_versions_name_python_and_what_is_installed():
    versions = tool_versions()
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"tsexport", "torch", "onnx", "onnxruntime", "openvino", "nncf", "numpy"} <= set(versions)


@given(st.dictionaries(st.text(max_size=3), st.one_of(st.integers(), st.text(max_size=3), st.booleans(), st.none())))
def test_a_digest_does_not_depend_on_the_order_of_keys(record):
    assert digest_of(record) == digest_of(dict(reversed(record.items())))
    assert digest_of({**record, "one more": 1}) != digest_of(record)


# --- damage ----------------------------------------------------------------------------------------------------------


def change_file(folder):
    (folder / "part" / "data.bin").write_text("changed")


def remove_file(folder):
    (folder / "part" / "data.bin").unlink()


def add_file(folder):
    (folder / "target.npz").write_text("was not made by the stage")


def truncate_entry(folder):
    text = (folder / "entry.json").read_text()
    (folder / "entry.json").write_text(text[: len(text) // 2])


def remove_entry(folder):
    (folder / "entry.json").unlink()


def empty_entry(folder):
    (folder / "entry.json").write_text("")


def another_json(folder):
    (folder / "entry.json").write_text("[1, 2]")


def change_result(folder):
    entry = json.loads((folder / "entry.json").read_text())
    entry["result"]["windows"] = 2
    (folder / "entry.json").write_text(json.dumps(entry))


def become_a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("no folder")


@pytest.mark.parametrize(
    "damage",
    [
        change_file, remove_file, add_file, truncate_entry, remove_entry, empty_entry, another_json, change_result,
        become_a_file,
    ],
)  # fmt: skip
def test_a_damaged_entry_is_made_again(make, damage):
    folder = make(source="a").folder
    damage(folder)
    again = make(source="a")
    assert (again.reused, again.result, make.made) == (False, RESULT, 2)
    assert (folder / "part" / "data.bin").read_text() == "content"
    assert not (folder / "target.npz").exists()
    assert entries(make.cache.root) == [folder.name]
    assert make(source="a").reused


def test_an_entry_that_was_moved_to_another_key_is_made_again(make):
    one, other = make(source="a").folder, make(source="b").folder
    shutil.rmtree(other)
    one.rename(other)
    assert not make(source="b").reused
    assert make.made == 3


def test_an_entry_of_another_kind_is_made_again(make):
    make(source="a")
    spec = TensorSpec("x", "float32", ("batch",))
    found = make.cache.stage("probe", {"source": "a"}, TensorSpec, lambda folder: spec)
    assert (found.reused, found.result) == (False, spec)


# --- what fails leaves nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ExportError("no"), ZeroDivisionError(), KeyboardInterrupt()])
def test_a_stage_that_raises_leaves_nothing(make, error):
    def produce(folder):
        (folder / "half").write_text("half")
        raise error

    with pytest.raises(type(error)):
        make.cache.stage("probe", {"source": "a"}, DataRecord, produce)
    assert entries(make.cache.root) == []
    assert not make(source="a").reused


def test_a_cache_that_is_emptied_meanwhile_is_a_usage_error(make, monkeypatch):
    original = Cache._publish

    def publish_and_lose(self, folder, place, kind):
        original(self, folder, place, kind)
        shutil.rmtree(place)

    monkeypatch.setattr(Cache, "_publish", publish_and_lose)
    with pytest.raises(UsageError, match="was removed or changed while it was being used"):
        make(source="a")


# --- where it is -----------------------------------------------------------------------------------------------------


def test_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TSEXPORT_CACHE", str(tmp_path / "mine"))
    assert default_root() == tmp_path / "mine"
    monkeypatch.delenv("TSEXPORT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_root().name == "tsexport"
    if sys.platform == "linux":
        assert default_root() == tmp_path / "xdg" / "tsexport"


def test_a_cache_folder_that_is_a_file(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UsageError, match=r"the cache folder .*/cache cannot be written: ") as caught:
        Maker(Cache(tmp_path / "cache"))(source="a")
    assert caught.value.next_step == "set TSEXPORT_CACHE to a folder that can be written, or make room there"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_folder(tmp_path):
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="cannot be written: Permission denied"):
        Maker(Cache(tmp_path / "cache"))(source="a")


def test_a_full_disk_is_a_usage_error(make):
    def produce(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UsageError, match="cannot be written: no space left"):
        make.cache.stage("probe", {}, DataRecord, produce)
    assert entries(make.cache.root) == []


def test_an_error_about_another_file_is_not_the_caches(make):
    def produce(folder):
        raise FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere")

    with pytest.raises(FileNotFoundError):
        make.cache.stage("probe", {}, DataRecord, produce)
