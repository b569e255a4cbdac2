"""Series of kept results: what belongs together, where it changed, and what is no recording."""

import functools
import json
import os
import shutil

import pytest
from click.testing import CliRunner

import tsexport
from tsexport import cli
from tsexport.errors import UsageError
from tsexport.measurements.history_baselines import set_baselines
from tsexport.measurements.history_series import MOST_POINTS, read_history


def test_a_change_is_found_between_the_recordings_that_it_parts(month):
    (series,) = read_history(month).series
    assert len(series.points) == 30
    assert [point.recorded_at for point in series.points] == sorted(point.recorded_at for point in series.points)
    (change,) = series.changes
    assert (change.last_before.commit, change.first_after.commit) == (f"{19:040x}", f"{20:040x}")
    assert change.direction == "slower"
    assert change.ratio == pytest.approx(1.3, rel=0.02)
    assert change.p_value <= 0.01
    assert series.not_searched == ""


def test_the_same_folder_gives_the_same_history(month):
    assert read_history(month) == read_history(month)
    assert tsexport.history(month) == read_history(month)


def test_a_change_below_the_one_asked_for_is_left_out(month):
    assert read_history(month, min_change=0.5).series[0].changes == ()


def test_few_recordings_are_shown_and_not_searched(keep, folder):
    for day in range(11):
        keep(1.0 if day < 5 else 9.0, day=day)
    (series,) = read_history(folder).series
    assert series.changes == ()
    assert series.not_searched == "11 recordings; a change is looked for from 12 on"


def test_only_the_newest_recordings_are_searched(keep, folder, monkeypatch):
    """The search takes the square of their number."""
    monkeypatch.setattr("tsexport.measurements.history_series.MOST_POINTS", 24)
    for day in range(36):
        keep({0: 1.0, 1: 1.5, 2: 2.0}[day // 12], day=day)
    (series,) = read_history(folder).series
    assert len(series.points) == 36
    (change,) = series.changes
    assert (change.last_before, change.first_after) == (series.points[23], series.points[24])


def test_the_command_says_where_it_did_not_look(keep, folder):
    run = functools.partial(CliRunner().invoke, cli.main, ["history", str(folder)])
    said = f"changes are looked for in the newest {MOST_POINTS} recordings of a series"
    for day in range(MOST_POINTS):
        keep(day=day)
    assert said not in run().stderr
    keep(day=MOST_POINTS)
    assert said in run().stderr


def test_machines_bundles_and_batch_sizes_are_series_of_their_own(keep, folder):
    for machine in ("aaaaaaaaaaaa", "bbbbbbbbbbbb"):
        for bundle in ("one", "two"):
            keep(machine=machine, bundle=bundle)
    found = read_history(folder)
    assert len(found.series) == 4
    assert {one.machine_id for one in found.machines} == {"aaaaaaaaaaaa", "bbbbbbbbbbbb"}
    assert {one.bundle for one in read_history(folder, bundle="two").series} == {"two"}
    assert {one.machine_id for one in read_history(folder, machine="bb").series} == {"bbbbbbbbbbbb"}


def test_the_p90_is_absent_where_there_are_too_few_samples(keep, folder):
    keep(samples=63)
    assert read_history(folder).series[0].points[0].p90_ms is None


def test_against_the_baseline(month):
    set_baselines(month, f"{5:040x}")
    found = read_history(month)
    (series,) = found.series
    assert series.against_baseline == pytest.approx(1.3, rel=0.02)
    assert found.baselines[0].commit == f"{5:040x}"
    assert [one.path for one in found.skipped] == []


def test_records_of_scenarios_are_left_alone(month):
    """`bench --scenario --record` keeps them in the same folder."""
    (month / "tiny-cpu4-int8" / "scenarios").mkdir()
    (month / "tiny-cpu4-int8" / "scenarios" / "memory-0123456789ab.json").write_text("{}")
    assert read_history(month).skipped == ()


# --- what is no recording --------------------------------------------------------------------------------------------


def test_damaged_and_foreign_files_are_named_and_skipped(month):
    place = month / "tiny-cpu4-int8" / "0123456789ab"
    good = sorted(place.iterdir())
    (place / "broken.json").write_text("{")
    (place / "cut.json").write_text(good[0].read_text()[:1000])
    (place / "notes.txt").write_text("hello")
    (place / "binary.json").write_bytes(b"\xff\xfe\x00")
    os.mkfifo(place / "pipe.json")
    (month / "README.md").write_text("hello")
    (month / "old").mkdir()
    (month / "old" / "0123456789ab.json").write_text("{}")
    moved = month / "other" / "0123456789ab"
    moved.mkdir(parents=True)
    shutil.copy(good[0], moved)
    (place / ".half-written").write_text("{")
    empty = json.loads(good[1].read_text())
    empty["record"]["measurements"][0]["samples_ms"] = []
    (place / "empty.json").write_text(json.dumps(empty))
    found = read_history(month)
    assert len(found.series[0].points) == 30
    reasons = {one.path: one.reason for one in found.skipped}
    assert set(reasons) == {
        "README.md", "old/0123456789ab.json", f"other/0123456789ab/{good[0].name}",
        *(f"tiny-cpu4-int8/0123456789ab/{n}" for n in ("broken.json", "cut.json", "notes.txt", "binary.json",
                                                      "empty.json", "pipe.json")),
    }  # fmt: skip
    assert "is not valid JSON" in reasons["tiny-cpu4-int8/0123456789ab/broken.json"]
    assert "no recording: those lie as <bundle>/<machine>" in reasons["README.md"]
    assert "says that it is of tiny-cpu4-int8" in reasons[f"other/0123456789ab/{good[0].name}"]
    assert "has no valid samples" in reasons["tiny-cpu4-int8/0123456789ab/empty.json"]
    assert "cannot be read" in reasons["tiny-cpu4-int8/0123456789ab/binary.json"]


def test_a_folder_without_recordings_is_refused_with_what_lies_there(tmp_path):
    with pytest.raises(UsageError, match="is no folder"):
        read_history(tmp_path / "absent")
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text("")
    with pytest.raises(UsageError, match=r"holds no recordings.*skipped: 0.txt \(.*and 2 more"):
        read_history(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bundle": "tiny-cpu4-int4"}, r"no recording of bundle 'tiny-cpu4-int4' \(did you mean 'tiny-cpu4-int8'\?\)"),
        ({"machine": "ffff"}, "no recording of machine 'ffff'; there are 0123456789ab"),
        ({"machine": ""}, "no recording of machine ''"),
        ({"min_change": -0.1}, "min-change is -0.1; allowed are fractions from 0 on"),
        ({"min_change": float("nan")}, "min-change is nan"),
    ],
)
def test_what_is_not_there_is_refused(month, options, message):
    with pytest.raises(UsageError, match=message):
        read_history(month, **options)
