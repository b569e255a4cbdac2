"""`tsexport bench`: exit codes, tables, one JSON document, and kept results."""

import json
import shutil
import subprocess
import tarfile
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from tsexport import cli
from tsexport.bench.affinity import can_bind
from tsexport.bench.container import ContainerLimits
from tsexport.bench.fingerprint import fingerprint
from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import seal
from tsexport.bundles.manifest import manifest_text
from tsexport.targets import parse_target
from tsexport.types import Budget

SHORT = ("--batch", "1", "--seconds", "0.2", "--threads", "1")


def bench(*arguments):
    return CliRunner().invoke(cli.main, ["bench", *map(str, arguments)], prog_name="tsexport")


@pytest.fixture
def rows(monkeypatch):
    """Judge by other rows than the published ones, of which none is of the example's model."""

    def judge_by(**budgets):
        monkeypatch.setattr(
            "tsexport.measurements.benchmarking.latency_budgets",
            lambda model, family, component, tables: tuple(
                Budget("latency", model, "cpu", None, 1, max_ms=max_ms, source=source)
                for source, max_ms in budgets.items()
            ),
        )

    return judge_by


def test_a_model_without_rows_is_inconclusive(bundle_folder):
    result = bench(bundle_folder, *SHORT)
    assert result.exit_code == 6, result.stderr
    assert "fp32-onnx" in result.stdout
    assert "int8-onnx" in result.stdout


@pytest.mark.parametrize(
    ("budgets", "code"), [({"easy": 1e6}, 0), ({"impossible": 1e-9}, 4), ({"easy": 1e6, "impossible": 1e-9}, 4)]
)
def test_exit_codes_of_judged_rows(bundle_folder, rows, budgets, code):
    rows(**budgets)
    result = bench(bundle_folder, *SHORT)
    assert result.exit_code == code, result.stderr
    assert (" miss " in result.stdout) == (code == 4)


def test_several_bundles(bundle_folder, tmp_path, rows):
    copy = shutil.copytree(bundle_folder, tmp_path / "copy")
    result = bench(bundle_folder, copy, *SHORT, "--json")
    assert result.exit_code == 6
    assert [one["name"] for one in json.loads(result.stdout)["bundles"]] == ["tiny-cpu4-int8"] * 2
    rows(easy=1e6)
    assert bench(bundle_folder, copy, *SHORT).exit_code == 0


def test_json_is_one_document_with_the_samples(bundle_folder):
    result = bench(bundle_folder, "--batch", "1", "--batch", "3", "--seconds", "0.2", "--threads", "1", "--json")
    document = json.loads(result.stdout)
    assert document["schema_version"] == 1
    (one,) = document["bundles"]
    measurements = one["record"]["measurements"]
    assert {(m["artifact"], m["batch"], m["threads"]) for m in measurements} == {
        (artifact, batch, 1) for artifact in ("fp32-onnx", "int8-onnx") for batch in (1, 3)
    }
    assert all(min(m["samples_ms"]) > 0 for m in measurements)


def test_record_keeps_the_result(bundle_folder, tmp_path):
    bench(bundle_folder, *SHORT, "--record", tmp_path / "kept")
    (record,) = (tmp_path / "kept" / "tiny-cpu4-int8").glob("*/*.json")
    document = json.loads(record.read_text())
    assert document["record"]["measurements"]
    assert document["record"]["machine"]["machine_id"] == record.parent.name
    bench(bundle_folder, *SHORT, "--record", tmp_path / "kept", "--commit", "v1.2")
    assert len(list(record.parent.iterdir())) == 2
    assert list(record.parent.glob("*-v1.2-*.json"))


def test_a_result_belongs_to_the_commit_of_the_repository_here(bundle_folder, tmp_path, monkeypatch):
    repository = tmp_path / "theirs"
    repository.mkdir()
    monkeypatch.chdir(repository)

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    def recorded(kept):
        bench(bundle_folder, *SHORT, "--record", kept)
        (path,) = kept.glob("*/*/*.json")
        document = json.loads(path.read_text())
        return document["commit"], document["modified"]

    assert recorded(tmp_path / "none") == (None, False)
    git("init", "-q")
    assert recorded(tmp_path / "unborn") == (None, False)
    (repository / "model.py").write_text("a = 1")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    (repository / "untracked").write_text("")
    assert recorded(tmp_path / "clean") == (git("rev-parse", "HEAD"), False)
    (repository / "model.py").write_text("a = 2")
    assert recorded(tmp_path / "changed") == (git("rev-parse", "HEAD"), True)


@pytest.fixture
def table(tmp_path):
    """Write a table of the user's own with one row for the example's model."""

    def write(max_ms, device="cpu"):
        path = tmp_path / "mine.toml"
        path.write_text(
            f'schema = 1\n[[latency]]\nmodel = "tiny"\ndevice = "{device}"\nbatch = 1\nmax_ms = {max_ms}\n'
            'source = "us"\n'
            '[[service_level]]\nname = "trading"\nmax_ms = 0.000001\nsource = "us"\n'
        )
        return path

    return write


@pytest.mark.parametrize(("max_ms", "code"), [(1e6, 0), (1e-9, 4)])
def test_a_users_own_table_judges(bundle_folder, table, max_ms, code):
    result = bench(bundle_folder, *SHORT, "--table", table(max_ms), "--json")
    assert result.exit_code == code, result.stderr
    (one,) = json.loads(result.stdout)["bundles"]
    assert [verdict["budget"]["source"] for verdict in one["record"]["verdicts"]] == ["us"]
    assert {(answer["use_case"], answer["status"]) for answer in one["use_cases"]} == {("trading", "missed")}


def test_a_table_that_is_none_ends_before_anything_is_measured(bundle_folder, table):
    path = table(1.0)
    path.write_text(path.read_text().replace("max_ms = 1.0", "max_msec = 1.0"))
    result = bench(bundle_folder, *SHORT, "--table", path)
    assert result.exit_code == 2
    assert "latency row 1 of mine.toml, line 2: unknown key 'max_msec' (did you mean 'max_ms'?)" in result.stderr
    assert "measuring" not in result.stderr


def test_each_artifact_is_held_against_the_use_cases(bundle_folder, tmp_path):
    result = bench(bundle_folder, *SHORT, "--record", tmp_path / "kept")
    for title in ("real-time (10 ms)", "near-real-time (50 ms)", "batch (1000 ms)"):
        assert title in result.stdout
    (path,) = (tmp_path / "kept").glob("*/*/*.json")
    answers = json.loads(path.read_text())["use_cases"]
    assert len(answers) == 2 * 3
    assert {answer["source"] for answer in answers} == {"Model Infrastructure Requirements Guide"}


def test_junit_and_summary_and_the_step_summary(bundle_folder, tmp_path, rows, monkeypatch):
    rows(easy=1e6, impossible=1e-9)
    step = tmp_path / "step.md"
    step.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))
    junit, summary = tmp_path / "out" / "junit.xml", tmp_path / "out" / "summary.md"
    assert bench(bundle_folder, *SHORT, "--junit", junit, "--summary", summary).exit_code == 4
    suite = ElementTree.parse(junit).getroot().find("testsuite")
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert "1 passed, 1 failed, 0 not judged" in summary.read_text()
    assert step.read_text() == "before\n" + summary.read_text() + "\n"


@pytest.mark.parametrize("option", ["--junit", "--summary", "--record"])
def test_a_file_that_cannot_be_written_is_named(bundle_folder, tmp_path, option):
    (tmp_path / "file").write_text("")
    result = bench(bundle_folder, *SHORT, option, tmp_path / "file" / "below")
    assert result.exit_code == 2
    assert "cannot be" in result.stderr


def test_a_step_summary_that_cannot_be_written_is_named(bundle_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    result = bench(bundle_folder, *SHORT)
    assert result.exit_code == 2
    assert f"$GITHUB_STEP_SUMMARY is {tmp_path}, which cannot be written" in result.stderr
    assert "against the tables" in result.stdout


def test_an_archive(bundle_folder, tmp_path):
    with tarfile.open(tmp_path / "tiny.tar.gz", "w:gz") as archive:
        archive.add(bundle_folder, bundle_folder.name)
    assert bench(tmp_path / "tiny.tar.gz", *SHORT).exit_code == 6


def test_quiet_prints_the_tables_alone(bundle_folder):
    result = bench(bundle_folder, *SHORT, "--quiet")
    assert result.stderr == ""
    assert "fp32-onnx" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "threads is 0; allowed are whole numbers from 1 on"),
        (["--batch", "0"], "batch sizes are whole numbers from 1 on, at least one; given [0]"),
        (["--seconds", "0"], "seconds is 0; allowed are numbers above 0"),
        (["--commit", "a/b"], "commit is 'a/b'; allowed are 1 to 64 letters, digits"),
        (["--table", "absent.toml"], "the latency tables absent.toml cannot be read"),
        (["--seconds", "-1"], "seconds is -1; allowed are numbers above 0"),
        (["--threads", "5"], "threads is 5; cpu4-int8 has 4 cores\nuse --threads 4 or fewer"),
    ],
)
def test_values_that_are_not_allowed(bundle_folder, arguments, message):
    result = bench(bundle_folder, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--record", "the result cannot be kept in {path}: Not a directory"),
        ("--junit", "--junit {path} cannot be written: File exists"),
        ("--summary", "--summary {path} cannot be written: File exists"),
    ],
)
def test_what_cannot_be_written_is_not_measured(bundle_folder, tmp_path, option, message):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "below"
    result = bench(bundle_folder, option, path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message.format(path=path) in result.stderr
    assert "%" not in result.stderr  # no progress


def test_all_bundles_are_opened_before_the_first_is_measured(bundle_folder, tmp_path):
    result = bench(bundle_folder, tmp_path / "nothing")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: there is no bundle")


def test_what_is_no_bundle(bundle_folder, tmp_path):
    assert bench().exit_code == 2
    result = bench(tmp_path / "nothing")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "there is no bundle" in result.stderr
    (tmp_path / "empty").mkdir()
    assert "it is no bundle" in bench(tmp_path / "empty").stderr
    with (bundle_folder / "artifacts" / "tiny-fp32.onnx").open("ab") as file:
        file.write(b"tampered")
    damaged = bench(bundle_folder, *SHORT)
    assert damaged.exit_code == 2
    assert "tiny-fp32.onnx" in damaged.stderr


def test_a_bundle_that_no_runtime_here_runs(bundle_folder, monkeypatch):
    monkeypatch.setattr("tsexport.measurements.timing_pairs.list_statuses", lambda: ())
    result = bench(bundle_folder, *SHORT)
    assert result.exit_code == 6
    assert "no runtime here runs tiny-cpu4-int8; it needs one of onnxruntime" in result.stderr


def test_noise_and_cpus_are_stated(bundle_folder):
    result = bench(bundle_folder, *SHORT)
    assert "noise: CPU " in result.stdout or "noise: not bound to CPUs" in result.stdout
    assert "idle loop jitter" in result.stdout
    (one,) = json.loads(bench(bundle_folder, *SHORT, "--json").stdout)["bundles"]
    noise = one["record"]["noise"]
    assert noise["idle_loops"] > 0
    assert len(noise["cpus"]) == (1 if can_bind() else 0)
    assert one["record"]["container"] is None


def test_a_container_where_the_machine_has_less(bundle_folder, monkeypatch):
    here = fingerprint()
    monkeypatch.setattr(
        "tsexport.measurements.benchmarking.fingerprint", lambda: replace(here, usable_cores=2, logical_cores=2)
    )
    result = bench(bundle_folder, *SHORT, "--container")
    assert (result.exit_code, result.stdout) == (6, "")
    assert "the published container has 3.5 CPUs and 12 GiB; this machine has 2 CPUs" in result.stderr
    assert "measure on a machine with more, or without --container" in result.stderr


def test_measuring_in_a_container(bundle_folder, monkeypatch):
    """A smaller one than the published, so that machines of two cores can make it."""
    limits = ContainerLimits(0.5, 2**30)
    monkeypatch.setattr("tsexport.measurements.benchmarking.published_limits", lambda: limits)
    result = bench(bundle_folder, *SHORT, "--container", "--json")
    if "no container of" in result.stderr:
        pytest.skip(f"no cgroup can be made here: {result.stderr}")
    (one,) = json.loads(result.stdout)["bundles"]
    assert one["record"]["container"] == {"cpus": 0.5, "memory_bytes": 2**30}
    assert one["record"]["machine"]["cgroup_cpu_quota"] == 0.5
    assert {m["machine"] for m in one["record"]["measurements"]} == {one["record"]["machine"]["machine_id"]}


def test_a_container_is_for_cpu4(bundle_folder):
    manifest = open_bundle(bundle_folder).manifest
    changed = replace(manifest, target=parse_target("jetson-int8", "orin-nano"))
    (bundle_folder / "manifest.json").write_text(manifest_text(changed))
    seal(bundle_folder)
    result = bench(bundle_folder, *SHORT, "--container")
    assert result.exit_code == 2
    assert "the published container is a limit of cpu4, and the bundle is for jetson-int8" in result.stderr
    assert "measure without --container" in result.stderr
