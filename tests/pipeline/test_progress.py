"""Progress: one line a step where stderr is no terminal, a live line where it is one, and the time left."""

import io
import json
import re

import pytest

from tsexport.progress import Progress, duration

STEPS = (("open", 2.0), ("work", 10.0), ("pack", 1.0))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_each_step_is_one_line_when_it_ends():
    stream = io.StringIO()
    progress = Progress(STEPS, stream=stream)
    with progress.step("open") as step:
        step.say("reading", 0.5)
        assert stream.getvalue() == ""
    with progress.step("work") as step:
        step.reused = True
    with progress.step("pack"):
        pass
    assert stream.getvalue() == (
        "[ 1/3] open: 0.0 s, about 11 s left\n[ 2/3] work: reused, about 1.0 s left\n[ 3/3] pack: 0.0 s\n"
    )


def test_on_a_terminal_the_line_says_what_is_being_done():
    stream = Terminal()
    progress = Progress(STEPS, stream=stream)
    with progress.step("open") as step:
        step.say("reading", 0.5)
    live = stream.getvalue().split("\r\x1b[2K")
    assert live[1] == "[ 1/3] open (about 13 s left)"
    assert live[2] == "[ 1/3] open: reading  50% (about 13 s left)"
    assert live[3] == "[ 1/3] open: 0.0 s, about 11 s left\n"


def test_a_live_line_fits_a_terminal():
    stream = Terminal()
    with Progress(STEPS, stream=stream).step("open") as step:
        step.say("a long description " * 20)
    assert all(len(line.rstrip("\n")) <= 110 for line in stream.getvalue().split("\r\x1b[2K"))


def test_an_error_finds_an_empty_line():
    stream = Terminal()
    with pytest.raises(ZeroDivisionError), Progress(STEPS, stream=stream).step("open"):
        raise ZeroDivisionError
    assert stream.getvalue().endswith("\r\x1b[2K")


def test_quiet_shows_nothing_and_keeps_the_times():
    stream = Terminal()
    progress = Progress(STEPS, quiet=True, stream=stream)
    with progress.step("open") as step:
        step.say("reading")
    assert stream.getvalue() == ""
    assert list(progress.seconds) == ["open"]


def test_the_time_left_shrinks_while_a_step_runs():
    now = [100.0]
    progress = Progress(STEPS, stream=io.StringIO(), clock=lambda: now[0])
    assert progress.left_s() == 13
    with progress.step("open"):
        now[0] += 1.5
        assert progress.left_s() == 11.5
        now[0] += 100  # far longer than expected
        assert progress.left_s() == 11
        assert progress.seconds_so_far() == {"open": 101.5}
    assert progress.seconds == progress.seconds_so_far() == {"open": 101.5}


def test_what_steps_took_is_expected_next_time(tmp_path):
    memory = tmp_path / "times" / "model.json"
    progress = Progress(STEPS, memory=memory, stream=io.StringIO())
    for name, reused in (("open", False), ("work", True)):
        with progress.step(name) as step:
            step.reused = reused
    progress.remember()
    again = Progress(STEPS, memory=memory, stream=io.StringIO())
    # "open" took next to nothing, "work" was reused, which says nothing, "pack" did not run.
    assert again.left_s() == pytest.approx(11, abs=0.5)
    assert [path.name for path in memory.parent.iterdir()] == ["model.json"]


@pytest.mark.parametrize("text", ["", "{", '{"open": "soon"}', "[]", '{"another": 5}'])
def test_a_memory_that_is_damaged_is_left_aside(tmp_path, text):
    memory = tmp_path / "model.json"
    memory.write_text(text)
    assert Progress(STEPS, memory=memory, stream=io.StringIO()).left_s() == 13


def test_a_memory_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    progress = Progress(STEPS, memory=tmp_path / "file" / "model.json", stream=io.StringIO())
    with progress.step("open"):
        pass
    progress.remember()


def test_memory_is_json_of_seconds(tmp_path):
    progress = Progress(STEPS, memory=tmp_path / "model.json", stream=io.StringIO())
    progress.remember()
    assert json.loads((tmp_path / "model.json").read_text()) == dict(STEPS)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (119.4, "119 s"), (119.6, "2 min 0 s"), (185, "3 min 5 s")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
    assert re.fullmatch(r"(\d+ min )?[\d.]+ s", text)


def test_a_step_that_knows_better_replaces_the_estimate():
    progress = Progress(STEPS, stream=io.StringIO())
    with progress.step("open") as step:
        step.expect(60.0)
        assert progress.left_s() == pytest.approx(71.0, abs=0.5)
        step.expect(-1.0)
        assert progress.left_s() == pytest.approx(11.0, abs=0.5)
    assert progress.left_s() == pytest.approx(11.0, abs=0.1)


def test_a_step_that_is_not_in_the_plan_changes_no_estimate():
    progress = Progress(STEPS, stream=io.StringIO())
    with progress.step("another") as step:
        step.expect(60.0)
        assert progress.left_s() == pytest.approx(13.0, abs=0.1)
