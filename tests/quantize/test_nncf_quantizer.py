"""NNCF's presets, layers that stay in floating point, and weights that are computed from constants."""

from dataclasses import replace

import numpy as np
import onnx
import openvino
import pytest

from tsexport.calibration.arrays import ArrayDataset
from tsexport.errors import ConfigurationError
from tsexport.quantize.candidates import build_candidate
from tsexport.quantize.cpu_recipes import NNCF_MIXED, NNCF_PRODUCTS, NNCF_PRODUCTS_BF16, NNCF_PRODUCTS_REDUCED
from tsexport.quantize.nncf_quantizer import float_operations
from tsexport.runtimes.comparison import relative_rms
from tsexport.runtimes.registry import load

RESIDUAL = """{
  [first] a = MatMul(x, w)  [relu] h = Relu(a)  [sum] s = Add(h, x)  [second] b = MatMul(s, v)  [last] y = Add(b, s)
}"""
COMPUTED_WEIGHT = "{ [weight] s = Add(w, v)  [product] y = MatMul(x, s) }"
MAX_ERROR = 0.03


@pytest.fixture
def quantized(sources, spec, windows, tmp_path):
    """Return a function from a body and a recipe to (fp32 artifacts, what was built)."""

    def build(body, recipe):
        fp32 = sources(body)
        return fp32, build_candidate(recipe, fp32, spec, ArrayDataset({"x": windows}), tmp_path / "out")

    return build


def operations(artifact):
    return {one.get_friendly_name(): one for one in openvino.Core().read_model(artifact.path).get_ops()}


def quantized_inputs(artifact, name):
    """Return the types of the operators that an operator's inputs come from."""
    return [value.get_node().get_type_name() for value in operations(artifact)[name].input_values()]


def integer_weights(artifact):
    return sum(
        one.get_type_name() == "Constant" and one.get_element_type().to_string() == "i8"
        for one in operations(artifact).values()
    )


def error_of(fp32, artifact, windows):
    answers = []
    for one in (fp32.openvino, artifact):
        with load(one, "openvino", threads=1) as session:
            answers.append(session.run({"x": windows})["y"])
    return relative_rms(*answers)


@pytest.mark.parametrize("recipe", [NNCF_PRODUCTS, NNCF_PRODUCTS_REDUCED], ids=lambda one: one.name)
def test_products_leaves_additions_in_floating_point(quantized, windows, recipe):
    fp32, built = quantized(RESIDUAL, recipe)
    assert built.reason == ""
    assert integer_weights(built.artifact) == 2
    assert quantized_inputs(built.artifact, "first")[0] == "FakeQuantize"
    assert quantized_inputs(built.artifact, "second")[0] == "FakeQuantize"
    assert "FakeQuantize" not in quantized_inputs(built.artifact, "sum")
    assert error_of(fp32, built.artifact, windows) < MAX_ERROR


def test_mixed_quantizes_additions_too(quantized):
    _, built = quantized(RESIDUAL, NNCF_MIXED)
    assert "FakeQuantize" in quantized_inputs(built.artifact, "sum")


def test_bf16_for_the_rest_is_stated(quantized):
    _, built = quantized(RESIDUAL, NNCF_PRODUCTS_BF16)
    assert built.artifact.precision == "int8"
    assert built.artifact.options == (("INFERENCE_PRECISION_HINT", "bf16"),)


def test_a_layer_stays_in_floating_point(quantized):
    _, built = quantized(RESIDUAL, replace(NNCF_PRODUCTS, float_layers=("first",)))
    assert built.reason == ""
    assert integer_weights(built.artifact) == 1
    assert quantized_inputs(built.artifact, "first") == ["Parameter", "Constant"]


def test_an_unknown_layer_is_the_reason(quantized):
    _, built = quantized(RESIDUAL, replace(NNCF_PRODUCTS, float_layers=("frist",)))
    assert built.artifact is None
    assert built.reason == "no layer of the model is called 'frist' (did you mean 'first'?)"


def test_parts_of_a_convolution_are_found_by_its_tensors(tmp_path):
    """OpenVINO gives a Conv's name to the addition of its bias."""
    body = '<ir_version: 8, opset_import: ["" : 17]> g (float[batch, 4, 16] x) => (float[batch, 4, 16] y)'
    model = onnx.parser.parse_model(
        body + "{ [before] a = Relu(x)  [conv] c = Conv<pads=[1, 1]>(a, k, bias)  [after] y = Conv<pads=[1, 1]>(c, k) }"
    )
    for name, shape in (("k", (4, 4, 3)), ("bias", (4,))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    path = tmp_path / "conv.onnx"
    onnx.save(model, path)
    converted = openvino.Core().read_model(path)
    kinds = {one.get_friendly_name(): one.get_type_name() for one in converted.get_ops()}
    assert kinds["conv"] == "Add"
    (found,) = float_operations(converted, ["conv"], path)
    assert kinds[found] == "Convolution"
    assert found not in float_operations(converted, ["after"], path)
    assert float_operations(converted, ["before"], path) == []
    with pytest.raises(ConfigurationError, match="no layer of the model is called 'cnv'"):
        float_operations(converted, ["cnv"], path)


def test_a_weight_computed_from_constants_is_one(quantized):
    _, built = quantized(COMPUTED_WEIGHT, NNCF_PRODUCTS)
    assert built.reason == ""
    assert integer_weights(built.artifact) == 1
