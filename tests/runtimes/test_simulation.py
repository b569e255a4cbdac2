"""Exact simulation: against ONNX's reference evaluator on small graphs, and this CPU where nothing saturates."""

import sys
from dataclasses import replace

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import onnx.version_converter
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.errors import MissingDependencyError, UsageError
from tsexport.quantize.cpu_recipes import (
    DYNAMIC_S8,
    DYNAMIC_S8_REDUCED,
    DYNAMIC_U8,
    NNCF_MIXED,
    NNCF_MIXED_REDUCED,
    OPENVINO_BF16,
    STATIC_S8S8,
    STATIC_U8S8,
    STATIC_U8S8_REDUCED,
)
from tsexport.runtimes.comparison import relative_rms
from tsexport.runtimes.exact_integers import digit_base, needs_rewriting, with_exact_integers
from tsexport.runtimes.registry import load
from tsexport.runtimes.simulation import AS_WRITTEN, load_for, simulate
from tsexport.targets import host_cpu, parse_target
from tsexport.types import Artifact, ModelSpec, TensorSpec, files_sha256

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


# --- whole artifacts -------------------------------------------------------------------------------------------------

WIDTH = 32
SPEC = ModelSpec(
    "small", "test", "unknown", (TensorSpec("x", "float32", ("batch", WIDTH)),),
    (TensorSpec("y", "float32", ("batch", WIDTH)),),
)  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return a function from a recipe to its artifact of a small model, and windows it was not calibrated on."""
    from tsexport.calibration.arrays import ArrayDataset
    from tsexport.exporters.onnx_file import finish_onnx
    from tsexport.exporters.openvino import export_openvino
    from tsexport.quantize.candidates import build_candidate
    from tsexport.quantize.sources import Fp32Sources

    folder, draw = tmp_path_factory.mktemp("simulated"), np.random.default_rng(1)
    w, v = (draw.standard_normal((WIDTH, WIDTH)).astype("f4") for _ in range(2))
    # Of an activation that flattens out, such as Tanh, many values would lie halfway between two integers.
    signature = f"g (float[batch, {WIDTH}] x) => (float[batch, {WIDTH}] y)"
    text = f"{signature} {{ a = MatMul(x, w) h = LeakyRelu(a) y = MatMul(h, v) }}"
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> ' + text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(one, name) for one, name in ((w, "w"), (v, "v")))
    fp32 = finish_onnx(model, SPEC, folder / "onnx-fp32.onnx", ())
    sources = Fp32Sources(fp32, export_openvino(fp32, folder / "openvino-fp32.xml"))
    windows, others = (draw.standard_normal((64, WIDTH)).astype("f4") for _ in range(2))

    def make(recipe):
        out = folder / recipe.name
        out.mkdir(exist_ok=True)
        made = build_candidate(recipe, sources, SPEC, ArrayDataset({"x": windows}), out)
        assert made.artifact is not None, made.reason
        return made.artifact, {"x": others}

    return make


def simulated(artifact, runtime, feeds):
    with simulate(artifact, runtime, 1) as session:
        assert session.inputs == artifact.inputs
        return session.run(feeds)["y"]


def test_openvino_computes_fakequantize_as_it_is_written(built):
    """Constant int8 weights would otherwise have their activations quantized at run time, in groups."""
    artifact, feeds = built(STATIC_U8S8)
    expected = simulated(artifact, "onnxruntime", feeds)
    in_openvino = replace(artifact, options=AS_WRITTEN["openvino"])
    assert relative_rms(expected, native(in_openvino, "openvino", feeds)) < FLIPPED_ROUNDING
    grouped = replace(artifact, options=(("LP_TRANSFORMS_MODE", "NO"),))
    print(f"with activations in groups: {relative_rms(expected, native(grouped, 'openvino', feeds)):.4f}")


def native(artifact, runtime, feeds):
    with load(artifact, runtime, threads=1) as session:
        return session.run(feeds)["y"]


@pytest.mark.parametrize("recipe", [STATIC_U8S8, STATIC_S8S8, STATIC_U8S8_REDUCED], ids=lambda one: one.name)
def test_qdq_is_what_the_reference_evaluator_answers(built, recipe):
    artifact, feeds = built(recipe)
    model = onnx.version_converter.convert_version(onnx.load(artifact.path), 21)  # it has no Q/DQ of opset 17
    expected = onnx.reference.ReferenceEvaluator(model).run(None, feeds)[0]
    for runtime in recipe.runtimes:
        assert relative_rms(expected, simulated(artifact, runtime, feeds)) < FLIPPED_ROUNDING


@pytest.mark.parametrize("recipe", [DYNAMIC_U8, DYNAMIC_S8, DYNAMIC_S8_REDUCED], ids=lambda one: one.name)
def test_dynamic_activations_are_what_the_reference_evaluator_answers(built, recipe):
    artifact, feeds = built(recipe)
    assert "MatMulInteger" in {node.op_type for node in onnx.load(artifact.path).graph.node}
    expected = onnx.reference.ReferenceEvaluator(onnx.load(artifact.path)).run(None, feeds)[0]
    assert relative_rms(expected, simulated(artifact, "onnxruntime", feeds)) < FLIPPED_ROUNDING


@pytest.mark.parametrize("recipe", [STATIC_U8S8, STATIC_S8S8, DYNAMIC_S8, NNCF_MIXED], ids=lambda one: one.name)
def test_full_range_is_what_a_cpu_with_vnni_answers(built, recipe):
    if not host_cpu().vnni:
        pytest.skip(f"{host_cpu().model} has no VNNI, and saturates")
    artifact, feeds = built(recipe)
    for runtime in recipe.runtimes:
        assert relative_rms(native(artifact, runtime, feeds), simulated(artifact, runtime, feeds)) < FLIPPED_ROUNDING


@pytest.mark.parametrize("recipe", [DYNAMIC_U8, STATIC_U8S8_REDUCED, NNCF_MIXED_REDUCED], ids=lambda one: one.name)
def test_what_does_not_saturate_is_what_any_cpu_answers(built, recipe):
    artifact, feeds = built(recipe)
    for runtime in recipe.runtimes:
        assert relative_rms(native(artifact, runtime, feeds), simulated(artifact, runtime, feeds)) < FLIPPED_ROUNDING


def test_a_simulated_session_takes_any_batch_and_leaves_nothing_behind(built, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    artifact, feeds = built(DYNAMIC_U8)
    with simulate(artifact, "onnxruntime", 1) as session:
        for batch in (1, 2, 5, 7, 11, 13):
            assert session.run({"x": feeds["x"][:batch]})["y"].shape == (batch, WIDTH)
        assert list(tmp_path.iterdir())
    del session
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_loaded_leaves_nothing_behind(built, tmp_path, monkeypatch):
    artifact, _ = built(DYNAMIC_U8)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(UsageError, match="has no input 'z'"):
        simulate(replace(artifact, inputs=(TensorSpec("z", "float32", ("batch", WIDTH)),)), "onnxruntime", 1)
    assert not list(tmp_path.iterdir())


def test_a_runtime_that_cannot_simulate_is_named(built):
    artifact, _ = built(DYNAMIC_U8)
    with pytest.raises(UsageError, match="is int8, and tract cannot simulate it; allowed are onnxruntime, openvino"):
        simulate(artifact, "tract", 1)


def test_bf16_of_openvino_cannot_be_simulated(built):
    artifact, _ = built(OPENVINO_BF16)
    with pytest.raises(UsageError, match="is bf16 in OpenVINO, which cannot be simulated") as caught:
        simulate(artifact, "openvino", 1)
    assert "a machine that has bf16" in caught.value.next_step


@pytest.mark.parametrize(
    "option", [("DYNAMIC_QUANTIZATION_GROUP_SIZE", "128"), ("INFERENCE_PRECISION_HINT", "bf16")], ids=lambda one: one[0]
)
def test_what_openvino_decides_at_run_time_is_refused(built, option):
    artifact, _ = built(NNCF_MIXED)
    with pytest.raises(UsageError, match="int8-nncf-mixed has OpenVINO quantize activations in groups") as caught:
        simulate(replace(artifact, options=(*artifact.options, option)), "openvino", 1)
    assert caught.value.next_step == "build on a machine of the target's kind"


def narrow(folder, precision, border="float"):
    """Return an artifact whose one product is in bf16 or fp16, and the numbers of its weight."""
    code = 16 if precision == "bf16" else 10
    text = (
        f"g ({border}[batch, 4] x) => (float[batch, 4] y) {{ a = Cast <to = {code}> (x) b = Cast <to = {code}> (w) "
        f"p = MatMul (a, b) y = Cast <to = 1> (p) }}"
    )
    w = np.random.default_rng(5).standard_normal((4, 4)).astype("f4")
    path = folder / f"{precision}.onnx"
    onnx.save(model_of(text, w=w), path)
    inputs, outputs = (TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("y", "float32", ("batch", 4)),)
    return Artifact(
        f"{precision}-small", path, "onnx", precision, inputs, outputs, (path,), files_sha256((path,)),
        path.stat().st_size, opset=17, runtimes=("onnxruntime",),
    ), w  # fmt: skip


@pytest.mark.parametrize(("precision", "bits"), [("bf16", 8), ("fp16", 11)])
def test_narrow_floats_are_rounded_where_the_graph_rounds(tmp_path, precision, bits):
    def rounded(values):
        """To `bits` significant bits, to nearest even."""
        mantissa, exponent = np.frexp(values.astype("f8"))
        return np.ldexp(np.round(mantissa * 2**bits) / 2**bits, exponent)

    artifact, w = narrow(tmp_path, precision)
    x = np.random.default_rng(6).standard_normal((3, 4)).astype("f4")
    expected = rounded(rounded(x) @ rounded(w))
    with simulate(artifact, "onnxruntime", 1) as session:
        np.testing.assert_allclose(session.run({"x": x})["y"], expected, rtol=0, atol=0)


def test_a_narrow_border_is_refused(tmp_path):
    artifact, _ = narrow(tmp_path, "bf16", border="bfloat16")
    with pytest.raises(UsageError, match="bf16-small cannot be simulated in bf16: x would no longer"):
        simulate(artifact, "onnxruntime", 1)


def test_bf16_of_a_gpu_is_simulated_where_a_bundle_is_opened(tmp_path):
    artifact, _ = narrow(tmp_path, "bf16")
    x = np.ones((2, 4), "f4")
    with simulate(artifact, "onnxruntime", 1) as session:
        expected = session.run({"x": x})["y"]
    with load_for(parse_target("a100-bf16"), artifact, "onnxruntime", 1) as session:
        np.testing.assert_array_equal(session.run({"x": x})["y"], expected)


def test_what_a_cpu_target_ships_runs_as_it_is(built):
    artifact, feeds = built(DYNAMIC_U8)
    with load_for(parse_target("cpu4-int8"), artifact, "onnxruntime", 1) as session:
        np.testing.assert_array_equal(session.run(feeds)["y"], native(artifact, "onnxruntime", feeds))


def test_simulating_without_onnx_names_the_pip_command(built, monkeypatch):
    artifact, _ = built(DYNAMIC_U8)
    monkeypatch.setitem(sys.modules, "onnx", None)  # what `import` sees where the package is not installed
    with pytest.raises(MissingDependencyError, match="int8-dynamic-u8 needs onnx") as caught:
        simulate(artifact, "onnxruntime", 1)
    assert caught.value.next_step == 'pip install "tsexport[build]"'


def test_fp32_runs_as_it_is(built):
    artifact, feeds = built(DYNAMIC_U8)
    fp32 = replace(artifact, precision="fp32")
    np.testing.assert_array_equal(simulated(fp32, "onnxruntime", feeds), native(artifact, "onnxruntime", feeds))
