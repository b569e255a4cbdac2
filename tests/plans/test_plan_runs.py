"""`tsexport build --plan` on this machine: what is built, what goes on after a failure, and what is built again."""

import json
import shutil

import pytest
from click.testing import CliRunner

import tsexport
from tsexport import cli
from tsexport.errors import UsageError

BUILT, DIED = "linear-t4-fp32", "dies-t4-fp32"


def test_failures_hold_nobody_up_and_stand_in_the_table(first_run):
    place, ran = first_run
    assert ran.code == 1, ran.stderr
    assert ran.statuses == {BUILT: "built", "linear t4-bf16": "failed", DIED: "failed"}
    rows = ran.rows
    assert [rows[name]["exit_code"] for name in rows] == [0, 5, 1]
    assert rows["linear t4-bf16"]["reason"] == "t4-bf16 on T4: compute capability 7.5 has no bf16 arithmetic"
    assert rows["linear t4-bf16"]["next_step"] == "build for t4-fp16 or t4-int8"
    died = rows[DIED]["reason"]
    assert died.startswith("its process ended by SIGKILL, as the kernel does where memory runs out; it wrote last: ")
    assert rows[DIED]["log"] == str(place.state / f"{DIED}.log")
    assert ran.document["exit_code"] == 1
    assert (ran.document["executor"], ran.document["dry_run"]) == ("local", False)
    assert tsexport.verify(place.dist / BUILT).passed
    assert place.leftovers() == []


def test_the_headline_of_a_bundle(first_run):
    _, ran = first_run
    headline = ran.rows[BUILT]["headline"]
    assert (headline["selected"], headline["runtime"]) == ("onnx-fp32", "onnxruntime")
    assert (headline["latency"], headline["not_measured"]) == (None, "built on no t4")
    assert headline["accuracy"]["metric"] == "mse"


def test_progress_says_what_begins_and_ends_and_how_much_is_left(first_run):
    _, ran = first_run
    lines = ran.stderr.splitlines()
    assert lines[0] == "2 to build, 2 at once"
    assert f"[ 0/2 done] {BUILT}: building" in lines
    assert any(f"done] {BUILT}: built, " in line for line in lines)
    assert any(f"done] {DIED}: failed: its process ended by SIGKILL" in line for line in lines)
    assert any(line.endswith(" left") for line in lines)


def test_what_is_there_stays_and_what_failed_is_tried_again(again):
    manifest = again.dist / BUILT / "manifest.json"
    before = (manifest.stat().st_ino, manifest.stat().st_mtime_ns)
    ran = again.run()
    assert ran.code == 1
    assert (manifest.stat().st_ino, manifest.stat().st_mtime_ns) == before
    assert again.builds_of(BUILT) == 1
    assert again.log(DIED).count("--- process ") == 2
    words = " ".join(ran.stdout.split())
    assert "linear t4-fp32 there already onnx-fp32 on onnxruntime mse" in words
    assert "not measured: built on no t4" in words
    assert "exit code 5: t4-bf16 on T4" in words
    assert ran.stdout.splitlines()[-1] == (
        "1 there already, 2 failed; exit code 1, the smallest of a row that is not 0"
    )
    assert "linear for t4-bf16: build for t4-fp16 or t4-int8" in ran.stderr
    assert f"{DIED}: all that its process wrote is in " in ran.stderr


def dry(place, *options):
    """Return the rows of a dry run, in this process."""
    result = CliRunner().invoke(
        cli.main,
        ["build", "--plan", str(place.root / "plan.toml"), "--dry-run", "--json", *map(str, options)],
        env={"TSEXPORT_CACHE": str(place.cache)},
    )
    document = json.loads(result.stdout)
    assert document["dry_run"]
    assert result.exit_code == document["exit_code"]
    return {row["name"] or f"{row['model']} {row['target']}": row for row in document["rows"]}


def test_a_dry_run_shows_what_would_be_built(again):
    files = sorted(again.root.rglob("*"))
    assert {name: row["status"] for name, row in dry(again).items()} == {
        BUILT: "there already",
        "linear t4-bf16": "failed",
        DIED: "to build",
    }
    assert sorted(again.root.rglob("*")) == files


def test_a_dry_run_as_a_table(again):
    result = CliRunner().invoke(cli.main, ["build", "--plan", str(again.root / "plan.toml"), "--dry-run", "-o", "x"])
    assert result.exit_code == 5
    assert "dry run: nothing is built" in result.stdout
    assert result.stdout.splitlines()[-1] == "2 to build, 1 failed; exit code 5, the smallest of a row that is not 0"


def test_other_inputs_build_anew(again):
    assert dry(again, "--seed", "1")[BUILT]["status"] == "to build"
    assert dry(again, "--set", "horizon=5")[BUILT]["status"] == "to build"
    assert dry(again, "--force")[BUILT]["status"] == "to build"


def test_a_bundle_that_was_changed_is_not_taken_for_the_plans(again):
    (again.dist / BUILT / "README.md").write_text("changed")
    row = dry(again)[BUILT]
    assert (row["status"], row["exit_code"]) == ("failed", 2)
    assert "was changed since the plan built it: " in row["reason"]
    assert row["next_step"] == "give --force to build it anew, or take it away"
    assert dry(again, "--force")[BUILT]["status"] == "to build"


def test_a_bundle_that_no_plan_built_is_left_alone(again):
    shutil.rmtree(again.state)
    row = dry(again)[BUILT]
    assert (row["status"], row["exit_code"]) == ("failed", 2)
    assert row["reason"] == f"{again.dist / BUILT} is there already, and no plan built it here"


def test_what_is_no_bundle_is_left_alone_with_force_too(again):
    shutil.rmtree(again.dist / BUILT)
    (again.dist / BUILT).mkdir()
    (again.dist / BUILT / "thesis.txt").write_text("irreplaceable")
    assert "holds something other than a bundle" in dry(again, "--force")["linear t4-fp32"]["reason"]


def test_two_builds_of_one_bundle_are_refused_before_anything_is_built(folder):
    folder.write('[matrix]\nmodels = ["linear", "linear"]\ntargets = ["t4-fp32"]\n')
    ran = folder.run()
    assert (ran.code, ran.stdout) == (2, "")
    assert (
        f"plan.toml: two builds give the same bundle, {folder.dist / BUILT}: [matrix] linear for t4-fp32 and "
        "[matrix] linear for t4-fp32\ngive one of them another name or output\n"
    ) in ran.stderr
    assert not folder.dist.exists()


def test_an_output_that_cannot_be_one_is_a_row(folder):
    folder.dist.write_text("a file")
    folder.write('[[builds]]\nmodel = "linear"\ntarget = "t4-fp32"\n')
    (row,) = dry(folder).values()
    assert row["reason"] == f"{folder.dist} is a file, and a folder is needed"


# --- usage


def build(*arguments):
    return CliRunner().invoke(cli.main, ["build", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "message", "next_step"),
    [
        (["linear", "--plan", "p.toml"], "MODEL does not go with --plan", "name the models in the plan, in [matrix]"),
        (["--target", "t4-fp32", "--plan", "p.toml"], "--target does not go with --plan", "name the targets in the pl"),
        (["--name", "mine", "--plan", "p.toml"], "--name does not go with --plan", "give a build of the plan its name"),
        (["--config", "c.toml", "--plan", "p.toml"], "--config does not go with --plan", "put its tables into the pla"),
        (["linear", "--executor", "dask"], "--executor goes with --plan, and no plan was given", "give --plan FILE wi"),
        (["linear", "--jobs", "2"], "--jobs goes with --plan, and no plan was given", "give --plan FILE with the buil"),
        (["linear", "--scheduler", "tcp://a:1"], "--scheduler goes with --plan, and no plan was given", "give --plan "),
        (
            ["--plan", "p.toml", "--executor", "dusk"],
            "executor is 'dusk' (did you mean 'dask'?); allowed are loc",
            "",
        ),
        (["--plan", "p.toml", "--jobs", "0"], "jobs is 0; allowed are whole numbers from 1 on", ""),
        (
            ["--plan", "p.toml", "--scheduler", "tcp://a:1"],
            "the scheduler tcp://a:1 was given, and the executor is local",
            "give --executor dask with it",
        ),
        (["--plan", "p.toml"], "--plan p.toml cannot be read: No such file or directory", ""),
    ],
)
def test_options_that_do_not_go_together(arguments, message, next_step):
    result = build(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"error: {message}" in result.stderr
    assert next_step in result.stderr


def test_the_function_is_the_command(again, monkeypatch):
    monkeypatch.setenv("TSEXPORT_CACHE", str(again.cache))
    again.write('[matrix]\nmodels = ["linear"]\ntargets = ["t4-fp32", "t4-bf16"]\n')
    result = tsexport.build_plan(again.root / "plan.toml")
    assert [row.status for row in result.rows] == ["there already", "failed"]
    assert result.exit_code == 5
    with pytest.raises(UsageError, match="executor is 'dusk'"):
        tsexport.build_plan(again.root / "plan.toml", executor="dusk")
