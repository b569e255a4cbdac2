"""Exact simulation of integer products and recurrent layers, to the last integer, and what has no exact form."""

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import onnx.version_converter
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.errors import UsageError
from tsexport.runtimes.comparison import relative_rms
from tsexport.runtimes.exact_integers import digit_base, needs_rewriting, with_exact_integers
from tsexport.targets import host_cpu

FLIPPED_ROUNDING = 2e-3
"""Relative RMS that a few activations make which lie halfway between two integers and are rounded the other way."""


def model_of(text: str, **constants) -> onnx.ModelProto:
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> ' + text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    return model


def in_onnxruntime(model, feeds):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


# --- integer products, to the last integer ---------------------------------------------------------------------------


def both(model, feeds):
    """Return what the reference evaluator answers to a graph, and ONNX Runtime to its exact form."""
    assert needs_rewriting(model)
    exact = with_exact_integers(model)
    assert not needs_rewriting(exact)
    onnx.checker.check_model(exact, full_check=True)
    return onnx.reference.ReferenceEvaluator(model).run(None, feeds)[0], in_onnxruntime(exact, feeds)[0]


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 5), st.integers(1, 300), st.integers(1, 5), st.sampled_from(["uint8", "int8"]),
    st.sampled_from(["scalar", "channels", "absent"]), st.integers(0, 2**32 - 1), st.booleans(),
)  # fmt: skip
def test_matmul_integer(rows, products, columns, kind, zero_points, seed, extreme):
    draw = np.random.default_rng(seed)
    a, b = np.iinfo("uint8"), np.iinfo(kind)
    x = np.full((rows, products), 255, "uint8") if extreme else draw.integers(0, 256, (rows, products), "uint8")
    w = (
        np.full((products, columns), b.max, kind)
        if extreme
        else draw.integers(b.min, b.max + 1, (products, columns), kind)
    )
    given_zeros, constants = "", {"w": w}
    if zero_points != "absent":
        size = () if zero_points == "scalar" else (columns,)
        constants |= {
            "xz": np.array(draw.integers(a.max + 1), "uint8"),
            "wz": draw.integers(b.min, b.max + 1, size, kind),
        }
        constants["wz"] = np.asarray(constants["wz"], kind)
        given_zeros = ", xz, wz"
    model = model_of(
        f"g (uint8[n, {products}] x) => (int32[n, {columns}] y) {{ y = MatMulInteger (x, w{given_zeros}) }}",
        **constants,
    )
    expected, found = both(model, {"x": x})
    np.testing.assert_array_equal(found, expected)


def test_matmul_integer_where_sixteen_bits_saturate_and_float32_rounds():
    """255 x 127 twice is more than 16 bits hold; 2000 of them are more than float32 counts one by one."""
    w = np.full((2001, 1), 127, "int8")
    model = model_of("g (uint8[n, 2001] x) => (int32[n, 1] y) { y = MatMulInteger (x, w) }", w=w)
    x = np.full((1, 2001), 255, "uint8")
    _, found = both(model, {"x": x})
    assert found.tolist() == [[2001 * 255 * 127]]
    assert int(np.float32(2001 * 255 * 127)) != 2001 * 255 * 127


@pytest.mark.parametrize(("channels", "kernel"), [(1, 3), (4, 5), (200, 3), (2500, 2)])
@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_conv_integer(channels, kernel, kind):
    draw = np.random.default_rng(channels)
    limits = np.iinfo(kind)
    w = draw.integers(limits.min, limits.max + 1, (3, channels, kernel), kind)
    model = model_of(
        f"g (uint8[n, {channels}, 9] x) => (int32[n, 3, m] y)"
        "{ y = ConvInteger <pads = [1, 1], dilations = [2], strides = [2]> (x, w, xz, wz) }",
        w=w, xz=np.array(131, "uint8"), wz=np.array(3 if kind == "int8" else 120, kind),
    )  # fmt: skip
    x = np.where(draw.random((2, channels, 9)) < 0.5, 255, draw.integers(0, 256, (2, channels, 9))).astype("uint8")
    expected, found = both(model, {"x": x})
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("products", [1, 200, 300, 5000, 20_000, 30_000])
def test_digits_stay_exact_in_float32(products):
    base = digit_base(products)
    assert base * 255 * products < 2**24
    assert base in (2, 4, 16, 256)


def test_more_products_than_float32_sums_are_refused():
    with pytest.raises(UsageError, match="sums 40000 products cannot be simulated exactly"):
        digit_base(40_000)


def test_a_product_within_a_branch_is_rewritten_too():
    model = model_of(
        "g (uint8[n, 3] x, bool c) => (int32[n, 2] y) { y = If (c) <"
        "then_branch = t () => (int32[n, 2] a) { a = MatMulInteger (x, w) },"
        "else_branch = e () => (int32[n, 2] b) { b = MatMulInteger (x, v) }> }",
        w=np.full((3, 2), 7, "int8"), v=np.full((3, 2), -7, "int8"),
    )  # fmt: skip
    x = np.arange(6, dtype="uint8").reshape(2, 3)
    for choice, factor in ((True, 7), (False, -7)):
        _, found = both(model, {"x": x, "c": np.array(choice)})
        np.testing.assert_array_equal(found, np.repeat(x.sum(1, keepdims=True).astype("int32") * factor, 2, 1))


# --- what has no exact form ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "{ y = QLinearMatMul (x, s, z, w, s, z, s, z) }",
            "is QLinearMatMul, which cannot be simulated exactly",
        ),
        ("{ y = com.microsoft.DynamicQuantizeMatMul (f, w, s, z) }", "is DynamicQuantizeMatMul, which"),
    ],
)
def test_fused_kernels_are_refused(body, message):
    model = model_of(f"g (uint8[n, 3] x, float[n, 3] f) => (uint8[n, 3] y) {body}", w=np.ones((3, 3), "uint8"))
    with pytest.raises(UsageError, match=message) as caught:
        needs_rewriting(model)
    assert "Q/DQ" in caught.value.next_step


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            "y = MatMulInteger (x, w, u)",
            r"MatMulInteger 'y' cannot be simulated exactly: its zero point 'u' is computed",
        ),
        ("y = ConvInteger (x, u)", r"ConvInteger 'y' cannot be simulated exactly: its weights are computed"),
        ("y = com.microsoft.DynamicQuantizeLSTM <clip = 1.0, hidden_size = 1> (x, w, w)", "it has clip"),
        (
            'y = com.microsoft.DynamicQuantizeLSTM <activations = ["Relu", "Tanh", "Tanh"], hidden_size = 1> (x, w, w)',
            "it has activations of its own",
        ),
        ("y = com.microsoft.DynamicQuantizeLSTM <hidden_size = 1> (x, w, w, , u)", "it has sequence lengths"),
        ("y = com.microsoft.DynamicQuantizeLSTM <hidden_size = 1> (x, w, w, , , , , u)", "it has peepholes"),
    ],
)
def test_what_cannot_be_exact_is_refused(node, message):
    model = model_of(f"g (uint8[n, 3] x, uint8[3] u) => (int32[n, 3] y) {{ {node} }}", w=np.ones((3, 3), "uint8"))
    with pytest.raises(UsageError, match=message):
        with_exact_integers(model)


# --- recurrent layers ------------------------------------------------------------------------------------------------

STEPS, FEATURES, HIDDEN = 6, 5, 4


def quantized_weights(draw, directions, rows, columns, kind):
    """Return (integers, scales, zero points) of random weights, per direction."""
    values = draw.standard_normal((directions, rows, columns)).astype("f4")
    limits = np.iinfo(kind)
    scale = (values.max((1, 2)) - values.min((1, 2))) / 255
    zero = np.round(limits.min - values.min((1, 2)) / scale)
    whole = np.clip(np.round(values / scale[:, None, None]) + zero[:, None, None], limits.min, limits.max)
    return whole.astype(kind), scale.astype("f4"), zero.astype(kind)


def lstm(direction, kind, *, biased, states):
    """Return a graph of one dynamically quantized LSTM and its constants."""
    draw = np.random.default_rng(3)
    directions = 2 if direction == "bidirectional" else 1
    w, ws, wz = quantized_weights(draw, directions, FEATURES, 4 * HIDDEN, kind)
    r, rs, rz = quantized_weights(draw, directions, HIDDEN, 4 * HIDDEN, kind)
    constants = {"w": w, "ws": ws, "wz": wz, "r": r, "rs": rs, "rz": rz}
    if biased:
        constants["b"] = draw.standard_normal((directions, 8 * HIDDEN)).astype("f4")
    if states:
        constants |= {name: draw.standard_normal((directions, 3, HIDDEN)).astype("f4") for name in ("h", "c")}
    bias, state = "b" if biased else "", "h, c" if states else ","
    text = (
        f"g (float[{STEPS}, 3, {FEATURES}] x) => (float[s, d, n, {HIDDEN}] y, float[d, n, {HIDDEN}] yh, "
        f'float[d, n, {HIDDEN}] yc) {{ y, yh, yc = com.microsoft.DynamicQuantizeLSTM <direction = "{direction}", '
        f"hidden_size = {HIDDEN}> (x, w, r, {bias}, , {state}, , ws, wz, rs, rz) }}"
    )
    return model_of(text, **constants), constants


def quantized(values):
    """Return values on the grid of DynamicQuantizeLinear: U8 with 0 on it."""
    low, high = min(values.min(), 0), max(values.max(), 0)
    scale = np.float32((high - low) / 255) if high > low else np.float32(1)
    zero = np.round(-low / scale)
    return (np.clip(np.round(values / scale) + zero, 0, 255) - zero) * scale


def by_numpy(direction, constants, x):
    """Return the three outputs by the equations of the operator, one step after the other, in float64."""
    outputs = []
    for index, backwards in enumerate({"forward": [0], "reverse": [1], "bidirectional": [0, 1]}[direction]):
        w, r = (
            (constants[k][index].astype("f8") - constants[f"{k}z"][index]) * constants[f"{k}s"][index] for k in "wr"
        )
        bias = constants["b"][index].reshape(2, -1).sum(0) if "b" in constants else 0
        h, c = (constants[k][index] if k in constants else np.zeros((3, HIDDEN)) for k in "hc")
        inputs, y = quantized(x) @ w + bias, np.zeros((STEPS, 3, HIDDEN))
        for step in range(STEPS)[:: -1 if backwards else 1]:
            i, o, f, n = np.split(inputs[step] + quantized(h) @ r, 4, axis=1)
            i, o, f = (1 / (1 + np.exp(-gate)) for gate in (i, o, f))
            c = f * c + i * np.tanh(n)
            h = o * np.tanh(c)
            y[step] = h
        outputs.append((y, h, c))
    y, h, c = (np.stack(arrays) for arrays in zip(*outputs, strict=True))
    return y.transpose(1, 0, 2, 3), h, c


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("biased", "states"), [(True, False), (False, True), (True, True), (False, False)])
@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_a_recurrent_layer_is_quantized_anew_at_each_step(direction, biased, states, kind):
    model, constants = lstm(direction, kind, biased=biased, states=states)
    x = np.random.default_rng(9).standard_normal((STEPS, 3, FEATURES)).astype("f4")
    exact = with_exact_integers(model)
    onnx.checker.check_model(exact)
    found = in_onnxruntime(exact, {"x": x})
    native = in_onnxruntime(model, {"x": x})
    saturates = kind == "int8" and host_cpu().instruction_set == "avx2"
    for mine, theirs, expected in zip(found, native, by_numpy(direction, constants, x), strict=True):
        assert relative_rms(expected, mine.astype("f8")) < FLIPPED_ROUNDING
        assert saturates or relative_rms(theirs, mine) < FLIPPED_ROUNDING


def test_only_the_outputs_that_are_asked_for():
    model, _ = lstm("forward", "uint8", biased=True, states=False)
    del model.graph.output[1:]
    model.graph.node[0].output[1:] = ["", "state"]
    x = np.random.default_rng(9).standard_normal((STEPS, 3, FEATURES)).astype("f4")
    exact = with_exact_integers(model)
    np.testing.assert_array_equal(in_onnxruntime(exact, {"x": x})[0].shape, (STEPS, 1, 3, HIDDEN))
    assert {name for node in exact.graph.node for name in node.output} >= {"state"}
