"""TensorRT's Q/DQ rules: one violation of each, with the verdict beside it, and clean graphs that break none."""

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx.parser
import pytest

from tsexport.errors import ExportError
from tsexport.exporters.qdq_rules import RULES, check_rules, require_rules

F32, S8 = np.float32, np.int8
CONSTANTS = {
    "s": np.array(0.02, F32),
    "t": np.array(0.05, F32),
    "z": np.array(0, S8),
    "s8": np.full(8, 0.01, F32),
    "z8": np.zeros(8, S8),
    "s4": np.full(4, 0.01, F32),
    "z4": np.zeros(4, S8),
    "s1": np.full(1, 0.01, F32),
    "z1": np.zeros(1, S8),
    "s2": np.full(2, 0.01, F32),
    "z2": np.zeros(2, S8),
    "w": np.linspace(-1, 1, 64, dtype=F32).reshape(8, 8),
    "column": np.linspace(-1, 1, 8, dtype=F32).reshape(8, 1),
    "kernel": np.linspace(-1, 1, 4 * 8 * 3, dtype=F32).reshape(4, 8, 1, 3),
    "turned": np.linspace(-1, 1, 8 * 4 * 3, dtype=F32).reshape(8, 4, 1, 3),
    "in_fours": np.linspace(-1, 1, 8 * 2 * 3, dtype=F32).reshape(8, 2, 1, 3),
    "grouped": np.linspace(-1, 1, 8 * 3, dtype=F32).reshape(8, 1, 1, 3),
    "stored": np.arange(64, dtype=S8).reshape(8, 8),
    "bias": np.zeros(8, F32),
    "bias4": np.zeros(4, F32),
    "two": np.array(2.0, F32),
    "epsilon": np.array(1e-5, F32),
    "mask": np.zeros((8, 8), F32),
}
"""What a body may use; only what it uses goes into the graph."""

ROWS = "(float[batch, 8, 8] x, float[batch, 8, 8] r) => (float[batch, 8, 8] y)"
COLUMN = "(float[batch, 8, 8] x) => (float[batch, 8, 1] y)"
IMAGE = "(float[batch, 8, 1, 9] x) => (float[batch, 4, 1, 9] y)"
GROUPS = "(float[batch, 8, 1, 9] x) => (float[batch, 8, 1, 9] y)"
FLAT = "(float[batch, 8] x) => (float[batch, 8] y)"

X = "xq = QuantizeLinear(x, s, z)  xd = DequantizeLinear(xq, s, z)"
R = "rq = QuantizeLinear(r, t, z)  rd = DequantizeLinear(rq, t, z)"
W = "wq = QuantizeLinear<axis=1>(w, s8, z8)  wd = DequantizeLinear<axis=1>(wq, s8, z8)"
C = "cq = QuantizeLinear<axis=1>(column, s1, z1)  cd = DequantizeLinear<axis=1>(cq, s1, z1)"
K = "kq = QuantizeLinear<axis=0>(kernel, s4, z4)  kd = DequantizeLinear<axis=0>(kq, s4, z4)"
T = "kq = QuantizeLinear<axis=1>(turned, s4, z4)  kd = DequantizeLinear<axis=1>(kq, s4, z4)"
CONV = "y = Conv<pads=[0,1,0,1]>(xd, kd, bias4)"
TRANSPOSED = "y = ConvTranspose<pads=[0,1,0,1]>(xd, kd, bias4)"
SQUARE = "c = Sub(h, m)  q = Pow(c, two)  v = ReduceMean<axes=[-1]>(q)  e = Add(v, epsilon)  d = Sqrt(e)  y = Div(c, d)"


def model(signature: str, body: str, constants: dict[str, np.ndarray] | None = None, opset: int = 17):
    """Return a model written as text; the nodes are named after their outputs."""
    text = f'<ir_version: 8, opset_import: ["" : {opset}, "other" : 1]> g {signature} {{ {body} }}'
    made = onnx.parser.parse_model(text)
    used = {name for node in made.graph.node for name in node.input}
    for name, array in (CONSTANTS | (constants or {})).items():
        if name in used:
            made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node in made.graph.node:
        node.name = f"make_{node.output[0]}"
    return made


CLEAN = {
    "no pairs at all": (ROWS, "h = MatMul(x, w)  y = Add(h, r)"),
    "product with residual": (ROWS, f"{X} {R} {W} h = MatMul(xd, wd)  b = Add(h, bias)  y = Add(b, rd)"),
    "convolution": (IMAGE, f"{X} {K} {CONV}"),
    "transposed convolution": (IMAGE, f"{X} {T} {TRANSPOSED}"),
    "grouped transposed convolution": (
        GROUPS,
        f"{X} kq = QuantizeLinear(grouped, s, z)  kd = DequantizeLinear(kq, s, z)  "
        "y = ConvTranspose<group=8, pads=[0,1,0,1]>(xd, kd)",
    ),
    "Gemm": (FLAT, f"{X} {W} y = Gemm(xd, wd, bias)"),
    "Gemm with transB": (FLAT, f"{X} {W} y = Gemm<transB=1>(xd, wd, bias)".replace("axis=1", "axis=0")),
    "attention": (
        ROWS,
        f"{X} {R} o = MatMul(xd, rd)  c = Mul(o, two)  a = Add(c, mask)  f = Softmax<axis=-1>(a)  "
        "fq = QuantizeLinear(f, s, z)  fd = DequantizeLinear(fq, s, z)  y = MatMul(fd, rd)",
    ),
    "normalization behind a product": (
        ROWS,
        f"{X} {W} h = MatMul(xd, wd)  m = ReduceMean<axes=[-1]>(h)  {SQUARE}",
    ),
    "activation in front of pooling": (
        IMAGE,
        f"p = MaxPool<kernel_shape=[1,3], pads=[0,1,0,1]>(x)  {X} {K} {CONV}".replace("r(x,", "r(p,"),
    ),
    "mask alone": (ROWS, "a = Add(x, mask)  y = Softmax<axis=-1>(a)"),
}


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_graph_breaks_no_rule(name):
    made = model(*CLEAN[name])
    onnx.checker.check_model(made, full_check=True)
    assert check_rules(made) == ()
    require_rules(made)


@dataclass(frozen=True)
class Case:
    """A graph with its verdict: the one rule that is broken, at which node, and words of what was found."""

    rule: str
    node: str
    found: str
    signature: str
    body: str
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    opset: int = 17
    float_layers: tuple[str, ...] = ()
    every_kernel: bool = True
    also: tuple[str, ...] = ()  # rules that cannot but be broken with it


PRODUCT = f"{X} {W} y = MatMul(xd, wd)"
BROKEN = (
    Case(
        "own-operators",
        "make_xq",
        "of the domain other",
        ROWS,
        PRODUCT.replace("xq = Q", "xq = other.Q").replace("xd = D", "xd = other.D"),
        also=("in-pairs", "every-operand"),  # it is no pair
    ),
    Case("opset", "make_xq", "opset 19", ROWS, PRODUCT, opset=19),
    Case("symmetric-s8", "make_xq", "of type UINT8", ROWS, PRODUCT, {"z": np.array(0, np.uint8)}),
    Case(
        "zero-point-there",
        "make_xq",
        "no zero point",
        ROWS,
        PRODUCT.replace("(x, s, z)", "(x, s)").replace("(xq, s, z)", "(xq, s)"),
        also=("symmetric-s8",),  # ONNX then takes UINT8
    ),
    Case("zero-point-zero", "make_xq", "zero point 3", ROWS, PRODUCT, {"z": np.array(3, S8)}),
    Case(
        "zero-point-zero",
        "make_xq",
        "computes its zero point",
        ROWS,
        f"i = ReduceMax<keepdims=0>(x)  n = Cast<to=3>(i)  {PRODUCT}".replace(", s, z)", ", s, n)"),
    ),
    Case("scale-fp32", "make_xq", "of type FLOAT16", ROWS, PRODUCT, {"s": np.array(0.02, np.float16)}),
    Case(
        "scale-constant",
        "make_xq",
        "computes its scale",
        ROWS,
        f"i = ReduceMax<keepdims=0>(x)  {PRODUCT}".replace(", s, z)", ", i, z)"),
    ),
    Case("scale-positive", "make_xq", "scale 0", ROWS, PRODUCT, {"s": np.array(0, F32)}),
    Case("scale-positive", "make_wq", "scale nan", ROWS, PRODUCT, {"s8": np.full(8, np.nan, F32)}),
    Case("scale-positive", "make_wq", "scale -0.01", ROWS, PRODUCT, {"s8": np.full(8, -0.01, F32)}),
    Case("lengths", "make_wq", "scales of shape [8] and zero points of shape [4]", ROWS, PRODUCT.replace("z8", "z4")),
    Case("lengths", "make_wq", "4 scales for the 8 indices", ROWS, PRODUCT.replace("s8, z8", "s4, z4")),
    Case("lengths", "make_wq", "axis 2 for data of 2 dimensions", ROWS, PRODUCT.replace("axis=1", "axis=2")),
    Case("axis-written", "make_wq", "no attribute axis", ROWS, PRODUCT.replace("<axis=1>", "")),
    Case(
        "activations-per-tensor",
        "make_xq",
        "each channel of an activation",
        ROWS,
        PRODUCT.replace("r(x, s, z)", "r<axis=2>(x, s8, z8)").replace("r(xq, s, z)", "r<axis=2>(xq, s8, z8)"),
    ),
    Case("weight-axis", "make_wd", "axis 0 for MatMul 'make_y', which takes axis 1", ROWS, PRODUCT.replace("=1", "=0")),
    Case(
        "weight-axis",
        "make_kd",
        "axis 1 for Conv 'make_y', which takes axis 0",
        IMAGE,
        f"{X} {K} {CONV}".replace("axis=0", "axis=1").replace("s4, z4", "s8, z8"),
    ),
    Case(
        "weight-axis",
        "make_kd",
        "axis 0 for ConvTranspose 'make_y', which takes axis 1",
        IMAGE,
        f"{X} {T} {TRANSPOSED}".replace("axis=1", "axis=0").replace("s4, z4", "s8, z8"),
    ),
    Case(
        "weight-axis",
        "make_wd",
        "axis 1 for Gemm 'make_y', which takes axis 0",
        FLAT,
        f"{X} {W} y = Gemm<transB=1>(xd, wd, bias)",
    ),
    Case(
        "weight-axis",
        "make_wd",
        "axis 0 for Gemm 'make_y', which takes axis 1",
        FLAT,
        f"{X} {W} y = Gemm(xd, wd, bias)".replace("=1", "=0"),
    ),
    Case(
        "weight-axis",
        "make_kd",
        "one scale for the whole weight",
        GROUPS,
        f"{X} kq = QuantizeLinear<axis=1>(in_fours, s2, z2)  kd = DequantizeLinear<axis=1>(kq, s2, z2)  "
        "y = ConvTranspose<group=4, pads=[0,1,0,1]>(xd, kd)",
    ),
    Case(
        "weights-through-both",
        "make_wd",
        "stored as integers",
        ROWS,
        f"{X} wd = DequantizeLinear<axis=1>(stored, s8, z8)  y = MatMul(xd, wd)",
    ),
    Case(
        "weight-constant",
        "make_y",
        "computes its weight",
        IMAGE,
        f"{X} c = Relu(kernel)  n = ReduceMean<keepdims=0>(x)  k = Mul(c, n)  kq = QuantizeLinear(k, s, z)  "
        f"kd = DequantizeLinear(kq, s, z) {CONV}",
    ),
    Case(
        "in-pairs",
        "make_xd",
        "another scale",
        ROWS,
        PRODUCT.replace("r(xq, s, z)", "r(xq, t, z)"),
    ),
    Case(
        "in-pairs",
        "make_xq",
        "is read by 'make_i'",
        ROWS,
        f"{X} {W} h = MatMul(xd, wd)  i = Cast<to=1>(xq)  y = Sub(h, i)",
    ),
    Case(
        "in-pairs",
        "make_xd",
        "no QuantizeLinear in front",
        ROWS,
        f"xq = Cast<to=3>(x)  xd = DequantizeLinear(xq, s, z)  {W} y = MatMul(xd, wd)",
    ),
    Case("every-operand", "make_y", "'w' without a pair", ROWS, f"{X} y = MatMul(xd, w)"),
    Case("every-operand", "make_y", "'x' without a pair", ROWS, f"{W} y = MatMul(x, wd)"),
    Case(
        "inputs-not-outputs",
        "make_hq",
        "output of MatMul 'make_h'",
        ROWS,
        f"{X} {W} h = MatMul(xd, wd)  hq = QuantizeLinear(h, s, z)  hd = DequantizeLinear(hq, s, z)  y = Relu(hd)",
    ),
    Case(
        "residual",
        "make_y",
        "adds 'r' to what a quantized layer gives",
        ROWS,
        f"{X} {W} h = MatMul(xd, wd)  b = Add(h, bias)  y = Add(b, r)",
    ),
    Case(
        "float-bias",
        "make_bd",
        "bias of 'make_y'",
        IMAGE,
        f"{X} {K} bq = QuantizeLinear(bias4, s, z)  bd = DequantizeLinear(bq, s, z)  {CONV}".replace(
            "kd, bias4", "kd, bd"
        ),
    ),
    Case(
        "float-bias",
        "make_bd",
        "constant that 'make_y' adds",
        ROWS,
        f"{X} {W} h = MatMul(xd, wd)  bq = QuantizeLinear(bias, s, z)  bd = DequantizeLinear(bq, s, z)  y = Add(h, bd)",
    ),
    Case("float-softmax", "make_xd", "input of Softmax 'make_y'", ROWS, f"{X} y = Softmax<axis=-1>(xd)"),
    Case(
        "float-normalization",
        "make_xd",
        "LayerNormalization 'make_y'",
        ROWS,
        f"{X} y = LayerNormalization<axis=-1>(xd, bias, bias)",
    ),
    Case(
        "float-normalization",
        "make_hd",
        "Sub 'make_c'",
        ROWS,
        "hq = QuantizeLinear(x, s, z)  hd = DequantizeLinear(hq, s, z)  m = ReduceMean<axes=[-1]>(x) "
        + SQUARE.replace("Sub(h,", "Sub(hd,"),
    ),
    Case(
        "float-normalization",
        "make_xd",
        "Mul 'make_q'",
        ROWS,
        f"{X} q = Mul(xd, xd)  v = ReduceMean<axes=[-1]>(q)  e = Add(v, epsilon)  d = Sqrt(e)  i = Reciprocal(d)  "
        "y = Mul(x, i)",
    ),
    Case(
        "float-scores",
        "make_rd",
        "Add 'make_a', between a product and its softmax",
        ROWS,
        f"{R} o = MatMul(x, w)  a = Add(o, rd)  y = Softmax<axis=-1>(a)",
    ),
    Case("no-vectors", "make_y", "multiplies ['?', 8, 8] by [8, 1]", COLUMN, f"{X} {C} y = MatMul(xd, cd)"),
    Case(
        "kernels",
        "make_y",
        "a transposed convolution",
        IMAGE,
        f"{X} {T} {TRANSPOSED}",
        every_kernel=False,
    ),
    Case(
        "kernels",
        "make_y",
        "a product of two activations",
        ROWS,
        f"{X} {R} y = MatMul(xd, rd)",
        every_kernel=False,
    ),
    Case("float-layers", "make_y", "was to stay", ROWS, PRODUCT, float_layers=("make_y",)),
)


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: f"{case.rule}: {case.found}")
def test_each_rule_finds_its_violation_and_no_other(case):
    made = model(case.signature, case.body, case.constants, case.opset)
    found = check_rules(made, float_layers=case.float_layers, every_kernel=case.every_kernel)
    assert {violation.rule for violation in found} == {case.rule, *case.also}
    own = [violation for violation in found if violation.rule == case.rule]
    assert case.node in {violation.node for violation in own}
    assert any(case.found in violation.found for violation in own)
    assert {violation.allowed for violation in own} == {r.allowed for r in RULES if r.name == case.rule}


def test_every_rule_has_a_violation_here():
    assert {case.rule for case in BROKEN} == {rule.name for rule in RULES}


@pytest.mark.parametrize(
    ("change", "node"),
    [({"float_layers": ("make_y",)}, "the residual Add"), ({"float_layers": ("make_h",)}, "the layer")],
)
def test_what_was_to_stay_in_floating_point_needs_no_pair(change, node):
    layer = "h = MatMul(x, w)" if node == "the layer" else f"{X} {W} h = MatMul(xd, wd)"
    made = model(ROWS, f"{layer} y = Add(h, r)")
    assert check_rules(made, **change) == ()


def test_require_names_the_first_three_and_counts_the_others():
    made = model(ROWS, PRODUCT, {"z": np.array(0, np.uint8), "s": np.array(-1, F32), "s8": np.zeros(8, F32)})
    with pytest.raises(ExportError) as raised:
        require_rules(made)
    assert raised.value.message == (
        "the Q/DQ pairs break TensorRT's rules: symmetric-s8: node 'make_xq' has a zero point of type UINT8; allowed "
        "is INT8, of data and zero points; symmetric-s8: node 'make_xd' has data of type UINT8; allowed is INT8, of "
        "data and zero points; scale-positive: node 'make_xq' has the scale -1; allowed is a finite scale above 0 "
        "(and 3 more)"
    )
    assert raised.value.next_step


def test_a_node_without_a_name_is_called_by_operator_and_output():
    made = model(ROWS, PRODUCT, {"s": np.array(0, F32)})
    for node in made.graph.node:
        node.name = ""
    assert check_rules(made)[0].node == "QuantizeLinear of xq"
