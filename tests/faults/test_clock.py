"""Clocks that are wrong, and clocks that jump: no build fails for it, and nothing that runs is taken for a leftover."""

import json
import shutil
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
CLOCK = Path(__file__).with_name("jumping_clock.c")
DAY = 86_400
OTHER_TIMES = {
    "1970": datetime(1970, 1, 1, 12, tzinfo=UTC),
    "2100": datetime(2100, 6, 1, 12, tzinfo=UTC),
    "in two days": datetime.now(UTC) + timedelta(days=2),
    "nine years ago": datetime.now(UTC) - timedelta(days=9 * 365),
}


@pytest.fixture
def clock(tmp_path):
    """The environment of a process whose clock is set by a file, and the function that moves it by seconds."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler for tests/faults/jumping_clock.c")
    library, file = tmp_path / "jumping_clock.so", tmp_path / "clock"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, CLOCK], check=True)
    file.write_text("0")
    environment = {"LD_PRELOAD": str(library), "CLOCK_FILE": str(file)}
    seen = subprocess.run(["date", "+%s"], env={**environment}, capture_output=True, text=True, check=True)
    assert abs(int(seen.stdout) - time.time()) < 60
    return environment, lambda seconds: file.write_text(str(seconds))


@pytest.mark.parametrize("moment", OTHER_TIMES)
def test_a_build_at_another_time(room, clock, moment):
    """With an empty cache, and again with what was made then."""
    environment, set_clock = clock
    set_clock(round((OTHER_TIMES[moment] - datetime.now(UTC)).total_seconds()))
    for more in ((), ("--force",)):
        ended = room.run(*more, **environment)
        assert ended.code == 0, ended.stderr
    assert room.builds_again()


@pytest.mark.parametrize("jump", [2 * DAY, -9 * 365 * DAY])
def test_a_clock_that_jumps_while_two_builds_run(room, clock, jump):
    """The second one begins after the jump, in the same folders: what the first one is writing is left alone."""
    environment, set_clock = clock
    with room.start("--name", "first", **environment) as first:
        for line in first.stderr:
            if "] model and data:" in line:
                break
        set_clock(jump)
        second = room.run("--name", "second", "--seed", "1", **environment)
        _, stderr = first.communicate(timeout=1800)
    assert first.returncode == 0, stderr
    assert second.code == 0, second.stderr
    assert room.hidden() == []
    record = json.loads(next((room.output / "first" / "measurements").glob("*.json")).read_text())
    seconds = dict(record["stage_seconds"])
    assert all(0 <= spent < 300 for spent in seconds.values()), "durations come from a clock that does not jump"


def test_recordings_across_a_jump_are_all_kept(built, room, clock):
    """The history is ordered by the times that recordings say; a clock that was wrong takes none of them away."""
    shutil.copytree(built.bundle, room.bundle)
    bench = ("bench", str(room.bundle), "--seconds", "0.1", "--batch", "1", "--record", str(room.root / "kept"))
    environment, set_clock = clock
    for jump in (2 * DAY, -9 * 365 * DAY, 0):
        set_clock(jump)
        assert room.run(arguments=bench, **environment).code in (0, 6)
    ended = room.run(arguments=("history", str(room.root / "kept"), "--json"))
    assert ended.code == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert document["history"]["skipped"] == []
    for series in document["history"]["series"]:
        times = [datetime.fromisoformat(point["recorded_at"]) for point in series["points"]]
        assert len(times) == 3
        assert times == sorted(times)
        assert times[0].year < datetime.now(UTC).year - 8
