"""The spectral rewrite: equal to torch.fft, in half precision too, on any module, and in every export."""

import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tsexport.exporters.conversion import convert_to_onnx, convert_to_openvino, convert_to_torchscript
from tsexport.exporters.rewrites.modules import rewrite_module
from tsexport.exporters.rewrites.spectral import (
    MatrixSpectralConv,
    SpectralAsMatrixProducts,
    latitude_matrix,
    longitude_matrix,
    spectral_layers,
)
from tsexport.models.spectral import SpectralConv
from tsexport.runtimes.registry import load
from tsexport.types import ModelSpec, TensorSpec

RELATIVE = 6e-7
"""Relative RMS error in fp32 against the transform in float64; torch.fft's own is about 3e-7."""
HALF = 1e-3
"""The same with every stage rounded to fp16, whose steps are 5e-4 apart."""
ATOL = 2e-5
GRIDS = [(64, 64, 32), (64, 64, 8), (16, 16, 32), (8, 24, 3), (24, 8, 5), (2, 4, 1)]


def layer(channels, height, width, modes, seed=0):
    torch.manual_seed(seed)
    return SpectralConv(channels, height, width, modes).eval().requires_grad_(False)


def relative(actual, expected):
    return float(((actual.double() - expected).pow(2).mean() / expected.pow(2).mean()).sqrt())


def in_double(original, field):
    """The layer's own answer in float64: torch.fft's rounding is no part of it."""
    exact = SpectralConv(original.channels, original.latitudes, original.longitudes, original.latitude_modes)
    exact.longitude_modes = original.longitude_modes
    for name in ("latitude_weight", "longitude_weight"):
        setattr(exact, name, nn.Parameter(getattr(original, name).double()))
    with torch.inference_mode():
        return exact(field.double())


@pytest.mark.parametrize(("height", "width", "modes"), GRIDS)
@pytest.mark.parametrize("batch", [1, 3])
def test_products_are_the_transform(height, width, modes, batch):
    original = layer(6, height, width, modes)
    field = torch.randn(batch, 6, height, width)
    with torch.inference_mode():
        given, plain = MatrixSpectralConv(original)(field), original(field)
    exact = in_double(original, field)
    assert given.shape == field.shape
    assert relative(given, exact) < RELATIVE
    assert relative(plain, exact) < RELATIVE  # torch.fft in fp32 is no closer than a few units either


def test_products_are_the_transform_at_full_size():
    original = layer(64, 256, 256, 32)
    field = torch.randn(1, 64, 256, 256)
    with torch.inference_mode():
        assert relative(MatrixSpectralConv(original)(field), in_double(original, field)) < RELATIVE


@pytest.mark.parametrize("points", [2, 7, 16])
def test_each_stage_is_unitary(points):
    frequencies = points // 2
    down = latitude_matrix(points, frequencies)
    np.testing.assert_allclose(down @ down.T, np.eye(4 * frequencies), atol=1e-12, rtol=0)
    along = longitude_matrix(points, frequencies)
    values = np.random.default_rng(0).standard_normal(points)
    transform = np.fft.rfft(values, norm="ortho")[:frequencies]
    np.testing.assert_allclose(values @ along, np.concatenate([transform.real, transform.imag]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("offset", [0.0, 30.0], ids=["standardised", "far off"])
def test_half_precision_keeps_the_field(offset):
    """At 256x256 the plain sum over a field of 30 is 2e6, and its unitary transform 7680; fp16 ends at 65504."""
    original = layer(8, 256, 256, 32)
    for value in original.parameters():  # each frequency is passed on, and with it the offset
        value.zero_()[:, :, 0] = torch.eye(8)
    field = torch.randn(1, 8, 256, 256) + offset
    with torch.inference_mode():
        half = MatrixSpectralConv(original).half()(field.half())
    error = relative(half, in_double(original, field))
    print(f"fp16, offset {offset}: relative error {error:.1e}")
    assert error < HALF


class Mine(nn.Module):
    """A user's own module with spectral layers, one inside a container."""

    def __init__(self, height: int = 8) -> None:
        super().__init__()
        self.first = SpectralConv(3, height, 12, 4)
        self.rest = nn.Sequential(nn.Conv2d(3, 4, 1), SpectralConv(4, 8, 12, 2), nn.ReLU())

    def forward(self, x):
        return self.rest(x + self.first(x))


def spec_of(batch="batch"):
    x = TensorSpec("x", "float32", (batch, 3, 8, 12))
    return ModelSpec("mine", "test", "unknown", (x,), (TensorSpec("y", "float32", (batch, 4, 8, 12)),))


def probes():
    generator = np.random.default_rng(0)
    return [{"x": generator.standard_normal((batch, 3, 8, 12)).astype(np.float32)} for batch in (1, 3)]


def make(module=Mine, *args):
    torch.manual_seed(0)
    return module(*args).eval().requires_grad_(False)


def rewrite(module):
    return rewrite_module(module, probes(), [SpectralAsMatrixProducts()])


def test_every_layer_is_replaced_and_the_module_left_untouched():
    module = make()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    rewritten, (applied,) = rewrite(module)
    assert (applied.kept, applied.changes) == (True, 2)
    assert applied.max_abs_error < ATOL
    assert not spectral_layers(rewritten)
    assert isinstance(rewritten.rest[1], MatrixSpectralConv)
    assert [*spectral_layers(module)] == ["first", "rest.1"]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_weights_are_shared_with_the_module():
    """Copies of them would double the memory of a model of 2 GB."""
    module = make()
    rewritten, _ = rewrite(module)
    assert rewritten.first.latitude_weight.data_ptr() == module.first.latitude_weight.data_ptr()
    assert rewritten.rest[0].weight is module.rest[0].weight


def test_a_layer_alone_is_replaced_too():
    rewritten, (applied,) = rewrite(layer(3, 8, 12, 4))
    assert applied.kept
    assert isinstance(rewritten, MatrixSpectralConv)


def test_a_layer_on_another_grid_is_left_alone():
    """torch.fft takes any grid and answers on the layer's own; a product cannot."""

    class Upsampling(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = SpectralConv(3, 16, 24, 4)

        def forward(self, x):
            return self.layer(x)

    module = make(Upsampling)
    same, (applied,) = rewrite(module)
    assert same is module
    assert not applied.kept
    assert "rewrite spectral-as-matrix-products not kept: the module fails with it" in str(applied)


def test_a_subclass_is_left_alone():
    class Doubled(SpectralConv):
        def forward(self, field):
            return 2 * super().forward(field)

    module = make(Doubled, 3, 8, 12, 4)
    assert rewrite(module) == (module, ())


@pytest.mark.parametrize("runtime", ["onnxruntime", "tract", "openvino", "torchscript"])
def test_a_users_own_module_exports(runtime, tmp_path):
    module, spec = make(), spec_of()
    if runtime == "torchscript":
        converted = convert_to_torchscript(module, spec, None, tmp_path / "m.pt")
    else:
        converted = convert_to_onnx(module, None, spec, None, tmp_path / "m.onnx")
    assert converted.rewrites[0].name == "spectral-as-matrix-products"
    assert str(converted.rewrites[0]) in converted.artifact.provenance
    if runtime == "openvino":
        converted = convert_to_openvino(converted.artifact, tmp_path / "m.xml")
    with load(converted.artifact, runtime, threads=1) as session:
        for feeds in probes():
            with torch.inference_mode():
                expected = module(torch.from_numpy(feeds["x"])).numpy()
            np.testing.assert_allclose(session.run(feeds)["y"], expected, atol=ATOL, rtol=0)


def test_the_graph_is_plain_products(tmp_path):
    converted = convert_to_onnx(layer(3, 8, 12, 4), None, one_layer(), None, tmp_path / "m.onnx")
    nodes = onnx.load(converted.artifact.path).graph.node
    assert len([node for node in nodes if node.op_type == "MatMul"]) == 6  # four transforms, two mixings
    assert not {node.op_type for node in nodes} & {"DFT", "Shape", "Cast", "ScatterND", "Identity", "Expand"}


def one_layer():
    x, y = (TensorSpec(name, "float32", ("batch", 3, 8, 12)) for name in ("x", "y"))
    return ModelSpec("layer", "test", "unknown", (x,), (y,))


def test_a_trace_holds_no_transform(tmp_path):
    converted = convert_to_torchscript(layer(3, 8, 12, 4), one_layer(), None, tmp_path / "m.pt")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.load` is deprecated", category=DeprecationWarning)
        graph = str(torch.jit.load(str(converted.artifact.path)).inlined_graph)
    assert "aten::matmul" in graph
    assert "fft" not in graph
