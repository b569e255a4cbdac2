"""Cast a graph to fp16 or bf16: the core that both tools share.

Every node either computes in the narrow type or in fp32, as decided before (see `quantize.islands`); Casts stand where
one meets the other, right behind what they cast, so the graph stays sorted.  Inputs and outputs of the graph keep their
fp32.  A node can compute in a narrow type where opset 17 allows that for its tensors: ONNX's own operator schemas say
so.  There bf16 is legal for products, LayerNormalization, Softmax and most elementwise operators, but not for
convolutions, pooling, InstanceNormalization, LSTM, GRU, Sin and Cos, which take it from opset 22 on.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from tsexport.exporters.onnx_file import OPSET
from tsexport.types import Array

NarrowName = Literal["fp16", "bf16"]
NARROW: Mapping[str, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
LARGEST: Mapping[ir.DataType, float] = {
    ir.DataType.FLOAT16: 65504.0,
    ir.DataType.BFLOAT16: (2 - 2**-7) * 2.0**127,
}
SMALLEST_NORMAL: Mapping[ir.DataType, float] = {ir.DataType.FLOAT16: 2.0**-14, ir.DataType.BFLOAT16: 2.0**-126}
FIRST_BF16_OPSET = 22
"""The opset from which on convolutions and recurrent layers may carry bf16."""
_DEFAULT_DOMAINS = ("", "ai.onnx")
_CASTS = frozenset({"Cast", "CastLike"})
"""Operators whose types an attribute or another tensor decides: they stay as they are."""


def open_graph(model: onnx.ModelProto) -> ir.Model:
    """Return a graph with a type for every value, unique node names, and no Constant nodes.

    Raises:
        ValueError: a node has a subgraph, whose values nobody could follow, or the graph is narrow already.
    """
    opened: ir.Model = ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))
    for node in opened.graph:
        if any(attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in _attributes(node)):
            raise ValueError(f"{node.op_type} {node.name} has a subgraph; only graphs without control flow are cast")
        if narrow := [value.name for value in node.outputs if value.dtype in NARROW.values()]:
            raise ValueError(f"{narrow[0]} is in a narrow type already; only fp32 graphs are cast")
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(opened)
    common.NameFixPass()(opened)
    return opened


def narrow_places(node: ir.Node, narrow: ir.DataType) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return which inputs and outputs of a node, all fp32 as given, may be of a narrow type at opset 17."""
    if node.domain not in _DEFAULT_DOMAINS or node.op_type in _CASTS:
        return (), ()
    schema = onnx.defs.get_schema(node.op_type, OPSET, "")
    word = f"tensor({'float16' if narrow is ir.DataType.FLOAT16 else 'bfloat16'})"
    allowing = {one.type_param_str for one in schema.type_constraints if word in one.allowed_type_strs}

    def places(values: Sequence[ir.Value | None], formals: Sequence[onnx.defs.OpSchema.FormalParameter]) -> list[int]:
        return [
            index
            for index, value in enumerate(values)
            if value is not None
            and value.dtype in (ir.DataType.FLOAT, narrow)
            and formals[min(index, len(formals) - 1)].type_str in allowing
        ]

    inputs, outputs = places(node.inputs, schema.inputs), places(node.outputs, schema.outputs)
    floats = [value for value in node.outputs if value.dtype in (ir.DataType.FLOAT, narrow)]
    if len(outputs) != len(floats) or not inputs:
        return (), ()  # one that takes a narrow tensor and gives fp32 would be a cast in disguise
    return tuple(inputs), tuple(outputs)


def constant_of(value: ir.Value | None) -> Array | None:
    """Return the array that an initializer holds, else None."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def cast_graph(model: ir.Model, narrow: ir.DataType, kept: Collection[str]) -> int:
    """Let every node that may, and whose name is not in `kept`, compute in a narrow type; return how many do.

    Args:
        model: from `open_graph`; changed in place.
        narrow: the narrow type.
        kept: names of the nodes that stay in fp32.
    """
    caster = _Caster(model.graph, narrow)
    changed = 0
    for node in list(model.graph):
        inputs, outputs = ((), ()) if node.name in kept else narrow_places(node, narrow)
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in (ir.DataType.FLOAT, narrow):
                node.replace_input_with(index, caster.as_type(value, narrow if index in inputs else ir.DataType.FLOAT))
        for index in outputs:
            caster.narrow_output(node, node.outputs[index])
        changed += bool(outputs or inputs)
    common.RemoveUnusedNodesPass()(model)
    return changed


def _attributes(node: ir.Node) -> list[ir.Attr]:
    return [attribute for attribute in node.attributes.values() if isinstance(attribute, ir.Attr)]


class _Caster:
    """Gives each value in the type that a consumer wants, by one Cast or one converted constant for all of them."""

    def __init__(self, graph: ir.Graph, narrow: ir.DataType) -> None:
        self._graph, self._narrow = graph, narrow
        self._given: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._first = next(iter(graph), None)

    def as_type(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        if value.dtype == wanted:
            return value
        key = (value, wanted)
        if key not in self._given:
            array = constant_of(value)
            self._given[key] = self._cast(value, wanted) if array is None else self._converted(value, array, wanted)
        return self._given[key]

    def narrow_output(self, node: ir.Node, value: ir.Value) -> None:
        value.dtype = self._narrow
        if not value.is_graph_output():
            return
        place = self._graph.outputs.index(value)
        name, value.name = value.name, self._name(value, self._narrow)
        wide = self._cast(value, ir.DataType.FLOAT, name)
        self._graph.outputs[place] = wide
        self._given[(value, ir.DataType.FLOAT)] = wide

    def _cast(self, value: ir.Value, wanted: ir.DataType, name: str | None = None) -> ir.Value:
        cast = ir.node("Cast", [value], {"to": int(wanted)})
        given = cast.outputs[0]
        given.name = name or self._name(value, wanted)
        given.dtype, given.shape = wanted, value.shape
        cast.name = f"{given.name}_cast" if name else given.name
        producer = value.producer()
        if producer is not None:
            self._graph.insert_after(producer, cast)
        else:
            assert self._first is not None
            self._graph.insert_before(self._first, cast)
        return given

    def _converted(self, value: ir.Value, array: Array, wanted: ir.DataType) -> ir.Value:
        tensor = ir.tensor(array.astype(wanted.numpy()), dtype=wanted, name=self._name(value, wanted))
        given = ir.Value(name=tensor.name, shape=value.shape, type=ir.TensorType(wanted), const_value=tensor)
        self._graph.initializers.add(given)
        return given

    def _name(self, value: ir.Value, wanted: ir.DataType) -> str:
        short = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}[wanted]
        return f"{value.name}_{short}"


def vanishing(array: Array, narrow: ir.DataType) -> int:
    """Return how many values other than 0 become 0 in a narrow type."""
    with np.errstate(over="ignore", under="ignore"):
        return int(np.count_nonzero(array) - np.count_nonzero(array.astype(narrow.numpy())))
