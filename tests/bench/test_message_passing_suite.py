"""The suite of message passing: the inverse of a ratio, and one whole run on a tiny mesh."""

import json

import pytest

from tsexport.bench.statistics import Ratio
from tsexport.bench.suites import message_passing


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (Ratio(0.5, 0.4, 0.8, 0.95), Ratio(2.0, 1.25, 2.5, 0.95)),
        (Ratio(0.5, 0.0, None, 0.95), Ratio(2.0, 0.0, None, 0.95)),
    ],
)
def test_the_inverse_of_a_ratio_turns_its_interval_round(ratio, expected):
    assert message_passing.inverse(ratio) == expected


@pytest.mark.slow
def test_a_run_on_a_tiny_mesh(tmp_path, capsys):
    """It checks that all three answer alike, and judges no goal."""
    settings = ["channels=2", "latitudes=4", "longitudes=8", "mesh_level=0", "width=8", "steps=1"]
    given = [word for setting in settings for word in ("--set", setting)]
    output = tmp_path / "m.json"
    assert message_passing.main([*given, "--processes", "1", "--seconds", "1", "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert [row["name"] for row in report["rows"]] == ["ScatterND", "ScatterElements", "gathered"]
    assert report["status"] == "not measured"
    assert "ScatterElements" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "message"),
    [("mesh=1", "no setting 'mesh'"), ("mesh_level", "has no form key=value")],
)
def test_a_setting_that_cannot_be_used_ends_it(tmp_path, capsys, setting, message):
    assert message_passing.main(["--set", setting, "--output", str(tmp_path / "m.json")]) == 2
    assert message in capsys.readouterr().err
