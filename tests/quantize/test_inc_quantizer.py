"""Intel Neural Compressor to ONNX: Q/DQ graphs that hold, generators as they were, and the reason where it cannot."""

import importlib.util
import random
import sys
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tsexport.calibration.arrays import ArrayDataset
from tsexport.exporters.conversion import convert_to_onnx
from tsexport.quantize.candidates import build_candidate
from tsexport.quantize.cpu_recipes import INC_AUTOTUNE, INC_STATIC
from tsexport.quantize.sources import Fp32Sources
from tsexport.runtimes.comparison import relative_rms
from tsexport.runtimes.registry import load
from tsexport.types import ModelSpec, TensorSpec

installed = pytest.mark.skipif(
    importlib.util.find_spec("neural_compressor") is None, reason="the extra quantize is not installed"
)
SPEC = ModelSpec(
    name="small",
    family="test",
    task="unknown",
    inputs=(TensorSpec("x", "float32", ("batch", 4, 16)),),
    outputs=(TensorSpec("y", "float32", ("batch", 3)),),
)
MAX_ERROR = 0.03
"""Relative RMS of int8 against fp32: 0.006 to 0.012 was found."""


class Mixer(nn.Module):
    """x [batch, 4, 16] -> [batch, 3]: linear layers, a residual, a normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(64, 3)

    def forward(self, x):
        x = self.norm(x + self.second(torch.relu(self.first(x))))
        return self.head(x.flatten(1))


class Convolutional(nn.Module):
    """x [batch, 4, 16] -> [batch, 3], by a convolution of two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x.unsqueeze(1))).mean((2, 3)))


class Branching(nn.Module):
    """Decides by the values, which no capture of the module can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        return self.head(x.flatten(1)) if x.sum() > 0 else -self.head(x.flatten(1))


def windows(count):
    return {"x": np.random.default_rng(4).standard_normal((count, 4, 16)).astype(np.float32)}


def made(kind):
    torch.manual_seed(0)
    return kind().eval()


@pytest.fixture
def built(tmp_path):
    """Return a function from a module and a recipe to (its fp32 artifact, what was built)."""

    def build(module, recipe, folder="out"):
        fp32 = convert_to_onnx(module, None, SPEC, windows(4), tmp_path / "fp32.onnx").artifact
        sources = Fp32Sources(fp32, None, lambda: module)
        return fp32, build_candidate(recipe, sources, SPEC, ArrayDataset(windows(32)), tmp_path / folder)

    return build


def error_on(runtime, artifact, module):
    feeds = windows(16)
    with load(artifact, runtime, threads=1) as session:
        answer = session.run(feeds)["y"]
    with torch.no_grad():
        return relative_rms(module(torch.from_numpy(feeds["x"])).numpy(), answer)


@installed
@pytest.mark.slow
@pytest.mark.parametrize("recipe", [INC_STATIC, INC_AUTOTUNE], ids=lambda one: one.name)
def test_linear_layers_come_to_onnx_as_integers(built, recipe):
    module = made(Mixer)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.random.get_rng_state()
    weights = [value.clone() for value in module.parameters()]
    _, result = built(module, recipe)
    assert result.reason == ""
    artifact = result.artifact
    kinds = Counter(node.op_type for node in onnx.load(artifact.path).graph.node)
    assert (kinds["MatMul"], kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == (3, 3, 6)
    assert (artifact.precision, artifact.runtimes) == ("int8", ("onnxruntime", "openvino"))
    assert "neural-compressor" in artifact.provenance[-1]
    errors = [error_on(runtime, artifact, module) for runtime in artifact.runtimes]
    assert all(0 < error < MAX_ERROR for error in errors), errors
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.random.get_rng_state(), before[2])
    assert all(torch.equal(*pair) for pair in zip(weights, module.parameters(), strict=True))


@installed
@pytest.mark.slow
def test_convolutions_come_to_onnx_as_integers_and_the_same_bytes_again(built):
    module = made(Convolutional)
    _, result = built(module, INC_STATIC)
    assert result.reason == ""
    graph = onnx.load(result.artifact.path).graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    (conv,) = [node for node in graph.node if node.op_type == "Conv"]
    assert [made_by[name] for name in conv.input[:2]] == ["DequantizeLinear"] * 2
    assert all(error_on(runtime, result.artifact, module) < MAX_ERROR for runtime in result.artifact.runtimes)
    _, again = built(module, INC_STATIC, "again")
    assert again.artifact.sha256 == result.artifact.sha256


@installed
@pytest.mark.slow
def test_what_cannot_be_captured_gives_the_reason(tmp_path, built):
    fp32, _ = built(made(Mixer), INC_STATIC)
    module = made(Branching)
    sources = Fp32Sources(fp32, None, lambda: module)
    result = build_candidate(INC_STATIC, sources, SPEC, ArrayDataset(windows(8)), tmp_path / "branching")
    assert result.artifact is None
    assert result.reason.startswith("torch.export cannot capture the module with a dynamic batch: ")


@installed
@pytest.mark.slow
def test_no_layer_to_quantize_gives_the_reason(built):
    class Plain(nn.Module):
        def forward(self, x):
            return torch.relu(x).mean(1)[:, :3]

    _, result = built(Plain(), INC_STATIC)
    assert result.reason == "inc could not build it: Intel Neural Compressor found no Linear or Conv to quantize"


@installed
def test_an_onnx_source_gives_the_reason(tmp_path):
    fp32 = convert_to_onnx(made(Mixer), None, SPEC, windows(4), tmp_path / "fp32.onnx").artifact
    result = build_candidate(INC_STATIC, Fp32Sources(fp32, None), SPEC, ArrayDataset(windows(8)), tmp_path)
    assert result.artifact is None
    assert result.reason == "Intel Neural Compressor quantizes torch modules, and the source is an ONNX file"


def test_without_the_extra_the_reason_is_the_pip_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "neural_compressor", None)  # as where it is not installed
    module = made(Mixer)
    fp32 = convert_to_onnx(module, None, SPEC, windows(4), tmp_path / "fp32.onnx").artifact
    sources = Fp32Sources(fp32, None, lambda: module)
    result = build_candidate(INC_AUTOTUNE, sources, SPEC, ArrayDataset(windows(8)), tmp_path)
    assert result.artifact is None
    assert "Intel Neural Compressor needs neural-compressor" in result.reason
    assert result.reason.endswith('pip install "tsexport[quantize]"')
