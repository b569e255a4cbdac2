"""An existing `.onnx` file as MODEL."""

import numpy as np
import onnx
import pytest

from tsexport.errors import UsageError
from tsexport.models.sources import identify, open_source
from tsexport.types import TensorSpec, random_feeds

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
SCALED = HEAD + (
    "net (float[n, 3] x, int64[n] k) => (float[n, 3] y, float[n] s)\n"
    "<float[3] w = {1.0, 2.0, 3.0}> { y = Mul(x, w)  s = Cast<to = 1>(k) }"
)


def open_path(path, inputs=()):
    return open_source(identify(str(path)), inputs)


def test_names_shapes_and_answers(tmp_path, save_onnx):
    path = save_onnx(tmp_path / "net.onnx", SCALED)
    opened = open_path(path)
    assert opened.module is None
    assert opened.onnx_path == path
    assert opened.spec.inputs == (TensorSpec("x", "float32", ("batch", 3)), TensorSpec("k", "int64", ("batch",)))
    assert opened.spec.outputs == (TensorSpec("y", "float32", ("batch", 3)), TensorSpec("s", "float32", ("batch",)))
    assert opened.spec.parameters == 3
    assert "opset 17" in opened.notes[0]
    feeds = random_feeds(opened.spec.inputs, 4, 0)
    answers = opened.run(feeds)
    np.testing.assert_allclose(answers["y"], feeds["x"] * [1, 2, 3], rtol=1e-6)
    np.testing.assert_array_equal(answers["s"], feeds["k"])


def test_open_dimensions_can_be_given(tmp_path, save_onnx):
    path = save_onnx(tmp_path / "net.onnx", HEAD + "net (float[n, t, 2] x) => (float[n, t, 2] y) { y = Relu(x) }")
    with pytest.raises(
        UsageError, match=r"input x of net.onnx is \[n, t, 2\]: only the first dimension may be dynamic"
    ):
        open_path(path)
    opened = open_path(path, (TensorSpec("x", "float32", ("batch", 7, 2)),))
    assert opened.spec.outputs[0].shape == ("batch", 7, 2)
    with pytest.raises(UsageError, match=r"the input given for it is x float32\[batch, 7, 3\]"):
        open_path(path, (TensorSpec("x", "float32", ("batch", 7, 3)),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("net (float[1, 3] x) => (float[1, 3] y) { y = Relu(x) }", r"is \[1, 3\]: its batch is fixed"),
        ("net (float[n, 3] x) => (float[n, 3] y) { y = Rleu(x) }", "is not valid ONNX"),
        ("net (float[n, 4] x) => (float[a, b] y) <int64[2] s = {2, 4}> { y = Reshape(x, s) }", "does not run on"),
        ("net (float[n, 4] x) => (float[a, b] y) { y = Transpose(x) }", "only that, must be the batch"),
        ("net (string[n] x) => (string[n] y) { y = Identity(x) }", "of a type that cannot be fed"),
    ],
)
def test_models_that_cannot_be_used(tmp_path, save_onnx, text, message):
    path = save_onnx(tmp_path / "net.onnx", HEAD + text)
    with pytest.raises(UsageError, match=message):
        open_path(path)


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"\x08\x08"])
def test_files_that_are_no_onnx(tmp_path, content):
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(UsageError, match="is not ONNX"):
        identify(str(tmp_path / "a.onnx"))


def external(path, location):
    model = onnx.parser.parse_model(SCALED)
    (weights,) = model.graph.initializer
    values = onnx.numpy_helper.to_array(weights).astype(np.float32)
    weights.ClearField("float_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(values.nbytes))):
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())
    return values


def test_external_data_beside_the_file_is_read_and_belongs_to_the_digest(tmp_path):
    values = external(tmp_path / "net.onnx", "net.data")
    (tmp_path / "net.data").write_bytes(values.tobytes())
    first = open_path(tmp_path / "net.onnx")
    feeds = random_feeds(first.spec.inputs, 2, 0)
    once = first.run(feeds)["y"].copy()
    (tmp_path / "net.data").write_bytes((2 * values).tobytes())
    second = open_path(tmp_path / "net.onnx")
    np.testing.assert_allclose(second.run(feeds)["y"], 2 * once, rtol=1e-6)
    assert first.digest != second.digest


@pytest.mark.parametrize("location", ["../net.data", "sub/../../net.data"])
def test_external_data_outside_the_folder_is_refused(tmp_path, location):
    inner = tmp_path / "inner"
    (inner / "sub").mkdir(parents=True)
    (tmp_path / "net.data").write_bytes(external(inner / "net.onnx", location).tobytes())
    with pytest.raises(UsageError, match="outside its own folder"):
        identify(str(inner / "net.onnx"))


def test_external_data_through_a_link_out_of_the_folder_is_refused(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "net.data").write_bytes(external(inner / "net.onnx", "net.data").tobytes())
    (inner / "net.data").symlink_to(tmp_path / "net.data")
    with pytest.raises(UsageError, match="outside its own folder"):
        identify(str(inner / "net.onnx"))


def test_missing_external_data_is_named(tmp_path):
    external(tmp_path / "net.onnx", "net.data")
    with pytest.raises(UsageError, match=r"keeps weights in 'net\.data', which is missing"):
        identify(str(tmp_path / "net.onnx"))


@pytest.mark.parametrize("location", ["a\0b", "n" * 300], ids=["a null byte", "too long"])
def test_external_data_by_a_name_that_no_file_has(tmp_path, location):
    path = tmp_path / "net.onnx"
    external(path, "net.data")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match="which is missing"):
        identify(str(path))


def test_external_data_of_a_local_function_outside_the_folder_is_refused(tmp_path):
    path = tmp_path / "net.onnx"
    external(path, "net.data")
    model = onnx.load(path, load_external_data=False)
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/hostname")
    constant = onnx.helper.make_node("Constant", [], ["w"], value=tensor)
    function = onnx.helper.make_function("own", "f", [], ["w"], [constant], [onnx.helper.make_opsetid("", 17)])
    model.functions.append(function)
    path.write_bytes(model.SerializeToString())
    (tmp_path / "net.data").write_bytes(b"")
    with pytest.raises(UsageError, match="outside its own folder"):
        identify(str(path))


def test_external_data_by_an_absolute_path_is_refused(tmp_path):
    values = external(tmp_path / "net.onnx", str(tmp_path / "net.data"))
    (tmp_path / "net.data").write_bytes(values.tobytes())
    with pytest.raises(UsageError, match="outside its own folder"):
        identify(str(tmp_path / "net.onnx"))


def test_external_data_that_ends_early(tmp_path):
    values = external(tmp_path / "net.onnx", "net.data")
    (tmp_path / "net.data").write_bytes(values.tobytes()[:-1])
    with pytest.raises(UsageError, match=r"ONNX Runtime cannot load .*net\.onnx: ") as caught:
        open_path(tmp_path / "net.onnx")
    assert caught.value.next_step.startswith("Export or copy it again, with the file that holds its weights")
