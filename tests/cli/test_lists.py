"""`tsexport models`, `targets` and `runtimes`, as tables and as JSON."""

import importlib.metadata
import json
import sys

import pytest
from click.testing import CliRunner

from tsexport import cli
from tsexport.cli.output import print_json
from tsexport.runtimes.registry import RUNTIMES
from tsexport.targets import host_cpu, target_names

PACKAGES = [row.package for row in RUNTIMES]


def run(*arguments: str):
    result = CliRunner().invoke(cli.main, arguments, prog_name="tsexport")
    assert result.exit_code == 0, result.output
    return result


def read_json(*arguments: str):
    """Return the one document on stdout; nothing may stand beside it."""
    return json.loads(run(*arguments, "--json").stdout)


def test_runtimes_json():
    document = read_json("runtimes")
    assert document["schema_version"] == 1
    rows = {row["name"]: row for row in document["runtimes"]}
    assert list(rows)[:4] == ["torchscript", "onnxruntime", "openvino", "tract"]
    assert rows["openvino"] == {
        "name": "openvino",
        "available": True,
        "version": importlib.metadata.version("openvino"),
        "formats": ["openvino", "onnx"],
        "pip_command": 'pip install "tsexport[openvino]"',
        "reason": "",
    }


def test_runtimes_table():
    out = run("runtimes").stdout
    for row in RUNTIMES:
        assert row.name in out
        assert importlib.metadata.version(row.package) in out
    assert "pip install" not in out


def test_a_missing_runtime_is_shown_with_its_whole_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "tract", None)  # what `import` sees where the package is not installed
    out = run("--quiet", "runtimes").stdout
    assert 'tract: the package tract is not installed; install it with: pip install "tsexport[tract]"\n' in out
    row = read_json("runtimes")["runtimes"][3]
    assert (row["available"], row["version"]) == (False, None)


def test_targets_json():
    document = read_json("targets")
    assert document["schema_version"] == 1
    assert document["machine"]["instruction_set"] == host_cpu().instruction_set
    assert [row["name"] for row in document["targets"]] == list(target_names())
    for row in document["targets"]:
        assert row["runs_here"]
        assert row["name"] == f"{row['device']}-{row['precision']}"


def test_targets_table():
    out = run("targets").stdout
    assert host_cpu().instruction_set in out
    for name in target_names():
        assert name in out


def test_targets_on_fewer_cores_say_so(monkeypatch):
    monkeypatch.setattr("tsexport.cli.lists._cores", lambda: 1)
    result = run("targets")
    assert "this machine has 1 of the 4 cores: a budget met here is met" in result.stderr
    assert run("--quiet", "targets").stderr == ""
    monkeypatch.setattr("tsexport.cli.lists._cores", lambda: 4)
    assert run("targets").stderr == ""


def test_targets_do_not_run_where_no_runtime_is_installed(monkeypatch):
    for package in PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)
    row = read_json("targets")["targets"][0]
    assert not row["runs_here"]
    assert row["note"].startswith('no runtime is installed; run one of: pip install "torch==')


def test_models_json():
    rows = read_json("models")["models"]
    assert {"patchtst-cpu", "patchtst", "dlinear", "linear"} <= {row["name"] for row in rows}
    for row in rows:
        assert set(row) == {"name", "family", "task", "summary", "source"}
        assert row["summary"]


def test_models_table():
    result = run("models")
    assert "patchtst-cpu" in result.stdout
    assert "module:factory" in result.stderr


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_never_holds_what_json_has_not(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"value": value})
