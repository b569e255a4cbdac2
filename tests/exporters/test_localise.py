"""A weight is broken in an exported file, and the layer that it belongs to must be named."""

import dataclasses
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tsexport.errors import ParityError
from tsexport.exporters.checks import check_parity, feed_sets, require_parity
from tsexport.exporters.localise import localise
from tsexport.exporters.onnx import export_onnx
from tsexport.exporters.openvino import export_openvino
from tsexport.exporters.probes import scope_of
from tsexport.exporters.torchscript import export_torchscript
from tsexport.runtimes.comparison import TOLERANCES
from tsexport.types import files_sha256, random_feeds

TOLERANCE = TOLERANCES["fp32-export"]
BROKEN = [
    ("mlp", "net.0"),
    ("mlp", "net.3"),
    ("mlp", "net.5"),
    ("encoder", "embed"),
    ("encoder", "encoder.layers.0.linear1"),
    ("encoder", "encoder.layers.1.norm1"),
    ("encoder", "encoder.layers.1.linear2"),
    ("encoder", "head"),
    ("two-inputs", "body.net.3"),
    ("two-outputs", "spread"),
    ("conv", "head"),
    ("repeated", "mix"),
    ("repeated", "head"),
    ("unfold-after-pad", "project"),
]


class Source:
    """The torch module as the source model that artifacts are held against."""

    def __init__(self, module, spec):
        self.module, self.spec = module.eval(), spec

    def run(self, feeds):
        with torch.inference_mode():
            answer = self.module(*(torch.from_numpy(feeds[t.name].copy()) for t in self.spec.inputs))
        answers = answer if isinstance(answer, tuple) else (answer,)
        return {t.name: a.numpy() for t, a in zip(self.spec.outputs, answers, strict=True)}


def redescribed(artifact):
    return dataclasses.replace(artifact, sha256=files_sha256(artifact.files))


def broken_onnx(artifact, layer):
    """Change the layer's bias in the file (weights are transposed and renamed by the exporter, biases are not)."""
    model = onnx.load(artifact.path)
    (bias,) = [t for t in model.graph.initializer if t.name == f"{layer}.bias"]
    values = numpy_helper.to_array(bias) + np.float32(0.25) * np.arange(1, bias.dims[0] + 1, dtype=np.float32)
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    artifact.path.write_bytes(model.SerializeToString())
    return redescribed(artifact)


@pytest.mark.parametrize(("name", "layer"), BROKEN)
def test_broken_weight_in_onnx_is_named(make, tmp_path, name, layer):
    module, spec = make(name)
    artifact = export_onnx(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.onnx")
    found = localise(
        module, spec, broken_onnx(artifact, layer), "onnxruntime", random_feeds(spec.inputs, 3, 1), TOLERANCE
    )
    assert found.layer == layer
    assert repr(layer) in found.reason
    assert scope_of(found.node) == layer
    assert found.comparison is not None
    assert not found.comparison.passed


@pytest.mark.parametrize(("name", "layer"), BROKEN)
def test_broken_weight_in_openvino_ir_is_named(make, tmp_path, name, layer):
    module, spec = make(name)
    exported = export_onnx(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.onnx")
    artifact = export_openvino(broken_onnx(exported, layer), tmp_path / "model.xml")
    found = localise(module, spec, artifact, "openvino", random_feeds(spec.inputs, 3, 1), TOLERANCE)
    assert found.layer == layer
    assert repr(layer) in found.reason


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("mlp", "net.3"),
        ("encoder", "embed"),
        ("encoder", "encoder.layers.1"),
        ("lstm", "lstm"),
        ("conv", "norm"),
        ("two-inputs", "embedding"),
        ("two-outputs", "spread"),
        ("repeated", "mix"),
    ],
)
def test_broken_weight_in_torchscript_is_named(make, tmp_path, name, layer):
    module, spec = make(name)
    artifact = export_torchscript(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript as a whole
        loaded = torch.jit.load(artifact.path)
        with torch.no_grad():
            list(dict(loaded.named_modules())[layer].parameters())[-1].add_(0.5)
        torch.jit.save(loaded, artifact.path)
    found = localise(module, spec, redescribed(artifact), "torchscript", random_feeds(spec.inputs, 3, 1), TOLERANCE)
    assert found.layer == layer
    assert repr(layer) in found.reason


def test_layer_in_a_graph_without_scopes_is_found_by_value(make, tmp_path):
    module, spec = make("mlp")
    artifact = export_onnx(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.onnx")
    broken_onnx(artifact, "net.3")
    model = onnx.load(artifact.path)
    for index, node in enumerate(model.graph.node):
        node.name = f"n{index}"
    artifact.path.write_bytes(model.SerializeToString())
    found = localise(module, spec, redescribed(artifact), "onnxruntime", random_feeds(spec.inputs, 3, 1), TOLERANCE)
    assert found.layer == "net.3"
    assert "the graph holds no value that is its answer" in found.reason


def test_tract_is_localised_in_onnx_runtime(make, tmp_path):
    module, spec = make("mlp")
    artifact = export_onnx(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.onnx")
    feeds = random_feeds(spec.inputs, 3, 1)
    sound = localise(module, spec, artifact, "tract", feeds, TOLERANCE)
    assert sound.layer is None
    assert "tract shows no intermediate values" in sound.reason
    found = localise(module, spec, broken_onnx(artifact, "net.0"), "tract", feeds, TOLERANCE)
    assert found.layer == "net.0"
    assert "(found in ONNX Runtime)" in found.reason


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt"])
def test_a_sound_artifact_has_no_departing_layer(make, tmp_path, suffix):
    module, spec = make("encoder")
    feeds = random_feeds(spec.inputs, 2, 0)
    if suffix == ".pt":
        artifact, runtime = export_torchscript(module, spec, feeds, tmp_path / "m.pt"), "torchscript"
    else:
        artifact, runtime = export_onnx(module, spec, feeds, tmp_path / "m.onnx"), "onnxruntime"
    if suffix == ".xml":
        artifact, runtime = export_openvino(artifact, tmp_path / "m.xml"), "openvino"
    found = localise(module, spec, artifact, runtime, feeds, TOLERANCE)
    assert found.layer is None
    assert found.reason.startswith("the first layer could not be localised")


def test_a_damaged_file_does_not_hide_the_miss(make, tmp_path):
    module, spec = make("mlp")
    artifact = export_onnx(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.onnx")
    artifact.path.write_bytes(b"not a model")
    found = localise(module, spec, artifact, "onnxruntime", random_feeds(spec.inputs, 2, 0), TOLERANCE)
    assert found.layer is None
    assert "could not be localised" in found.reason


def with_output_nodes_named(artifact):
    """Name nodes after the outputs that they write: tract calls an output by its node's name."""
    model = onnx.load(artifact.path)
    for node in model.graph.node:
        if node.output[0] in {output.name for output in model.graph.output}:
            node.name = node.output[0]
    artifact.path.write_bytes(model.SerializeToString())
    return redescribed(artifact)


@pytest.mark.parametrize("runtime", ["onnxruntime", "tract"])
def test_parity_error_names_everything(make, tmp_path, runtime):
    module, spec = make("encoder")
    source = Source(module, spec)
    artifact = export_onnx(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.onnx")
    if runtime == "tract":
        artifact = with_output_nodes_named(artifact)
    sets = feed_sets(spec.inputs, random_feeds(spec.inputs, 4, 9), batches=(1, 3))
    assert [(s.name, s.batch) for s in sets] == [("random", 1), ("random", 3), ("real", 1), ("real", 3)]
    results = require_parity(source, artifact, runtime, sets, TOLERANCE, scaled=True, module=module)
    assert [(p.artifact, p.runtime, p.feeds, p.batch) for p in results] == [
        ("onnx-fp32", runtime, s.name, s.batch) for s in sets
    ]
    assert all(p.passed for p in results)

    broken = broken_onnx(artifact, "encoder.layers.1.linear1")
    assert not any(p.passed for p in check_parity(source, broken, runtime, sets, TOLERANCE, scaled=True))
    with pytest.raises(ParityError) as caught:
        require_parity(source, broken, runtime, sets, TOLERANCE, scaled=True, module=module)
    message = str(caught.value)
    for part in ("onnx-fp32", runtime, "feeds of batch", "'forecast'", "'fp32-export'", "'encoder.layers.1.linear1'"):
        assert part in message
    assert caught.value.exit_code == 3
    with pytest.raises(ParityError, match="there is no torch module"):
        require_parity(source, broken, runtime, sets, TOLERANCE, scaled=True)


def test_feed_sets_of_a_fixed_batch_use_that_size_alone(make):
    _, spec = make("mlp")
    fixed = (dataclasses.replace(spec.inputs[0], shape=(4, 6)),)
    assert [(s.name, s.batch) for s in feed_sets(fixed)] == [("random", 4)]


@pytest.mark.parametrize(
    ("node", "scope"),
    [
        ("/p/MatMul", "p"),
        ("/e/layers.0/self_attn/Add", "e.layers.0.self_attn"),
        ("/net/net.1/net.1.0/Relu", "net.1.0"),
        ("/enc/net/net.0/Gemm", "enc.net.0"),
        ("/blocks.0/blocks.0.1/Tanh", "blocks.0.1"),
        ("/Gather", ""),
        ("MatMul_3", ""),
    ],
)
def test_scope_of_node_names(node, scope):
    assert scope_of(node) == scope
