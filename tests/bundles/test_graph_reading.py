"""What a file is made of is read from the file alone: operators, and the precision of every layer."""

import zipfile
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import pytest

from tsexport.bundles.entries import artifact_entry
from tsexport.bundles.graph_reading import read_graph
from tsexport.bundles.manifest import GoldenTolerance
from tsexport.errors import BundleError, MissingDependencyError
from tsexport.types import Artifact, TensorSpec, files_sha256

X, Y = TensorSpec("x", "float32", ("batch", 4)), TensorSpec("y", "float32", ("batch", 3))


def entry_of(path, artifact_format, precision="fp32", options=()):
    artifact = Artifact(
        name="a", path=path, format=artifact_format, precision=precision, inputs=(X,), outputs=(Y,), files=(path,),
        sha256=files_sha256((path,)), size_bytes=path.stat().st_size, runtimes=("any",), options=options,
    )  # fmt: skip
    return artifact_entry(artifact, path.parent, GoldenTolerance("t", "t", 1.0, 1.0))


def read(path, artifact_format, **changes):
    return read_graph(entry_of(path, artifact_format, **changes), path.parent)


def test_an_onnx_file_in_fp32_and_quantized_dynamically(model_files):
    fp32, int8 = read(model_files.fp32, "onnx"), read(model_files.int8, "onnx")
    assert fp32.operators == {"Add": 1, "MatMul": 1}
    assert list(fp32.layers.values()) == ["fp32"]
    assert int8.operators["MatMulInteger"] == 1
    assert list(int8.layers.values()) == ["int8"]


QDQ = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, 4] x) => (float[batch, 3] y)
<float s = {0.1}, uint8 z = {0}, uint8[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[3, 3] u =
 {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0}>
{
  xq = QuantizeLinear(x, s, z)
  xd = DequantizeLinear(xq, s, z)
  wd = DequantizeLinear(w, s, z)
  [both] a = MatMul(xd, wd)
  [neither] b = MatMul(a, u)
  wr = Identity(wd)
  wt = Transpose<perm = [1, 0]>(wr)
  [weights] c = MatMul(b, wt)
  h = Cast<to = 10>(c)
  v = Cast<to = 10>(wd)
  [half] i = MatMul(h, v)
  y = Cast<to = 1>(i)
}"""


def test_the_precision_of_a_layer_is_that_of_its_operands(tmp_path):
    onnx.save(onnx.parser.parse_model(QDQ), tmp_path / "m.onnx")
    layers = read(tmp_path / "m.onnx", "onnx").layers
    assert layers == {"both": "int8", "neither": "fp32", "weights": "int8 weights", "half": "int8 weights"}


def test_a_narrow_float_is_read_from_the_type_of_the_output(tmp_path):
    head = '<ir_version: 8, opset_import: ["" : 17]> g (float16[batch, 4] x) => (float16[batch, 4] y)'
    text = f"{head} {{[m] y = MatMul(x, x)}}"
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    assert read(tmp_path / "m.onnx", "onnx").layers == {"m": "fp16"}


def ir(path, quantized):
    """Write y = x @ w, with quantized activations, quantized weights, both or neither."""
    import openvino
    from openvino import opset13 as ops

    x = ops.parameter([-1, 4], np.float32, name="x")
    w = ops.constant(np.ones((4, 3), np.float32))
    if "weights" in quantized:
        stored = ops.convert(ops.constant(np.ones((4, 3), np.int8)), "f32")
        w = ops.multiply(stored, ops.constant(np.float32(0.1)))
    data = x
    if "activations" in quantized:
        low, high = (ops.constant(np.float32(v)) for v in (-1, 1))
        data = ops.fake_quantize(x, low, high, low, high, 256)
    product = ops.matmul(data, w, False, False)
    product.set_friendly_name("product")
    openvino.save_model(openvino.Model([product], [x], "m"), path, compress_to_fp16=False)
    return path


@pytest.mark.parametrize(
    ("quantized", "precision"),
    [((), "fp32"), (("weights",), "int8 weights"), (("activations", "weights"), "int8")],
)
def test_an_openvino_ir(tmp_path, quantized, precision):
    content = read(ir(tmp_path / "m.xml", quantized), "openvino")
    assert content.layers == {"product": precision}
    assert content.operators["MatMul"] == 1
    assert ("FakeQuantize" in content.operators) == ("activations" in quantized)


def test_an_openvino_ir_that_is_computed_in_bf16(tmp_path):
    path = ir(tmp_path / "m.xml", ())
    content = read(path, "openvino", precision="bf16", options=(("INFERENCE_PRECISION_HINT", "bf16"),))
    assert content.layers == {"product": "bf16"}


def test_a_torchscript_archive_is_read_and_not_loaded(torchscript_bundle):
    content = read(torchscript_bundle / "artifacts/tiny-fp32.pt", "torchscript")
    assert content.operators == {"linear": 1}
    assert content.layers == {}


@pytest.mark.parametrize(
    ("name", "artifact_format", "content", "message"),
    [
        ("m.onnx", "onnx", b"\xff\xff\xff", "is no ONNX file"),
        ("m.xml", "openvino", b"<net", "is no OpenVINO IR"),
        ("m.xml", "openvino", b"<net><layers><layer/></layers></net>", "is no OpenVINO IR"),
        ("m.xml", "openvino", b'<!DOCTYPE a [<!ENTITY x "y">]><net/>', "has a document type"),
        ("m.pt", "torchscript", b"no archive", "is no TorchScript archive"),
    ],
)
def test_a_file_of_another_format(tmp_path, name, artifact_format, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BundleError, match=message):
        read(tmp_path / name, artifact_format)


def test_code_that_unpacks_to_far_too_much(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/code/a.py", b"x" * 5000)
    monkeypatch.setattr("tsexport.bundles.graph_reading._MAX_CODE_BYTES", 4000)
    with pytest.raises(BundleError, match="its code is far too large"):
        read(tmp_path / "m.pt", "torchscript")


def test_an_ir_whose_edges_go_round_ends(tmp_path):
    layers = "".join(f'<layer id="{i}" name="l{i}" type="{kind}"><input><port id="0"/></input></layer>'
                     for i, kind in enumerate(("MatMul", "Reshape", "Convert")))  # fmt: skip
    edges = "".join(f'<edge from-layer="{a}" to-layer="{b}" to-port="0"/>' for a, b in ((1, 0), (2, 1), (1, 2)))
    (tmp_path / "m.xml").write_text(f"<net><layers>{layers}</layers><edges>{edges}</edges></net>")
    assert read(tmp_path / "m.xml", "openvino").layers == {"l0": "not known"}


def test_an_onnx_graph_whose_nodes_go_round_ends(tmp_path):
    """Shape inference lets it pass; the way back to a DequantizeLinear must not be looked for without an end."""
    import onnx
    import onnx.helper

    value = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node(kind, taken, given)
        for kind, taken, given in (
            ("Transpose", ["b"], ["a"]), ("Transpose", ["a"], ["b"]), ("MatMul", ["a", "b"], ["y"])
        )
    ]  # fmt: skip
    graph = onnx.helper.make_graph(nodes, "g", [value("x", 1, [1])], [value("y", 1, [1])])
    (tmp_path / "m.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    assert read(tmp_path / "m.onnx", "onnx").layers == {"y": "fp32"}


def test_code_in_a_damaged_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/code/a.py", "x = torch.add(1, 2)\n" * 50)
    content = bytearray((tmp_path / "m.pt").read_bytes())
    content[42:60] = b"\xff" * 18  # in the middle of the compressed data
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(BundleError, match="is no TorchScript archive"):
        read(tmp_path / "m.pt", "torchscript")


def test_without_onnx_the_pip_command_is_named(model_files, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "onnx" else SimpleNamespace())
    with pytest.raises(MissingDependencyError, match="reading an ONNX graph needs onnx"):
        read(model_files.fp32, "onnx")
