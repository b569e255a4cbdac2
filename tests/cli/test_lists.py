"""`tsexport models`, `targets` and `runtimes`, as tables and as JSON."""

import importlib.metadata
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner

from tsexport import cli
from tsexport.cli.output import print_json
from tsexport.models.registry import get_entry, list_entries
from tsexport.runtimes.cuda_build import cuda_obstacle
from tsexport.runtimes.registry import GPU_RUNTIMES, RUNTIMES
from tsexport.targets import host_cpu, target_names

PACKAGES = [row.package for row in RUNTIMES]


def run(*arguments: str):
    result = CliRunner().invoke(cli.main, arguments, prog_name="tsexport")
    assert result.exit_code == 0, result.output
    return result


def run_at_width(columns: int, *arguments: str):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tsexport.cli.output._PIPE_WIDTH", columns)
        return run(*arguments)


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
    missing = [row for row in GPU_RUNTIMES if not row.check().available]
    assert out.count("pip install") == len(missing)
    for row in missing:
        assert f"{row.name}: {row.check().reason}; install it with: {row.pip_command}\n" in out


@pytest.mark.skipif(not cuda_obstacle(), reason="torch computes on a GPU here")
def test_a_runtime_that_has_no_gpu_says_so():
    rows = {row["name"]: row for row in read_json("runtimes")["runtimes"]}
    assert not rows["torch-cuda"]["available"]
    assert rows["torch-cuda"]["reason"] == cuda_obstacle()


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
    rows = {row["name"]: row for row in document["targets"]}
    assert tuple(rows) == target_names()
    for row in rows.values():
        cpu = row["device"] == "cpu4"
        assert row["runs_here"] == (cpu and (row["precision"] != "bf16" or host_cpu().bf16))
        assert (row["tensorrt"] is None) == cpu
        assert row["name"].endswith(f"-{row['precision']}")
    jetson = rows["jetson-int8"]
    assert (jetson["device"], jetson["jetpack"], jetson["tensorrt"]) == ("orin-nano", "6.2", "10.3")
    assert jetson["formats"] == ["onnx", "torchscript"]


def test_targets_say_which_cpus_a_device_may_name():
    from tsexport.targets import CPU_DEVICES, parse_target

    assert read_json("targets")["cpu_devices"] == list(CPU_DEVICES)
    assert "cpu4 targets take --device host, avx2, avx512-vnni, amx, arm64\n" in run("targets").stdout
    for device in CPU_DEVICES:
        assert parse_target("cpu4-int8", device).name == "cpu4-int8"


def test_the_devices_of_targets_json():
    rows = {row["name"]: row for row in read_json("targets")["devices"]}
    assert list(rows) == ["a100", "t4", "orin-nano", "agx-orin", "xavier-nx", "jetson-nano", "h100", "h200"]
    nano = rows["jetson-nano"]
    assert (nano["precisions"], nano["tensorrt"]) == (["fp16"], ["8.0", "8.2"])
    assert nano["jetpack"] == ["4.6", "4.6.1", "4.6.2", "4.6.3", "4.6.4", "4.6.5", "4.6.6"]
    assert "Jetson Nano, INT8: 200 ms" in nano["caveats"][0]
    assert rows["a100"]["jetpack"] == []
    assert rows["t4"]["peak"][0]["int8_tops"] == 130.0


def test_targets_table():
    out = run("targets").stdout
    assert host_cpu().instruction_set in out
    for name in target_names():
        assert name in out
    for part in (
        "4.6 to 4.6.6",
        "8.0 to 8.2",
        "Jetson Orin Nano 8 GB, JetPack 6.2 with TensorRT 10.3, int8",
        "8.6 to 11",
    ):
        assert part in out
    assert "has no INT8 arithmetic" in out


def test_a_target_that_this_cpu_cannot_compute_is_listed_with_the_reason(monkeypatch):
    cpu = replace(host_cpu(), model="Example CPU", instruction_set="avx2", vnni=False, bf16=False)
    monkeypatch.setattr("tsexport.targets.host_cpu", lambda: cpu)
    row = {row["name"]: row for row in read_json("targets")["targets"]}["cpu4-bf16"]
    assert not row["runs_here"]
    assert row["note"].endswith("and Example CPU has none")
    assert "Example CPU has none" in run("targets").stderr


def test_a_broken_third_partys_device_is_said(tmp_path, monkeypatch):
    info = tmp_path / "acme_boards-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-boards\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tsexport.targets]\nacme = no_such_module_of_acme:entry\n")
    monkeypatch.syspath_prepend(tmp_path)
    result = run("targets")
    assert "the target device 'acme' of acme-boards cannot be loaded from no_such_module_of_acme:entry" in result.stderr
    assert "jetson-int8" in result.stdout


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
    rows = {row["name"]: row for row in read_json("models")["models"]}
    assert list(rows) == [entry.name for entry in list_entries()]
    for row in rows.values():
        assert {"name", "family", "task", "summary", "source", "parameters", "published_parameters"} <= set(row)
        assert row["summary"]
        assert row["parameters"] > 0
        assert row["inputs"]
        assert row["outputs"]
    lstm = rows["lstm"]
    assert lstm["parameters"] == 212_355
    assert lstm["inputs"] == [{"name": "features", "dtype": "float32", "shape": ["batch", 60, 26]}]
    assert lstm["outputs"][0]["shape"] == ["batch", 3]
    assert lstm["sizes"] == ["small", "medium", "large"]
    with_checkpoint = {"lstm": None, "patchtst-cpu": None, "inception-time": "small", "sfno-edge": "test"}
    for name, size in with_checkpoint.items():
        assert (rows[name]["checkpoint"], rows[name]["checkpoint_size"]) == (True, size)
    assert (rows["nhits"]["checkpoint"], rows["nhits"]["checkpoint_size"]) == (False, None)


def test_models_json_has_the_published_rows_of_model_and_family():
    rows = {row["name"]: row for row in read_json("models")["models"]}
    found = [(one["model"], one["device"], one["max_ms"]) for one in rows["patchtst-cpu"]["budgets"]]
    assert found[0] == ("patchtst-cpu", "cpu4", 100.0)
    assert ("family:transformer", "rtx4090", 50.0) in found
    assert rows["nhits"]["budgets"] == []


def test_one_model_as_json():
    (row,) = read_json("models", "tft")["models"]
    assert [one["name"] for one in row["inputs"]] == ["observed", "known"]


def test_models_table_fits_a_terminal_of_100_columns():
    result = run_at_width(100, "models")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    (row,) = [line for line in lines if line.strip().startswith("lstm ")]
    assert "recurrent" in row
    assert "212,355" in row
    assert "module:factory" in result.stderr


def test_models_table_says_what_goes_in_and_out_and_what_is_published():
    out = run("models").stdout
    for part in ("features 60x26", "state 13x64x64", "known 192x4", "cpu4: 100 ms", "cpu: >= 500 ms"):
        assert part in out


def test_the_components_of_a_model():
    (row,) = read_json("models", "hrm-27m")["models"]
    names = [part["name"] for part in row["components"]]
    assert names == ["h-module", "l-module", "conditioning-heads", "stream-step"]
    out = run("models", "hrm-27m").stdout
    assert re.search(r"component +h-module: the days before, as a history\n", out)
    assert "28,135,877, published 27,300,000: that is H and L alone" in out
    assert read_json("models", "linear")["models"][0]["components"] == []


def test_the_named_sizes_of_a_model_and_what_they_set():
    out = run("models", "patchtst").stdout
    assert re.search(r"size +small: classes=3 context_length=256 width=128 heads=4 layers=2 feed_forward=256\n", out)
    assert re.search(r"size +test: latitudes=64 longitudes=64 widths=16,32,64 ", run("models", "sfno-edge").stdout)
    assert not re.search(r"^size", run("models", "dlinear").stdout, re.MULTILINE)


def test_all_about_one_model():
    out = run("models", "patchtst-cpu").stdout
    for part in (
        "one value from 128 bars",
        "611,713",
        "input",
        "features float32[batch, 128, 8]",
        "caveat",
        "mean <= 100 ms",
    ):
        assert part in out
    assert "family:transformer" in out
    assert "no published budget" in run("models", "nhits").stderr


def test_a_published_count_that_is_not_ours_stands_beside_it(monkeypatch):
    entry = replace(get_entry("linear"), published_parameters=1_000, published_note="counts the weights of one step")
    monkeypatch.setattr("tsexport.models.registry._BUILT_IN", {"linear": entry})
    out = run("models", "linear").stdout
    assert "32,352, published 1,000: counts the weights of one step" in out
    assert read_json("models", "linear")["models"][0]["published_parameters"] == 1_000


def test_components_have_rows_of_their_own(monkeypatch):
    entry = replace(get_entry("linear"), name="hrm-27m", family="hrm")
    monkeypatch.setattr("tsexport.models.registry._BUILT_IN", {"hrm-27m": entry})
    (row,) = read_json("models", "hrm-27m")["models"]
    assert [(one["component"], one["max_ms"]) for one in row["budgets"] if one["kind"] == "latency"] == [
        ("total", 20.0),
        ("h-module", 3.0),
        ("l-module", 12.0),
        ("conditioning-heads", 1.0),
    ]


def test_an_unknown_model_is_named():
    result = CliRunner().invoke(cli.main, ["models", "lstn"], prog_name="tsexport")
    assert result.exit_code == 2
    assert "did you mean 'lstm'" in result.output


def test_listing_models_imports_no_torch():
    code = """
import sys
from tsexport.cli import main
main(["models"], standalone_mode=False)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_never_holds_what_json_has_not(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"value": value})
