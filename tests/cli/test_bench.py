"""tsexport bench: a bundle measured in fresh processes, and judged."""

import json
import shutil
import sys

import pytest
from click.testing import CliRunner

from tsexport.bench.records import read_record
from tsexport.cli.bench import bench
from tsexport.errors import BundleError, NoRuntimeError, UsageError
from tsexport.runtimes.registry import RUNTIMES

QUICK = ("--batch", "1", "--seconds", "0.2", "--threads", "1")


def run(*arguments):
    return CliRunner().invoke(bench, [str(argument) for argument in arguments])


def test_every_artifact_is_measured_and_the_record_is_kept(bundle_folder, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "b"), "gztar", bundle_folder.parent, bundle_folder.name)
    result = run(archive, *QUICK, "--record", tmp_path / "kept", "--json")
    assert result.exit_code == 6, result.output  # no published row names this model
    (one,) = json.loads(result.stdout)["bundles"]
    assert one["name"] == "tiny-cpu4-int8"
    measured = one["record"]["measurements"]
    assert [(m["artifact"], m["runtime"], m["batch"], m["threads"]) for m in measured] == [
        ("fp32-onnx", "onnxruntime", 1, 1),
        ("int8-onnx", "onnxruntime", 1, 1),
    ]
    assert all(m["samples_ms"] for m in measured)
    (path,) = (tmp_path / "kept" / "tiny-cpu4-int8").iterdir()
    assert [m.artifact for m in read_record(path).measurements] == ["fp32-onnx", "int8-onnx"]


def test_tables(bundle_folder):
    result = run(bundle_folder, *QUICK)
    assert result.exit_code == 6, result.output
    for text in ("fp32-onnx", "int8-onnx", "p90", "peak memory", "against the published tables"):
        assert text in result.stdout


def test_no_thread_is_no_measurement(bundle_folder):
    assert isinstance(run(bundle_folder, "--threads", "0").exception, UsageError)


def test_a_damaged_bundle_is_not_measured(bundle_folder):
    (bundle_folder / "artifacts" / "tiny-int8.onnx").write_bytes(b"other")
    assert isinstance(run(bundle_folder, *QUICK).exception, BundleError)


def test_without_any_runtime(bundle_folder, monkeypatch):
    for row in RUNTIMES:
        monkeypatch.setitem(sys.modules, row.package, None)
    error = run(bundle_folder, *QUICK).exception
    assert isinstance(error, NoRuntimeError)
    assert "no runtime here runs tiny-cpu4-int8; it needs one of onnxruntime" in error.message


def test_help_names_the_exit_codes():
    assert "Exit codes: 0 done, 4 a published row is missed, 6 none could be judged here." in run("--help").output


@pytest.mark.parametrize("arguments", [(), ("--batch", "1")])
def test_wrong_usage(arguments):
    assert run(*arguments).exit_code == 2
