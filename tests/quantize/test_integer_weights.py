"""What torch's exporter writes of a converted module, in the form that runtimes take: the same numbers, other nodes."""

from collections import Counter

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.quantize.integer_weights import quantize_array, store_integer_weights
from tsexport.runtimes.comparison import relative_rms

WIDTH, OUT = 6, 4
ROUNDING = 1e-6
HEAD = f'<ir_version: 8, opset_import: ["" : 17]> g (float[batch, {WIDTH}] x) => (float[batch, {OUT}] y) '
ACTIVATIONS = "xq = QuantizeLinear(x, xs, xz)  xd = DequantizeLinear(xq, xs, xz)"
WEIGHT = "wq = QuantizeLinear<axis=0>(w, s, z)  wc = Clip(wq, low, high)  wd = DequantizeLinear<axis=0>(wc, s, z)"
BODIES = {
    "transposed": f"{{ {WEIGHT}  t = Transpose<perm=[1, 0]>(wd)  {ACTIVATIONS}  y = MatMul(xd, t) }}",
    "gemm": f"{{ {WEIGHT}  {ACTIVATIONS}  y = Gemm<transB=1>(xd, wd, b) }}",
    "gemm inside": f"{{ {WEIGHT}  {ACTIVATIONS}  g = Gemm<transB=1, alpha=1.0>(xd, wd, b)  y = Relu(g) }}",
    "gemm without bias": f"{{ {WEIGHT}  {ACTIVATIONS}  y = Gemm<transB=1>(xd, wd) }}",
}


def parse(body):
    model = onnx.parser.parse_model(HEAD + body)
    draw = np.random.default_rng(7)
    constants = {
        "w": draw.standard_normal((OUT, WIDTH)).astype(np.float32),
        "b": draw.standard_normal(OUT).astype(np.float32),
        "s": draw.uniform(0.01, 0.02, OUT).astype(np.float32),
        "z": np.zeros(OUT, np.int8),
        "xs": np.float32(0.02),
        "xz": np.uint8(120),
        "low": np.int8(-128),
        "high": np.int8(127),
        "narrow": np.int8(-127),
    }
    used = {name for node in model.graph.node for name in node.input}
    for name, array in constants.items():
        if name in used:
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    onnx.checker.check_model(model, full_check=True)
    return model


def as_written(model):
    """Return a session that runs the nodes of a model as they stand."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def answer(model):
    x = np.random.default_rng(8).standard_normal((5, WIDTH)).astype(np.float32)
    return as_written(model).run(None, {"x": x})[0]


@pytest.fixture(scope="module")
def quantize_linear():
    head = '<ir_version: 8, opset_import: ["" : 17]> g (float[4] x, float s, uint8 z) => (uint8[4] y) '
    return as_written(onnx.parser.parse_model(head + "{ y = QuantizeLinear(x, s, z) }"))


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_dequantized_integer_weight_stands_before_the_product(body):
    model = parse(body)
    stored, count = store_integer_weights(model)
    onnx.checker.check_model(stored, full_check=True)
    assert count == 1
    kinds = Counter(node.op_type for node in stored.graph.node)
    assert (kinds["MatMul"], kinds["Gemm"], kinds["Transpose"], kinds["Clip"]) == (1, 0, 0, 0)
    made_by = {output: node.op_type for node in stored.graph.node for output in node.output}
    (product,) = [node for node in stored.graph.node if node.op_type == "MatMul"]
    assert [made_by[name] for name in product.input] == ["DequantizeLinear"] * 2
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in stored.graph.initializer}
    assert [array.shape for array in arrays.values() if array.dtype == np.int8 and array.ndim == 2] == [(WIDTH, OUT)]
    assert not [array for array in arrays.values() if array.dtype == np.float32 and array.ndim == 2]
    assert relative_rms(answer(model), answer(stored)) < ROUNDING


@pytest.mark.parametrize(
    "body",
    [
        f"{{ {WEIGHT.replace('low', 'narrow')}  t = Transpose<perm=[1, 0]>(wd)  {ACTIVATIONS}  y = MatMul(xd, t) }}",
        f"{{ {WEIGHT}  {ACTIVATIONS}  y = Gemm<transB=1, beta=0.5>(xd, wd, b) }}",
    ],
    ids=["clip to less than the type", "scaled bias"],
)
def test_what_changes_a_value_stays(body):
    model = parse(body)
    stored, _ = store_integer_weights(model)
    assert {"Clip", "Gemm"} & {node.op_type for node in stored.graph.node}
    assert relative_rms(answer(model), answer(stored)) < ROUNDING


@settings(deadline=None)
@given(
    st.lists(st.floats(-300, 300, width=32), min_size=4, max_size=4),
    st.floats(0.015625, 3.0, width=32),
    st.integers(0, 255),
)
def test_constants_are_quantized_as_onnx_says(quantize_linear, values, scale, zero):
    array, step, offset = np.array(values, np.float32), np.float32(scale), np.uint8(zero)
    expected = quantize_linear.run(None, {"x": array, "s": np.asarray(step), "z": np.asarray(offset)})[0]
    np.testing.assert_array_equal(quantize_array(array, np.asarray(step), np.asarray(offset), 0), expected)
