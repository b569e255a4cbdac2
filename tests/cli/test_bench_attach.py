"""`tsexport bench --attach`: scenarios and profiles in the bundle itself, which stays whole and signed."""

import hashlib
import json
import shutil
import tarfile

import pytest
from click.testing import CliRunner

from tsexport import cli
from tsexport.bench.profile_records import read_profile
from tsexport.bench.scenario_records import read_scenario
from tsexport.bundles.checksums import SUMS, check_sums

QUICK = ("--seconds", "0.05", "--threads", "1")


def bench(*arguments):
    return CliRunner().invoke(cli.main, ["bench", *map(str, arguments)], prog_name="tsexport")


def digests(root):
    """The digest of every file that does not depend on measuring."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and path.name != "report.html" and "measurements" not in path.parts
    }


def test_a_scenario_is_kept_in_the_bundle_and_on_its_report(measured_folder):
    before = digests(measured_folder)
    result = bench(measured_folder, "--scenario", "single-stream", *QUICK, "--attach")
    assert result.exit_code == 0, result.stderr
    (path,) = (measured_folder / "measurements" / "scenarios").iterdir()
    record = read_scenario(path)
    assert path.name == f"single-stream-{record.machine.machine_id}.json"
    assert digests(measured_folder) == before
    assert SUMS in before
    check_sums(measured_folder)
    assert f"{record.single_stream.queries:,}" in (measured_folder / "report.html").read_text()
    again = bench(measured_folder, "--scenario", "single-stream", *QUICK, "--attach")
    assert again.exit_code == 0, again.stderr
    check_sums(measured_folder)
    assert len(list(path.parent.iterdir())) == 1


def test_profiles_of_every_artifact_are_shown_and_kept(measured_folder):
    before = digests(measured_folder)
    result = bench(measured_folder, "--profile", "--threads", "1", "--attach", "--json")
    assert result.exit_code == 0, result.stderr
    (one,) = json.loads(result.stdout)["bundles"]
    assert {(p["artifact"], p["runtime"], p["batch"], p["threads"]) for p in one["profiles"]} == {
        (artifact, "onnxruntime", 1, 1) for artifact in ("fp32-onnx", "int8-onnx")
    }
    records = {path: read_profile(measured_folder / path) for path in one["kept"]}
    by_artifact = {record.artifact: path for path, record in records.items()}
    machine = records[by_artifact["int8-onnx"]].machine.machine_id
    assert by_artifact["int8-onnx"] == f"measurements/profiles/{machine}.json", "the selected one, as a build keeps it"
    assert by_artifact["fp32-onnx"].startswith(f"measurements/profiles/{machine}-")
    assert digests(measured_folder) == before
    check_sums(measured_folder)
    page = (measured_folder / "report.html").read_text()
    assert page.count("Where the time goes") == 1
    assert "fp32-onnx on onnxruntime, batch 1: profiled" in page


def test_profiles_as_tables(measured_folder):
    result = bench(measured_folder, "--profile", "--batch", "4", "--threads", "1")
    assert result.exit_code == 0, result.stderr
    assert "tiny-cpu4-int8: fp32-onnx on onnxruntime, 1 thread, batch 4: ONNX Runtime's profiler" in result.stdout
    assert "times are shares, not latencies" in result.stdout
    assert "profiling int8-onnx on onnxruntime, 1 thread; about 3 s left" in result.stderr
    assert not (measured_folder / "measurements" / "profiles").exists()


def test_where_no_runtime_tells_it_is_inconclusive(measured_folder, monkeypatch):
    monkeypatch.setattr("tsexport.bench.profiling.PROFILERS", {})
    result = bench(measured_folder, "--profile", "--threads", "1")
    assert result.exit_code == 6
    assert "no profile, onnxruntime does not tell what its nodes take" in result.stdout


def test_an_archive_is_refused_before_anything_is_run(measured_folder, tmp_path):
    archive = tmp_path / "packed.tar"
    with tarfile.open(archive, "w") as file:
        file.add(measured_folder, measured_folder.name)
    for command in (("--profile",), ("--scenario", "offline")):
        result = bench(archive, *command, "--attach")
        assert result.exit_code == 2
        assert "is an archive, which nothing can be attached to" in result.stderr
        assert "profiling" not in result.stderr


def test_a_bundle_that_was_damaged_meanwhile_gets_nothing(measured_folder, monkeypatch):
    from tsexport.measurements import profiles as bundle_profiles

    profile = bundle_profiles.profile

    def damage(*arguments, **settings):
        (measured_folder / "README.md").write_text("changed")
        return profile(*arguments, **settings)

    monkeypatch.setattr(bundle_profiles, "profile", damage)
    result = bench(measured_folder, "--profile", "--threads", "1", "--attach")
    assert result.exit_code == 2
    assert "changed: README.md" in result.stderr
    assert not (measured_folder / "measurements" / "profiles").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--profile", "--scenario", "offline"), "--profile and --scenario are two commands"),
        (("--attach",), "--attach is for --scenario or --profile alone"),
        (("--profile", "--record", "kept"), "--record is not for --profile"),
        (("--profile", "--seconds", "5"), "--seconds is not for --profile"),
        (("--profile", "--runtime", "openvino"), "--runtime is not for --profile"),
        (("--profile", "--batch", "1", "--batch", "2"), "--profile takes one --batch"),
        (("--profile", "--batch", "0"), "batch is 0; allowed are whole numbers from 1 on"),
        (("--profile", "--threads", "0"), "threads is 0; allowed are whole numbers from 1 on"),
    ],
)
def test_what_is_refused(measured_folder, arguments, message):
    result = bench(measured_folder, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_bundle_that_no_runtime_here_runs(measured_folder, monkeypatch):
    monkeypatch.setattr("tsexport.measurements.timing_pairs.list_statuses", lambda: ())
    result = bench(measured_folder, "--profile")
    assert result.exit_code == 6
    assert "no runtime here runs tiny-cpu4-int8; it needs one of onnxruntime" in result.stderr


def test_a_name_that_is_no_file_name_stays_within_its_folder(measured_folder):
    """An artifact may be called anything; its profile's file is not."""
    for name in ("manifest.json", "selection.json"):
        path = measured_folder / name
        path.write_text(path.read_text().replace('"fp32-onnx"', '"../../../evil"'))
    shutil.rmtree(measured_folder / "measurements")  # its records are of the old name
    from tsexport.bundles.checksums import seal

    seal(measured_folder)
    result = bench(measured_folder, "--profile", "--threads", "1", "--attach")
    assert result.exit_code == 0, result.stderr
    assert len(list((measured_folder / "measurements" / "profiles").iterdir())) == 2
    assert not list(measured_folder.parent.parent.glob("evil*"))
    check_sums(measured_folder)
