"""LayerNormalization written out as its parts, for runtimes that do not know the operator.

    d = x - mean(x)
    y = d / sqrt(mean(d^2) + epsilon) * scale + bias

with means over the axes from `axis` on.  The operator came with opset 17; TensorRT knows it from 8.6 on, and computes
it in fp32 whatever the graph's type.  Written out, the parts are what the graph says, so in fp16 they are kept in fp32
(see `quantize.islands`).

Source: https://onnx.ai/onnx/operators/onnx__LayerNormalization.html
"""

import numpy as np
import onnx_ir as ir


def decompose_layer_norms(model: ir.Model) -> int:
    """Replace every LayerNormalization by its parts, in place; return how many were replaced.

    The shapes of the normalised values must be known as far as their rank.

    Raises:
        ValueError: the rank of an input is not known, or a node's mean or deviation is used.
    """
    nodes = [node for node in model.graph if node.op_type == "LayerNormalization" and node.domain in ("", "ai.onnx")]
    for node in nodes:
        _decompose(model.graph, node)
    return len(nodes)


def _decompose(graph: ir.Graph, node: ir.Node) -> None:
    x, scale, bias = (*node.inputs, None)[:3]
    assert x is not None
    if x.shape is None:
        raise ValueError(f"the rank of {x.name}, which {node.name} normalises, is not known")
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise ValueError(f"{node.name} gives its mean or deviation too, which has no part of its own")
    rank, output = len(x.shape), node.outputs[0]
    axis = node.attributes.get_int("axis", -1)
    axes = list(range(axis % rank, rank))
    epsilon = _constant(graph, f"{node.name}/epsilon", node.attributes.get_float("epsilon", 1e-5))
    parts = _Parts(graph, node)
    centred = parts.add("Sub", "centred", [x, parts.add("ReduceMean", "mean", [x], axes=axes)])
    variance = parts.add("ReduceMean", "variance", [parts.add("Mul", "square", [centred, centred])], axes=axes)
    deviation = parts.add("Sqrt", "deviation", [parts.add("Add", "shifted", [variance, epsilon])])
    result = parts.add("Div", "normalised", [centred, deviation])
    if scale is not None:
        result = parts.add("Mul", "scaled", [result, scale])
    if bias is not None:
        result = parts.add("Add", "biased", [result, bias])
    result.name, result.shape = output.name, output.shape
    output.name = f"{output.name}_replaced"
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(node, safe=True)


class _Parts:
    """Adds nodes before the one that they replace, named after it."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self._graph, self._node = graph, node

    def add(self, operator: str, name: str, inputs: list[ir.Value], *, axes: list[int] | None = None) -> ir.Value:
        attributes = {"axes": axes, "keepdims": 1} if axes is not None else {}
        part = ir.node(operator, inputs, attributes, name=f"{self._node.name}/{name}")
        value = part.outputs[0]
        value.name, value.type = f"{self._node.name}/{name}_output", ir.TensorType(ir.DataType.FLOAT)
        self._graph.insert_before(self._node, part)
        return value


def _constant(graph: ir.Graph, name: str, number: float) -> ir.Value:
    tensor = ir.tensor(np.array(number, dtype=np.float32), name=name)
    value = ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
    graph.initializers.add(value)
    return value
