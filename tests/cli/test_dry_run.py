"""`tsexport build --dry-run`: what would be done, under which name; nothing is written, and no model opened."""

import json
import re
import subprocess
import sys

import pytest


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
