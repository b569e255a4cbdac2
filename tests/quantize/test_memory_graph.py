"""ONNX graphs as memory sees them: sizes by the batch, views, scratch, constants, and the forms of each runtime."""

import onnx
import onnx.parser
import pytest

from tsexport.bench.memory_plan import Size
from tsexport.quantize.memory_graph import blocked, fused_attention, memory_graph


def read(text):
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    onnx.checker.check_model(model, full_check=True)
    return memory_graph(model)


@pytest.fixture(scope="module")
def attention():
    return read("""
        g (float[batch, 6, 8] q, float[batch, 6, 8] k) => (float[batch, 6, 8] y)
        <float scale = {0.5}>
        {
          t = Transpose <perm = [0, 2, 1]> (k)
          s = MatMul (q, t)
          m = Mul (s, scale)
          p = Softmax <axis = -1> (m)
          y = MatMul (p, k)
        }
    """)


def test_sizes_are_lines_through_two_batches(attention):
    assert attention.sizes["s"] == Size(0, 6 * 6 * 4)
    assert attention.sizes["s"].at(10) == 1440
    assert attention.inputs == ("q", "k")
    assert attention.outputs == ("y",)
    assert attention.unknown == ()


def test_fused_attention_keeps_no_scores(attention):
    fused = fused_attention(attention)
    assert {name for name in fused.sizes if fused.sizes[name].at(4) == 0} == {"s", "m", "p"}
    assert fused.sizes["t"] == attention.sizes["t"]


def test_a_softmax_that_others_read_too_keeps_its_scores():
    graph = read("""
        g (float[batch, 6, 8] q, float[batch, 8, 6] k) => (float[batch, 6, 8] y, float[batch, 6, 6] p)
        {
          s = MatMul (q, k)
          p = Softmax <axis = -1> (s)
          y = MatMul (p, q)
          z = Relu (p)
        }
    """)
    assert fused_attention(graph).sizes["s"].at(1) == 6 * 6 * 4


def test_constants_are_no_activations_and_matrices_are_told_apart():
    graph = read(
        """
        g (float[batch, 4] x) => (float[batch, 4] y)
        <int64[2] shape = {4, 4}, float[4] b = {1.0, 2.0, 3.0, 4.0}>
        {
          w = ConstantOfShape <value = float[1] {0.5}> (shape)
          p = MatMul (x, w)
          r = Reshape <allowzero = 0> (p, shape2)
          y = Add (p, b)
          shape2 = Constant <value = int64[2] {-1, 4}> ()
        }
    """.replace("          r = Reshape <allowzero = 0> (p, shape2)\n", "").replace(
            "          shape2 = Constant <value = int64[2] {-1, 4}> ()\n", ""
        )
    )
    assert [step.operator for step in graph.steps] == ["MatMul", "Add"]
    assert graph.weights.other_bytes == 64 + 16
    assert graph.weights.product_bytes == 64
    assert not graph.computes_shapes


def test_an_lstm_needs_its_gates_as_scratch():
    weights = onnx.helper
    nodes = [weights.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=8)]
    tensor = onnx.TensorProto.FLOAT
    model = weights.make_model(
        weights.make_graph(
            nodes,
            "g",
            [weights.make_tensor_value_info("x", tensor, [5, "batch", 3])],
            [weights.make_tensor_value_info("y", tensor, [5, 1, "batch", 8])],
            [
                weights.make_tensor("w", tensor, [1, 32, 3], [0.0] * 96),
                weights.make_tensor("r", tensor, [1, 32, 8], [0.0] * 256),
            ],
        ),
        opset_imports=[weights.make_opsetid("", 17)],
        ir_version=8,
    )
    (step,) = memory_graph(model).steps
    assert step.scratch == Size(0, 5 * 32 * 4)  # steps * gates * hidden * 4 bytes for each sample


def test_convolutions_copy_where_a_chain_begins_and_ends():
    graph = read("""
        g (float[batch, 4, 8, 8] x) => (float[batch, 32, 8, 8] y)
        <int64[4] s1 = {16, 4, 1, 1}, int64[4] s2 = {32, 16, 1, 1}>
        {
          w1 = ConstantOfShape <value = float[1] {0.5}> (s1)
          w2 = ConstantOfShape <value = float[1] {0.5}> (s2)
          a = Conv (x, w1)
          b = Relu (a)
          c = Conv (b, w2)
          y = Transpose <perm = [0, 1, 3, 2]> (c)
        }
    """)
    operators = [step.operator for step in blocked(graph).steps]
    assert operators == ["Conv", "Relu", "Conv", "Reorder", "Transpose"]
    assert blocked(graph).weights.convolution_bytes == (64 + 512) * 4
