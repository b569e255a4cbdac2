"""A full disk, for the bundle, the cache and temporary files, early and late: exit 2, and the next build succeeds."""

import shutil
import subprocess

import pytest

from tsexport.surroundings import surroundings_explained

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("size", ["16k", "128k"])
def test_no_room_for_the_bundle(warm, small_disk, size):
    enlarge = small_disk(warm.output, size)
    assert warm.run().refused("could not be written", "no space left")
    assert list(warm.output.iterdir()) == []
    enlarge()
    assert warm.builds_again()


@pytest.mark.parametrize("size", ["16k", "256k", "512k", "1m", "1536k"])
def test_no_room_for_the_cache(room, small_disk, size):
    enlarge = small_disk(room.cache, size)
    assert room.run().refused(f"the cache folder {room.cache} cannot be written", "no space left")
    assert not room.bundle.exists()
    assert room.hidden() == []
    enlarge()
    assert room.builds_again()


@pytest.mark.parametrize("size", ["4k", "64k"])
@pytest.mark.parametrize("state", ["cold", "warm"])
def test_no_room_for_temporary_files(room, built, small_disk, size, state):
    if state == "warm":
        subprocess.run(["cp", "-r", built.cache, room.cache], check=True)
    enlarge = small_disk(room.temporary, size)
    assert room.run().refused("the folder for temporary files", "has no space left")
    assert not room.bundle.exists()
    assert room.hidden() == []
    enlarge()
    assert room.builds_again()


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit is not installed")
def test_a_limit_on_the_size_of_files(warm):
    """What needs no right to mount: the kernel refuses the write (EFBIG)."""
    assert warm.run(before=("prlimit", "--fsize=4096:4096")).refused("too large")
    assert not warm.bundle.exists()
    assert warm.hidden() == []
    assert warm.builds_again()


def test_other_errors_keep_their_own_words():
    with pytest.raises(FileNotFoundError), surroundings_explained():
        raise FileNotFoundError("checkpoint.pt")
