"""tsexport diff: what it prints, and that a difference is no failure."""

import json
import shutil

import pytest
from click.testing import CliRunner

from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import seal
from tsexport.cli.diff import diff
from tsexport.errors import BundleError


def run(*arguments):
    return CliRunner().invoke(diff, [str(argument) for argument in arguments])


@pytest.fixture
def changed(measured_folder, tmp_path):
    """A copy whose manifest and selected artifact differ."""
    other = tmp_path / "other" / "tiny-changed"
    shutil.copytree(measured_folder, other)
    document = json.loads((other / "manifest.json").read_text())
    document["provenance"]["versions"]["onnxruntime"] = "1.32.0"
    document["accuracy"][0]["output_error"] = 0.02
    document["candidates"][1]["reason"] = "another reason"
    document["selected"]["artifact"] = "fp32-onnx"
    (other / "manifest.json").write_text(json.dumps(document))
    selection = json.loads((other / "selection.json").read_text()) | {"artifact": "fp32-onnx"}
    (other / "selection.json").write_text(json.dumps(selection))
    (record,) = (other / "measurements").glob("*.json")
    measured = json.loads(record.read_text())
    measured["measurements"][0]["samples_ms"] = [9.0] * 20
    record.write_text(json.dumps(measured))
    seal(other)
    return other


def test_help_names_the_exit_codes():
    assert "Exit codes: 0 compared (whether anything differs or not), 2 a bundle is damaged." in run("-h").output


def test_tables(measured_folder, changed):
    result = run(measured_folder, changed)
    assert result.exit_code == 0, result.output
    for text in (
        "A is tiny-cpu4-int8, B is tiny-changed", "manifest.json", "other selected, provenance, accuracy, candidates",
        "selected.artifact", "MatMulInteger", "precision of layers", "2 %", "1.32.0", "another reason", "9",
        "licences: tiny-changed has no sbom.cdx.json",
    ):  # fmt: skip
        assert text in result.output, text


def test_nothing_differs(measured_folder):
    result = run(measured_folder, measured_folder)
    assert result.exit_code == 0
    assert "every file outside measurements/ and the report has the same bytes" in result.output
    assert "settings" not in result.output


def test_json(measured_folder, changed):
    document = json.loads(run(measured_folder, changed, "--json").stdout)
    assert document["schema_version"] == 1
    assert (document["a"], document["b"], document["same_bytes"]) == ("tiny-cpu4-int8", "tiny-changed", False)
    assert document["versions"] == [{"what": "onnxruntime", "a": "1.31.1", "b": "1.32.0"}]


def test_the_public_function(measured_folder, changed):
    import tsexport

    assert tsexport.diff(open_bundle(measured_folder), changed).b == "tiny-changed"


def test_damaged(measured_folder, changed):
    (changed / "README.md").write_text("other")
    result = run(measured_folder, changed, "--json")
    assert isinstance(result.exception, BundleError)
    assert result.stdout == ""


@pytest.mark.parametrize("arguments", [["--jsn"], [], ["one"]])
def test_wrong_usage(arguments):
    assert run(*arguments).exit_code == 2
