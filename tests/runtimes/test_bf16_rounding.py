"""The simulation of narrow graphs: every narrow tensor is rounded as torch and numpy round, and nothing else is."""

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tsexport.runtimes.bf16_rounding import compute_in_bf16, simulate_bf16

HEAD = '<ir_version: 8, opset_import: ["" : 17]> g (float[batch, n] x) => (float[batch, n] y) '
BF16, FP16 = 16, 10
LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL")


def model_of(body):
    model = onnx.parser.parse_model(HEAD + body)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model, feeds, level="ORT_ENABLE_ALL"):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


ROUNDED = {to: simulate_bf16(model_of(f"{{ a = Cast<to = {to}>(x)  y = Cast<to = 1>(a) }}")) for to in (BF16, FP16)}
TYPES = {BF16: ml_dtypes.bfloat16, FP16: np.float16}
FLOATS = arrays(np.float32, (3, 8), elements=st.floats(width=32, allow_nan=False))


@pytest.mark.parametrize("to", [BF16, FP16])
@settings(deadline=None, max_examples=60)
@given(values=FLOATS)
def test_every_value_is_rounded_to_nearest_even(to, values):
    with np.errstate(over="ignore", under="ignore"):
        expected = values.astype(TYPES[to]).astype(np.float32)
    for level in LEVELS:
        np.testing.assert_array_equal(run(ROUNDED[to], {"x": values}, level), expected)


@pytest.mark.parametrize("level", LEVELS)
def test_a_chain_of_operators_is_what_torch_computes_in_bfloat16(level):
    """Small integers in eighths: every sum is exact in fp32, so that its order is no matter."""
    simulated = simulate_bf16(
        model_of(
            """{ xb = Cast<to = 16>(x)  m = MatMul(xb, xb)  a = Add(m, xb)
                 p = Mul(a, a)  q = Relu(p)  s = Sub(q, xb)  y = Cast<to = 1>(s) }"""
        )
    )
    x = np.random.default_rng(0).integers(-64, 64, (16, 16)).astype(np.float32) / 8
    t = torch.from_numpy(x).bfloat16()
    a = t @ t + t
    expected = torch.relu(a * a) - t
    found = run(simulated, {"x": x}, level)
    np.testing.assert_array_equal(found, expected.float().numpy())
    full = np.square(x @ x + x).clip(0) - x
    assert not np.array_equal(found, full)  # the rounding did happen


def test_what_is_fp32_is_not_rounded():
    simulated = simulate_bf16(model_of("{ a = Cast<to = 16>(x)  b = Cast<to = 1>(a)  y = Add(b, x) }"))
    x = np.full((1, 2), 1 + 2**-20, np.float32)
    np.testing.assert_array_equal(run(simulated, {"x": x}), np.float32(1) + x)


def test_fp16_overflows_to_infinity_and_bf16_does_not():
    body = "{{ a = Cast<to = {0}>(x)  b = Mul(a, a)  y = Cast<to = 1>(b) }}"
    x = np.full((1, 2), 300.0, np.float32)
    assert np.isinf(run(simulate_bf16(model_of(body.format(FP16))), {"x": x})).all()
    assert np.isfinite(run(simulate_bf16(model_of(body.format(BF16))), {"x": x})).all()


def test_narrow_constants_are_taken_as_they_are():
    model = model_of("{ a = Cast<to = 16>(x)  b = Mul(a, a)  y = Cast<to = 1>(b) }")
    weight = np.array([0.1, 3.0], ml_dtypes.bfloat16)
    model.graph.node[1].input[1] = "w"
    model.graph.initializer.append(onnx.helper.make_tensor("w", 16, [2], weight.astype(np.float32)))
    onnx.checker.check_model(model, full_check=True)
    found = run(simulate_bf16(model), {"x": np.ones((1, 2), np.float32)})
    np.testing.assert_array_equal(found[0], weight.astype(np.float32))


def test_a_narrow_border_is_refused():
    text = '<ir_version: 8, opset_import: ["" : 17]> g (bfloat16[2] x) => (bfloat16[2] y) { y = Relu(x) }'
    with pytest.raises(ValueError, match="x, y would no longer have the type of the graph's border"):
        simulate_bf16(onnx.parser.parse_model(text))


def test_a_subgraph_is_refused():
    text = """<ir_version: 8, opset_import: ["" : 17]> g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <then_branch = t () => (float[2] a) { a = Relu(x) },
                    else_branch = e () => (float[2] b) { b = Neg(x) }>
    }"""
    with pytest.raises(ValueError, match=r"If .*has a subgraph"):
        simulate_bf16(onnx.parser.parse_model(text))


BODY = "{ [one] m = MatMul(x, x)  [two] a = Add(m, x)  [three] p = Mul(a, a)  [four] s = Sub(p, x)  [last] y = Neg(s) }"


def test_an_fp32_graph_computed_in_bf16_is_what_torch_computes_in_bfloat16():
    """Every operator reads and gives rounded values; what is kept does not, and what is read back from it is rounded.

    Small integers in eighths, as above.
    """
    x = np.random.default_rng(0).integers(-500, 500, (16, 16)).astype(np.float32) / 8
    t = torch.from_numpy(x).bfloat16()
    a = (t @ t).bfloat16() + t
    expected = -(a * a - t).float().numpy()
    model = model_of(BODY)
    np.testing.assert_array_equal(run(compute_in_bf16(model), {"x": x}), expected)
    unrounded = torch.from_numpy(x)
    sums = (t @ t).float() + unrounded
    kept = -(((sums * sums).bfloat16() - t).float().numpy())
    assert not np.array_equal(kept, expected)
    np.testing.assert_array_equal(run(compute_in_bf16(model, {"two"}), {"x": x}), kept)
    np.testing.assert_array_equal(run(compute_in_bf16(model, ["one", "two", "three", "four", "last"]), {"x": x}),
                                  run(model, {"x": x}))  # fmt: skip


def test_constants_are_rounded_for_those_who_are_not_kept():
    model = model_of("{ c = Constant<value = float[1] {1.01}>()  [one] a = Mul(x, c)  [two] y = Mul(a, c) }")
    x = np.ones((1, 4), np.float32)
    narrow = np.float32(ml_dtypes.bfloat16(1.01))
    (first,) = set(run(compute_in_bf16(model, {"two"}), {"x": x}).flat)
    assert first == np.float32(ml_dtypes.bfloat16(narrow)) * np.float32(1.01)
    (both,) = set(run(compute_in_bf16(model), {"x": x}).flat)
    assert both == np.float32(ml_dtypes.bfloat16(narrow)) * narrow


def test_an_fp32_graph_with_a_subgraph_is_refused():
    branch = onnx.parser.parse_graph("b () => (float[1] z) { z = Constant<value = float[1] {1.0}>() }")
    model = model_of("{ y = Neg(x) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "c"))
    model.graph.node.append(onnx.helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch))
    with pytest.raises(ValueError, match="has a subgraph"):
        compute_in_bf16(model)
