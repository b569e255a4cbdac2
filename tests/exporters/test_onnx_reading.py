"""Files that anyone may have made, as `check` reads them: damage says where, the odd is read as TensorRT does."""

import contextlib

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from tsexport.checking import check_file
from tsexport.errors import TsexportError, UsageError
from tsexport.exporters import onnx_reading
from tsexport.exporters.device_check import check_onnx
from tsexport.exporters.onnx_reading import Misfit, read_onnx, require_readable

ROWS = "(float[batch, 8] x) => (float[batch, 8] y)"
CHANNELS = "q = QuantizeLinear<axis=1>(x, w, z)  y = DequantizeLinear<axis=1>(q, w, z)"
ZEROS = numpy_helper.from_array(np.zeros(8, np.int8), "z")


def parsed(body, signature=ROWS, opset=17, ir_version=8):
    return onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> g {signature} {{ {body} }}'
    )


def saved(model, folder):
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def reasons(path, version, precision="fp32"):
    return [one.reason for one in check_onnx(path, tensorrt=version, precision=precision).findings]


# --- damaged tensors -------------------------------------------------------------------------------------------------


def placed(name, **places):
    """Return eight numbers of fp32 that lie in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[8], data_location=TensorProto.EXTERNAL)
    for key, value in places.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


@pytest.mark.parametrize(
    ("places", "held"),
    [
        ({}, 16),
        ({"length": 32}, 16),
        ({"offset": 9999, "length": 32}, 0),
        ({"offset": -4, "length": 32}, 0),
        ({"offset": "far", "length": 32}, 0),
        ({"length": "long"}, 0),
        ({"length": 8}, 8),
    ],
    ids=["short", "shorter than said", "beyond its end", "before its begin", "no number", "no length", "too little"],
)
def test_weights_that_are_not_all_in_their_file(places, held, tmp_path):
    (tmp_path / "w.data").write_bytes(bytes(16))
    model = parsed(CHANNELS)
    model.graph.initializer.extend([placed("w", location="w.data", **places), ZEROS])
    with pytest.raises(TsexportError) as raised:
        check_onnx(saved(model, tmp_path), tensorrt="8.6", precision="int8")
    assert raised.value.message == (
        f"m.onnx is damaged: the tensor 'w' of shape [8] needs 32 bytes, and {held} are in 'w.data'"
    )
    assert raised.value.exit_code == 2
    assert raised.value.next_step == "Export or copy it again."


@pytest.mark.parametrize("size", [3, 300])
def test_weights_of_another_size_than_their_shape(size, tmp_path):
    model = parsed(CHANNELS)
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[8], raw_data=bytes(size))
    model.graph.initializer.extend([tensor, ZEROS])
    with pytest.raises(TsexportError, match=rf"needs 32 bytes, and {size} are in the file"):
        check_onnx(saved(model, tmp_path), tensorrt="8.6", precision="int8")


def test_a_local_function_may_not_read_other_files_either(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(np.ones(8, np.float32).tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    constant = helper.make_node("Constant", [], ["w"], value=placed("w", location=str(secret), length=32))
    body = [constant, helper.make_node("Add", ["a", "w"], ["b"])]
    function = helper.make_function("own", "f", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    model = parsed("y = Relu(x)")
    model.graph.node[0].CopyFrom(helper.make_node("f", ["x"], ["y"], domain="own"))
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    with pytest.raises(TsexportError, match="must be the plain name of a file beside it"):
        check_onnx(saved(model, folder), tensorrt="8.6", precision="fp32")


def test_what_an_error_was_raised_from_is_told(tmp_path):
    model = parsed("y = Relu(x)")
    model.graph.initializer.append(TensorProto(name="w", data_type=99, dims=[1], raw_data=b"1234"))
    with pytest.raises(UsageError, match=r"m\.onnx is damaged, or no valid ONNX: .*99"):
        read_onnx(saved(model, tmp_path))


ENDS = {
    "a matrix like no matrix": ("y = EyeLike<dtype = 2>(i)", "() => (uint8[n, m] y) <float i = {1}>", 21),
    "more parts than said": ("y, z, u = Split<num_outputs = 1>(x)", "(int64[1, 0, n, 8] x) => (int64[n] y)", 19),
}


@pytest.mark.parametrize(("body", "signature", "opset"), ENDS.values(), ids=ENDS)
def test_what_may_end_onnxs_own_checks_ends_no_check(body, signature, opset, tmp_path):
    path = saved(parsed(body, signature, opset=opset), tmp_path)
    with contextlib.suppress(UsageError):  # where ONNX has not been mended
        assert not check_file(path, "a100-fp32").accepted


def test_a_process_that_is_ended_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_reading, "_TRIAL", "import os; os.abort()")
    with pytest.raises(UsageError, match="ONNX's own checks end with SIGABRT on it"):
        require_readable(saved(parsed("y = Relu(x)"), tmp_path))


def test_a_file_in_a_process_of_its_own(tmp_path):
    require_readable(saved(parsed("y = Relu(x)"), tmp_path))
    require_readable(tmp_path / "not there.onnx")  # which is for the reader to say


# --- what is odd -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ir_version", [3, 8])
def test_an_input_with_an_initializer_is_a_constant(ir_version, tmp_path):
    signature = "(float[batch, 8, 4] x, float[8, 8, 1] w) => (float[batch, 8, 4] y)"
    model = parsed("y = Conv(x, w)", signature, opset=13, ir_version=ir_version)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((8, 8, 1), np.float32), "w"))
    path = saved(model, tmp_path)
    assert [one.name for one in read_onnx(path).model.graph.inputs] == ["x"]
    assert reasons(path, "8.2") == []


def test_the_default_domain_has_two_names(tmp_path):
    model = parsed("y = Relu(x)")
    model.opset_import[0].domain = model.graph.node[0].domain = "ai.onnx"
    assert reasons(saved(model, tmp_path), "10.3") == []
    model.opset_import[0].version = 21
    assert reasons(saved(model, tmp_path), "10.3")[0].startswith("the file has opset 21, TensorRT 10.3 documents 20")


def test_an_opset_that_is_too_old(tmp_path):
    path = saved(parsed("y = Relu(x)", opset=8), tmp_path)
    assert reasons(path, "8.6") == []
    assert reasons(path, "10.3") == ["the file has opset 8, TensorRT 10.3 documents 9 as the oldest"]


def test_fp64_is_narrowed(tmp_path):
    path = saved(parsed("y = Relu(x)", "(double[batch, 8] x) => (double[batch, 8] y)", opset=13), tmp_path)
    for version in ("8.2", "10.3"):
        assert reasons(path, version) == ["the input 'x' of DOUBLE becomes FLOAT"]


FAR = "<int64[1] far = {5000000000}>"


@pytest.mark.parametrize(
    "body",
    [
        "far = Constant<value_ints = [5000000000]>()  y = Add(i, far)",
        f"y = If (c) <then_branch = g1 () => (int64[batch] p) {FAR} {{ p = Add(i, far) }},"
        " else_branch = g2 () => (int64[batch] q) { q = Abs(i) }>",
    ],
    ids=["of a Constant node", "of a body"],
)
def test_a_constant_beyond_int32_wherever_it_stands(body, tmp_path):
    path = saved(parsed(body, "(int64[batch] i, bool c) => (int64[batch] y)"), tmp_path)
    assert reasons(path, "8.6")[1:] == ["the constant 'far' of INT64 has values beyond INT32, to which it is narrowed"]
    assert reasons(path, "10.3") == []


# --- shapes ----------------------------------------------------------------------------------------------------------

WEIGHT = "(float[batch, 8] x, bool c) => (float[batch, 8] y) <float[2, 2] w = {1, 1, 1, 1}>"


def test_shapes_that_contradict_each_other_are_an_error_at_the_node(tmp_path):
    model = parsed("z = MatMul(x, w)  y = Relu(z)", WEIGHT)
    model.graph.node[0].name = "mix"
    (error,) = check_onnx(saved(model, tmp_path), tensorrt="10.3", precision="fp32").errors
    assert (error.node, error.operator, error.kind) == ("mix", "MatMul", "node")
    assert error.reason == "the shapes contradict each other: Incompatible dimensions for matrix multiplication"


def test_shapes_in_a_body_are_looked_at_too(tmp_path):
    model = parsed(
        "y = If (c) <then_branch = g1 () => (float[batch, 2] p) { p = MatMul(x, w) },"
        " else_branch = g2 () => (float[batch, 8] q) { q = Relu(x) }>",
        WEIGHT,
    )
    wanted = Misfit("", "MatMul", "Incompatible dimensions for matrix multiplication")
    assert read_onnx(saved(model, tmp_path)).misfits == (wanted,)


@pytest.mark.parametrize(
    "body",
    ["y = Transpose<perm = [1, 0]>(x)", "y = MeanVarianceNormalization<axes = [1]>(x)"],
    ids=["declared", "ours"],
)
def test_what_is_only_declared_or_is_onnxs_own_fault_is_no_contradiction(body, tmp_path):
    model = parsed(body, "(float[4, 8] x) => (float[4, 8] y)")
    assert read_onnx(saved(model, tmp_path)).misfits == ()
