"""tsexport verify: what it prints, and the errors it leaves for the exit code."""

import json

import pytest
from click.testing import CliRunner

from tsexport.cli.verify import verify
from tsexport.errors import BundleError, GoldenError, UsageError


def run(*arguments):
    return CliRunner().invoke(verify, [str(argument) for argument in arguments])


def test_help_names_the_exit_codes():
    text = run("-h").output
    assert "Exit codes: 0 all well, 2 tampered or damaged, 3 golden outputs missed" in text


def test_table(bundle_folder):
    result = run(bundle_folder)
    assert result.exit_code == 0, result.output
    for text in ("the SHA-256 of", "fp32-onnx", "int8-onnx", "passed", "6 golden samples, 4 at a time"):
        assert text in result.output


def test_json(bundle_folder):
    document = json.loads(run(bundle_folder, "--json").stdout)
    assert document["schema_version"] == 1
    assert document["passed"] is True
    assert document["bundle"] == "tiny-cpu4-int8"
    assert [check["status"] for check in document["checks"]] == ["passed", "passed"]
    assert document["checks"][0]["tolerance"]["atol"] == 1e-5


def test_json_is_printed_before_golden_outputs_missed(missed_bundle):
    result = run(missed_bundle, "--json")
    assert isinstance(result.exception, GoldenError)
    document = json.loads(result.stdout)
    assert document["passed"] is False
    assert [check["status"] for check in document["checks"]] == ["failed", "passed"]


def test_tampered(bundle_folder):
    (bundle_folder / "README.md").write_text("other")
    result = run(bundle_folder, "--json")
    assert isinstance(result.exception, BundleError)
    assert "changed: README.md" in str(result.exception)
    assert result.stdout == ""


def test_nothing_there(tmp_path):
    result = run(tmp_path / "nothing")
    assert isinstance(result.exception, UsageError)


@pytest.mark.parametrize("arguments", [["--jsn"], []])
def test_wrong_usage(arguments):
    assert run(*arguments).exit_code == 2
