"""What a command needs around it, taken away: the network, the cache, and the folder for temporary files."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psutil
import pytest

from tsexport import surroundings
from tsexport.errors import UsageError
from tsexport.surroundings import own_temporary_folder, surroundings_explained


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """$TMPDIR, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_a_command_has_a_temporary_folder_of_its_own(temporary):
    with own_temporary_folder():
        (own,) = temporary.iterdir()
        assert own.name.startswith(f".tsexport-{os.getpid()}-")
        assert Path(tempfile.gettempdir()) == own
        assert os.environ["TMPDIR"] == str(own)
        (own / "left").write_text("left")
    assert list(temporary.iterdir()) == []
    assert os.environ["TMPDIR"] == str(temporary)


def test_what_a_kill_left_of_it_is_removed_by_the_next_command(temporary):
    leftover = temporary / ".tsexport-12-0123abcd"
    (leftover / "inside").mkdir(parents=True)
    kept = (temporary / ".tsexport-12-0123abcd.txt", temporary / "tsexport-12", temporary / ".tsexport-x")
    for path in kept:
        path.mkdir()
    (temporary / ".tsexport-13-0123abcd").symlink_to(kept[0])
    with own_temporary_folder(), own_temporary_folder():
        assert not leftover.exists()
        assert len(list(temporary.iterdir())) == len(kept) + 2, "that of a command that runs is no leftover"
    assert all(path.exists() for path in kept)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder to another user needs root")
def test_another_users_is_left_alone(temporary):
    other = temporary / ".tsexport-12-0123abcd"
    other.mkdir()
    os.chown(other, 65534, 65534)
    with own_temporary_folder():
        assert other.exists()


def test_without_any_folder_for_temporary_files(temporary, monkeypatch):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with own_temporary_folder():
        pass
    with pytest.raises(UsageError, match="there is no folder for temporary files: No usable temporary") as caught:
        explain(FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"))
    assert caught.value.next_step == "free some space there, or set TMPDIR to a folder that can be written to"


def explain(error):
    with surroundings_explained():
        raise error


def test_a_temporary_folder_that_is_removed_meanwhile(temporary):
    with pytest.raises(
        UsageError, match=rf"temporary files {temporary}/\.tsexport-\S+ was removed meanwhile"
    ) as caught:
        lose_it(temporary)
    assert caught.value.next_step == "do it again; TMPDIR names another folder"


def lose_it(temporary):
    with own_temporary_folder(), surroundings_explained():
        shutil.rmtree(temporary)
        tempfile.mkdtemp()


def test_a_full_disk_is_told_by_its_error_or_by_itself(temporary, monkeypatch):
    with pytest.raises(UsageError, match="/elsewhere/file cannot be written: no space left") as caught:
        explain(OSError(28, "No space left on device", "/elsewhere/file"))
    assert caught.value.next_step == "free some space, and do it again"
    with pytest.raises(UsageError, match="a file cannot be written: the disk quota is used up"):
        explain(OSError(122, "Disk quota exceeded"))
    monkeypatch.setattr(surroundings, "_is_full", lambda folder: True)
    with pytest.raises(UsageError, match=f"the folder for temporary files {temporary} has no space left"):
        explain(RuntimeError("failed writing file"))
    with pytest.raises(UsageError, match="as it was") as caught:
        explain(UsageError("as it was"))


# --- whole builds ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_network(room):
    """The whole build with an empty cache and the reference checkpoint, and verify, without any network."""
    alone = ("unshare", "--net") if os.geteuid() == 0 else ("unshare", "--map-root-user", "--net")
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("a process without a network cannot be made here (needs unshare, and root or user namespaces)")
    reference = (
        "build", "patchtst-cpu", "--target", "cpu4-int8", "--seconds", "0.1", "--batch", "1", "--search-seconds", "0",
    )  # fmt: skip
    ended = room.run(before=alone, arguments=reference)
    assert ended.code == 0, ended.stderr
    assert "reference checkpoint" in ended.stderr + ended.stdout
    bundle = str(room.output / "patchtst-cpu-cpu4-int8")
    assert room.run(before=alone, arguments=("verify", bundle)).code == 0
    assert room.hidden() == []


def run_until(process, step):
    for line in process.stderr:
        if f"] {step}:" in line:
            return
    raise AssertionError(f"the build ended before {step}")


@pytest.mark.slow
@pytest.mark.parametrize("step", ["export ONNX", "parity", "accuracy"])
def test_a_cache_that_is_emptied_while_building(room, step):
    with room.start() as process:
        run_until(process, step)
        for _ in range(3):  # the build may be writing there
            shutil.rmtree(room.cache, ignore_errors=True)
        _, stderr = process.communicate(timeout=900)
    assert process.returncode in (0, 2), stderr
    if process.returncode:
        assert "error: the cache" in stderr
        assert "build again, and leave the cache alone meanwhile" in stderr or "set TSEXPORT_CACHE" in stderr
        assert not room.bundle.exists()
    assert room.builds_again()


@pytest.mark.slow
def test_a_temporary_folder_that_is_removed_while_building(room):
    with room.start() as process:
        run_until(process, "parity")
        shutil.rmtree(room.temporary)
        _, stderr = process.communicate(timeout=900)
    assert process.returncode in (0, 2), stderr
    if process.returncode:
        assert "the folder for temporary files" in stderr
        assert not room.bundle.exists()
    room.temporary.mkdir()
    assert room.builds_again()


@pytest.mark.slow
def test_a_temporary_folder_that_is_not_there(warm):
    """Python takes the next one, /tmp or /var/tmp."""
    warm.temporary.rmdir()
    assert warm.builds_again()
    assert not warm.temporary.exists()


@pytest.mark.slow
def test_sigterm_cleans_up(warm):
    with warm.start() as process:
        run_until(process, "accuracy")
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=1800)
    assert process.returncode == 143
    assert stderr.endswith("terminated\n")
    assert "Traceback" not in stderr
    assert not psutil.wait_procs(workers, timeout=300)[1]
    assert not warm.bundle.exists()
    assert warm.hidden() == []
    assert warm.builds_again()
