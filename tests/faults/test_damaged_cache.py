"""A damaged cache: whatever happened to an entry, it is made again and never served, and nothing of it is left."""

import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsexport.bundles.manifest import DataRecord
from tsexport.cache import Cache

RESULT = DataRecord("made", "0" * 64, 1, "0")
CONTENT = {"data.bin": b"some bytes of a model" * 40, "part/more.bin": b"more", "empty.bin": b""}


def produce(folder):
    for name, content in CONTENT.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return RESULT


def make(root, source="a"):
    return Cache(root).stage("probe", {"source": source}, DataRecord, produce)


def truncate(path, at):
    path.write_bytes(path.read_bytes()[: int(at * path.stat().st_size)])


def flip_a_bit(path, at):
    content = bytearray(path.read_bytes())
    content[min(int(at * len(content)), len(content) - 1)] ^= 1 << int(at * 8) % 8
    path.write_bytes(content)


def append(path, at):
    path.write_bytes(path.read_bytes() + b"x")


def remove(path, at):
    path.unlink()


def become_a_folder(path, at):
    path.unlink()
    (path / "inside").mkdir(parents=True)


def become_a_link(path, at):
    """To a file of the same content: what it leads to may change later."""
    elsewhere = path.with_name(path.name + ".elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere.name)


def become_a_broken_link(path, at):
    path.unlink()
    path.symlink_to("nowhere")


def become_a_pipe(path, at):
    """Reading it would wait for ever."""
    path.unlink()
    os.mkfifo(path)


def become_anothers(path, at):
    """The file of another entry, sound in itself."""
    other = next(one for one in path.parents if len(one.name) == 64)
    sound = [one / "entry.json" for one in sorted(other.parent.iterdir()) if one.name != other.name]
    remove(path, at)
    for entry in (one for one in sound if one.is_file()):
        shutil.copyfile(entry, path)


def forbid(path, at):
    path.parent.chmod(0o000)


DAMAGES = (
    truncate, flip_a_bit, append, remove, become_a_folder, become_a_link, become_a_broken_link, become_a_pipe,
    become_anothers, forbid,
)  # fmt: skip
NAMES = ("entry.json", *(name for name, content in CONTENT.items() if content))


@given(st.sampled_from(DAMAGES), st.sampled_from(NAMES), st.floats(0, 0.999))
def test_a_damaged_entry_is_made_again(damage, name, at):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "cache"
        make(root, "another")
        place = make(root).folder
        damage(place / name, at)
        again = make(root)
        # Root reads what may not be read; for everybody else it is damaged.
        assert again.reused == (damage is forbid and os.geteuid() == 0)
        assert again.result == RESULT
        assert {one: (place / one).read_bytes() for one in CONTENT} == CONTENT
        assert make(root).reused
        assert len(list((root / "probe").iterdir())) == 2
        place.chmod(0o700)


@pytest.mark.parametrize("what", ["entry", "stage"])
@pytest.mark.parametrize("become", [become_a_folder, become_a_broken_link, become_a_pipe, Path.write_text])
def test_a_folder_of_the_cache_that_became_something_else(tmp_path, what, become):
    place = make(tmp_path / "cache").folder
    path = place if what == "entry" else place.parent
    shutil.rmtree(path)
    path.write_text("")
    become(path, "text")
    if what == "entry" or path.is_dir():
        assert not make(tmp_path / "cache").reused
        assert (place / "entry.json").is_file()
        assert not place.is_symlink()
        return
    from tsexport.errors import UsageError

    with pytest.raises(UsageError, match=r"the cache folder .* cannot be written: File exists"):
        make(tmp_path / "cache")


def test_an_entry_that_is_a_link_to_a_sound_one_elsewhere_is_not_followed_into_removing_it(tmp_path):
    place = make(tmp_path / "cache").folder
    elsewhere = tmp_path / "elsewhere"
    place.rename(elsewhere)
    (elsewhere / "data.bin").write_bytes(b"damaged")
    place.symlink_to(elsewhere)
    assert not make(tmp_path / "cache").reused
    assert (elsewhere / "data.bin").read_bytes() == b"damaged", "what a link leads to is not ours to remove"
    assert not place.is_symlink()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_build_with_a_cache_whose_entries_are_all_damaged(warm, seed):
    """One file of every entry, in a way that is drawn."""
    dice = random.Random(seed)
    entries = [path.parent for path in sorted(warm.cache.glob("*/*/entry.json"))]
    assert len(entries) > 3
    for entry in entries:
        files = [path for path in sorted(entry.rglob("*")) if path.is_file() and path.stat().st_size]
        dice.choice(DAMAGES)(dice.choice(files), dice.random())
    assert warm.builds_again()
    assert warm.builds_again()


@pytest.mark.slow
def test_a_build_with_remembered_times_that_are_damaged(warm):
    for path in (warm.cache / "times").iterdir():
        path.write_bytes(b"\xff\x00")
    assert warm.builds_again()
    for path in (warm.cache / "times").iterdir():
        path.unlink()
        os.mkfifo(path)
    assert warm.builds_again()
    shutil.rmtree(warm.cache / "times")
    (warm.cache / "times").write_text("a file")
    assert warm.builds_again()
