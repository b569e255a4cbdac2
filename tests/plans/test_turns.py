"""Turns on one machine: whoever measures is alone, nobody who waits to measure is passed, and a death gives its turn
back."""

import fcntl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tsexport.bundles.manifest import DataRecord
from tsexport.cache import Cache
from tsexport.turns import TOLD_AFTER_SECONDS, CacheInTurns, Turns, machine_name

PROGRAM = Path(__file__).parent / "taking_turns.py"
PATIENCE_S = 300.0
RESULT = DataRecord("a test", "a" * 64, 1, "0")
A_WHILE_S = 0.3
"""Long enough for a process that may go on to have gone on; that it has not proves little, and that it has all."""


class Taker:
    """A process that takes a turn, and what it printed so far."""

    def __init__(self, root, how, name):
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(root), how, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        self._new = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            with self._new:
                self.said.append(line.strip())
                self._new.notify_all()

    def wait_for(self, word):
        with self._new:
            found = self._new.wait_for(lambda: any(line.startswith(word) for line in self.said), PATIENCE_S)
        assert found, self.said
        return next(line for line in self.said if line.startswith(word))

    def is_in(self):
        return any(line.startswith("in ") for line in self.said)

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self):
        self.go()
        self.wait_for("out")
        assert self.process.wait(PATIENCE_S) == 0

    def kill(self):
        self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE_S)  # it reads to the end: closed before, what it reads from is an error in a thread
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def take(tmp_path):
    """Start a process that takes a turn below one root; all of them are ended at last."""
    started = []

    def start(how, name):
        started.append(Taker(tmp_path, how, name))
        started[-1].wait_for("wait")
        return started[-1]

    yield start
    for one in started:
        one.kill()


def test_who_works_works_with_others_and_who_measures_is_alone(take):
    first, second = take("working", "first"), take("working", "second")
    first.wait_for("in")
    second.wait_for("in")
    measurer = take("measuring", "dlinear: a race")
    time.sleep(A_WHILE_S)
    assert not measurer.is_in()
    first.end()
    time.sleep(A_WHILE_S)
    assert not measurer.is_in()
    second.end()
    measurer.wait_for("in")
    late = take("working", "late")
    time.sleep(A_WHILE_S)
    assert not late.is_in()
    measurer.end()
    late.wait_for("in")


def test_two_measure_one_after_the_other(take):
    first = take("measuring", "first")
    first.wait_for("in")
    second = take("measuring", "second")
    time.sleep(A_WHILE_S)
    assert not second.is_in()
    first.end()
    second.wait_for("in")


def test_who_waits_to_measure_is_not_passed_by_who_comes_to_work(take):
    working = take("working", "working")
    working.wait_for("in")
    measurer = take("measuring", "dlinear: a race")
    measurer.wait_for("say")  # it has been at the turnstile for a second
    late = take("working", "late")
    time.sleep(A_WHILE_S)
    assert not late.is_in()
    working.end()
    measurer.wait_for("in")
    assert not late.is_in()
    measurer.end()
    late.wait_for("in")


def test_a_turn_is_given_back_by_the_death_of_its_process(take):
    killed = take("killed", "dlinear: a race")
    killed.wait_for("in")
    waiting = take("working", "waiting")
    said = waiting.wait_for("say")
    assert said == (
        f"say waiting for a turn on this machine (to go on): process {killed.process.pid} measures dlinear: a race"
    )
    killed.go()
    waiting.wait_for("in")
    # What the dead one left is no longer said.
    measurer = take("measuring", "another race")
    assert measurer.wait_for("say") == (
        "say waiting for a turn on this machine (another race): other builds are at work, and end their stages first"
    )


def test_who_is_away_lets_others_measure_and_is_back_for_what_it_makes(take, tmp_path):
    turns = Turns(tmp_path)
    with turns.working():
        measurer = take("measuring", "a race")
        with turns.away() as back:
            measurer.wait_for("in")
            told = threading.Event()

            def end():
                told.set()
                measurer.go()

            threading.Timer(A_WHILE_S, end).start()
            with back():
                assert told.is_set()  # before that the measurer could not have ended
                measurer.wait_for("out")
                other = take("measuring", "another race")
                time.sleep(A_WHILE_S)
                assert not other.is_in()
            other.wait_for("in")
            other.end()


def test_a_build_that_wants_the_stage_of_another_one_waits_outside(take, tmp_path):
    """Inside it would keep the one that makes the stage from measuring, and wait for it for ever."""
    turns = Turns(tmp_path)
    seen = []

    def produce(folder):
        with turns.measuring("in a stage"):
            late = take("working", "late")
            time.sleep(A_WHILE_S)
            seen.append(late.is_in())
        late.wait_for("in")
        late.end()
        return RESULT

    with turns.working():
        cached = CacheInTurns(tmp_path, turns=turns).stage("probe", {"n": 1}, DataRecord, produce)
        again = CacheInTurns(tmp_path, turns=turns).stage("probe", {"n": 1}, DataRecord, produce)
    assert seen == [False]
    assert (cached.reused, again.reused) == (False, True)
    assert cached.result == again.result == RESULT
    assert Cache(tmp_path).stage("probe", {"n": 1}, DataRecord, produce).reused  # turns are no part of the key


def test_what_goes_wrong_in_a_turn_gives_it_back(take, tmp_path):
    turns = Turns(tmp_path)
    with pytest.raises(ZeroDivisionError), turns.measuring("nothing"):
        _ = 1 / 0
    measurer = take("measuring", "a race")
    measurer.wait_for("in")
    # An interrupt waits for nobody: with a turn to come back to, this would wait for the measurer.
    with pytest.raises(KeyboardInterrupt):
        interrupted_while_away(tmp_path)


def interrupted_while_away(root):
    turns = Turns(root)
    turns._held = "shared"  # as in a build, whose turn another has by now
    with turns.away():
        raise KeyboardInterrupt


def test_the_clock_stands_still_while_a_turn_is_waited_for(take, tmp_path):
    working = take("working", "working")
    working.wait_for("in")
    # The other one goes once this one has said that it waits, which it does after a second.
    turns = Turns(tmp_path, say=lambda line: working.go())
    began, clock = time.perf_counter(), turns.clock()
    with turns.measuring("a race"):
        pass
    passed, counted = time.perf_counter() - began, turns.clock() - clock
    assert passed - counted >= TOLD_AFTER_SECONDS
    assert counted >= 0


def test_without_a_root_there_are_no_turns():
    with Turns().working(), Turns().measuring("a race"):
        pass


@pytest.mark.parametrize("kind", ["a folder that cannot be made", "a file system without locks"])
def test_where_nothing_can_be_locked_one_line_says_so(tmp_path, monkeypatch, kind):
    root = tmp_path / "cache"
    if kind == "a folder that cannot be made":
        root.write_text("a file")
        reason = "Not a directory"
    else:
        reason = "No locks available"

        def no_locks(descriptor, how):
            raise OSError(37, reason)

        monkeypatch.setattr(fcntl, "flock", no_locks)
    said = []
    turns = Turns(root, said.append)
    with turns.working():
        for _ in range(2):
            with turns.measuring("a race"), turns.away() as back, back():
                pass
    assert said == [f"builds that run at the same time may disturb what is measured: {root} takes no locks ({reason})"]


def test_machines_that_share_a_cache_have_turns_of_their_own(tmp_path, monkeypatch):
    with Turns(tmp_path).measuring("here"):
        monkeypatch.setattr("tsexport.turns.machine_name", lambda: "another")
        with Turns(tmp_path).measuring("there"):
            pass
    assert sorted(path.name for path in (tmp_path / "turns").iterdir()) == sorted([machine_name(), "another"])


def test_without_an_id_of_the_kernel_a_machine_has_its_hosts_name(monkeypatch):
    monkeypatch.setattr("tsexport.turns._BOOT_ID", Path("/nonexistent"))
    monkeypatch.setattr("tsexport.turns.platform.node", lambda: "host")
    assert machine_name() == "host"
