"""A full disk, for the bundle, the cache and temporary files, early and late: exit 2, and the next build succeeds."""

import resource
import subprocess
import sys

import pytest

from tsexport.surroundings import surroundings_explained

pytestmark = pytest.mark.slow


def test_no_room_for_the_bundle(warm, small_disk):
    for size in ("16k", "128k"):
        small_disk(warm.output, size)
        assert warm.run().refused("could not be written", "no space left")
        assert list(warm.output.iterdir()) == []
        subprocess.run(["umount", warm.output], check=True)
        small_disk(warm.output, "1g")
        assert warm.hidden() == []
    assert warm.builds_again()


@pytest.mark.parametrize("size", ["16k", "256k", "512k", "1m", "1536k"])
def test_no_room_for_the_cache(room, small_disk, size):
    enlarge = small_disk(room.cache, size)
    assert room.run().refused(f"the cache folder {room.cache} cannot be written", "No space left on device")
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
    ended = room.run()
    # Python takes the next folder for temporary files where $TMPDIR cannot hold a byte, as a full one may.
    if ended.code:
        assert ended.refused("the folder for temporary files", "has no space left")
        assert not room.bundle.exists()
    assert room.hidden() == []
    enlarge()
    assert room.builds_again()


def test_a_limit_on_the_size_of_files(warm):
    """What needs no right to mount: the kernel refuses the write (EFBIG)."""
    code = "import resource, sys, tsexport.cli as c; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); c.main()"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    ended = subprocess.run(
        [sys.executable, "-c", code, "build", "dlinear", "--target", "cpu4-int8", "-o", warm.output, "--seconds", "0.1",
         "--batch", "1", "--search-seconds", "0"],
        env=warm.environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert "the file is too large" in ended.stderr or "File too large" in ended.stderr
    assert not warm.bundle.exists()
    assert warm.builds_again()


def test_other_errors_keep_their_own_words():
    with pytest.raises(FileNotFoundError), surroundings_explained():
        raise FileNotFoundError("checkpoint.pt")
