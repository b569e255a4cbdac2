"""tsexport verify: what it prints, and the errors it leaves for the exit code."""

import json
import shutil

import pytest
from click.testing import CliRunner

from tsexport import cli
from tsexport.bundles.checksums import seal
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


def test_what_comes_out_of_a_bundle_moves_no_cursor(bundle_folder, tmp_path):
    """A name could otherwise wipe the line that says what is wrong, or write another."""
    document = json.loads((bundle_folder / "manifest.json").read_text())
    name = "fp32\x1b[2K\x1b[1Gpassed\u202e"
    document["artifacts"][0]["name"] = name
    (bundle_folder / "manifest.json").write_text(json.dumps(document))
    selection = (bundle_folder / "selection.json").read_text()
    (bundle_folder / "selection.json").write_text(selection.replace('"fp32-onnx"', json.dumps(name)))
    seal(bundle_folder)
    result = run(bundle_folder)
    assert result.exit_code == 0, result.output
    assert "fp32\\x1b[2K\\x1b[1Gpassed\\u202e" in result.output
    assert not set(result.output) & set("\x1b\u202e")
    (bundle_folder / "added\x1b[2K").write_text("")
    refused = CliRunner().invoke(cli.main, ["verify", str(bundle_folder)])
    assert (refused.exit_code, "\x1b" in refused.stderr) == (2, False)
    assert "added: added\\x1b[2K" in refused.stderr
    copy = shutil.copytree(bundle_folder, tmp_path / "no utf-8 \udcff")
    refused = CliRunner().invoke(cli.main, ["verify", str(copy)])
    assert refused.exit_code == 2
    assert "no utf-8 \\udcff is not UTF-8, which runtimes need\nrename or move it" in refused.stderr


@pytest.mark.parametrize("arguments", [["--jsn"], []])
def test_wrong_usage(arguments):
    assert run(*arguments).exit_code == 2
