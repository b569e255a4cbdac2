"""What a build leaves when it is interrupted, killed, fails, or runs out of disk: the old bundle, and no half one."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

from tsexport.bundles.bundle import open_bundle
from tsexport.errors import ParityError, UsageError

SMALL = {"width": 16, "layers": 1, "feed_forward": 32, "heads": 2}
SMALL_OPTIONS = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
NAME = "patchtst-cpu-cpu4-int8"
PATIENCE_S = 600.0


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def command(output: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "tsexport", "build", "patchtst-cpu", "--target", "cpu4-int8", "-o", str(output),
        *SMALL_OPTIONS, "--seconds", "0.4", "--batch", "1", "--formats", "onnx", *more,
    ]  # fmt: skip


@contextmanager
def running(built, output, *more):
    """A build in a process group of its own, with the session's cache."""
    process = subprocess.Popen(
        command(output, *more),
        env={**os.environ, "TSEXPORT_CACHE": str(built.cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts what runs in the background with SIGINT ignored, and that is inherited.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(condition, process):
    """Wait until `condition()` is true; False where the build ended first."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    raise AssertionError("nothing happened")


def wait_for_step(process, name):
    assert process.stderr is not None
    for line in process.stderr:
        if f"] {name}:" in line:
            return
    raise AssertionError(f"the build ended before {name}")


def workers_of(process):
    return psutil.Process(process.pid).children(recursive=True)


def hidden(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.fixture
def old(built, tmp_path):
    """An old bundle where the next build is to go."""
    place = tmp_path / "dist" / NAME
    place.parent.mkdir()
    shutil.copytree(built.path, place)
    return place


def test_an_interrupt_while_measuring(built, old):
    before = digests(old)
    with running(built, old.parent, "--force") as process:
        wait_for_step(process, "accuracy")
        assert wait_for(lambda: workers_of(process), process)
        workers = workers_of(process)
        os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does: the whole group gets it
        _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert stderr.endswith("interrupted\n")
    assert "Traceback" not in stderr
    assert not psutil.wait_procs(workers, timeout=PATIENCE_S)[1]
    assert digests(old) == before
    assert hidden(old.parent) == []


def test_a_kill_while_measuring_leaves_no_process_and_the_next_build_succeeds(built, tmp_path, one_selection):
    output = tmp_path / "dist"
    with running(built, output) as process:
        wait_for_step(process, "accuracy")
        assert wait_for(lambda: workers_of(process), process)
        workers = workers_of(process)
        process.kill()
        process.wait()
    assert not psutil.wait_procs(workers, timeout=PATIENCE_S)[1], "measuring processes end with their parent"
    assert not (output / NAME).exists()
    with running(built, output, "--selection", str(one_selection())) as process:
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert open_bundle(output / NAME).verify()


def test_a_kill_while_packing_leaves_a_dot_folder_and_the_next_build_removes_it(built, old, one_selection):
    before = digests(old)
    selection = ("--force", "--selection", str(one_selection()))
    for _ in range(5):  # packing takes a tenth of a second: it may be missed
        with running(built, old.parent, *selection) as process:
            if wait_for(lambda: hidden(old.parent), process):
                process.kill()
                process.wait()
        if hidden(old.parent):
            break
    else:
        pytest.fail("packing was never caught")
    assert process.returncode == -signal.SIGKILL
    (leftover,) = hidden(old.parent)
    assert leftover.startswith(f".{NAME}.")
    # The kill may come a moment late: between the renaming of the new bundle and the removal of the old one.
    bundle = open_bundle(old)
    assert bundle.verify(), "one whole bundle stands there"
    assert digests(old) == before or bundle.selection.why == "chosen by a test", "the old one as it was, or the new one"
    with running(built, old.parent, *selection) as process:
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert hidden(old.parent) == []
    assert open_bundle(old).verify()


@pytest.mark.usefixtures("use_cache")
def test_a_build_that_fails_leaves_the_old_bundle(old, small_build):
    before = digests(old)
    for options, error in (
        ({"atol": 0.0, "rtol": 0.0}, ParityError),
        ({"selection": old / "nothing.json"}, UsageError),
        ({"evaluation": old / "manifest.json"}, UsageError),
    ):
        with pytest.raises(error):
            small_build(
                "patchtst-cpu", "cpu4-int8", set=SMALL, output=old.parent, force=True, formats=["onnx"], **options
            )
        assert digests(old) == before
        assert hidden(old.parent) == []


def test_an_existing_bundle_is_refused_before_any_work(old, small_build, fresh_cache):
    before = digests(old)
    with pytest.raises(UsageError, match=f"{NAME} is there already") as caught:
        small_build("patchtst-cpu", "cpu4-int8", set=SMALL, output=old.parent)
    assert not fresh_cache.exists(), "a stage was begun"
    assert caught.value.exit_code == 2
    assert digests(old) == before


@pytest.mark.usefixtures("use_cache")
def test_force_replaces_the_old_bundle(old, small_build):
    (old / "artifacts" / "extra.bin").write_text("not of the new one")
    bundle = small_build("patchtst-cpu", "cpu4-int8", set=SMALL, output=old.parent, force=True, formats=["onnx"])
    assert bundle.path == old.resolve()
    assert not (old / "artifacts" / "extra.bin").exists()
    assert bundle.verify()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB, less than a bundle takes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs is not permitted here (needs root)")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.usefixtures("use_cache")
def test_a_full_disk_for_the_bundle(small_build, small_disk):
    with pytest.raises(UsageError, match=rf"the bundle {NAME} could not be written to .*: no space left") as caught:
        small_build("patchtst-cpu", "cpu4-int8", set=SMALL, output=small_disk, formats=["onnx"])
    assert caught.value.next_step.startswith("free some space or name another folder with -o")
    assert list(small_disk.iterdir()) == []


def test_a_full_disk_for_the_cache(small_build, small_disk, tmp_path, monkeypatch):
    monkeypatch.setenv("TSEXPORT_CACHE", str(small_disk / "cache"))
    with pytest.raises(UsageError, match=r"the cache folder .*cache cannot be written: no space left"):
        small_build("patchtst-cpu", "cpu4-fp32", set=SMALL)
    assert not (tmp_path / "dist").exists()
    assert not list((small_disk / "cache").rglob("entry.json"))
    assert not [path for path in (small_disk / "cache").rglob(".*")]
