"""`check` over whole files: what a report says, damaged files, ONNX's own test models, and the table's origin."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.errors import TsexportError, UsageError
from tsexport.exporters.device_check import check_onnx
from tsexport.exporters.device_table import tensorrt_table, version_key

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("TSEXPORT_SHARED", ROOT.parent / "shared"))
ENCODER = """
    <ir_version: 8, opset_import: ["" : 17]>
    encoder (float[batch, 8, 8] x) => (float[batch, 8, 8] y)
    <float[8] one = {1, 1, 1, 1, 1, 1, 1, 1}, float[8] zero = {0, 0, 0, 0, 0, 0, 0, 0}>
    { n = LayerNormalization(x, one, zero)  t = Trilu(n)  y = Relu(t) }
"""


def save(text, path):
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:
        node.name = f"make_{node.output[0]}"
    onnx.save(model, path)
    return path


@pytest.fixture
def encoder(tmp_path):
    return save(ENCODER, tmp_path / "encoder.onnx")


def test_a_finding_names_the_node_the_version_and_what_helps(encoder):
    report = check_onnx(encoder, tensorrt="8.2", precision="fp16", target="jetson-fp16", device="jetson-nano")
    assert not report.accepted
    assert (report.file, report.target, report.device, report.nodes) == (
        "encoder.onnx",
        "jetson-fp16",
        "jetson-nano",
        3,
    )
    normalization, triangle = report.errors
    assert (normalization.node, normalization.operator, normalization.kind) == (
        "make_n",
        "LayerNormalization",
        "unsupported",
    )
    assert normalization.reason == "TensorRT 8.2 has no LayerNormalization"
    assert normalization.first_version == "8.6"
    assert normalization.rewrite.startswith("write it out as ReduceMean, Sub, Pow, Sqrt and Div")
    assert (triangle.node, triangle.first_version) == ("make_t", "8.5")
    assert "constant mask" in triangle.rewrite
    (opset,) = [one for one in report.findings if one.level == "warning"]
    assert opset.node == ""
    assert opset.reason.startswith("the file has opset 17, TensorRT 8.2 documents 13")


def test_what_never_comes_has_no_first_version(tmp_path):
    path = save(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[batch, 8, 1] x) => (float[batch, 8, 2] y) { y = DFT(x) }',
        tmp_path / "dft.onnx",
    )
    (finding,) = check_onnx(path, tensorrt="10.3", precision="fp32").errors
    assert (finding.first_version, finding.rewrite) == (
        "",
        "write it as products with constant matrices of cosines and sines",
    )


@pytest.mark.parametrize(
    ("version", "notes"),
    [
        ("8.6", []),
        ("8.5.2", []),
        ("10.3", []),
        ("8.3", ["TensorRT 8.3 is not in the table: judged as 8.2"]),
        ("7.1", ["TensorRT 7.1 is not in the table: judged as 8.0"]),
        (
            "10.15",
            ["what the parser of TensorRT 10.15 does beyond its documentation was not read: assumed as in 10.10"],
        ),
        (
            "11.0",
            [
                "the table of TensorRT 11.0 is inferred from the releases beside it",
                "what the parser of TensorRT 11.0 does beyond its documentation was not read: assumed as in 10.10",
            ],
        ),
        (
            "12.4",
            [
                "TensorRT 12.4 is not in the table: judged as 11.1",
                "what the parser of TensorRT 11.1 does beyond its documentation was not read: assumed as in 10.10",
            ],
        ),
    ],
)
def test_notes_say_what_the_verdicts_rest_on(encoder, version, notes):
    assert list(check_onnx(encoder, tensorrt=version, precision="fp32").notes) == notes


def test_an_int8_target_wants_pairs_and_goes_on_without(encoder):
    report = check_onnx(encoder, tensorrt="10.3", precision="int8")
    assert report.accepted
    (warning,) = report.findings
    assert (warning.kind, warning.level) == ("Q/DQ", "warning")
    assert warning.reason == ("the graph has no Q/DQ pairs: for an int8 target TensorRT computes it in floating point")


def test_int64_is_narrowed_before_9(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (int64[batch] i) => (int64[batch] y)
        <int64[1] far = {5000000000}, int64[1] end = {9223372036854775807}>
        { a = Add(i, far)  y = Slice(a, zero, end) zero = Constant<value_ints=[0]>() }"""
    text = text.replace(" zero = Constant<value_ints=[0]>() }", " }").replace(
        "{ a =", "{ zero = Constant<value_ints=[0]>()  a ="
    )
    path = save(text, tmp_path / "far.onnx")
    before = check_onnx(path, tensorrt="8.6", precision="fp32")
    assert before.accepted
    assert [one.reason for one in before.findings] == [
        "the input 'i' of INT64 becomes INT32 before TensorRT 9",
        "the constant 'far' of INT64 has values beyond INT32, to which it is narrowed",
    ]
    assert check_onnx(path, tensorrt="10.3", precision="fp32").findings == ()


def test_the_bodies_of_loops_and_functions_are_judged_too(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[8, 8] x) => (float[8, 8] y) { y = own.triangle(x) }
        <domain: "own", opset_import: ["" : 17]> triangle (a) => (b) { c = Trilu(a)  b = Relu(c) }"""
    path = tmp_path / "function.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    report = check_onnx(path, tensorrt="8.2", precision="fp32")
    assert [(one.operator, one.kind) for one in report.errors] == [("Trilu", "unsupported")]
    body = """<ir_version: 8, opset_import: ["" : 17]>
        g (bool c, float[8, 8] x) => (float[8, 8] y) {
            y = If (c) <then_branch = g1 () => (float[8, 8] p) { p = Trilu(x) },
                        else_branch = g2 () => (float[8, 8] q) { q = Relu(x) }> }"""
    report = check_onnx(save(body, tmp_path / "branch.onnx"), tensorrt="8.2", precision="fp32")
    assert [one.operator for one in report.errors] == ["Trilu"]


def test_layers_without_a_kernel_are_told_for_old_gpus(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[batch, 1, 4, 4] x) => (float[batch, 1, 4, 4] y)
        <float s = {0.1}, int8 z = {0}, float[1, 1, 1, 1] k = {2}>
        { xq = QuantizeLinear(x, s, z)  xd = DequantizeLinear(xq, s, z)  kq = QuantizeLinear(k, s, z)
          kd = DequantizeLinear(kq, s, z)  y = ConvTranspose(xd, kd) }"""
    path = save(text, tmp_path / "turned.onnx")
    assert check_onnx(path, tensorrt="10.3", precision="int8", compute_capability="8.7").findings == ()
    (finding,) = check_onnx(path, tensorrt="10.3", precision="int8", compute_capability="7.5").findings
    assert (finding.level, finding.node) == ("warning", "make_y")
    assert finding.reason.startswith("kernels: it is quantized, a transposed convolution")


# --- damaged files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.onnx holds no ONNX graph with nodes and operator sets"),
        (b"root:x:0:0:root:/root:/bin/bash\n", "x.onnx cannot be read as ONNX: "),
        (b"\x08\x08", "x.onnx holds no ONNX graph with nodes and operator sets"),
    ],
    ids=["empty", "text", "no graph"],
)
def test_what_is_no_model_says_so(tmp_path, content, message):
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(UsageError) as raised:
        check_onnx(path, tensorrt="8.6", precision="fp32")
    assert raised.value.message.startswith(message)
    assert raised.value.next_step == "Export or copy it again."


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"nothing\.onnx is no file"):
        check_onnx(tmp_path / "nothing.onnx", tensorrt="8.6", precision="fp32")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("y = Relu(gone)", "gone"),
        ("y = NoSuchOperator(x)", "NoSuchOperator"),
        ('y = LayerNormalization(x, "", x)', "LayerNormalization"),
    ],
    ids=["an input that nothing makes", "an operator that ONNX does not have", "a scale that ONNX requires"],
)
def test_an_invalid_model_says_so(tmp_path, body, words):
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[8] x) => (float[8] y) {{ {body} }}'
    path = tmp_path / "invalid.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    with pytest.raises(UsageError) as raised:
        check_onnx(path, tensorrt="8.6", precision="fp32")
    assert raised.value.message.startswith("invalid.onnx is damaged, or no valid ONNX: ")
    assert words in raised.value.message


def test_weights_that_are_not_beside_it(tmp_path):
    model = onnx.parser.parse_model(ENCODER)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4096, np.float32), "w"))
    onnx.save(model, tmp_path / "big.onnx", save_as_external_data=True, location="big.data", size_threshold=1024)
    assert check_onnx(tmp_path / "big.onnx", tensorrt="10.3", precision="fp32").accepted
    (tmp_path / "big.data").unlink()
    with pytest.raises(TsexportError, match=r"keeps weights in 'big\.data'"):
        check_onnx(tmp_path / "big.onnx", tensorrt="10.3", precision="fp32")


def judged_or_refused(path):
    try:
        return check_onnx(path, tensorrt="8.6", precision="fp32")
    except TsexportError as error:
        return error


WHOLE = onnx.parser.parse_model(ENCODER).SerializeToString()
CHANGES = st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=6)


@settings(max_examples=150)
@given(st.integers(0, len(WHOLE)), CHANGES)
def test_a_damaged_file_is_judged_or_refused_with_a_reason(tmp_path_factory, length, changes):
    damaged = bytearray(WHOLE)
    for place, value in changes:
        damaged[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(bytes(damaged[:length]))
    outcome = judged_or_refused(path)
    if isinstance(outcome, TsexportError):
        assert outcome.exit_code == 2
        assert outcome.message.startswith(("damaged.onnx ", f"{path} "))
    else:
        assert all(one.reason for one in outcome.findings)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # ONNX's own cases compute casts that overflow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_models_of_onnxs_own_tests_are_all_judged(tmp_path):
    from onnx.backend.test.case.node import collect_testcases

    folder = Path(onnx.__file__).parent / "backend" / "test" / "data"
    path = tmp_path / "case.onnx"
    judged = 0
    models = (case.model for case in collect_testcases(None))
    files = (onnx.load(name) for name in sorted(folder.rglob("model.onnx")))
    for model in (*models, *files):
        onnx.save(model, path)
        for version in ("8.2", "10.3"):
            report = check_onnx(path, tensorrt=version, precision="fp32")
            assert report.nodes >= 1
            for one in report.findings:
                assert one.reason
                assert one.first_version == "" or version_key(one.first_version) > version_key(version)
            judged += 1
    assert judged > 3000


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_table_is_the_one_it_was_made_from():
    path = SHARED / "spec" / "trt_ops.json"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    origin = json.loads(path.read_text())
    table = tensorrt_table()
    assert list(table.versions) == [name for name in origin if name != "_meta"]
    named = {"FP32", "FP16", "BF16", "FP8", "FP4", "INT4", "INT8", "UINT8", "INT32", "INT64", "BOOL"}
    for version in table.versions:
        assert table.max_opset[version] == origin[version]["max_opset"]
        assert (version in table.inferred) == (origin[version]["provenance"] == "inferred")
        for operator in table.operators:
            row = origin[version]["ops"].get(operator)
            wanted = [one for one in row["types"] if one in named] if row and row["supported"] else None
            found = table.types_of(operator, version)
            assert (None if found is None else list(found)) == wanted, (version, operator)
        assert origin[version]["ops"].keys() <= table.operators.keys()


def test_versions_are_compared_as_numbers():
    table = tensorrt_table()
    assert version_key("10.10") > version_key("10.9") > version_key("9.3")
    assert (table.closest("8.6.2"), table.closest("10.11"), table.closest("7.0")) == ("8.6", "10.10", "8.0")
    assert table.types_of("NoSuchOperator", "10.3") is None
