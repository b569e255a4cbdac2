"""Graph rewrites on graphs written as ONNX text: what each changes, what it leaves, and a wrong one taken back."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tsexport.exporters.rewrites.batch_norm import BatchNormAsAffine
from tsexport.exporters.rewrites.cleaning import DropNoOps, FoldConstants, GemmAsMatMul
from tsexport.exporters.rewrites.linears import FoldScale, FuseParallelLinears
from tsexport.exporters.rewrites.order import REWRITES
from tsexport.exporters.rewrites.proofs import rewrite_graph
from tsexport.exporters.rewrites.shapes import ConstantShapes

HEAD = '<ir_version: 8, opset_import: ["" : 17]> graph (float[batch, {steps}, 4] x) => (float[batch, {out}] y)'


def graph(body: str, *, steps: str = "5", out: str = "5, 4", **constants: np.ndarray) -> onnx.ModelProto:
    """Return a checked model of x [batch, steps, 4] whose named constants are initializers."""
    model = onnx.parser.parse_model(HEAD.format(steps=steps, out=out) + " {" + body + "}")
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    onnx.checker.check_model(model, full_check=True)
    return model


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def probes() -> list[dict[str, np.ndarray]]:
    return [{"x": random(batch, 5, 4, seed=batch)} for batch in (1, 2, 3)]


def apply(model: onnx.ModelProto, *rewrites: object) -> tuple[Counter, tuple]:
    rewritten, applied = rewrite_graph(model, probes(), rewrites)
    onnx.checker.check_model(rewritten, full_check=True)
    return Counter(node.op_type for node in rewritten.graph.node), applied


def test_identity_of_shared_initializers_goes():
    nodes, (applied,) = apply(
        graph("v = Identity(w)  a = MatMul(x, w)  y = MatMul(a, v)", w=random(4, 4)), FoldConstants()
    )
    assert applied.kept
    assert nodes == {"MatMul": 2}


SHAPES = "s = Shape(x)  b = Gather<axis=0>(s, zero)  c = Concat<axis=0>(b, rest)  r = Reshape(x, c)  y = Identity(r)"


def test_a_shape_of_the_batch_becomes_minus_one():
    model = graph(SHAPES, out="20", zero=np.array([0]), rest=np.array([20]))
    nodes, (applied,) = apply(model, ConstantShapes())
    assert applied.kept
    assert nodes["Shape"] == nodes["Gather"] == nodes["Concat"] == 0
    assert nodes["Reshape"] == 1


def test_a_reshape_that_keeps_minus_one_of_its_own_is_fixed_too():
    model = graph(SHAPES, out="10, 2", zero=np.array([0]), rest=np.array([-1, 2]))
    nodes, (applied,) = apply(model, ConstantShapes())
    assert applied.kept
    assert nodes["Shape"] == 0


def test_a_shape_that_depends_on_data_stays():
    body = "n = NonZero(x)  s = Shape(n)  f = Cast<to=1>(s)  m = ReduceMax<keepdims=0>(f)  y = Add(x, m)"
    nodes, applied = apply(graph(body), ConstantShapes())
    assert nodes["Shape"] == 1
    assert not applied


def test_an_operand_that_varies_with_the_batch_stays():
    body = "s = Shape(x)  b = Gather<axis=0>(s, zero)  f = Cast<to=1>(b)  y = Mul(x, f)"
    nodes, _ = apply(graph(body, zero=np.array([0])), ConstantShapes())
    assert nodes["Shape"] == 1


def test_gemm_becomes_matmul_and_add():
    body = "r = Reshape(x, rows)  g = Gemm<transB=1>(r, w, c)  y = Reshape(g, back)"
    shapes = {"rows": np.array([-1, 4]), "back": np.array([-1, 5, 4])}
    nodes, (applied,) = apply(graph(body, w=random(4, 4), c=random(4, seed=1), **shapes), GemmAsMatMul())
    assert applied.kept
    assert nodes["Gemm"] == 0
    assert nodes["MatMul"] == nodes["Add"] == 1


def test_a_gemm_with_factors_stays():
    body = "r = Reshape(x, rows)  g = Gemm<alpha=2.0>(r, w, c)  y = Reshape(g, back)"
    shapes = {"rows": np.array([-1, 4]), "back": np.array([-1, 5, 4])}
    nodes, _ = apply(graph(body, w=random(4, 4), c=random(4, seed=1), **shapes), GemmAsMatMul())
    assert nodes["Gemm"] == 1


QKV = """
  q0 = MatMul(x, wq)  q = Add(q0, bq)  k0 = MatMul(x, wk)  k = Add(bk, k0)  v0 = MatMul(x, wv)  v = Add(v0, bv)
  t = Transpose<perm=[0, 2, 1]>(k)  s = MatMul(q, t)  c = {scale}  p = Softmax<axis=-1>(c)  y = MatMul(p, v)
"""


def attention(scale: str) -> onnx.ModelProto:
    weights = {f"w{name}": random(4, 4, seed=index) for index, name in enumerate("qkv")}
    biases = {f"b{name}": random(4, seed=index + 5) for index, name in enumerate("qkv")}
    return graph(QKV.format(scale=scale), half=np.array(0.5, np.float32), **weights, **biases)


@pytest.mark.parametrize("scale", ["Mul(s, half)", "Div(s, half)", "Mul(half, s)"])
def test_the_scale_folds_into_the_projection_and_the_projections_into_one(scale):
    nodes, applied = apply(attention(scale), FoldScale(), FuseParallelLinears())
    assert [one.kept for one in applied] == [True, True]
    assert nodes["Mul"] + nodes["Div"] == 0
    assert nodes["MatMul"] == 3
    assert nodes["Split"] == 1


def test_weights_that_were_fused_or_scaled_leave_the_file():
    rewritten, _ = rewrite_graph(attention("Mul(s, half)"), probes(), [FoldScale(), FuseParallelLinears()])
    read = {value for node in rewritten.graph.node for value in node.input}
    assert {initializer.name for initializer in rewritten.graph.initializer} <= read


def test_a_factor_that_others_see_stays():
    model = graph("a = MatMul(x, w)  b = Mul(a, half)  y = Add(a, b)", w=random(4, 4), half=np.array(0.5, np.float32))
    nodes, applied = apply(model, FoldScale())
    assert nodes["Mul"] == 1
    assert not applied


def test_projections_of_different_values_stay_apart():
    model = graph("a = MatMul(x, w)  b = MatMul(a, v)  y = Add(a, b)", w=random(4, 4), v=random(4, 4, seed=1))
    assert apply(model, FuseParallelLinears())[0]["MatMul"] == 2


def test_batch_norm_between_transposes_becomes_mul_and_add():
    body = """
      t = Transpose<perm=[0, 2, 1]>(x)
      n = BatchNormalization(t, gamma, beta, mean, var)
      y = Transpose<perm=[0, 2, 1]>(n)
    """
    parameters = {name: random(4, seed=i) for i, name in enumerate(("gamma", "beta", "mean"))}
    nodes, (applied,) = apply(graph(body, **parameters, var=random(4, seed=9) ** 2 + 0.1), BatchNormAsAffine())
    assert applied.kept
    assert nodes == {"Mul": 1, "Add": 1}


def test_casts_and_transposes_that_cancel_go():
    body = """
      c = Cast<to=1>(x)  t = Transpose<perm=[0, 2, 1]>(c)  u = Transpose<perm=[0, 2, 1]>(t)  y = Relu(u)
    """
    nodes, (applied,) = apply(graph(body), DropNoOps())
    assert applied.kept
    assert nodes == {"Relu": 1}


class Wrong:
    """A rewrite that changes the answer: doubles every Relu."""

    name = "wrong"

    def requires(self, model: ir.Model) -> bool:
        return True

    def call(self, model: ir.Model, probes: object) -> int:
        relu = next(node for node in model.graph if node.op_type == "Relu")
        doubled = ir.node("Add", [relu.inputs[0], relu.inputs[0]])
        model.graph.insert_before(relu, doubled)
        relu.replace_input_with(0, doubled.outputs[0])
        return 1


class Broken(Wrong):
    """A rewrite whose result ONNX Runtime refuses."""

    name = "broken"

    def call(self, model: ir.Model, probes: object) -> int:
        next(node for node in model.graph if node.op_type == "Relu").op_type = "NoSuchOperator"
        return 1


@pytest.mark.parametrize(("rewrite", "reason"), [(Wrong(), "departs by"), (Broken(), "refuses the result")])
def test_a_rewrite_that_fails_its_proof_is_taken_back(rewrite, reason):
    model = graph("y = Relu(x)")
    rewritten, (applied,) = rewrite_graph(model, probes(), [rewrite])
    assert not applied.kept
    assert reason in applied.reason
    assert "not kept" in str(applied)
    assert [node.op_type for node in rewritten.graph.node] == ["Relu"]


def test_all_rewrites_together_keep_the_answer_and_the_opset():
    model = attention("Mul(s, half)")
    rewritten, applied = rewrite_graph(model, probes(), REWRITES)
    assert all(one.kept for one in applied)
    assert [(entry.domain, entry.version) for entry in rewritten.opset_import] == [("", 17)]
    assert rewritten.ir_version == 8


def test_the_constant_shape_of_an_expand_is_folded():
    # As torch exports expand(-1, 5, 4): -1 means 1, by a comparison with ones made by ConstantOfShape.
    body = """
      m = ReduceMean<axes=[1], keepdims=1>(x)
      ones = ConstantOfShape<value=int64[1] {1}>(rank)  minus = Mul(ones, negative)
      same = Equal(wanted, minus)  shape = Where(same, ones, wanted)  e = Expand(m, shape)  y = Sub(x, e)
    """
    model = graph(body, rank=np.array([3]), negative=np.array(-1), wanted=np.array([-1, 5, 4]))
    nodes, (applied,) = apply(model, ConstantShapes())
    assert applied.kept
    assert nodes == {"ReduceMean": 1, "Expand": 1, "Sub": 1}


def test_the_widths_of_a_padding_are_folded():
    # As torch exports a padding: zeros for the other axes by ConstantOfShape, and the order turned by Transpose.
    body = """
      zeros = ConstantOfShape<value=int64[1] {0}>(rest)  all = Concat<axis=0>(zeros, given)
      pairs = Reshape(all, two)  turned = Transpose<perm=[1, 0]>(pairs)  pads = Reshape(turned, flat)
      y = Pad(x, pads)
    """
    sizes = {"rest": np.array([4]), "given": np.array([0, 2]), "two": np.array([-1, 2]), "flat": np.array([-1])}
    nodes, (applied,) = apply(graph(body, out="5, 6", **sizes), ConstantShapes())
    assert applied.kept
    assert nodes == {"Pad": 1}


BROADCAST = "e = Expand(p, wide)  s = Sin(e)  r = ReduceMean<axes=[0, 1], keepdims=0>(s)  y = Add(x, r)"


@pytest.mark.parametrize(("rows", "folded"), [(4, True), (40_000, False)])
def test_a_broadcast_constant_is_not_blown_up_in_the_file(rows, folded):
    model = graph(BROADCAST, p=random(1, 1, 4), wide=np.array([1, rows, 4]))
    rewritten, _ = rewrite_graph(model, probes(), REWRITES)
    kinds = Counter(node.op_type for node in rewritten.graph.node)
    assert kinds == ({"Add": 1} if folded else {"Expand": 1, "Sin": 1, "ReduceMean": 1, "Add": 1})
    assert rewritten.ByteSize() <= model.ByteSize() + 200


def test_an_embedding_of_a_few_numbers_is_not_blown_up_in_the_file():
    """[6000, 2] x [2, 4]: half the size of what it gives."""
    body = "e = MatMul(places, w)  r = ReduceMean<axes=[0], keepdims=0>(e)  y = Add(x, r)"
    model = graph(body, places=random(6000, 2), w=random(2, 4))
    rewritten, _ = rewrite_graph(model, probes(), REWRITES)
    assert rewritten.ByteSize() <= model.ByteSize() + 200


def test_a_large_value_of_shapes_alone_is_no_constant_of_the_file():
    """Zeros [5, 9000], computed from the shape of x: the batch has no part in them."""
    body = """s = Shape<start=1, end=2>(x)  both = Concat<axis=0>(s, wide)  zeros = ConstantOfShape(both)
    r = ReduceMean<axes=[1], keepdims=1>(zeros)  y = Add(x, r)"""
    model = graph(body, wide=np.array([9000]))
    rewritten, _ = rewrite_graph(model, probes(), REWRITES)
    assert rewritten.ByteSize() <= model.ByteSize() + 200
