"""1-D convolutions with a height of 1: what goes along with them, what stays, and that the answer does."""

from collections import Counter

import numpy as np
import onnx
import pytest

from tsexport.exporters.rewrites.flat_convolutions import FlatConvolutions
from tsexport.exporters.rewrites.proofs import answer, rewrite_graph

CLOSE = 1e-5
"""Sums of a few dozen terms of about unit size, in another order."""
SHAPE = (3, 10)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rewritten(body, *, out="4, 10", **constants):
    """Return the operators of y = body(x) for x [batch, 3, 10], rewritten, and the ranks of its
    convolutions' weights, None where they are computed."""
    head = f'<ir_version: 8, opset_import: ["" : 17]> graph (float[batch, 3, 10] x) => (float[batch, {out}] y)'
    model = onnx.parser.parse_model(head + " {" + body + "}")
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    probes = [{"x": random(batch, *SHAPE, seed=batch)} for batch in (1, 2, 5)]
    result, applied = rewrite_graph(model, probes, [FlatConvolutions()])
    assert all(one.kept for one in applied), applied
    onnx.checker.check_model(result, full_check=True)
    for feeds in probes:
        assert np.abs(answer(result, feeds)["y"] - answer(model, feeds)["y"]).max() < CLOSE
    ranks = {one.name: len(one.dims) for one in result.graph.initializer}
    found = [ranks.get(node.input[1]) for node in result.graph.node if node.op_type == "Conv"]
    return Counter(node.op_type for node in result.graph.node), found, applied


def test_a_chain_is_raised_once_and_lowered_once():
    body = """
      a = Conv<kernel_shape=[3], pads=[1, 1]>(x, w, c)  b = Relu(a)  d = Conv<kernel_shape=[3], pads=[2, 0]>(b, v)
      y = Relu(d)
    """
    nodes, ranks, (applied,) = rewritten(body, w=random(5, 3, 3), c=random(5), v=random(4, 5, 3))
    assert nodes == {"Unsqueeze": 1, "Conv": 2, "Relu": 2, "Squeeze": 1}
    assert ranks == [4, 4]
    assert applied.changes == 2


def test_branches_poolings_and_residuals_go_along():
    body = """
      p = MaxPool<kernel_shape=[3], pads=[1, 1], strides=[1]>(x)
      a = Conv<kernel_shape=[5], pads=[2, 2]>(x, w)  b = Conv<kernel_shape=[1]>(p, v)  j = Concat<axis=1>(a, b)
      n = BatchNormalization(j, gamma, beta, mean, var)  s = Conv<kernel_shape=[1]>(x, u)  r = Add(n, s)
      q = AveragePool<kernel_shape=[3], pads=[1, 1], strides=[1]>(r)  h = Mul(q, half)  e = Add(h, bias)
      y = Conv<kernel_shape=[3], pads=[2, 2], dilations=[2]>(e, z)
    """
    weights = {"w": random(2, 3, 5), "v": random(2, 3, 1, seed=1), "u": random(4, 3, 1, seed=2), "z": random(4, 4, 3)}
    norm = {name: random(4, seed=i) for i, name in enumerate(("gamma", "beta", "mean"))}
    others = {"var": random(4, seed=9) ** 2 + 0.1, "half": np.array(0.5, np.float32), "bias": random(4, 1)}
    nodes, ranks, _ = rewritten(body, **weights, **norm, **others)
    assert ranks == [4] * 4
    assert (nodes["Squeeze"], nodes["MaxPool"], nodes["Concat"], nodes["Add"]) == (1, 1, 1, 2)
    assert nodes["Unsqueeze"] == 2  # the input, and what a pooling before any convolution made of it


def test_a_value_that_is_read_both_ways_is_lowered_for_the_other_reader():
    body = """
      a = Conv<kernel_shape=[3], pads=[1, 1]>(x, w)  m = ReduceMean<axes=[2], keepdims=1>(a)
      b = Conv<kernel_shape=[3], pads=[1, 1]>(a, v)  y = Sub(b, m)
    """
    nodes, ranks, _ = rewritten(body, w=random(4, 3, 3), v=random(4, 4, 3))
    assert ranks == [4, 4]
    assert nodes["ReduceMean"] == 1
    assert nodes["Squeeze"] == 2


@pytest.mark.parametrize(
    "attributes",
    ["kernel_shape=[4], strides=[2], pads=[2, 2]", 'kernel_shape=[4], auto_pad="SAME_UPPER", strides=[2]'],
)
def test_strides_and_paddings_are_those_along_time(attributes):
    steps = "6" if "pads" in attributes else "5"
    nodes, ranks, _ = rewritten(f"y = Conv<{attributes}>(x, w)", out=f"4, {steps}", w=random(4, 3, 4))
    assert (nodes["Conv"], ranks) == (1, [4])


def test_groups_stay_groups():
    body = "y = Conv<kernel_shape=[3], pads=[1, 1], group=3>(x, w)"
    assert rewritten(body, out="3, 10", w=random(3, 1, 3))[1] == [4]


def test_a_join_along_time_reads_flat_values():
    body = """
      a = Conv<kernel_shape=[3], pads=[1, 1]>(x, w)  j = Concat<axis=2>(a, a)
      y = MaxPool<kernel_shape=[2], strides=[2]>(j)
    """
    nodes, _, _ = rewritten(body, w=random(4, 3, 3))
    assert (nodes["Concat"], nodes["Squeeze"]) == (1, 1)


def test_what_is_no_convolution_along_time_stays():
    nodes, _, applied = rewritten("y = MaxPool<kernel_shape=[3], pads=[1, 1], strides=[1]>(x)", out="3, 10")
    assert nodes == {"MaxPool": 1}
    assert applied == ()
    body = "i = Unsqueeze(x, axis)  a = Conv<kernel_shape=[1, 3], pads=[0, 1, 0, 1]>(i, w)  y = Squeeze(a, axis)"
    _, ranks, applied = rewritten(body, axis=np.array([2]), w=random(4, 3, 1, 3))
    assert ranks == [4]
    assert applied == ()


def test_a_convolution_with_computed_weights_stays():
    constants = {"zero": np.array([0]), "one": np.array([1])}
    _, ranks, applied = rewritten("s = Slice(x, zero, one, zero)  y = Conv(x, s)", out="1, 1", **constants)
    assert ranks == [None]
    assert applied == ()
