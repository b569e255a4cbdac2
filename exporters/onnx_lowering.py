"""Bring an opset 18 graph down to a true opset 17, where the two say the same thing in other words.

Between 17 and 18, of what exporters write: the axes of the reductions and of Pad became an input, and Split took
`num_outputs` (https://github.com/onnx/onnx/blob/main/docs/Changelog.md).  ONNX's own converter fails on the first
when the axes are an initializer that other nodes share.  Operators that are new in 18 are refused by the checker
afterwards.
"""

import onnx
from onnx import helper, numpy_helper

from tsexport.errors import ExportError
from tsexport.exporters.onnx_file import IR_VERSION, OPSET

_REDUCTIONS = {
    f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
}


def lower_to_opset17(model: onnx.ModelProto) -> tuple[str, ...]:
    """Rewrite an opset 18 model in place to opset 17, IR version 8; return what was changed, a sentence each.

    Raises:
        ExportError: a node's axes are computed, or a Split is uneven and its size unknown.
    """
    constants = _constants(model.graph)
    shapes = _shapes(model)
    changed: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in _REDUCTIONS and _lower_reduction(node, constants):
            changed["axes of reductions made attributes"] = changed.get("axes of reductions made attributes", 0) + 1
        elif node.op_type == "Pad" and len(node.input) > 3 and node.input[3]:
            _lower_pad(model.graph, node, constants, shapes)
            changed["axes of Pad written out"] = changed.get("axes of Pad written out", 0) + 1
        elif node.op_type == "Split" and _lower_split(model.graph, node, shapes):
            changed["num_outputs of Split dropped"] = changed.get("num_outputs of Split dropped", 0) + 1
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    model.ir_version = IR_VERSION
    _drop_unused_initializers(model.graph)
    return tuple(f"{what} ({count})" for what, count in changed.items())


def _lower_reduction(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    skip = _pop_attribute(node, "noop_with_empty_axes")
    axes = _constant_ints(node, 1, constants)
    if axes is None:
        if skip:
            raise ExportError(
                f"{node.op_type} node {node.name!r} without axes does nothing in opset 18; 17 cannot say it"
            )
        return skip is not None
    del node.input[1:]
    if axes:
        node.attribute.append(helper.make_attribute("axes", axes))
    return True


def _lower_pad(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    constants: dict[str, onnx.TensorProto],
    shapes: dict[str, tuple[int | None, ...]],
) -> None:
    axes, pads = _constant_ints(node, 3, constants), _constant_ints(node, 1, constants)
    if axes is None or pads is None or node.input[0] not in shapes:
        raise ExportError(f"Pad node {node.name!r} has computed pads or an unknown rank; opset 17 needs them constant")
    rank = len(shapes[node.input[0]])
    full = [0] * (2 * rank)
    for index, axis in enumerate(axes):
        full[axis % rank] = pads[index]
        full[rank + axis % rank] = pads[len(axes) + index]
    del node.input[3:]
    node.input[1] = _add_constant(graph, f"{node.output[0]}_pads", full)


def _lower_split(graph: onnx.GraphProto, node: onnx.NodeProto, shapes: dict[str, tuple[int | None, ...]]) -> bool:
    parts = _pop_attribute(node, "num_outputs")
    if not parts:
        return False
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    shape = shapes.get(node.input[0])
    size = shape[axis % len(shape)] if shape else None
    if size is None:
        raise ExportError(f"Split node {node.name!r} divides a dimension of unknown size; opset 17 needs it known")
    if size % parts:
        # opset 18 gives the last part what is left; opset 17 divides evenly unless it is told the sizes
        part = -(-size // parts)
        node.input.append(
            _add_constant(graph, f"{node.output[0]}_sizes", [part] * (parts - 1) + [size - part * (parts - 1)])
        )
    return True


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute:
            given = node.attribute[0]
            if given.name == "value":
                found[node.output[0]] = given.t
            elif given.name in ("value_int", "value_ints"):
                values = [given.i] if given.name == "value_int" else list(given.ints)
                found[node.output[0]] = helper.make_tensor(
                    node.output[0], onnx.TensorProto.INT64, [len(values)], values
                )
    return found


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        info.name: tuple(d.dim_value if d.HasField("dim_value") else None for d in info.type.tensor_type.shape.dim)
        for info in (*graph.input, *graph.value_info, *graph.output)
        if info.type.tensor_type.HasField("shape")
    }


def _constant_ints(node: onnx.NodeProto, index: int, constants: dict[str, onnx.TensorProto]) -> list[int] | None:
    """Return the constant integers of an input, None where the node has no such input."""
    if len(node.input) <= index or not node.input[index]:
        return None
    if node.input[index] not in constants:
        raise ExportError(f"{node.op_type} node {node.name!r} computes its axes; opset 17 needs them constant")
    return [int(value) for value in numpy_helper.to_array(constants[node.input[index]]).reshape(-1)]


def _pop_attribute(node: onnx.NodeProto, name: str) -> int | None:
    for index, attribute in enumerate(node.attribute):
        if attribute.name == name:
            value = int(attribute.i)
            del node.attribute[index]
            return value
    return None


def _add_constant(graph: onnx.GraphProto, name: str, values: list[int]) -> str:
    graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.INT64, [len(values)], values))
    return name


def _drop_unused_initializers(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    bodies = any(a.type == onnx.AttributeProto.GRAPH for node in graph.node for a in node.attribute)
    if not bodies:
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
