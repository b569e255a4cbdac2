"""The dry run of `tsexport build`, and selections that are refused before anything is opened."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tsexport.bundles.manifest import RankedArtifact, Selection, selection_text
from tsexport.calibration.table import CalibrationTable, Observer, TensorRange
from tsexport.calibration.table_files import tables_text


def refused(result, message):
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert result.stdout == ""


@pytest.fixture
def selection_of(build):
    """Write chosen.json beside where a build runs, by default a choice for any model."""
    order = (RankedArtifact("onnx-fp32", "onnxruntime"),)

    def write(model=""):
        chosen = Selection(1, "onnx-fp32", "onnxruntime", "a test", "onnx-fp32", {}, (), order, 1, (1,), model=model)
        path = Path("chosen.json").absolute()
        path.write_text(selection_text(chosen))
        return path

    return write


def test_a_dry_run_says_what_would_be_done_and_does_nothing(build, tmp_path):
    result = build("patchtst-cpu", "--target", "cpu4-int8", "-o", "dist", "--dry-run")
    assert result.exit_code == 0
    for words in ("dry run: nothing is built", "dist/patchtst-cpu-cpu4-int8", "the reference series", "dynamic-u8"):
        assert words in result.stdout
    assert list((tmp_path / "work").iterdir()) == []
    assert not (tmp_path / "cache").exists()


def test_a_dry_run_as_json(build):
    document = json.loads(build("linear", "--target", "cpu4-fp32", "-o", "dist", "--dry-run", "--json").stdout)
    assert document["schema_version"] == 1
    assert document["dry_run"] is True
    assert document["path"] == "dist/linear-cpu4-fp32"
    assert document["recipes"] == []
    assert not [step for step in document["steps"] if "INT8" in step]


def test_a_dry_run_of_a_component(build):
    options = ("hrm-27m", "--component", "h-module", "--target", "cpu4-fp32", "-o", "dist", "--dry-run")
    shown = build(*options)
    assert re.search(r"component\W+h-module", shown.stdout)
    document = json.loads(build(*options, "--json").stdout)
    assert (document["component"], document["path"]) == ("h-module", "dist/hrm-27m-h-module-cpu4-fp32")


def test_a_dry_run_says_that_windows_are_prepared_in_the_graph(build):
    options = ("linear", "--target", "cpu4-fp32", "-o", "dist", "--dry-run")
    assert re.search(r"preprocessing\W+in the graph", build(*options, "--include-preprocessing").stdout)
    assert "preprocessing" not in build(*options).stdout
    for more, included in ((), False), (("--include-preprocessing",), True):
        assert json.loads(build(*options, *more, "--json").stdout)["include_preprocessing"] is included


def test_a_dry_run_of_a_repeated_selection(build, selection_of):
    selection_of()
    options = ("linear", "--target", "cpu4-fp32", "-o", "dist", "--dry-run", "--selection", "chosen.json")
    assert re.search(r"selection\W+repeats chosen.json", build(*options).stdout)
    assert json.loads(build(*options, "--json").stdout)["selection"] == "chosen.json"


def test_a_dry_run_with_a_latency_table(build):
    row = '[[latency]]\nmodel = "linear"\ndevice = "cpu"\nbatch = 1\nmax_ms = 1\nsource = "us"\n'
    Path("mine.toml").write_text("schema = 1\n" + row)
    options = ("linear", "--target", "cpu4-fp32", "-o", "dist", "--dry-run", "--table", "mine.toml")
    assert re.search(r"latency table\W+mine.toml", build(*options).stdout)
    assert json.loads(build(*options, "--json").stdout)["table"] == "mine.toml"
    Path("mine.toml").write_text("schema = 1\n" + row.replace('"cpu"', '"cpu5"'))
    refused(build(*options), 'latency row 1 of mine.toml, line 2: device: is "cpu5", allowed are')


def test_a_dry_run_with_a_calibration_table(build):
    table = CalibrationTable("a" * 64, "b" * 64, (), Observer("mse"), "tests", (TensorRange("x", -1.0, 1.0),))
    Path("ranges.json").write_text(tables_text([table]))
    options = ("linear", "--target", "cpu4-int8", "-o", "dist", "--dry-run", "--calibration-table", "ranges.json")
    assert re.search(r"ranges\W+those of ranges.json", build(*options).stdout)
    assert json.loads(build(*options, "--json").stdout)["calibration_table"] == "ranges.json"


def test_calibration_tables_that_are_refused_before_anything_is_opened(build):
    Path("damaged.json").write_text('{"schema_version": 1, "tables": []}')
    options = ("linear", "-o", "dist", "--calibration-table", "damaged.json", "--target")
    refused(build(*options, "cpu4-int8"), "damaged.json holds no calibration table")
    refused(
        build(*options, "cpu4-fp32"), "--calibration-table damaged.json was given, and cpu4-fp32 calibrates nothing"
    )


@pytest.mark.parametrize("of", ["dlinear", "linear l-module"])
def test_a_selection_of_another_model_is_refused_before_anything_is_opened(build, selection_of, of):
    """What was measured there says nothing here, and the manifest would say that it was measured."""
    selection_of(of)
    result = build("linear", "--target", "cpu4-fp32", "-o", "dist", "--dry-run", "--selection", "chosen.json")
    refused(result, f"--selection chosen.json repeats choices that were measured for {of}; this build is of linear")
    assert "give the selection.json of a bundle of linear, or build without --selection" in result.stderr
    selection_of("linear")
    assert build("linear", "--target", "cpu4-fp32", "-o", "d", "--dry-run", "--selection", "chosen.json").exit_code == 0


def test_a_selection_of_before_rewrites_were_chosen(build, selection_of):
    path = selection_of()
    document = json.loads(path.read_text())
    del document["rewrites"]
    path.write_text(json.dumps(document))
    result = build("linear", "--target", "cpu4-fp32", "-o", "dist", "--selection", "chosen.json")
    refused(result, "selection.json")
    assert "rewrites" in result.stderr


def test_a_dry_run_opens_no_model(tmp_path):
    program = """
import sys
from tsexport.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"torch", "onnx", "onnxruntime", "openvino", "nncf", "pyarrow"} & set(sys.modules)
    print(sorted(heavy), file=sys.stderr)
"""
    arguments = ["build", "patchtst-cpu", "--target", "cpu4-int8", "-o", str(tmp_path), "--dry-run", "--json"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert json.loads(done.stdout)["dry_run"] is True


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "linear-cpu4-fp32"),
        (["--name", "mine"], "mine"),
        (["--device", "HOST"], "linear-cpu4-fp32-HOST"),
    ],
)
def test_names(build, arguments, name):
    from tsexport.targets import host_cpu

    here = host_cpu().instruction_set
    given = [here if part == "HOST" else part for part in arguments]
    result = build("linear", "--target", "cpu4-fp32", "-o", "dist", "--dry-run", "--json", *given)
    assert json.loads(result.stdout)["path"] == f"dist/{name.replace('HOST', here)}"


def test_a_factory_and_a_file_are_named_by_factory_and_stem(build, tmp_path):
    import onnx

    onnx.save(onnx.parser.parse_model("<ir_version: 8, opset_import: ['' : 17]> g (float[b] x) => (float[b] y) {"
                                      "y = Identity(x)}".replace("'", '"')), tmp_path / "net.onnx")  # fmt: skip
    options = ("--target", "cpu4-fp32", "-o", "dist", "--dry-run", "--json")
    assert json.loads(build(tmp_path / "net.onnx", *options).stdout)["path"] == "dist/net-cpu4-fp32"
    assert json.loads(build("package.mine:make", *options).stdout)["path"] == "dist/make-cpu4-fp32"


def test_a_target_that_is_not_this_machine(build):
    result = build(
        "patchtst-cpu", "--target", "jetson-int8", "--device", "xavier-nx@jetpack-5.1", "-o", "dist", "--dry-run"
    )
    assert result.exit_code == 0
    words = " ".join(result.stdout.split())
    assert (
        "jetson-int8: Jetson Xavier NX, JetPack 5.1 with TensorRT 8.5, int8; not this machine, so latency is" in words
    )
    assert "dist/patchtst-cpu-jetson-int8-xavier-nx-jetpack-5.1" in words


def test_a_target_that_is_not_this_machine_as_json(build):
    options = ("--target", "a100-fp32", "--device", "@tensorrt-8.6", "-o", "dist", "--dry-run", "--json")
    document = json.loads(build("linear", *options).stdout)
    assert (document["here"], document["instruction_set"], document["tensorrt"]) == (False, "gpu", "8.6")
    assert document["formats"] == ["onnx", "torchscript"]
    assert document["path"] == "dist/linear-a100-fp32--tensorrt-8.6"
    assert not [step for step in document["steps"] if "measure" in step or "OpenVINO" in step]


def test_a_format_that_the_target_does_not_run(build):
    options = ("--target", "a100-fp32", "--formats", "openvino", "-o", "dist", "--dry-run")
    refused(build("linear", *options), "a100-fp32 runs none of openvino; its formats are onnx, torchscript")
