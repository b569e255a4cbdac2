"""INT8 weights in OpenVINO with activations quantized at run time: what is built, and when it is not claimed."""

import numpy as np
import onnx
import openvino
import pytest

from tsexport.calibration.arrays import ArrayDataset
from tsexport.exporters.onnx_file import finish_onnx
from tsexport.exporters.openvino import export_openvino
from tsexport.quantize.candidates import build_candidate
from tsexport.quantize.cpu_recipes import OPENVINO_DYNAMIC, OPENVINO_DYNAMIC_BF16
from tsexport.quantize.openvino_dynamic import GROUP_SIZE, compress, quantizes_activations
from tsexport.quantize.sources import Fp32Sources
from tsexport.runtimes.comparison import relative_rms
from tsexport.runtimes.registry import load
from tsexport.targets import host_cpu
from tsexport.types import ModelSpec, TensorSpec

WIDTH = 256
MAX_ERROR = 0.02
NOT_CLAIMED = "OpenVINO quantizes no activation of it at run time on this CPU"


def spec_of(*shape):
    tensor = TensorSpec("x", "float32", ("batch", *shape))
    return ModelSpec("wide", "test", "unknown", (tensor,), (TensorSpec("y", "float32", ("batch", *shape)),))


@pytest.fixture
def wide(tmp_path):
    """Return a function from a body, the shape of a sample and a weight's shape to fp32 artifacts."""

    def write(body, shape, weight_shape):
        sizes = ", ".join(map(str, shape))
        head = f'<ir_version: 8, opset_import: ["" : 17]> g (float[batch, {sizes}] x) => (float[batch, {sizes}] y) '
        model = onnx.parser.parse_model(head + body)
        draw = np.random.default_rng(2)
        for name in "wv":
            array = (draw.standard_normal(weight_shape) / 16).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        made = finish_onnx(model, spec_of(*shape), tmp_path / "wide.onnx", ("onnx.parser",))
        return Fp32Sources(made, export_openvino(made, tmp_path / "wide.xml"))

    return write


PRODUCTS = "{ a = MatMul(x, w)  h = Relu(a)  y = MatMul(h, v) }"
CONVOLUTIONS = "{ a = Conv<pads=[1, 1]>(x, w)  h = Relu(a)  y = Conv<pads=[1, 1]>(h, v) }"


@pytest.mark.parametrize("recipe", [OPENVINO_DYNAMIC, OPENVINO_DYNAMIC_BF16], ids=lambda one: one.name)
def test_what_is_claimed_is_what_openvino_does_here(wide, tmp_path, recipe):
    fp32 = wide(PRODUCTS, (8, WIDTH), (WIDTH, WIDTH))
    windows = np.random.default_rng(3).standard_normal((8, 8, WIDTH)).astype(np.float32)
    built = build_candidate(recipe, fp32, spec_of(8, WIDTH), ArrayDataset({"x": windows}), tmp_path / "out")
    if built.artifact is None:
        assert built.reason == NOT_CLAIMED
        assert host_cpu().instruction_set not in ("avx512-vnni", "amx")
        return
    assert dict(built.artifact.options) == dict(recipe.options)
    assert dict(recipe.options)[GROUP_SIZE] == "128"
    assert built.artifact.precision == "int8"
    assert fp32.openvino.size_bytes > 3 * built.artifact.size_bytes
    answers = []
    for one in (fp32.openvino, built.artifact):
        with load(one, "openvino", threads=1) as session:
            answers.append(session.run({"x": windows})["y"])
    assert 0 < relative_rms(*answers) < MAX_ERROR


def test_weights_are_integers_of_every_product(wide):
    fp32 = wide(PRODUCTS, (8, WIDTH), (WIDTH, WIDTH))
    model = compress(fp32.openvino.path)
    constants = [one for one in model.get_ops() if one.get_type_name() == "Constant"]
    assert sum(one.get_element_type().to_string() == "i8" for one in constants) == 2


def test_convolutions_are_not_claimed(wide, tmp_path):
    """Their weights are compressed, but nothing is quantized at run time."""
    fp32 = wide(CONVOLUTIONS, (8, 64), (8, 8, 3))
    windows = np.random.default_rng(3).standard_normal((4, 8, 64)).astype(np.float32)
    built = build_candidate(OPENVINO_DYNAMIC, fp32, spec_of(8, 64), ArrayDataset({"x": windows}), tmp_path / "out")
    assert built.artifact is None
    assert built.reason == NOT_CLAIMED
    assert not quantizes_activations(fp32.openvino, {"x": windows})


def test_a_graph_without_products_gives_the_reason(sources, bodies, spec, windows, tmp_path):
    built = build_candidate(
        OPENVINO_DYNAMIC, sources(bodies["no product"]), spec, ArrayDataset({"x": windows}), tmp_path / "out"
    )
    assert built.artifact is None
    assert built.reason == "openvino-dynamic could not build it: the model has no product with constant weights"


def test_the_same_recipe_gives_the_same_bytes(wide, tmp_path):
    model = wide(PRODUCTS, (8, WIDTH), (WIDTH, WIDTH)).openvino.path
    for name in "ab":
        openvino.save_model(compress(model), tmp_path / f"{name}.xml", compress_to_fp16=False)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
