"""Locks between processes, and what lies under temporary names: what is in use, and what is a leftover."""

import fcntl
import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tsexport import locks
from tsexport.codec import write_whole


def test_a_lock_leaves_no_file_and_is_taken_once(tmp_path):
    path = tmp_path / "lock"
    with locks.holding(path) as state:
        assert state == "held"
        assert path.read_text() == f"process {os.getpid()} on {platform.node()}\n"
        with locks.holding(path) as second:
            assert second == "busy"
        assert path.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path):
    path = tmp_path / "lock"
    with locks.holding(path):
        path.unlink()
        with locks.holding(path) as state:
            assert state == "held"
        assert not path.exists()
        path.write_text("another's")
    assert path.read_text() == "another's", "what is there now belongs to somebody else"


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("content")
    (tmp_path / "lock").symlink_to(tmp_path / "victim")
    with locks.holding(tmp_path / "lock") as state:
        assert state == "unlockable"
    assert (tmp_path / "victim").read_text() == "content"


def test_who_holds_it_is_not_printed_where_the_file_says_nonsense(tmp_path):
    path = tmp_path / "lock"
    said = []
    path.write_bytes(b"\x1b[2J\xff")
    descriptor = os.open(path, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)

    def waiting(holder):
        said.append(holder)
        os.close(descriptor)

    with locks.holding(path, waiting) as state:
        assert state == "held"
    assert said == ["another process"]


# --- files under temporary names -------------------------------------------------------------------------------------

WRITER = """
import sys, time
from pathlib import Path
from tsexport.locks import writing_beside
with writing_beside(Path(sys.argv[1])) as (descriptor, temporary):
    print(temporary.name, flush=True)
    sys.stdin.readline()
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_writer_left_is_removed_by_the_next_and_what_is_being_written_is_not(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "a.json")]
    writers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    killed, alive = (writer.stdout.readline().strip() for writer in writers)
    writers[0].send_signal(signal.SIGKILL)
    writers[0].wait()
    assert names(tmp_path) == sorted((killed, alive))
    write_whole(tmp_path / "b.json", "text")
    assert names(tmp_path) == sorted((alive, "b.json"))
    writers[1].communicate("go on\n")
    assert names(tmp_path) == ["b.json"]
    for writer in writers:
        writer.stdout.close()
        writer.stdin.close()


def test_what_is_not_ours_is_left_alone(tmp_path):
    kept = [".b.json.writing", ".b.json.12-0123abcd.writing.bak", "b.json.12-0123abcd.writing"]
    for name in kept:
        (tmp_path / name).write_text("")
    (tmp_path / ".c.json.12-0123abcd.writing").mkdir()
    write_whole(tmp_path / "b.json", "text")
    assert names(tmp_path) == sorted([*kept, ".c.json.12-0123abcd.writing", "b.json"])


def test_a_file_that_was_taken_for_a_leftover_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    """Another process looks between the making and the locking."""
    flock, lost = fcntl.flock, []

    def lose(descriptor, operation):
        if not lost:
            lost.extend(names(tmp_path))
            (tmp_path / lost[0]).unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lose)
    assert write_whole(tmp_path / "a.json", "text").read_text() == "text"
    assert len(lost) == 1
    assert names(tmp_path) == ["a.json"]


def test_a_folder_that_was_taken_for_a_leftover_before_it_was_opened_is_made_again(tmp_path, monkeypatch):
    """Another process looks between the making and the opening."""
    open_it, lost = os.open, []

    def lose(path, *arguments):
        if not lost:
            lost.append(Path(path))
            Path(path).rmdir()
        return open_it(path, *arguments)

    monkeypatch.setattr(os, "open", lose)
    with locks.locked_folder(lambda part: tmp_path / part) as folder:
        assert lost[0] != folder
        assert locks.is_held(folder)
        assert names(tmp_path) == [folder.name]


def test_a_leftover_is_locked_while_it_is_removed(tmp_path):
    """Who has just made it, and waits for its lock, finds it gone then, and never has it taken away later."""
    for name in (".a.12-0123abcd.left", ".b.12-0123abcd.left"):
        (tmp_path / name).mkdir()
    found = []
    for path, match in locks.leftovers(tmp_path, re.compile(r"\.(\w)\..+\.left")):
        assert locks.is_held(path)
        found.append(match[1])
    assert found == ["a", "b"]
    assert not any(locks.is_held(path) for path in tmp_path.iterdir())


def test_large_texts_are_written_whole(tmp_path):
    text = "ä" * 3_000_000
    assert write_whole(tmp_path / "a.json", text).read_text(encoding="utf-8") == text
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_what_cannot_be_opened_counts_as_in_use(tmp_path, make):
    make(tmp_path / "thing")
    assert not locks.is_held(tmp_path / "thing")
    (tmp_path / "link").symlink_to(tmp_path / "thing")
    assert locks.is_held(tmp_path / "link")
    assert locks.is_held(tmp_path / "nothing")


def test_an_interrupt_while_a_folder_is_removed_leaves_none_of_it(tmp_path, monkeypatch):
    folder = tmp_path / "left"
    folder.mkdir()
    (folder / "file").write_text("")
    unlink, interrupted = os.unlink, []

    def interrupt(*arguments, **options):
        if not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        unlink(*arguments, **options)

    monkeypatch.setattr(os, "unlink", interrupt)
    with pytest.raises(KeyboardInterrupt):
        locks.remove_folder(folder)
    assert interrupted
    assert list(tmp_path.iterdir()) == []
