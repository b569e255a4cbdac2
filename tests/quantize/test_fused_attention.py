"""Attention of a dynamically quantized graph as one operator: the same answers, and what is left alone."""

from collections import Counter

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from tsexport.calibration.arrays import ArrayDataset
from tsexport.exporters.onnx_file import finish_onnx
from tsexport.quantize.candidates import build_candidate
from tsexport.quantize.cpu_recipes import DYNAMIC_ATTENTION_S8, DYNAMIC_ATTENTION_U8, DYNAMIC_S8
from tsexport.quantize.fused_attention import fuse_attention
from tsexport.quantize.onnxruntime_quantizer import quantize_onnx
from tsexport.quantize.sources import Fp32Sources
from tsexport.runtimes.comparison import relative_rms
from tsexport.types import ModelSpec, TensorSpec

STEPS, HEADS, WIDTH = 6, 2, 8
HIDDEN = HEADS * WIDTH
SPEC = ModelSpec(
    name="attention",
    family="test",
    task="unknown",
    inputs=(TensorSpec("x", "float32", ("batch", STEPS, HIDDEN)),),
    outputs=(TensorSpec("y", "float32", ("batch", STEPS, HIDDEN)),),
)
ROUNDING = 1e-5
"""What another order of floating-point sums may do; what is quantized is the same."""

PACKED_PROJECTION = "r = Reshape(x, rows)  p0 = MatMul(r, w)  p = Add(p0, b)"
BEFORE_SPLIT = "p4 = Reshape(p, packed)  t = Transpose<perm=[0, 2, 1, 3]>(p4)  q, k, v = Split<axis=1>(t, three_heads)"
ON_HEADS = """p4 = Reshape(p, packed)  q4, k4, v4 = Split<axis=2>(p4, three_heads)
    q = Transpose<perm=[0, 2, 1, 3]>(q4)  k = Transpose<perm=[0, 2, 1, 3]>(k4)  v = Transpose<perm=[0, 2, 1, 3]>(v4)"""
ON_WIDTH = """q3, k3, v3 = Split<axis=-1>(p, three_widths)
    q4 = Reshape(q3, heads)  k4 = Reshape(k3, heads)  v4 = Reshape(v3, heads)
    q = Transpose<perm=[0, 2, 1, 3]>(q4)  k = Transpose<perm=[0, 2, 1, 3]>(k4)  v = Transpose<perm=[0, 2, 1, 3]>(v4)"""
SCORES = "kt = Transpose<perm=[0, 1, 3, 2]>(k)  s0 = MatMul(q, kt)  s = Mul(s0, scale)"
MIXED = """a = Softmax<axis=-1>(s)  m = MatMul(a, v)  mt = Transpose<perm=[0, 2, 1, 3]>(m)
    o = Reshape(mt, rows)  o2 = MatMul(o, out)  y = Reshape(o2, hidden)"""
SEPARATE = """r = Reshape(x, rows)  qr = MatMul(r, wq)  kr = MatMul(r, wk)  vr = MatMul(r, wv)
    q4 = Reshape(qr, heads)  k4 = Reshape(kr, heads)  v4 = Reshape(vr, heads)
    q = Transpose<perm=[0, 2, 1, 3]>(q4)  k = Transpose<perm=[0, 2, 1, 3]>(k4)  v = Transpose<perm=[0, 2, 1, 3]>(v4)"""
MASKED = SCORES.replace("s = Mul(s0, scale)", "s1 = Mul(s0, scale)  s = Add(s1, mask)")

WHOLE = {
    "split of transposed heads": f"{PACKED_PROJECTION}  {BEFORE_SPLIT}  {SCORES}  {MIXED}",
    "split of heads": f"{PACKED_PROJECTION}  {ON_HEADS}  {SCORES}  {MIXED}",
    "split of widths": f"{PACKED_PROJECTION}  {ON_WIDTH}  {SCORES}  {MIXED}",
}
BARE = {
    "separate projections": f"{SEPARATE}  {SCORES}  {MIXED}",
    "causal mask": f"{PACKED_PROJECTION}  {BEFORE_SPLIT}  {MASKED.replace('mask', 'causal')}  {MIXED}",
    "mask of each head": f"{SEPARATE}  {MASKED.replace('mask', 'of_heads')}  {MIXED}",
    "no bias": f"{PACKED_PROJECTION.replace('p = Add(p0, b)', 'p = Relu(p0)')}  {ON_WIDTH}  {SCORES}  {MIXED}",
}
COMPUTED = "c = ReduceMean<axes=[2], keepdims=0>(x)  computed = Unsqueeze(c, middle)"
LEFT = {
    "mask of the window": f"{COMPUTED}  {SEPARATE}  {MASKED.replace('mask', 'computed')}  {MIXED}",
    "softmax over heads": f"{SEPARATE}  {SCORES}  {MIXED.replace('axis=-1', 'axis=1')}",
    "scores used twice": f"{SEPARATE}  {SCORES}  {MIXED.replace('y = ', 'n = ')}  z = ReduceSum<keepdims=0>(s)  "
    "y = Add(n, z)",
}


def constants() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(3)
    causal = np.where(np.tri(STEPS) > 0, 0.0, -1e4)
    return {
        "w": draw.standard_normal((HIDDEN, 3 * HIDDEN)).astype("f4"),
        "b": draw.standard_normal(3 * HIDDEN).astype("f4"),
        **{name: draw.standard_normal((HIDDEN, HIDDEN)).astype("f4") for name in ("wq", "wk", "wv", "out")},
        "scale": np.float32(WIDTH**-0.5),
        "causal": causal.astype("f4"),
        "of_heads": draw.standard_normal((1, HEADS, STEPS, STEPS)).astype("f4"),
        "rows": np.array([-1, HIDDEN]),
        "hidden": np.array([-1, STEPS, HIDDEN]),
        "packed": np.array([-1, STEPS, 3 * HEADS, WIDTH]),
        "heads": np.array([-1, STEPS, HEADS, WIDTH]),
        "three_heads": np.array([HEADS] * 3),
        "three_widths": np.array([HIDDEN] * 3),
        "middle": np.array([1, 2]),
    }


@pytest.fixture
def written(tmp_path):
    """Return a function from a body to the fp32 artifact."""

    def write(body):
        text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[batch, {STEPS}, {HIDDEN}] x) => '
        model = onnx.parser.parse_model(f"{text} (float[batch, {STEPS}, {HIDDEN}] y) {{ {body} }}")
        used = {name for node in model.graph.node for name in node.input}
        for name, array in constants().items():
            if name in used:
                model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        return finish_onnx(model, SPEC, tmp_path / "fp32.onnx", ("onnx.parser",))

    return write


def answers(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def dynamic(artifact, recipe=DYNAMIC_S8):
    return quantize_onnx(artifact.path, recipe, ArrayDataset({"x": np.zeros((1, STEPS, HIDDEN), np.float32)}))


def own_operators(model):
    return Counter(node.op_type for node in model.graph.node if node.domain == "com.microsoft")


@pytest.fixture
def x():
    return np.random.default_rng(5).standard_normal((3, STEPS, HIDDEN)).astype(np.float32)


@pytest.mark.parametrize("recipe", [DYNAMIC_ATTENTION_S8, DYNAMIC_ATTENTION_U8], ids=lambda one: one.name)
@pytest.mark.parametrize("body", WHOLE.values(), ids=WHOLE)
def test_attention_with_its_projection_is_one_operator(written, x, body, recipe):
    plain = dynamic(written(body), recipe)
    fused, found = fuse_attention(plain)
    assert found == 1
    assert own_operators(fused) == {"QAttention": 1}
    assert not {"Softmax", "Split", "Transpose"} & {node.op_type for node in fused.graph.node}
    assert relative_rms(answers(plain, x), answers(fused, x)) < ROUNDING


@pytest.mark.parametrize("body", BARE.values(), ids=BARE)
def test_attention_alone_is_one_operator(written, x, body):
    plain = dynamic(written(body))
    fused, found = fuse_attention(plain)
    assert found == 1
    assert own_operators(fused) == {"MultiHeadAttention": 1}
    assert relative_rms(answers(plain, x), answers(fused, x)) < ROUNDING


@pytest.mark.parametrize("body", LEFT.values(), ids=LEFT)
def test_what_is_no_such_attention_stays(written, body):
    plain = dynamic(written(body))
    fused, found = fuse_attention(plain)
    assert found == 0
    assert not own_operators(fused)
    assert Counter(n.op_type for n in fused.graph.node) == Counter(n.op_type for n in plain.graph.node)


def test_what_else_reads_the_merged_heads_still_does(written, x):
    body = f"{SEPARATE}  {SCORES}  {MIXED.replace('y = ', 'n = ')}"
    plain = dynamic(written(f"{body}  z0 = ReduceMax<axes=[2]>(mt)  z = ReduceSum<keepdims=0>(z0)  y = Add(n, z)"))
    fused, found = fuse_attention(plain)
    assert found == 1
    assert relative_rms(answers(plain, x), answers(fused, x)) < ROUNDING


def test_the_candidate_says_what_it_is(written, tmp_path):
    artifact = written(WHOLE["split of widths"])
    windows = ArrayDataset({"x": np.zeros((4, STEPS, HIDDEN), np.float32)})
    built = build_candidate(DYNAMIC_ATTENTION_S8, Fp32Sources(artifact, None), SPEC, windows, tmp_path / "out")
    assert built.reason == ""
    assert built.artifact.name == "int8-dynamic-attention-s8"
    assert built.artifact.runtimes == ("onnxruntime",)
    again = build_candidate(DYNAMIC_ATTENTION_S8, Fp32Sources(artifact, None), SPEC, windows, tmp_path / "again")
    assert built.artifact.sha256 == again.artifact.sha256


def test_a_graph_without_attention_gives_the_reason(written, tmp_path):
    artifact = written("r = Reshape(x, rows)  o = MatMul(r, out)  y = Reshape(o, hidden)")
    windows = ArrayDataset({"x": np.zeros((4, STEPS, HIDDEN), np.float32)})
    built = build_candidate(DYNAMIC_ATTENTION_S8, Fp32Sources(artifact, None), SPEC, windows, tmp_path / "out")
    assert built.artifact is None
    assert built.reason == (
        "fused-attention could not build it: the graph has no attention of constant lengths that ONNX Runtime's "
        "operator takes"
    )
