"""A graph in bf16 or fp16 as one in fp32 that rounds where the narrow one would: its numerics on any CPU.

ONNX Runtime's CPU provider has no kernels for bf16, and for fp16 it casts most operators to fp32 as it likes.  But it
can cast.  So every tensor of a narrow type becomes fp32, and is rounded to that type, to nearest even, as soon as it is
computed:

    y = MatMul(a, b) in bf16    ->    y = fp32(bf16(MatMul(fp32(a), fp32(b))))

which is what a device does that accumulates in fp32, as tensor cores and AVX512_BF16 do.  One that accumulates in fp16
loses more.  Values beyond a type's largest become infinite, as there.

`compute_in_bf16` does the same to a graph in fp32, for a runtime that is told at load to compute it in bf16 (OpenVINO):
what every operator reads and gives is rounded.  Such a runtime rounds less often where it fuses operators, and more
often within a recurrent layer, whose state it rounds at every step.
"""

from collections.abc import Collection

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

NARROW = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)
_EXACT = frozenset(
    (
        *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad"),
        *("Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"),
        *("Abs", "Max", "MaxPool", "Min", "Neg", "ReduceMax", "ReduceMin", "Relu", "TopK"),
    )
)
"""Operators that only move or choose values: what they give was rounded before."""


def simulate_bf16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model that computes in fp32 and rounds every tensor of `model` that is bf16 or fp16 to its type.

    Args:
        model: a checked graph without subgraphs, whose inputs and outputs are not narrow.

    Raises:
        ValueError: an input or output is narrow, or a node has a subgraph.
    """
    simulated = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    graph = simulated.graph
    narrow = [value.name for value in (*graph.inputs, *graph.outputs) if value.dtype in NARROW]
    if narrow:
        raise ValueError(f"{', '.join(map(str, narrow))} would no longer have the type of the graph's border")
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(simulated)
    constants = [value for value in graph.initializers.values() if value.dtype in NARROW]
    for node in list(graph):
        if any(attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in _attributes(node)):
            raise ValueError(f"{node.op_type} {node.name} has a subgraph")
        for output in node.outputs:
            if output.dtype in NARROW:
                _round(graph, node, output)
    for value in constants:
        _let_read(value, _cast_behind(graph, None, value, ir.DataType.FLOAT))
    return ir.to_proto(simulated)


def compute_in_bf16(model: onnx.ModelProto, kept: Collection[str] = ()) -> onnx.ModelProto:
    """Return a model in fp32 that rounds what its nodes read and give to bf16.

    Args:
        model: a checked fp32 graph without subgraphs; what it gives as its outputs is not rounded.
        kept: names of nodes that compute in fp32: what they give is not rounded, nor are constants that they read.

    Raises:
        ValueError: a node has a subgraph.
    """
    computed = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    graph = computed.graph
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(computed)
    for node in list(graph):
        if any(attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in _attributes(node)):
            raise ValueError(f"{node.op_type} {node.name} has a subgraph")
        for output in node.outputs if node.name not in kept else ():
            rounds = output.dtype == ir.DataType.FLOAT and node.op_type not in _EXACT
            if rounds and not output.is_graph_output():
                output.dtype = ir.DataType.BFLOAT16
                _round(graph, node, output)
    for value in (*graph.inputs, *graph.initializers.values()):
        if value.dtype == ir.DataType.FLOAT:
            _round_reads(graph, value, kept)
    return ir.to_proto(computed)


def _round_reads(graph: ir.Graph, value: ir.Value, kept: Collection[str]) -> None:
    """Let the nodes that are not kept read an input or a constant rounded to bf16."""
    readers = [use for use in value.uses() if use.node.name not in kept]
    if not readers:
        return
    rounded = _cast_behind(graph, None, value, ir.DataType.BFLOAT16)
    widened = _cast_behind(graph, rounded, rounded.outputs[0], ir.DataType.FLOAT)
    for use in readers:
        use.node.replace_input_with(use.idx, widened.outputs[0])


def _attributes(node: ir.Node) -> list[ir.Attr]:
    return [attribute for attribute in node.attributes.values() if isinstance(attribute, ir.Attr)]


def _round(graph: ir.Graph, node: ir.Node, output: ir.Value) -> None:
    """Let all consumers of a narrow output read its rounded value as fp32, which gets the output's name."""
    narrow = output.dtype
    if node.op_type == "Cast":
        _let_read(output, _cast_behind(graph, node, output, ir.DataType.FLOAT))
        return
    output.dtype = ir.DataType.FLOAT
    if node.op_type in _EXACT:
        return
    assert narrow is not None
    name, output.name = output.name, f"{output.name}_unrounded"
    rounded = _cast_behind(graph, node, output, narrow)
    widened = _cast_behind(graph, rounded, rounded.outputs[0], ir.DataType.FLOAT)
    widened.outputs[0].name = name
    _let_read(output, widened, rounded)


def _cast_behind(graph: ir.Graph, node: ir.Node | None, value: ir.Value, to: ir.DataType) -> ir.Node:
    """Cast a value behind the node that gives it, a constant before all nodes (so that the file stays small)."""
    cast = ir.node("Cast", [value], {"to": int(to)})
    cast.outputs[0].name = f"{value.name}_as_{to.name.lower()}"
    cast.outputs[0].dtype, cast.outputs[0].shape = to, value.shape
    cast.name = cast.outputs[0].name
    if node is None:
        graph.insert_before(next(iter(graph)), cast)
    else:
        graph.insert_after(node, cast)
    return cast


def _let_read(value: ir.Value, cast: ir.Node, besides: ir.Node | None = None) -> None:
    for use in list(value.uses()):
        if use.node not in (cast, besides):
            use.node.replace_input_with(use.idx, cast.outputs[0])
