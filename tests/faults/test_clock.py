"""Clocks that are wrong, and clocks that jump: no build fails for it, and nothing that runs is taken for a leftover."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed"),
]
LIBRARIES = tuple(Path(f"/usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1") for machine in ("x86_64", "aarch64"))


@pytest.mark.parametrize("moment", ["1970-01-01 12:00:00", "2100-06-01 12:00:00", "+2d", "-9y"])
def test_a_build_at_another_time(room, moment):
    """With an empty cache, and again with what was made then."""
    for more in ((), ("--force",)):
        ended = room.run(*more, before=("faketime", "-f", moment if moment[0] in "+-" else f"@{moment}"))
        assert ended.code == 0, ended.stderr
    assert room.builds_again()


@pytest.fixture
def clock(room, tmp_path):
    """The environment of a process whose clock is set by a file, and the function that sets it."""
    library = next((path for path in LIBRARIES if path.exists()), None)
    if library is None:
        pytest.skip("libfaketime is not where it is looked for")
    file = tmp_path / "clock"
    file.write_text("+0")
    environment = {
        "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1",
    }  # fmt: skip
    return environment, lambda offset: file.write_text(offset)


@pytest.mark.parametrize("jump", ["+2d", "-9y"])
def test_a_clock_that_jumps_while_two_builds_run(room, clock, jump):
    """The second one begins after the jump, in the same folders: what the first one is writing is left alone."""
    environment, set_clock = clock
    with room.start("--name", "first", **environment) as first:
        for line in first.stderr:
            if "] model and data:" in line:
                break
        set_clock(jump)
        second = room.run("--name", "second", "--seed", "1", **environment)
        _, stderr = first.communicate(timeout=300)
    assert first.returncode == 0, stderr
    assert second.code == 0, second.stderr
    assert room.hidden() == []
    record = json.loads(next((room.output / "first" / "measurements").glob("*.json")).read_text())
    seconds = dict(record["stage_seconds"])
    assert all(0 <= spent < 300 for spent in seconds.values()), "durations come from a clock that does not jump"


def test_recordings_across_a_jump_are_all_kept(built, room):
    """The history is ordered by the times that recordings say; a clock that was wrong takes none of them away."""
    shutil.copytree(built.bundle, room.bundle)
    bench = ("bench", str(room.bundle), "--seconds", "0.1", "--batch", "1", "--record", str(room.root / "kept"))
    for offset in ("+2d", "-9y", "+0"):
        assert room.run(before=("faketime", "-f", offset), arguments=bench).code in (0, 6)
    ended = room.run(arguments=("history", str(room.root / "kept"), "--json"))
    assert ended.code == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert document["skipped"] == []
    for series in document["series"]:
        times = [datetime.fromisoformat(point["recorded_at"]) for point in series["points"]]
        assert len(times) == 3
        assert times == sorted(times)
        assert times[0].year < datetime.now(UTC).year - 8
