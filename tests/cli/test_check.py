"""`tsexport check`: exit codes, the table, one JSON document, and the same as a function."""

import json

import onnx
import onnx.parser
import pytest
from click.testing import CliRunner

import tsexport
from tsexport import cli
from tsexport.errors import MissingDependencyError, UnsupportedError, UsageError

TEXT = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[batch, 8] x) => (float[batch, 8] y)
    <float[8] one = {1, 1, 1, 1, 1, 1, 1, 1}> { y = LayerNormalization(x, one) }
"""


@pytest.fixture
def model(tmp_path):
    made = onnx.parser.parse_model(TEXT)
    made.graph.node[0].name = "norm"
    onnx.save(made, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def run(*arguments):
    return CliRunner().invoke(cli.main, ["check", *map(str, arguments)], prog_name="tsexport")


def test_what_is_accepted_ends_with_0(model):
    result = run(model, "--target", "jetson-fp16")
    assert result.exit_code == 0
    assert result.output == "m.onnx on orin-nano, TensorRT 10.3: 1 nodes, 0 refused or computed wrongly, 0 warnings\n"


def test_a_warning_ends_with_0_too(model):
    result = run(model, "--target", "jetson-int8")
    assert result.exit_code == 0
    assert "the graph has no Q/DQ pairs" in result.output


def test_what_is_refused_ends_with_5(model):
    result = run(model, "--target", "jetson-fp16", "--device", "xavier-nx@jetpack-5.1")
    assert result.exit_code == 5
    assert "norm" in result.output
    assert (
        "error: TensorRT 8.5 does not run m.onnx as it is: 'norm': TensorRT 8.5 has no LayerNormalization"
        in result.stderr
    )
    assert "write it out as ReduceMean" in result.stderr
    assert "TensorRT 8.6 takes it" in result.stderr


def test_notes_are_printed(model):
    result = run(model, "--target", "a100-fp16", "--device", "@tensorrt-11.0")
    assert result.exit_code == 0
    assert "note: the table of TensorRT 11.0 is inferred from the releases beside it" in result.stdout


@pytest.mark.parametrize(("device", "code"), [("@jetpack-6.2", 0), ("jetson-nano", 5)])
def test_json_is_one_document_on_stdout(model, device, code):
    result = run(model, "--target", "jetson-fp16", "--device", device, "--json")
    assert result.exit_code == code
    document = json.loads(result.stdout)
    assert document["schema_version"] == 1
    assert document["accepted"] == (code == 0)
    assert document["nodes"] == 1
    if code:
        assert document["findings"][0]["node"] == "norm"
        assert document["findings"][0]["first_version"] == "8.6"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["m.onnx", "--target", "cpu4-int8"], 2, "check is for targets with TensorRT, and cpu4-int8 has none"),
        (["m.onnx", "--target", "jetson-int9"], 2, "jetson-int9"),
        (["m.onnx", "--target", "jetson-int8", "--device", "jetson-nano"], 5, "fp16"),
        (["gone.onnx", "--target", "jetson-int8"], 2, "gone.onnx is no file"),
        (["m.onnx"], 2, "--target"),
    ],
)
def test_what_cannot_be_judged(model, monkeypatch, arguments, code, words):
    monkeypatch.chdir(model.parent)
    result = run(*arguments)
    assert result.exit_code == code
    assert words in result.stderr


def test_the_function_returns_the_report(model):
    report = tsexport.check(model, "jetson-fp16", device="@jetpack-5.1.1")
    assert not report.accepted
    assert [one.node for one in report.errors] == ["norm"]
    assert tsexport.check(str(model), "jetson-fp16").accepted
    with pytest.raises(UsageError):
        tsexport.check(model, "cpu4-fp32")
    with pytest.raises(UnsupportedError):
        tsexport.check(model, "jetson-int8", device="jetson-nano")


def test_without_onnx_the_pip_command_is_named(model, monkeypatch):
    from tsexport import extras

    monkeypatch.setattr(extras, "_is_importable", lambda name: name != "onnx")
    with pytest.raises(MissingDependencyError) as raised:
        tsexport.check(model, "jetson-fp16")
    assert raised.value.message == "tsexport check needs onnx, not installed here"
    assert raised.value.next_step == 'pip install "tsexport[build]"'
