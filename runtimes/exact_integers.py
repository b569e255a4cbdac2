"""Graphs of integer operators as graphs of floating-point ones that answer the same to the last integer.

A CPU without VNNI sums the products of U8 and S8 in 16 bits and saturates; one with VNNI does not.  To say what an
artifact answers on another CPU, its integer operators are written with operators that no CPU computes otherwise:

    MatMulInteger        (a - za)(b - zb) in float64: every product and sum is a whole number below 2^53, so exact
    ConvInteger          (x - zx) = sum of digits d_i * base^i; each convolution of digits stays below 2^24 in float32,
                         so exact, and the parts are added in int32
    DynamicQuantizeLSTM  a Scan over the steps: the whole input is quantized once, the hidden state anew at each step,
                         as ONNX Runtime does on one thread; the products as MatMulInteger, gates i, o, f, c in float32

Q/DQ graphs need no rewriting: run as written they are computed in floating point.

Limits: the operators of fused integer kernels (QLinearMatMul, QLinearConv, those of com.microsoft) are refused, and so
are LSTMs with peepholes, sequence lengths, clipping or activations of their own.
Source: ONNX operators MatMulInteger-10, ConvInteger-10, DynamicQuantizeLinear-11; ONNX Runtime's documentation of
com.microsoft.DynamicQuantizeLSTM.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx
import onnx.parser
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from tsexport.errors import UsageError

FLOAT32_WHOLE = 2**24
"""Whole numbers up to here, and sums that stay below it, are exact in float32."""
_LARGEST = 255
"""The largest magnitude of an 8-bit value minus an 8-bit zero point."""
_REFUSED = ("QLinear", "QGemm", "QAttention", "QOrdered", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")

_MATMUL = """
    aw = Cast <to = 11> (a)
    azw = Cast <to = 11> (az)
    ad = Sub (aw, azw)
    bw = Cast <to = 11> (b)
    bzw = Cast <to = 11> (bz)
    bd = Sub (bw, bzw)
    product = MatMul (ad, bd)
    y = Cast <to = 6> (product)
"""
# One digit of ConvInteger's input: what is left of it is divided by the base.
_DIGIT = """
    base = Constant <value = float {{{base}.0}}> ()
    quotient = Div (left, base)
    high = Floor (quotient)
    back = Mul (high, base)
    digit = Sub (left, back)
"""
_STEP = """step (float[b, h] h, float[b, h] c, float[b, g] gates) => (float[b, h] hn, float[b, h] cn, float[b, h] out) {
    hq, hs, hz = DynamicQuantizeLinear (h)
    hw = Cast <to = 11> (hq)
    hzw = Cast <to = 11> (hz)
    hd = Sub (hw, hzw)
    product = MatMul (hd, rd)
    whole = Cast <to = 1> (product)
    rs = Mul (hs, rscale)
    recurrent = Mul (whole, rs)
    sum = Add (gates, recurrent)
    gi, go, gf, gc = Split <axis = 1> (sum)
    i = Sigmoid (gi)
    o = Sigmoid (go)
    f = Sigmoid (gf)
    n = Tanh (gc)
    kept = Mul (f, c)
    added = Mul (i, n)
    cn = Add (kept, added)
    squashed = Tanh (cn)
    hn = Mul (o, squashed)
    out = Identity (hn)
}"""
_DIRECTION = """
    index = Constant <value = int64 {{{direction}}}> ()
    zero = Constant <value = int64[1] {{0}}> ()
    one = Constant <value = int64[1] {{1}}> ()
    two = Constant <value = int64[1] {{2}}> ()
    hidden = Constant <value = int64[1] {{{hidden}}}> ()
    xq, xs, xz = DynamicQuantizeLinear (x)
    xw = Cast <to = 11> (xq)
    xzw = Cast <to = 11> (xz)
    xd = Sub (xw, xzw)
    wq = Gather <axis = 0> (w, index)
    wz = Gather <axis = 0> (wzero, index)
    ws = Gather <axis = 0> (wscale, index)
    ww = Cast <to = 11> (wq)
    wzw = Cast <to = 11> (wz)
    wd = Sub (ww, wzw)
    product = MatMul (xd, wd)
    whole = Cast <to = 1> (product)
    scale = Mul (xs, ws)
    input = Mul (whole, scale)
    rq = Gather <axis = 0> (r, index)
    rz = Gather <axis = 0> (rzero, index)
    rscale = Gather <axis = 0> (rscales, index)
    rw = Cast <to = 11> (rq)
    rzw = Cast <to = 11> (rz)
    rd = Sub (rw, rzw)
    shape = Shape (x)
    batch = Slice (shape, one, two, zero)
    state = Concat <axis = 0> (batch, hidden)
    nothing = Constant <value = float {{0.0}}> ()
    zeros = Expand (nothing, state)
"""
_BIASED = """
    biases = Gather <axis = 0> (bias, index)
    wb, rb = Split <axis = 0> (biases)
    both = Add (wb, rb)
    gates = Add (input, both)
"""


@dataclass
class _Graph:
    """What a node's rewriting needs to know about the graph around it; `added` are initializers that it brings."""

    constants: Mapping[str, TensorProto]
    scalars: frozenset[str]
    added: list[TensorProto] = field(default_factory=list)


Rewrite = Callable[[NodeProto, _Graph, str], Iterator[NodeProto]]


def needs_rewriting(model: ModelProto) -> bool:
    """Return whether a graph has integer operators, which a CPU may compute otherwise than another.

    Raises:
        UsageError: it has fused integer kernels, which have no exact form here.
    """
    found = False
    for node in _walk(model.graph):
        if node.op_type.startswith(_REFUSED):
            raise UsageError(
                f"the node {node.name or node.output[0]!r} is {node.op_type}, which cannot be simulated exactly",
                next_step="quantize to Q/DQ pairs, or to MatMulInteger and ConvInteger",
            )
        found = found or node.op_type in _REWRITES
    return found


def with_exact_integers(model: ModelProto) -> ModelProto:
    """Return a copy of a model in which integer operators are written in floating point that answers exactly the same.

    Raises:
        UsageError: an operator that has no exact form here; names the node and why.
    """
    done = ModelProto()
    done.CopyFrom(model)
    _rewrite_graph(done.graph, {}, frozenset(), "exact")
    return done


def _walk(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for inner in _subgraphs(node):
            yield from _walk(inner)


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g


def _rewrite_graph(graph: GraphProto, outer: Mapping[str, TensorProto], scalars: frozenset[str], prefix: str) -> None:
    constants = {**outer, **{tensor.name: tensor for tensor in graph.initializer}}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    made = {node.output[2] for node in graph.node if node.op_type == "DynamicQuantizeLinear"}
    around = _Graph(constants, scalars | made)
    nodes: list[NodeProto] = []
    for index, node in enumerate(graph.node):
        for inner in _subgraphs(node):
            _rewrite_graph(inner, constants, around.scalars, f"{prefix}.{index}")
        rewrite = _REWRITES.get(node.op_type)
        nodes += rewrite(node, around, f"{prefix}.{index}.") if rewrite else [node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(around.added)


def _parsed(text: str, prefix: str, names: Mapping[str, str]) -> list[NodeProto]:
    """Return nodes written as ONNX text, their tensors named by `names`, and with `prefix` where they are not in it."""
    graph = onnx.parser.parse_graph(f"fragment (float unused) => (float none) {{{text}}}")
    for node in graph.node:
        _rename(node, prefix, names)
    return list(graph.node)


def _rename(node: NodeProto, prefix: str, names: Mapping[str, str]) -> None:
    for tensors in (node.input, node.output):
        tensors[:] = [names.get(name, f"{prefix}{name}") if name else "" for name in tensors]


def _zero_point(name: str, shape: Sequence[int], node: NodeProto, graph: _Graph) -> str:
    """Return the name of a zero point that broadcasts against its tensor: in `shape` where it is no scalar.

    `shape` has -1 for the channels.  An absent zero point ("") is 0.
    """
    added = f"{node.output[0]}.zero{len(graph.added)}"
    if not name:
        graph.added.append(onnx.helper.make_tensor(added, TensorProto.INT32, [], [0]))
        return added
    if name in graph.scalars:
        return name
    if name not in graph.constants:
        raise _refused(node, f"its zero point {name!r} is computed")
    values = onnx.numpy_helper.to_array(graph.constants[name])
    if values.size == 1 or values.ndim > 1:
        return name
    graph.added.append(onnx.numpy_helper.from_array(values.reshape(shape), added))
    return added


def _optional(node: NodeProto, index: int) -> str:
    return node.input[index] if index < len(node.input) else ""


def _refused(node: NodeProto, why: str) -> UsageError:
    return UsageError(f"the {node.op_type} {node.name or node.output[0]!r} cannot be simulated exactly: {why}")


def _matmul(node: NodeProto, graph: _Graph, prefix: str) -> Iterator[NodeProto]:
    names = {
        "a": node.input[0],
        "b": node.input[1],
        "az": _zero_point(_optional(node, 2), (-1, 1), node, graph),
        "bz": _zero_point(_optional(node, 3), (-1,), node, graph),
        "y": node.output[0],
    }
    yield from _parsed(_MATMUL, prefix, names)


def _conv(node: NodeProto, graph: _Graph, prefix: str) -> Iterator[NodeProto]:
    weight = graph.constants.get(node.input[1])
    if weight is None:
        raise _refused(node, "its weights are computed")
    channels = (-1, *(1 for _ in weight.dims[1:]))
    x_zero = _zero_point(_optional(node, 2), (), node, graph)
    w_zero = _zero_point(_optional(node, 3), channels, node, graph)
    names = {"x": node.input[0], "w": node.input[1], "xz": x_zero, "wz": w_zero}
    yield from _parsed(
        "xw = Cast <to = 1> (x) xzw = Cast <to = 1> (xz) left = Sub (xw, xzw) "
        "ww = Cast <to = 1> (w) wzw = Cast <to = 1> (wz) wd = Sub (ww, wzw)",
        prefix,
        names,
    )
    base = digit_base(math.prod(weight.dims[1:]))
    left, total, factor = f"{prefix}left", "", 1
    reach = _LARGEST  # of what is left of the input
    for index in range(9):
        last = reach <= base
        if last:
            digit = left
        else:
            inner = f"{prefix}{index}."
            yield from _parsed(_DIGIT.format(base=base), inner, {"left": left})
            digit, left, reach = f"{inner}digit", f"{inner}high", -(-reach // base)
        part = f"{prefix}part{index}"
        conv = onnx.helper.make_node("Conv", [digit, f"{prefix}wd"], [f"{part}.float"])
        conv.attribute.extend(node.attribute)
        yield conv
        text = (
            f"whole = Cast <to = 6> (float) factor = Constant <value = int32 {{{factor}}}> () y = Mul (whole, factor)"
        )
        yield from _parsed(text, f"{part}.", {})
        if total:
            yield onnx.helper.make_node("Add", [total, f"{part}.y"], [f"{part}.sum"])
        total = f"{part}.sum" if total else f"{part}.y"
        factor *= base
        if last:
            break
    yield onnx.helper.make_node("Identity", [total], [node.output[0]])


def digit_base(products: int) -> int:
    """Return the largest power of two whose digits a convolution of `products` products sums exactly in float32.

    Raises:
        UsageError: there are so many products that not even single bits do.
    """
    for bits in (8, 4, 2, 1):
        if 2**bits * _LARGEST * products < FLOAT32_WHOLE:
            return int(2**bits)
    raise UsageError(f"a ConvInteger that sums {products} products cannot be simulated exactly in float32")


def _lstm(node: NodeProto, graph: _Graph, prefix: str) -> Iterator[NodeProto]:
    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    for name in ("clip", "input_forget", "activation_alpha", "activation_beta"):
        if attributes.get(name):
            raise _refused(node, f"it has {name}")
    known = {b"Sigmoid", b"Tanh"}
    if set(attributes.get("activations", known)) != known:
        raise _refused(node, "it has activations of its own")
    for index, what in ((4, "sequence lengths"), (7, "peepholes")):
        if _optional(node, index):
            raise _refused(node, f"it has {what}")
    direction = attributes.get("direction", b"forward").decode()
    reversed_ones = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    parts = []
    for index, backwards in enumerate(reversed_ones):
        inner = f"{prefix}{index}."
        yield from _one_direction(node, inner, index, int(attributes["hidden_size"]), backwards)
        parts.append(inner)
    for place, name in enumerate("yhc"):
        if place < len(node.output) and node.output[place]:
            joined = [f"{part}{name}.joined" for part in parts]
            axis = 1 if name == "y" else 0
            yield onnx.helper.make_node("Concat", joined, [node.output[place]], axis=axis)


def _one_direction(node: NodeProto, prefix: str, index: int, hidden: int, backwards: bool) -> Iterator[NodeProto]:
    inputs = ("x", "w", "r", "bias", "", "h0", "c0", "", "wscale", "wzero", "rscales", "rzero")
    names = {name: given for name, given in zip(inputs, node.input, strict=False) if name and given}
    text = _DIRECTION.format(direction=index, hidden=hidden)
    text += _BIASED if "bias" in names else "gates = Identity (input)"
    text += " hstart = " + ("Gather <axis = 0> (h0, index)" if "h0" in names else "Identity (zeros)")
    text += " cstart = " + ("Gather <axis = 0> (c0, index)" if "c0" in names else "Identity (zeros)")
    yield from _parsed(text, prefix, names)
    body, inner = onnx.parser.parse_graph(_STEP), f"{prefix}step."
    for step in body.node:
        _rename(step, inner, {name: f"{prefix}{name}" for name in ("rd", "rscale")})
    for value in (*body.input, *body.output):
        value.name = f"{inner}{value.name}"
    yield onnx.helper.make_node(
        "Scan",
        [f"{prefix}hstart", f"{prefix}cstart", f"{prefix}gates"],
        [f"{prefix}h", f"{prefix}c", f"{prefix}y"],
        body=body,
        num_scan_inputs=1,
        scan_input_directions=[int(backwards)],
        scan_output_directions=[int(backwards)],
    )
    for name, axis in (("y", "one"), ("h", "zero"), ("c", "zero")):
        yield onnx.helper.make_node("Unsqueeze", [f"{prefix}{name}", f"{prefix}{axis}"], [f"{prefix}{name}.joined"])


_REWRITES: Mapping[str, Rewrite] = {"MatMulInteger": _matmul, "ConvInteger": _conv, "DynamicQuantizeLSTM": _lstm}
