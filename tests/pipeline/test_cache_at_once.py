"""The cache under several processes and threads: an entry is made once, and leftovers are told from what is being
made by locks, never by the clock."""

import errno
import fcntl
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tsexport.bundles.manifest import DataRecord
from tsexport.cache import Cache
from tsexport.cache_leftovers import LEFTOVER_SECONDS

MAKER = Path(__file__).with_name("stage_maker.py")
RESULT = DataRecord("made", "0" * 64, 1, "0")
KEY = "0" * 64
PATIENCE_S = 300.0
MADE, REUSED = "False 100000\n", "True 100000\n"


def start(root, how):
    return subprocess.Popen(
        [sys.executable, str(MAKER), str(root), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in the background with SIGINT ignored, and that is inherited.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


@contextmanager
def half_made(root, how="told"):
    """A process that has begun an entry and goes on when it is told to."""
    process = start(root, how)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        try:
            yield process
        finally:
            process.kill()


def finish(process):
    return process.communicate("go on\n", timeout=PATIENCE_S)[0]


def entries(root):
    return sorted(path.name for path in (root / "probe").iterdir())


def make(root, source="a", produce=lambda folder: RESULT):
    return Cache(root).stage("probe", {"source": source}, DataRecord, produce)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def without_locks(monkeypatch):
    """A file system that has no locks, as some network file systems."""

    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


# --- once ------------------------------------------------------------------------------------------------------------


def test_three_processes_at_once_make_an_entry_once(root):
    running = [start(root, "slow") for _ in range(3)]
    answers = [process.communicate(timeout=PATIENCE_S)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sorted(answer.splitlines(keepends=True)[-1] for answer in answers) == [MADE, REUSED, REUSED]
    assert len(entries(root)) == 1


def test_who_waits_says_for_whom_and_reads_what_was_made(root):
    with half_made(root) as maker, start(root, "slow") as second:
        said = second.stdout.readline()
        assert said == f"process {maker.pid} on {platform.node()} is making the same probe: waiting for it\n"
        assert finish(maker) == MADE
        assert second.communicate(timeout=PATIENCE_S)[0] == REUSED
    assert len(entries(root)) == 1


@pytest.mark.parametrize("how", ["told", "failing"])
def test_who_waits_makes_it_where_the_maker_is_killed_or_fails(root, how):
    with half_made(root, how) as maker, start(root, "slow") as second:
        assert "waiting" in second.stdout.readline()
        if how == "failing":
            finish(maker)
            assert maker.returncode == 1
        else:
            maker.kill()
        assert second.communicate(timeout=PATIENCE_S)[0] == MADE
    assert len(entries(root)) == 1


def test_waiting_can_be_interrupted(root):
    with half_made(root) as maker:
        with start(root, "slow") as second:
            assert "waiting" in second.stdout.readline()
            second.send_signal(signal.SIGINT)
            _, stderr = second.communicate(timeout=PATIENCE_S)
        assert "KeyboardInterrupt" in stderr
        assert finish(maker) == MADE
    assert len(entries(root)) == 1


def test_threads_of_one_process_make_an_entry_once(root):
    made, results, together = [], [], threading.Barrier(4)

    def produce(folder):
        made.append(folder)
        time.sleep(0.2)
        return RESULT

    def want():
        together.wait(timeout=PATIENCE_S)
        results.append(make(root, produce=produce))

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=PATIENCE_S)
    assert len(made) == 1
    assert sorted(one.reused for one in results) == [False, True, True, True]


def test_a_stage_may_ask_for_another(root):
    found = make(root, produce=lambda folder: make(root, "b").result)
    assert (found.reused, found.result) == (False, RESULT)
    assert len(entries(root)) == 2


def test_a_stage_that_asks_for_itself_is_a_bug_and_no_deadlock(root):
    with pytest.raises(RuntimeError, match="the stage probe asks for itself while it is made"):
        make(root, produce=lambda folder: make(root).result)
    assert entries(root) == []
    assert not make(root).reused, "the lock was given back"


def test_two_builds_that_nest_in_different_orders_do_not_wait_for_each_other(root):
    """One asks for b while it makes a; the other has made b alone."""
    inside, go_on = threading.Event(), threading.Event()

    def slow_b(folder):
        inside.set()
        go_on.wait(timeout=PATIENCE_S)
        return RESULT

    other = threading.Thread(target=make, args=(root, "b", slow_b))
    other.start()
    assert inside.wait(timeout=PATIENCE_S)
    outer = threading.Thread(target=make, args=(root, "a", lambda folder: make(root, "b").result))
    outer.start()
    go_on.set()
    for thread in (other, outer):
        thread.join(timeout=PATIENCE_S)
        assert not thread.is_alive()
    assert len(entries(root)) == 2


# --- leftovers -------------------------------------------------------------------------------------------------------


def test_what_a_kill_left_is_removed_by_the_next_stage_that_is_made(root):
    with half_made(root) as maker:
        maker.kill()
    assert len(entries(root)) == 2
    assert all(name.startswith(".") for name in entries(root))
    other = make(root)
    assert entries(root) == [other.folder.name]


def test_what_a_kill_left_of_the_same_entry_is_removed(root):
    with half_made(root) as maker:
        maker.kill()
    with start(root, "slow") as again:
        assert again.communicate(timeout=PATIENCE_S)[0] == MADE
    assert len(entries(root)) == 1


@pytest.mark.parametrize("days", [-20_000, -2, 2, 20_000])
def test_what_is_being_made_is_no_leftover_whatever_the_clock_says(root, days):
    """As after a jump of the clock: the folder seems old, or to come from the future."""
    with half_made(root) as maker:
        hidden = [root / "probe" / name for name in entries(root)]
        for path in hidden:
            os.utime(path, (time.time() + days * 86_400,) * 2)
        make(root)
        assert all(path.exists() for path in hidden)
        assert finish(maker) == MADE
    assert len(entries(root)) == 2


@pytest.mark.parametrize("older", [f".{KEY}-0123abcd.unlocked", ".01234567-ab_cdefg"])
@pytest.mark.parametrize(("seconds", "is_left"), [(-60, True), (60, False), (-3 * LEFTOVER_SECONDS, False)])
def test_what_was_made_without_a_lock_goes_by_its_age(root, older, seconds, is_left):
    """A folder from the future, too: it was made before the clock was set back."""
    leftover = root / "probe" / older
    (leftover / "inside").mkdir(parents=True)
    (leftover / "inside").chmod(0o500)
    changed = time.time() - LEFTOVER_SECONDS - seconds
    os.utime(leftover, (changed, changed))
    make(root)
    assert leftover.exists() == is_left


def test_what_is_not_the_caches_is_left_alone(root):
    kept = (root / "probe" / ".git", root / "probe" / ".nfs000123", root / "probe" / f".{KEY}.txt")
    for path in kept:
        path.mkdir(parents=True)
        os.utime(path, (0, 0))
    make(root)
    assert all(path.exists() for path in kept)


# --- without locks ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_locks")
def test_a_file_system_without_locks(root):
    assert not make(root).reused
    assert make(root).reused
    assert len(entries(root)) == 1


@pytest.mark.usefixtures("without_locks")
def test_without_locks_an_entry_that_another_process_makes_meanwhile_is_kept(root):
    def produce(folder):
        assert folder.name.endswith(".unlocked")
        place = make(root).folder  # the other process is faster
        (folder / "mine").write_text("mine")
        assert not (place / "mine").exists()
        return RESULT

    found = make(root, produce=produce)
    assert not (found.folder / "mine").exists()
    assert entries(root) == [found.folder.name]


def test_a_lock_that_cannot_be_made(root):
    place = make(root).folder
    shutil.rmtree(place)
    lock = place.with_name(f".{place.name}.lock")
    lock.mkdir()
    assert not make(root).reused
    assert place.is_dir()
