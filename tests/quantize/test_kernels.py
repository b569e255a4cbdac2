"""What a graph does on a GPU, kernel by kernel: bytes and multiply-accumulates written down by hand."""

import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.errors import ExportError
from tsexport.quantize.fusing import Fusion
from tsexport.quantize.kernels import count, count_file

NEW = Fusion(rows=True, attention=True)
OLD = Fusion(rows=False, attention=False)
PAIRS = "float scale = {0.1}, int8 zero = {0}"


def graph(signature: str, body: str, weights: str = "") -> onnx.ModelProto:
    """Return a model of ONNX text, checked."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g {signature} {f"<{weights}>" if weights else ""} {{ {body} }}"""
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model, full_check=True)
    return model


def kernels_of(model, batch=1, fusion=NEW, floats=None):
    return count(model, batch, fusion, floats=floats).kernels


def operators_of(model, fusion=NEW):
    return [one.operators for one in kernels_of(model, fusion=fusion)]


LINEAR = "w = ConstantOfShape <value = float[1] {0.1}> (s) h = MatMul(x, w) a = Add(h, b) y = Relu(a)"
LINEAR_WEIGHTS = "int64[2] s = {8, 4}, float[4] b = {1, 2, 3, 4}"


def test_bias_and_activation_are_part_of_the_product():
    (kernel,) = kernels_of(graph("(float[n, 8] x) => (float[n, 4] y)", LINEAR, LINEAR_WEIGHTS), batch=3)
    assert kernel.operators == ("MatMul", "Add", "Relu")
    assert kernel.macs == {"fp32": 3 * 8 * 4}
    assert kernel.bytes_read == 4 * (3 * 8 + 8 * 4 + 4)
    assert kernel.bytes_written == 4 * 3 * 4


def test_the_least_bytes_are_weights_inputs_and_outputs():
    work = count(graph("(float[n, 8] x) => (float[n, 4] y)", LINEAR, LINEAR_WEIGHTS), 3, NEW)
    assert work.least_bytes == 4 * (8 * 4 + 4 + 3 * 8 + 3 * 4)
    assert (work.batch, work.unknown) == (3, ())


def test_fp32_tensors_are_half_as_wide_where_the_engine_computes_in_fp16():
    model = graph("(float[n, 8] x) => (float[n, 4] y)", LINEAR, LINEAR_WEIGHTS)
    (kernel,) = kernels_of(model, batch=3, floats="fp16")
    assert kernel.macs == {"fp16": 96}
    assert kernel.bytes_read == 2 * (3 * 8 + 8 * 4 + 4)


def test_pairs_mean_products_of_int8_and_int8_storage():
    body = """q = QuantizeLinear(x, scale, zero) d = DequantizeLinear(q, scale, zero)
    v = DequantizeLinear(w, scale, zero) h = MatMul(d, v)
    r = Relu(h) p = QuantizeLinear(r, scale, zero) y = DequantizeLinear(p, scale, zero)"""
    model = graph("(float[n, 2] x) => (float[n, 3] y)", body, f"{PAIRS}, int8[2, 3] w = {{1, 2, 3, 4, 5, 6}}")
    quantize, product = kernels_of(model, batch=5)
    assert quantize.operators == ("QuantizeLinear",)
    assert (quantize.bytes_read, quantize.bytes_written) == (4 * 10 + 4 + 1, 10)
    assert product.operators == ("MatMul", "Relu", "QuantizeLinear")
    assert product.macs == {"int8": 5 * 2 * 3}
    assert product.bytes_read == 10 + 6 + 4 + 1  # activations and weights of one byte, the scale and zero point of p
    assert product.bytes_written == 15


def test_a_product_with_one_dequantized_operand_is_no_product_of_int8():
    body = "v = DequantizeLinear(w, scale, zero) y = MatMul(x, v)"
    model = graph("(float[n, 2] x) => (float[n, 3] y)", body, f"{PAIRS}, int8[2, 3] w = {{1, 2, 3, 4, 5, 6}}")
    (kernel,) = kernels_of(model)
    assert kernel.macs == {"fp32": 6}
    assert kernel.bytes_read == 4 * 2 + 6


@pytest.mark.parametrize(("element", "precision"), [("float16", "fp16"), ("bfloat16", "bf16")])
def test_the_precision_of_a_product_is_that_of_its_operands(element, precision):
    model = graph(f"({element}[n, 2, 3] x, {element}[n, 3, 4] z) => ({element}[n, 2, 4] y)", "y = MatMul(x, z)")
    (kernel,) = kernels_of(model, batch=2)
    assert kernel.macs == {precision: 2 * 2 * 3 * 4}
    assert kernel.bytes_read + kernel.bytes_written == 2 * 2 * (6 + 12 + 8)


def test_a_residual_joins_the_later_product_and_is_read_again():
    body = """a = MatMul(x, w) r = Relu(a) b = MatMul(r, w) s = Add(b, r) y = Relu(s)"""
    model = graph("(float[n, 2] x) => (float[n, 2] y)", body, "float[2, 2] w = {1, 2, 3, 4}")
    first, second = kernels_of(model)
    assert first.operators == ("MatMul", "Relu")
    assert second.operators == ("MatMul", "Add", "Relu")
    assert first.bytes_written == 8
    assert second.bytes_read == 8 + 16  # r once, though two of its nodes read it, and w


CONVOLUTIONS = {
    # [n, 4, 8, 8] by [6, 4, 3, 3] with padding: 6 * 64 outputs of 36 products each
    "Conv": ("float[n, 6, 8, 8]", "Conv <pads = [1, 1, 1, 1]> (x, w)", "6, 4, 3, 3", 6 * 64 * 36),
    # two groups: half the inputs to each output
    "grouped": ("float[n, 6, 8, 8]", "Conv <pads = [1, 1, 1, 1], group = 2> (x, w)", "6, 2, 3, 3", 6 * 64 * 18),
    # each of 4 * 64 inputs meets 6 * 4 weights
    "ConvTranspose": ("float[n, 6, 16, 16]", "ConvTranspose <strides = [2, 2]> (x, w)", "4, 6, 2, 2", 256 * 24),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions_count_their_products(case):
    shape, call, weight, macs = CONVOLUTIONS[case]
    body = f"w = ConstantOfShape <value = float[1] {{0.1}}> (s) y = {call}"
    model = graph(f"(float[n, 4, 8, 8] x) => ({shape} y)", body, f"int64[4] s = {{{weight}}}")
    assert [one.macs for one in kernels_of(model, batch=2)] == [{"fp32": 2 * macs}]


@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_a_recurrence_starts_a_kernel_a_step(operator, gates):
    body = f"""w = ConstantOfShape <value = float[1] {{0.1}}> (ws) r = ConstantOfShape <value = float[1] {{0.1}}> (rs)
    t = Transpose <perm = [1, 0, 2]> (x) y, h = {operator} <hidden_size = 5> (t, w, r)"""
    weights = f"int64[3] ws = {{1, {5 * gates}, 3}}, int64[3] rs = {{1, {5 * gates}, 5}}"
    model = graph("(float[n, 7, 3] x) => (float[7, 1, n, 5] y, float[1, n, 5] h)", body, weights)
    transposed, kernel = kernels_of(model, batch=2)
    assert transposed.operators == ("Transpose",)
    assert kernel.launches == 7
    assert kernel.macs == {"fp32": 7 * 2 * gates * 5 * (3 + 5)}


NORMALIZATION = """m = ReduceMean <axes = [-1]> (x) d = Sub(x, m) s = Mul(d, d) v = ReduceMean <axes = [-1]> (s)
e = Add(v, eps) q = Sqrt(e) y = Div(d, q)"""


def test_a_normalization_that_is_written_out_is_one_kernel_from_8_6_on():
    model = graph("(float[n, 8] x) => (float[n, 8] y)", NORMALIZATION, "float eps = {0.001}")
    (kernel,) = kernels_of(model, batch=2, fusion=NEW)
    assert (kernel.bytes_read, kernel.bytes_written) == (4 * (16 + 1), 4 * 16)
    assert operators_of(model, OLD) == [
        ("ReduceMean",),
        ("Sub", "Mul"),
        ("ReduceMean",),
        ("Add", "Sqrt", "Div"),
    ]


def attention(element="float16", width=16, tokens=4):
    """Return attention of one head: scores scaled, softmax, context."""
    shape = f"{element}[n, {tokens}, {width}]"
    body = """k2 = Transpose <perm = [0, 2, 1]> (k) s = MatMul(q, k2) m = Mul(s, scale) p = Softmax <axis = -1> (m)
    y = MatMul(p, v)"""
    return graph(f"({shape} q, {shape} k, {shape} v) => ({shape} y)", body, f"{element} scale = {{1}}")


def test_attention_is_one_kernel_whose_scores_are_never_stored():
    (kernel,) = kernels_of(attention(), batch=2)
    assert kernel.operators == ("MatMul", "Mul", "Softmax", "MatMul")
    assert kernel.macs == {"fp16": 2 * 2 * 4 * 4 * 16}
    assert kernel.bytes_read == 2 * (3 * 2 * 4 * 16 + 1)
    assert kernel.bytes_written == 2 * 2 * 4 * 16


SPLIT = [("MatMul", "Mul"), ("Softmax",), ("MatMul",)]
UNFUSED = {
    "the version": (attention(), OLD),
    "fp32": (attention("float"), NEW),
    "a head of 12": (attention(width=12), NEW),
    "a head of 264": (attention(width=264), NEW),
}


@pytest.mark.parametrize("why", UNFUSED)
def test_attention_stays_in_three_kernels_where_a_condition_is_missed(why):
    model, fusion = UNFUSED[why]
    assert operators_of(model, fusion) == SPLIT


INT8_ATTENTION = """{body} k2 = Transpose <perm = [0, 2, 1]> (kd) s = MatMul(qd, k2) p = Softmax <axis = -1> (s)
pq = QuantizeLinear(p, scale, zero) pd = DequantizeLinear(pq, scale, zero) y = MatMul(pd, vd)"""


@pytest.mark.parametrize(("width", "tokens", "fused"), [(32, 8, True), (24, 8, False), (32, 520, False)])
def test_attention_in_int8_has_conditions_of_its_own(width, tokens, fused):
    shape = f"float[n, {tokens}, {width}]"
    body = INT8_ATTENTION.format(
        body=" ".join(
            f"{one}q = QuantizeLinear({one}, scale, zero) {one}d = DequantizeLinear({one}q, scale, zero)"
            for one in "qkv"
        )
    )
    model = graph(f"({shape} q, {shape} k, {shape} v) => ({shape} y)", body, PAIRS)
    last = operators_of(model)[3:]
    assert (last == [("MatMul", "Softmax", "QuantizeLinear", "MatMul")]) is fused
    assert count(model, 1, NEW).macs() == {"int8": 2 * tokens * tokens * width}


@pytest.mark.parametrize(
    ("tensorrt", "capability", "expected"),
    [
        ("8.5", "8.0", Fusion(rows=False, attention=False)),
        ("8.6", "8.0", Fusion(rows=True, attention=True)),
        ("10.3", "7.5", Fusion(rows=True, attention=True)),
        ("8.6", "7.2", Fusion(rows=True, attention=False)),
    ],
)
def test_what_is_fused_depends_on_the_version_and_the_gpu(tensorrt, capability, expected):
    assert Fusion.of(tensorrt, capability) == expected


def test_products_read_parts_of_a_tensor_where_they_stand():
    body = """t = Transpose <perm = [0, 2, 1]> (x) a, b = Split <axis = 1> (t) c = Transpose <perm = [0, 2, 1]> (b)
    y = MatMul(c, a)"""
    (kernel,) = kernels_of(graph("(float[n, 4, 6] x) => (float[n, 4, 4] y)", body))
    assert kernel.operators == ("MatMul",)
    assert kernel.bytes_read == 4 * 4 * 6  # each half once


def test_moves_that_others_read_are_kernels():
    body = "t = Transpose <perm = [0, 2, 1]> (x) y = Relu(t)"
    assert operators_of(graph("(float[n, 4, 6] x) => (float[n, 6, 4] y)", body)) == [("Transpose",), ("Relu",)]


def test_a_lookup_reads_what_it_takes_and_not_the_table():
    body = "w = ConstantOfShape <value = float[1] {0.1}> (s) y = Gather <axis = 0> (w, i)"
    model = graph("(int64[n, 3] i) => (float[n, 3, 8] y)", body, "int64[2] s = {1000, 8}")
    work = count(model, 2, NEW)
    (kernel,) = work.kernels
    assert kernel.bytes_read == 4 * 2 * 3 * 8 + 4 * 2 * 3  # 64-bit integers are narrowed
    assert work.least_bytes == 4 * 2 * 3 * 8 + 4 * 2 * 3


def test_constants_shapes_and_views_are_no_kernels():
    body = """z = Shape(x) n0 = Gather(z, zero) n1 = Unsqueeze(n0, axes) full = Concat <axis = 0> (n1, rest)
    r = Reshape(x, full) k = Mul(c, c) y = Add(r, k)"""
    weights = "int64 zero = {0}, int64[1] axes = {0}, int64[1] rest = {6}, float c = {2}"
    (kernel,) = kernels_of(graph("(float[n, 2, 3] x) => (float[n, 6] y)", body, weights), batch=4)
    assert kernel.operators == ("Add",)
    assert kernel.bytes_read == 4 * (24 + 1)
    assert count(graph("(float[n, 2, 3] x) => (float[n, 6] y)", body, weights), 4, NEW).unknown == ()


def test_what_cannot_be_counted_is_named():
    body = "i = NonZero(x) y = Cast <to = 1> (i)"
    work = count(graph("(float[n, 4] x) => (float[2, m] y)", body), 1, NEW)
    assert len(work.unknown) == 2
    assert sum(one.bytes_written for one in work.kernels) == 0


def test_a_body_counts_as_nothing_and_is_named():
    body = """y = If (c) <then_branch = one () => (float[n, 4] a) { a = Relu(x) },
    else_branch = other () => (float[n, 4] b) { b = Neg(x) }>"""
    work = count(graph("(float[n, 4] x) => (float[n, 4] y)", body, "bool c = {1}"), 1, NEW)
    assert work.unknown == ("y",)
    assert work.macs() == {}


def test_shapes_that_contradict_each_other_at_a_batch_are_an_error():
    body = "y = Add(x, c)"
    model = graph("(float[n, 2] x) => (float[n, 2] y)", body, "float[3, 2] c = {1, 2, 3, 4, 5, 6}")
    with pytest.raises(ExportError, match="contradict each other at batch 2"):
        count(model, 2, NEW)


def test_a_model_is_left_as_it_was_and_a_file_is_counted_alike(tmp_path):
    model = graph("(float[n, 8] x) => (float[n, 4] y)", LINEAR, LINEAR_WEIGHTS)
    before = model.SerializeToString()
    (tmp_path / "m.onnx").write_bytes(before)
    assert count_file(tmp_path / "m.onnx", 2, NEW) == count(model, 2, NEW)
    assert model.SerializeToString() == before


OPERATIONS = {
    "relu": "Relu({0})", "softmax": "Softmax <axis = -1> ({0})", "product": "MatMul({0}, w)", "add": "Add({0}, {1})",
    "turn": "Transpose <perm = [0, 2, 1]> ({0})", "mix": "MatMul({0}, {1})", "cast": "Cast <to = 1> ({0})",
    "mean": "ReduceMean <axes = [-1]> ({0})",
}  # fmt: skip


@given(
    st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 9), st.integers(0, 9)), max_size=12),
    st.integers(1, 4),
    st.sampled_from([NEW, OLD]),
)
@settings(deadline=None, max_examples=60)
def test_any_graph_is_counted_and_a_larger_batch_does_no_less(steps, batch, fusion):
    names = ["x"]
    lines = []
    for number, (kind, first, second) in enumerate(steps):
        lines.append(f"t{number} = " + OPERATIONS[kind].format(names[first % len(names)], names[second % len(names)]))
        names.append(f"t{number}")
    body = " ".join([*lines, f"y = Relu({names[-1]})"])
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[n, 2, 2] x) => (float[n, 2, m] y) <float[2, 2] w = {{1, 2, 3, 4}}> {{ {body} }}"""
    model = onnx.parser.parse_model(text)
    try:
        one, more = count(model, batch, fusion), count(model, batch + 1, fusion)
    except ExportError:
        return  # shapes that cannot be: a mean has another width
    assert [kernel.operators for kernel in one.kernels] == [kernel.operators for kernel in more.kernels]
    for small, large in zip(one.kernels, more.kernels, strict=True):
        assert large.bytes_read >= small.bytes_read
        assert large.bytes_written >= small.bytes_written
        assert all(large.macs[name] >= macs for name, macs in small.macs.items())
    reachable = {name for kernel in one.kernels for name in kernel.operators}
    assert "Relu" in reachable
    assert sum(len(kernel.operators) for kernel in one.kernels) <= len(steps) + 1
