"""Folders that cannot be written to: exit 2 with the folder's name; a cache that cannot be written to is still read."""

import shutil
import subprocess

import pytest

pytestmark = pytest.mark.slow


def protect(folder, mode=0o500):
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        path.chmod(mode)


def test_a_read_only_output_folder(warm, without_rights):
    warm.output.mkdir()
    protect(warm.output)
    assert warm.run(before=without_rights).refused(f"{warm.output} cannot be written to")
    protect(warm.output, 0o700)
    assert warm.builds_again()


def test_an_output_folder_that_becomes_read_only_while_building(warm, without_rights):
    warm.output.mkdir()
    with warm.start(before=without_rights) as process:
        for line in process.stderr:
            if "] accuracy:" in line:
                break
        protect(warm.output)
        _, stderr = process.communicate(timeout=900)
    assert process.returncode == 2, stderr
    assert f"could not be written to {warm.output}" in stderr
    assert "not permitted" in stderr
    protect(warm.output, 0o700)
    assert warm.builds_again()


def test_a_read_only_cache_that_holds_what_is_needed_is_read(warm, without_rights):
    protect(warm.cache)
    ended = warm.run(before=without_rights)
    protect(warm.cache, 0o700)
    assert ended.code == 0, ended.stderr
    assert warm.builds_again()


def test_a_read_only_cache_that_lacks_something(warm, without_rights):
    shutil.rmtree(warm.cache / "parity")
    protect(warm.cache)
    ended = warm.run(before=without_rights)
    protect(warm.cache, 0o700)
    assert ended.refused(f"the cache folder {warm.cache} cannot be written: Permission denied")
    assert not warm.bundle.exists()
    assert warm.builds_again()


@pytest.fixture
def read_only_mount(room, built):
    """The full cache, mounted read-only."""
    room.cache.mkdir()
    if subprocess.run(["mount", "--bind", "-o", "ro", built.cache, room.cache], capture_output=True).returncode:
        pytest.skip("a read-only bind mount is not permitted here (needs root)")
    yield
    subprocess.run(["umount", "--lazy", room.cache], check=True)


@pytest.mark.usefixtures("read_only_mount")
def test_a_cache_on_a_read_only_file_system_is_read(room):
    ended = room.run()
    assert ended.code == 0, ended.stderr
    assert room.run("--seed", "1", "--force").refused("cannot be written", "Read-only file system")


def test_a_read_only_folder_for_temporary_files(warm, without_rights):
    """Python takes the next one, /tmp or /var/tmp."""
    protect(warm.temporary)
    ended = warm.run(before=without_rights)
    protect(warm.temporary, 0o700)
    assert ended.code == 0, ended.stderr
    assert warm.builds_again()
