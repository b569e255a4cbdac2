"""Small graphs written as text, narrowed and looked into, for the tests of fp16 and bf16."""

import math

import numpy as np
import onnx
import onnx.parser

from tsexport.exporters.rewrites.proofs import answer
from tsexport.quantize.narrowing import narrow_graph
from tsexport.runtimes.bf16_rounding import simulate_bf16
from tsexport.runtimes.comparison import relative_rms

WIDTH = 32
HEAD = f'<ir_version: 8, opset_import: ["" : 17]> g (float[batch, {WIDTH}] x) => (float[batch, {WIDTH}] y) '
RNG = np.random.default_rng(3)
W = (RNG.standard_normal((WIDTH, WIDTH)) / math.sqrt(WIDTH)).astype(np.float32)
X = RNG.standard_normal((5, WIDTH)).astype(np.float32)
LAYER_NORM = "{ a = MatMul(x, w)  h = LayerNormalization<epsilon = 1e-5>(a, one, zero)  y = MatMul(h, w) }"
CONSTANTS = {
    "w": W,
    "one": np.ones(WIDTH, np.float32),
    "zero": np.zeros(WIDTH, np.float32),
    "epsilon": np.float32(1e-8),
    "two": np.float32(2),
}


def graph(body, **constants):
    """Return a checked graph of a body; nodes are named after what they give."""
    model = onnx.parser.parse_model(HEAD + body)
    used = {name for node in model.graph.node for name in node.input}
    for name, array in {**CONSTANTS, **constants}.items():
        if name in used:
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    for node in model.graph.node:
        node.name = node.name or node.output[0]
    onnx.checker.check_model(model, full_check=True)
    return model


def narrowed(model, precision="fp16", **given):
    result = narrow_graph(model, precision, **given)
    onnx.checker.check_model(result.model, full_check=True)
    return result


def types_of(model):
    """Return the element type of every tensor by name."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    infos = (*inferred.input, *inferred.value_info, *inferred.output)
    constants = {one.name: one.data_type for one in inferred.initializer}
    return {**constants, **{one.name: one.type.tensor_type.elem_type for one in infos}}


def error_of(model, narrow):
    expected, found = answer(model, {"x": X})["y"], answer(simulate_bf16(narrow), {"x": X})["y"]
    return relative_rms(expected, found)


CONV = '<ir_version: 8, opset_import: ["" : 17]> g (float[batch, 2, 8] x) => (float[batch, 2, 8] y) '


def conv(head="{ y = Conv<pads = [1, 1]>(x, k) }"):
    model = onnx.parser.parse_model(CONV + head)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 2, 3), np.float32), "k"))
    return model
