"""Weights in a second file: the whole way of a model that is too large for one, on a small model."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from tsexport.errors import ExportError, ParityError, TsexportError
from tsexport.exporters import onnx_external
from tsexport.exporters.conversion import convert_to_onnx, convert_to_openvino
from tsexport.exporters.onnx_external import check_model, create_session, external_tensors, externalize, open_model
from tsexport.runtimes.registry import load
from tsexport.types import ModelSpec, TensorSpec, files_sha256, random_feeds

ATOL = 2e-5
SMALL_THRESHOLD = 4000
"""Bytes; the models here have some 20,000."""


@pytest.fixture
def large(monkeypatch):
    """Take models of a few kilobytes for too large for one file."""
    monkeypatch.setattr(onnx_external, "THRESHOLD_BYTES", SMALL_THRESHOLD)


@pytest.fixture
def made(make):
    module, spec = make("encoder")
    return module.eval(), spec


def answers(module, feeds):
    with torch.inference_mode():
        return module(*map(torch.from_numpy, feeds.values())).numpy()


@pytest.mark.parametrize("runtime", ["onnxruntime", "tract", "openvino"])
def test_a_large_model_runs_from_two_files(large, made, runtime, tmp_path):
    module, spec = made
    converted = convert_to_onnx(module, None, spec, None, tmp_path / "model-fp32.onnx")
    artifact = converted.artifact
    assert [file.name for file in artifact.files] == ["model-fp32.onnx", "onnx-fp32.data"]
    assert artifact.sha256 == files_sha256(artifact.files)
    assert artifact.size_bytes == sum(file.stat().st_size for file in artifact.files)
    assert artifact.path.stat().st_size < artifact.files[1].stat().st_size
    assert all(applied.kept for applied in converted.rewrites)
    assert {applied.name for applied in converted.rewrites} >= {"encoder-as-matrix-products", "gemm-as-matmul"}
    if runtime == "openvino":
        artifact = convert_to_openvino(artifact, tmp_path / "model-fp32.xml").artifact
    assert sorted(tmp_path.iterdir()) == sorted({*converted.artifact.files, *artifact.files})  # nothing is left behind
    with load(artifact, runtime, threads=1) as session:
        for batch in (1, 3):
            feeds = random_feeds(spec.inputs, batch, 5)
            (given,) = session.run(feeds).values()
            np.testing.assert_allclose(given, answers(module, feeds), atol=ATOL, rtol=0)


def test_two_files_and_one_hold_the_same_model(made, tmp_path, monkeypatch):
    module, spec = made
    one = convert_to_onnx(module, None, spec, None, tmp_path / "one.onnx")
    monkeypatch.setattr(onnx_external, "THRESHOLD_BYTES", SMALL_THRESHOLD)
    two = convert_to_onnx(module, None, spec, None, tmp_path / "two.onnx")
    assert [str(applied) for applied in one.rewrites] == [str(applied) for applied in two.rewrites]
    whole, parts = onnx.load(one.artifact.path), onnx.load(two.artifact.path)
    assert [node.op_type for node in whole.graph.node] == [node.op_type for node in parts.graph.node]
    for a, b in zip(whole.graph.initializer, parts.graph.initializer, strict=True):
        assert (a.name, a.dims) == (b.name, b.dims)
        assert np.array_equal(onnx.numpy_helper.to_array(a), onnx.numpy_helper.to_array(b))


def test_the_same_model_gives_the_same_two_files(large, made, tmp_path):
    module, spec = made
    first, second = (
        convert_to_onnx(module, None, spec, None, tmp_path / folder / "model-fp32.onnx").artifact.files
        for folder in ("a", "b")
    )
    for one, other in zip(first, second, strict=True):
        assert hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest()


def test_no_path_of_this_machine_is_written(large, made, tmp_path):
    module, spec = made
    artifact = convert_to_onnx(module, None, spec, None, tmp_path / "model-fp32.onnx").artifact
    assert str(tmp_path).encode() not in artifact.path.read_bytes()
    places = external_tensors(onnx.load(artifact.path, load_external_data=False))
    assert places
    assert {entry.value for t in places for entry in t.external_data if entry.key == "location"} == {"onnx-fp32.data"}


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, x):
        y = self.linear(x)
        return y if y.sum() > 0 else y - 100


def test_a_wrong_export_of_a_large_model_says_so(large, tmp_path):
    torch.manual_seed(0)
    with pytest.raises(ParityError, match="the first layer was not looked for: the weights are too many for one file"):
        convert_to_onnx(Branching().eval(), None, spec_of_user(), None, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


class OneForm(nn.Module):
    """The TorchScript-based exporter cannot hold this: "input size not accessible"."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1024)

    def forward(self, x):
        padded = nn.functional.pad(x[:, None], (0, 2), mode="replicate")
        return self.linear(padded.unfold(-1, 4, 2))[:, 0, 0, :64]


@pytest.mark.slow
def test_a_large_model_that_only_the_newer_exporter_takes_is_refused(large, tmp_path):
    with pytest.raises(ExportError, match="repaired as one file, and the weights are too many for one"):
        convert_to_onnx(OneForm().eval(), None, spec_of_user(), None, tmp_path / "m.onnx")


# ---- a user's own file


def two_inputs(folder: Path, location: str, *, opset: int = 17) -> Path:
    """Write y = x w with w [64, 64] in the file `location`, as seen from the model."""
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=values.shape)
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(values.nbytes))):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 64]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "user.onnx"
    path.write_bytes(model.SerializeToString())
    values.tofile((folder / location).resolve())
    return path


def spec_of_user():
    x, y = (TensorSpec(name, "float32", ("batch", 64)) for name in ("x", "y"))
    return ModelSpec("user", "test", "unknown", (x,), (y,))


def test_a_large_file_is_adopted_with_its_data(large, tmp_path):
    path = two_inputs(tmp_path / "in", "w.bin")
    artifact = convert_to_onnx(None, path, spec_of_user(), None, tmp_path / "out" / "model-fp32.onnx").artifact
    assert "external data kept in a second file" in artifact.provenance
    assert [file.name for file in artifact.files] == ["model-fp32.onnx", "onnx-fp32.data"]
    feeds = random_feeds(spec_of_user().inputs, 2, 3)
    values = np.fromfile(tmp_path / "in" / "w.bin", np.float32).reshape(64, 64)
    with load(artifact, "onnxruntime", threads=1) as session:
        np.testing.assert_allclose(session.run(feeds)["y"], feeds["x"] @ values, atol=ATOL, rtol=0)


def test_a_large_file_keeps_its_opset(large, tmp_path):
    path = two_inputs(tmp_path / "in", "w.bin", opset=16)
    artifact = convert_to_onnx(None, path, spec_of_user(), None, tmp_path / "model-fp32.onnx").artifact
    assert artifact.opset == 16
    assert "kept in opset 16: its weights are too many to convert it" in artifact.provenance


@pytest.mark.parametrize("location", ["../w.bin", "sub/w.bin"])
def test_data_anywhere_but_beside_the_file_is_refused(location, tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    path = two_inputs(tmp_path / "in", location)
    with pytest.raises(ExportError, match=r"user.onnx keeps weights in '.*w.bin'; that must be the plain name of a"):
        convert_to_onnx(None, path, spec_of_user(), None, tmp_path / "model-fp32.onnx")


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    path = two_inputs(tmp_path / "in", "w.bin")
    (tmp_path / "in" / "w.bin").rename(tmp_path / "elsewhere.bin")
    (tmp_path / "in" / "w.bin").symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(ExportError, match="the plain name of a file beside it"):
        open_model(path)


def test_missing_data_is_named(tmp_path):
    path = two_inputs(tmp_path / "in", "w.bin")
    (tmp_path / "in" / "w.bin").unlink()
    with pytest.raises(ExportError, match=r"keeps weights in 'w.bin'"):
        open_model(path)


@pytest.mark.parametrize("runtime", ["onnxruntime", "tract", "openvino"])
def test_runtimes_read_nothing_outside_the_folder(runtime, large, tmp_path):
    """A bundle from elsewhere names its files; what an .onnx names itself is held by the runtime."""
    artifact = convert_to_onnx(
        None, two_inputs(tmp_path / "in", "w.bin"), spec_of_user(), None, tmp_path / "out" / "model-fp32.onnx"
    ).artifact
    outside = two_inputs(tmp_path / "bad", "../w.bin")
    broken = replace(artifact, path=outside, files=(outside,))
    with pytest.raises(TsexportError), load(broken, runtime, threads=1) as session:
        session.run(random_feeds(spec_of_user().inputs, 2, 3))


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[b, 2] x) => (float[b, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }""")
    data = tmp_path / "w.data"
    data.write_bytes(b"old")
    monkeypatch.setattr(onnx_external, "INLINE_BYTES", 0)
    monkeypatch.setattr(onnx_external, "_chunks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        externalize(model, data)
    assert [file.name for file in tmp_path.iterdir()] == ["w.data"]
    assert data.read_bytes() == b"old"


def interrupted(_):
    raise KeyboardInterrupt


def test_values_that_are_not_raw_are_written_too(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_external, "INLINE_BYTES", 0)
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[b, 2] x) => (float[b, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }""")
    externalize(model, tmp_path / "w.data")
    assert len(external_tensors(model)) == 1
    check_model(model)
    session = create_session(model, onnxruntime.SessionOptions())
    (given,) = session.run(None, {"x": np.eye(2, dtype=np.float32)})
    assert np.array_equal(given, [[1, 2], [3, 4]])


class Wide(nn.Module):
    """A constant inside a node, not an initializer."""

    def forward(self, x):
        return x @ torch.arange(4096.0).reshape(64, 64) / 4096


def test_constants_in_nodes_are_moved_too(large, tmp_path):
    artifact = convert_to_onnx(Wide(), None, spec_of_user(), None, tmp_path / "model-fp32.onnx").artifact
    assert artifact.path.stat().st_size < SMALL_THRESHOLD
    feeds = random_feeds(spec_of_user().inputs, 2, 3)
    with load(artifact, "onnxruntime", threads=1) as session:
        np.testing.assert_allclose(session.run(feeds)["y"], answers(Wide(), feeds), atol=1e-4, rtol=0)
