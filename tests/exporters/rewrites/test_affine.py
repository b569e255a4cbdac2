"""Affine graphs as one product: what becomes one, what stays, and that the answer does."""

from collections import Counter

import numpy as np
import onnx
import pytest

from tsexport.exporters.rewrites.affine import AffineAsProduct
from tsexport.exporters.rewrites.proofs import answer, rewrite_graph

ONE_PRODUCT = {"Transpose": 2, "MatMul": 1, "Add": 1}
CLOSE = 1e-5
"""Sums of a dozen terms of about unit size, in another order."""


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rewritten(body, *, past="8, 3", future="4, 3", **constants):
    head = f'<ir_version: 8, opset_import: ["" : 17]> graph (float[batch, {past}] x) => (float[batch, {future}] y)'
    model = onnx.parser.parse_model(head + " {" + body + "}")
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    onnx.checker.check_model(model, full_check=True)
    probes = [{"x": random(batch, *map(int, past.split(",")), seed=batch)} for batch in (1, 2, 5)]
    result, applied = rewrite_graph(model, probes, [AffineAsProduct()])
    onnx.checker.check_model(result, full_check=True)
    for feeds in probes:
        assert np.abs(answer(result, feeds)["y"] - answer(model, feeds)["y"]).max() < CLOSE
    return Counter(node.op_type for node in result.graph.node), applied


DECOMPOSED = """
  p = Transpose<perm=[0, 2, 1]>(x)  e = Pad<mode="edge">(p, pads)
  trend = AveragePool<kernel_shape=[3], strides=[1]>(e)  rest = Sub(p, trend)
  a = MatMul(rest, w)  b = Add(a, bw)  c = MatMul(trend, v)  d = Add(c, bv)  s = Add(b, d)
  y = Transpose<perm=[0, 2, 1]>(s)
"""
WEIGHTS = {"w": random(8, 4), "v": random(8, 4, seed=1), "bw": random(4, seed=2), "bv": random(4, seed=3)}
PADS = {"pads": np.array([0, 0, 1, 0, 0, 1])}


def test_trend_and_remainder_become_one_product():
    nodes, (applied,) = rewritten(DECOMPOSED, **WEIGHTS, **PADS)
    assert applied.kept
    assert nodes == ONE_PRODUCT


def test_what_a_product_replaces_leaves_the_file():
    nodes, _ = rewritten(DECOMPOSED, **WEIGHTS, **PADS)
    assert sum(nodes.values()) == 4


@pytest.mark.parametrize(
    ("changed", "to"),
    [
        ("s = Add(b, d)", "s = Mul(b, d)"),  # a product of two values of the series
        ("s = Add(b, d)", "s0 = Add(b, d)  s = Relu(s0)"),
        ("s = Add(b, d)", "n = Neg(d)  s = Div(b, n)"),
        ("c = MatMul(trend, v)", "m = Transpose<perm=[0, 2, 1]>(trend)  g = MatMul(trend, m)  c = MatMul(g, u)"),
    ],
)
def test_a_graph_that_is_not_affine_stays(changed, to):
    assert changed in DECOMPOSED
    nodes, applied = rewritten(DECOMPOSED.replace(changed, to), **WEIGHTS, **PADS, u=random(3, 4))
    assert applied == ()
    assert sum(nodes.values()) >= 10


def test_channels_with_weights_of_their_own_stay():
    body = """
      p = Transpose<perm=[0, 2, 1]>(x)  f = Mul(p, factors)  a = MatMul(f, w)  b = Add(a, bw)
      y = Transpose<perm=[0, 2, 1]>(b)
    """
    _, applied = rewritten(body, w=WEIGHTS["w"], bw=WEIGHTS["bw"], factors=random(3, 1))
    assert applied == ()


def test_channels_that_mix_alike_stay():
    # Every channel answers impulses on all channels in the same way, so only the probes tell that they mix.
    body = """
      m = ReduceMean<axes=[2], keepdims=1>(x)  d = Sub(x, m)  p = Transpose<perm=[0, 2, 1]>(d)  a = MatMul(p, w)
      b = Add(a, bw)  q = Transpose<perm=[0, 2, 1]>(b)  k = Concat<axis=1>(q)  y = Add(k, h)
    """
    _, applied = rewritten(body, w=WEIGHTS["w"], bw=WEIGHTS["bw"], h=np.float32(1))
    assert applied == ()


def test_a_narrow_map_stays_as_two_products():
    body = """
      p = Transpose<perm=[0, 2, 1]>(x)  a = MatMul(p, narrow)  b = MatMul(a, wide)  c = Add(b, bw)
      y = Transpose<perm=[0, 2, 1]>(c)
    """
    nodes, applied = rewritten(body, narrow=random(8, 1), wide=random(1, 4), bw=random(4))
    assert applied == ()
    assert nodes["MatMul"] == 2


def test_other_shapes_stay():
    body = "a = Mul(x, two)  b = Add(a, two)  c = Sub(b, x)  d = Add(c, x)  y = Reshape(d, flat)"
    constants = {"two": random(8, 3), "flat": np.array([-1, 24])}
    assert rewritten(body, future="24", **constants)[1] == ()
    body = "a = Mul(x, two)  b = Add(a, two)  c = Sub(b, x)  d = Add(c, x)  y = Reshape(d, cut)"
    assert rewritten(body, future="12, 2", two=random(8, 3), cut=np.array([-1, 12, 2]))[1] == ()
