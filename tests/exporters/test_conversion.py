"""From a source to its fp32 artifacts: rewrites applied and recorded, the module untouched, the same bytes twice."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from tsexport.errors import ExportError
from tsexport.exporters.checks import check_parity, feed_sets
from tsexport.exporters.conversion import (
    COSTLY_BATCHES,
    PROBE_BATCHES,
    convert_to_onnx,
    convert_to_openvino,
    convert_to_torchscript,
    file_name,
    is_costly,
    probes,
)
from tsexport.exporters.cost import COSTLY_FLOPS
from tsexport.exporters.rewrites import proofs
from tsexport.runtimes.comparison import TOLERANCES
from tsexport.types import ModelSpec, TensorSpec, random_feeds


class Source:
    """A torch module as the source that artifacts are held against."""

    def __init__(self, module: nn.Module, spec: ModelSpec):
        self.module, self.spec = module, spec

    def run(self, feeds):
        with torch.no_grad():
            answers = self.module(*(torch.from_numpy(feeds[spec.name]) for spec in self.spec.inputs))
        answers = answers if isinstance(answers, tuple) else (answers,)
        return {spec.name: answer.numpy() for spec, answer in zip(self.spec.outputs, answers, strict=True)}


@pytest.fixture
def encoder(make):
    module, spec = make("encoder")
    return module.eval(), spec


@pytest.mark.parametrize(
    ("shape", "batches"), [(("batch", 4), PROBE_BATCHES), ((3, 4), (3,))], ids=["dynamic batch", "fixed batch"]
)
def test_probes_vary_the_batch_where_they_may(shape, batches):
    spec = ModelSpec("m", "test", "unknown", (TensorSpec("x", "float32", shape),), ())
    made = probes(spec, None)
    assert tuple(len(feeds["x"]) for feeds in made) == batches
    real = {"x": np.ones((8, 4), np.float32)}
    assert probes(spec, real)[-1] is real
    assert len(probes(spec, real)) == len(made) + 1
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(made, probes(spec, None), strict=True))


def test_a_costly_model_is_probed_with_fewer_samples():
    spec = ModelSpec("m", "test", "unknown", (TensorSpec("x", "float32", ("batch", 4)),), ())
    made = probes(spec, {"x": np.ones((8, 4), np.float32)}, costly=True)
    assert tuple(len(feeds["x"]) for feeds in made) == (*COSTLY_BATCHES, 1)


@pytest.mark.parametrize(("rows", "costly"), [(10, False), (300_000, True)])
def test_what_is_costly_is_counted_in_operations(rows, costly):
    """2 * rows * 96 * 96 for the product."""
    spec = ModelSpec("m", "test", "unknown", (TensorSpec("x", "float32", ("batch", rows, 96)),), ())
    assert COSTLY_FLOPS < 2 * 300_000 * 96 * 96
    assert is_costly(torch.nn.Linear(96, 96), spec) == costly


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:DeprecationWarning")
def test_an_encoder_is_rewritten_in_onnx_and_left_alone_in_torchscript(encoder, tmp_path):
    module, spec = encoder
    before = {name: value.clone() for name, value in module.state_dict().items()}
    converted = convert_to_onnx(module, None, spec, None, tmp_path / "m.onnx")
    names = [applied.name for applied in converted.rewrites]
    assert names[0] == "encoder-as-matrix-products"
    assert "gemm-as-matmul" in names
    assert all(applied.kept and applied.changes > 0 for applied in converted.rewrites)
    # what was done stands in the artifact's own provenance, in order
    told = [line for line in converted.artifact.provenance if line.startswith("rewrite ")]
    assert told == [str(applied) for applied in converted.rewrites]
    kinds = {node.op_type for node in onnx.load(converted.artifact.path).graph.node}
    assert not {"Gemm", "Identity", "Shape", "Cast"} & kinds
    assert isinstance(module.encoder, nn.TransformerEncoder)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    traced = convert_to_torchscript(module, spec, None, tmp_path / "m.pt")
    assert traced.rewrites == ()
    operators = torch.jit.load(str(traced.artifact.path)).inlined_graph
    assert "transformer_encoder_layer_fwd" in str(operators)  # torch's own fused layer


@pytest.mark.parametrize("name", ["mlp", "encoder", "two-inputs", "two-outputs"])
def test_all_three_formats_answer_as_the_module(make, tmp_path, name):
    module, spec = make(name)
    source = Source(module.eval(), spec)
    real = {name: array * 3 for name, array in random_feeds(spec.inputs, 4, 99).items()}
    onnx_made = convert_to_onnx(module, None, spec, real, tmp_path / file_name("onnx"))
    made = {
        "onnxruntime": onnx_made,
        "torchscript": convert_to_torchscript(module, spec, real, tmp_path / file_name("torchscript")),
        "openvino": convert_to_openvino(onnx_made.artifact, tmp_path / file_name("openvino")),
    }
    for runtime, converted in made.items():
        sets = feed_sets(spec.inputs, real)
        results = check_parity(source, converted.artifact, runtime, sets, TOLERANCES["fp32-export"], scaled=True)
        assert all(parity.passed for parity in results), runtime


def test_the_same_module_gives_the_same_bytes(encoder, tmp_path):
    module, spec = encoder
    paths = []
    for part in ("a", "b"):
        made = convert_to_onnx(module, None, spec, None, tmp_path / part / "m.onnx")
        openvino = convert_to_openvino(made.artifact, tmp_path / part / "m.xml")
        traced = convert_to_torchscript(module, spec, None, tmp_path / part / "m.pt")
        paths.append([*made.artifact.files, *openvino.artifact.files, *traced.artifact.files])
    assert [path.read_bytes() for path in paths[0]] == [path.read_bytes() for path in paths[1]]


def test_an_onnx_file_is_adopted_and_cleaned(encoder, tmp_path):
    """The user's own file: Gemm and Identity as an exporter leaves them."""
    _, spec = encoder
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[batch, 4] x) => (float[batch, 4] y) {
      v = Identity(w)  a = Gemm<transB=1>(x, w, c)  y = Gemm<transB=1>(a, v, c) }"""
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(1)
    for name, shape in (("w", (4, 4)), ("c", (4,))):
        array = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "users.onnx")
    own = replace(
        spec, inputs=(TensorSpec("x", "float32", ("batch", 4)),), outputs=(TensorSpec("y", "float32", ("batch", 4)),)
    )
    converted = convert_to_onnx(None, tmp_path / "users.onnx", own, None, tmp_path / "made.onnx")
    cleaned = onnx.load(converted.artifact.path)
    assert [node.op_type for node in cleaned.graph.node] == ["MatMul", "Add", "MatMul", "Add"]
    assert {applied.name for applied in converted.rewrites} == {"fold-constants", "gemm-as-matmul"}
    feeds = random_feeds(own.inputs, 3, 0)
    assert np.allclose(proofs.answer(cleaned, feeds)["y"], proofs.answer(model, feeds)["y"], rtol=0, atol=1e-5)


def test_a_rewrite_that_fails_its_proof_is_recorded_and_the_export_holds(encoder, tmp_path, monkeypatch):
    """The graph before a wrong rewrite was right, so the build goes on with that one."""
    from tsexport.exporters.rewrites.cleaning import GemmAsMatMul

    original = GemmAsMatMul.call

    def wrong(self, model, feeds):
        changes = original(self, model, feeds)
        product = next(node for node in model.graph if node.op_type == "MatMul" and "matmul" in node.name)
        weight = product.inputs[1]
        weight.const_value = ir.tensor(weight.const_value.numpy() * 1.5)
        return changes

    monkeypatch.setattr(GemmAsMatMul, "call", wrong)
    module, spec = encoder
    converted = convert_to_onnx(module, None, spec, None, tmp_path / "m.onnx")
    taken_back = [applied for applied in converted.rewrites if not applied.kept]
    assert [applied.name for applied in taken_back] == ["gemm-as-matmul"]
    assert any(line.startswith("rewrite gemm-as-matmul not kept: output ") for line in converted.artifact.provenance)
    sets = feed_sets(spec.inputs)
    results = check_parity(
        Source(module, spec), converted.artifact, "onnxruntime", sets, TOLERANCES["fp32-export"], scaled=True
    )
    assert all(parity.passed for parity in results)


def test_what_no_exporter_holds_leaves_no_file(make, tmp_path):
    module, spec = make("unexportable")
    with pytest.raises(ExportError, match="cannot be exported to ONNX opset 17"):
        convert_to_onnx(module.eval(), None, spec, None, tmp_path / "m.onnx")
    assert not list(Path(tmp_path).iterdir())


@pytest.mark.parametrize(
    ("artifact_format", "name"),
    [("onnx", "model-fp32.onnx"), ("torchscript", "model-fp32.pt"), ("openvino", "model-fp32.xml")],
)
def test_file_names(artifact_format, name):
    assert file_name(artifact_format) == name
