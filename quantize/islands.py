"""Which nodes of a graph stay in fp32 when it is cast to fp16 or bf16, and why.

What runtimes, and TensorRT's rules, need:

- Reductions, normalisations, softmax, powers and exponentials add or square many values: 256^2 is beyond fp16 already.
  LayerNormalization as an operator computes in fp32 by itself (in TensorRT from 8.6 on); written out it is a chain of
  ReduceMean, Pow, Sqrt and Div, and all of the chain stays, with what lies between its parts.
- The arguments of Sin and Cos, and counts that come from integers, need more digits than 8 or 11 bits hold.
- A constant that the type cannot hold (a mask of -1e9, an epsilon of 1e-8) keeps its node in fp32, and so does a tensor
  that calibration found near the type's limits (see `quantize.overflow`).
- Layers that the model's definition names, the preparation of windows, and the tail of the graph behind its last
  product, where a forecast gets its level back: rounding a level of 100 to 8 bits is an error of 0.2.
- Nodes with no product in the narrow type beside them: two casts would cost more than they bring.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from tsexport.exporters.preprocessing import BEFORE, BEHIND
from tsexport.quantize.casting import LARGEST, SMALLEST_NORMAL, constant_of, narrow_places

PRODUCTS = frozenset(("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN"))
"""Where a narrow type saves time."""
_SUMS = frozenset(
    (
        *("ReduceMean", "ReduceSum", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp"),
        *("ReduceSumSquare", "CumSum", "GlobalAveragePool"),
    )
)
_NORMALISATIONS = frozenset(
    ("BatchNormalization", "InstanceNormalization", "MeanVarianceNormalization", "LpNormalization", "LRN")
)
_POWERS = frozenset(("Exp", "Log", "Pow", "Sqrt", "Softplus", "Sinh", "Cosh"))
_PERIODIC = frozenset(("Sin", "Cos"))
_ARITHMETIC = frozenset(("Add", "Sub", "Mul", "Div", "Neg", "Abs", "Reciprocal", "Max", "Min", "Clip", "Where", "Sum"))
_MOVEMENT = frozenset(
    ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Concat", "Split", "Slice", "Expand", "Tile")
)
_PREPARATION = re.compile(rf"/({BEFORE}|{BEHIND})/")

SUM, NORMALISATION, SOFTMAX, POWER = "sum", "normalisation", "softmax", "power or exponential"
PERIODIC, COUNT, BETWEEN = "periodic", "count", "between such nodes"
NAMED, PREPARATION, TAIL, ALONE = "named", "preparation", "behind the last product", "no narrow product beside it"
CONSTANT, RANGE = "constant out of range", "values near the limit"


@dataclass
class Islands:
    """The nodes that stay in fp32, by name, each with its reason; of all but NAMED and RANGE the kinds are counted."""

    reasons: dict[str, str] = field(default_factory=dict)

    def keep(self, node: ir.Node, reason: str) -> bool:
        """Note the first reason for a node; return whether it is new."""
        assert node.name is not None
        if node.name in self.reasons:
            return False
        self.reasons[node.name] = reason
        return True

    def __contains__(self, node: ir.Node | None) -> bool:
        return node is not None and node.name in self.reasons

    def named(self, reason: str) -> tuple[str, ...]:
        """Return the names of the nodes that stay for one reason."""
        return tuple(name for name, why in self.reasons.items() if why == reason)


def in_layer(name: str, layers: Iterable[str]) -> bool:
    """Return whether a node's name lies in the scope of one of the layers.

    A scope is a part of the path that the exporter builds from modules, "/film/Gemm" in "film"; a module that is called
    again has a number behind it: "/film_1/Gemm".
    """
    return any(re.search(rf"(^|/){re.escape(layer).replace('/', '(_[0-9]+)?/')}(_[0-9]+)?/", name) for layer in layers)


def find_islands(
    model: ir.Model,
    narrow: ir.DataType,
    *,
    layers: Iterable[str] = (),
    nodes: Collection[str] = (),
    out_of_range: Mapping[str, float] | None = None,
) -> Islands:
    """Return the nodes that stay in fp32.

    Args:
        model: from `casting.open_graph`.
        narrow: the type that the others get.
        layers: scopes of the layers that the model's definition keeps (see `in_layer`).
        nodes: names of more nodes to be kept.
        out_of_range: tensors whose largest magnitude in calibration is too near the type's limits.
    """
    islands, graph, far = Islands(), list(model.graph), out_of_range or {}
    layers = tuple(layers)
    for node in graph:
        name = node.name or ""
        if in_layer(name, layers) or name in nodes:
            islands.keep(node, NAMED)
        elif _PREPARATION.search(name):
            islands.keep(node, PREPARATION)
        elif any(value is not None and value.name in far for value in (*node.inputs, *node.outputs)):
            islands.keep(node, RANGE)
        elif reason := _by_operator(node) or _by_constants(node, narrow):
            islands.keep(node, reason)
    _grow(graph, islands)
    _keep_tail(graph, islands, narrow)
    _keep_lonely(graph, islands, narrow)
    return islands


def _by_operator(node: ir.Node) -> str:
    kinds = ((_SUMS, SUM), (_NORMALISATIONS, NORMALISATION), (_POWERS, POWER), (_PERIODIC, PERIODIC))
    found = next((reason for operators, reason in kinds if node.op_type in operators), "")
    return SOFTMAX if node.op_type in ("Softmax", "LogSoftmax") else found


def _by_constants(node: ir.Node, narrow: ir.DataType) -> str:
    for index in narrow_places(node, narrow)[0]:
        array = constant_of(node.inputs[index])
        if array is None or not array.size:
            continue
        magnitudes = np.abs(array[np.isfinite(array)])
        largest = float(magnitudes.max(initial=0.0))
        if largest > LARGEST[narrow]:
            return CONSTANT
        # A weight that vanishes among larger ones is none; a factor or an epsilon that does changes everything.
        if node.op_type not in PRODUCTS and 0.0 < largest < SMALLEST_NORMAL[narrow]:
            return CONSTANT
    return ""


def _sources(node: ir.Node) -> list[ir.Node]:
    """Return the nodes that compute what a node reads as floating point."""
    return [
        producer
        for value in node.inputs
        if value is not None and value.dtype is ir.DataType.FLOAT and (producer := value.producer()) is not None
    ]


def _consumers(node: ir.Node) -> list[ir.Node]:
    return [use.node for output in node.outputs for use in output.uses()]


def _grow(graph: list[ir.Node], islands: Islands) -> None:
    """Add what lies between kept nodes, feeds Sin and Cos, is divided by what they compute, or counts integers."""
    rules: tuple[tuple[Callable[[ir.Node, Islands], bool], str], ...] = (
        (_lies_between, BETWEEN),
        (_has_kept_denominator, BETWEEN),
        (_feeds_periodic, PERIODIC),
        (_counts, COUNT),
    )
    grown = True
    while grown:
        grown = False
        for node in graph:
            if node in islands:
                continue
            reason = next((reason for rule, reason in rules if rule(node, islands)), "")
            if reason:
                grown |= islands.keep(node, reason)


def _lies_between(node: ir.Node, islands: Islands) -> bool:
    sources, consumers = _sources(node), _consumers(node)
    if node.op_type in _ARITHMETIC:
        return any(one in islands for one in sources) and any(_is_sensitive(one, islands) for one in consumers)
    ends = any(output.is_graph_output() for output in node.outputs)
    moved = bool(sources) and all(one in islands for one in sources)
    return node.op_type in _MOVEMENT and moved and (ends or all(one in islands for one in consumers))


def _is_sensitive(node: ir.Node, islands: Islands) -> bool:
    return node in islands and islands.reasons[node.name or ""] in (SUM, NORMALISATION, SOFTMAX, POWER, BETWEEN)


def _has_kept_denominator(node: ir.Node, islands: Islands) -> bool:
    place = {"Div": 1, "Reciprocal": 0}.get(node.op_type)
    value = node.inputs[place] if place is not None else None
    return value is not None and value.producer() in islands


def _feeds_periodic(node: ir.Node, islands: Islands) -> bool:
    consumers = _consumers(node)
    passes = node.op_type in _ARITHMETIC or node.op_type in _MOVEMENT
    return passes and bool(consumers) and all(islands.reasons.get(one.name or "") == PERIODIC for one in consumers)


def _counts(node: ir.Node, islands: Islands) -> bool:
    """Return whether a node computes with integers made floating point, and with nothing else but constants."""
    if node.op_type not in _ARITHMETIC and node.op_type not in _MOVEMENT:
        return False
    computed = [
        value
        for value in node.inputs
        if value is not None and value.dtype is ir.DataType.FLOAT and constant_of(value) is None
    ]
    return bool(computed) and all(_is_count(value, islands) for value in computed)


def _is_count(value: ir.Value, islands: Islands) -> bool:
    producer = value.producer()
    if producer is None:
        return False
    if producer.op_type == "Cast":
        source = producer.inputs[0]
        return source is not None and source.dtype is not None and source.dtype.is_integer()
    return islands.reasons.get(producer.name or "") == COUNT


def _is_narrow(node: ir.Node, islands: Islands, narrow: ir.DataType) -> bool:
    return node not in islands and any(narrow_places(node, narrow))


def _keep_tail(graph: list[ir.Node], islands: Islands, narrow: ir.DataType) -> None:
    """Keep every node behind which no narrow product comes any more."""
    leads: set[ir.Node] = set()
    for node in reversed(graph):
        product = node.op_type in PRODUCTS and _is_narrow(node, islands, narrow)
        if product or any(one in leads for one in _consumers(node)):
            leads.add(node)
        elif _is_narrow(node, islands, narrow):
            islands.keep(node, TAIL)


def _keep_lonely(graph: list[ir.Node], islands: Islands, narrow: ir.DataType) -> None:
    """Keep the nodes that no way of narrow nodes leads from to a narrow product."""
    reached = [node for node in graph if node.op_type in PRODUCTS and _is_narrow(node, islands, narrow)]
    seen = set(reached)
    while reached:
        node = reached.pop()
        for other in (*_sources(node), *_consumers(node)):
            if other not in seen and _is_narrow(other, islands, narrow):
                seen.add(other)
                reached.append(other)
    for node in graph:
        if node not in seen and _is_narrow(node, islands, narrow):
            islands.keep(node, ALONE)
