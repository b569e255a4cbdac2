"""`tsexport bench`: exit codes, tables, one JSON document, and kept results."""

import json
import shutil
import tarfile
from dataclasses import replace

import pytest
from click.testing import CliRunner

from tsexport import cli
from tsexport.bench.affinity import can_bind
from tsexport.bench.container import ContainerLimits
from tsexport.bench.fingerprint import fingerprint
from tsexport.bundles import open_bundle
from tsexport.checksums import seal
from tsexport.manifest import manifest_text
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
            "tsexport.benchmarking.latency_budgets",
            lambda model, family, component: tuple(
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
    assert ("missed" in result.stdout) == (code == 4)


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
    (record,) = (tmp_path / "kept" / "tiny-cpu4-int8").glob("*.json")
    assert json.loads(record.read_text())["measurements"]


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
        (["--seconds", "-1"], "seconds is -1; allowed are numbers above 0"),
        (["--threads", "5"], "threads is 5; cpu4-int8 has 4 cores\nuse --threads 4 or fewer"),
    ],
)
def test_values_that_are_not_allowed(bundle_folder, arguments, message):
    result = bench(bundle_folder, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


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
    monkeypatch.setattr("tsexport.benchmarking.list_statuses", lambda: ())
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
    monkeypatch.setattr("tsexport.benchmarking.fingerprint", lambda: replace(here, usable_cores=2, logical_cores=2))
    result = bench(bundle_folder, *SHORT, "--container")
    assert (result.exit_code, result.stdout) == (6, "")
    assert "the published container has 3.5 CPUs and 12 GiB; this machine has 2 CPUs" in result.stderr
    assert "measure on a machine with more, or without --container" in result.stderr


def test_measuring_in_a_container(bundle_folder, monkeypatch):
    """A smaller one than the published, so that machines of two cores can make it."""
    limits = ContainerLimits(0.5, 2**30)
    monkeypatch.setattr("tsexport.benchmarking.published_limits", lambda: limits)
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
