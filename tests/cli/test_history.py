"""`tsexport history`, over what `tsexport bench --record` really leaves."""

import json

import pytest
from click.testing import CliRunner

from tsexport import cli

SHORT = ("--batch", "1", "--seconds", "0.1", "--threads", "1")


def run(*arguments):
    return CliRunner().invoke(cli.main, [*map(str, arguments)], prog_name="tsexport")


@pytest.fixture
def kept(bundle_folder, tmp_path):
    for commit in ("first", "second"):
        result = run("bench", bundle_folder, *SHORT, "--record", tmp_path / "kept", "--commit", commit)
        assert result.exit_code == 6, result.stderr
        assert f"-{commit}-" in result.stderr
    return tmp_path / "kept"


def test_from_recording_to_budget(kept, bundle_folder, tmp_path):
    shown = run("history", kept)
    assert shown.exit_code == 0, shown.stderr
    assert "first" in shown.stdout
    assert "no baseline" in shown.stdout
    assert "2 recordings; a change is looked for from 12 on" in shown.stdout
    done = run("history", kept, "--set-baseline", "first")
    assert done.exit_code == 0
    assert "baseline first of 20" in done.stdout
    again = run("history", kept, "--set-baseline", "second")
    assert ", before first of 20" in again.stdout
    table = tmp_path / "ours.toml"
    written = run("history", kept, "--write-budgets", table, "--margin", "100000%")
    assert written.exit_code == 0, written.stderr
    assert "wrote 2 budgets" in written.stdout
    judged = run("bench", bundle_folder, *SHORT, "--table", table)
    assert judged.exit_code == 0, judged.stdout


def test_json_is_one_document(kept):
    document = json.loads(run("history", kept, "--json").stdout)
    assert document["schema_version"] == 1
    assert {series["artifact"] for series in document["history"]["series"]} == {"fp32-onnx", "int8-onnx"}
    document = json.loads(run("history", kept, "--set-baseline", "latest", "--json").stdout)
    assert [one["baseline"]["commit"] for one in document["baselines"]] == ["second"]
    document = json.loads(run("history", kept, "--write-budgets", kept / "t.toml", "--json").stdout)
    assert document["budgets"]["rows"] == 2
    document = json.loads(run("history", kept, "--json").stdout)
    assert document["history"]["skipped"][0]["path"] == "t.toml"


def test_skipped_files_are_said(kept):
    (kept / "notes").write_text("")
    result = run("history", kept, "--last", "1")
    assert "skipped notes: no recording" in result.stderr
    assert "the last 1 of 2 recordings" in result.stdout
    assert run("history", kept, "--quiet").stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set-baseline", "latest", "--write-budgets", "x.toml"], "exclude each other: set the baseline first"),
        (["--min-change", "some"], "'some' is neither a fraction such as 0.05 nor a percentage such as 5%"),
        (["--bundle", "other"], "there is no recording of bundle 'other'"),
        (["--set-baseline", "other"], "there is no recording 'other'"),
        (["--last", "0"], "0 is not in the range"),
    ],
)
def test_bad_input_is_exit_2(kept, arguments, message):
    result = run("history", kept, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_no_folder(tmp_path):
    result = run("history", tmp_path / "absent")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is no folder" in result.stderr
