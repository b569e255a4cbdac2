"""Graph rewrite: shapes that depend on nothing but the batch become constants, with -1 in the batch's place.

An exporter that traces shapes computes them at run time (Shape, Gather, Concat, ...), although only the batch can
vary.  The value of every shape operand is observed at the probes' batch sizes; it becomes a constant where it is
computed from shapes alone and does not vary, and, for Reshape, a constant with one -1 where exactly one dimension
varies. Limits: values that depend on the data are never touched; a Reshape with two varying dimensions stays, and so
does a value that is too large for the file.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from tsexport.exporters.rewrites.cleaning import LARGEST_GROWN, add_initializer, count_nodes, fold
from tsexport.exporters.rewrites.proofs import answer
from tsexport.types import Array, Feeds

# What shape arithmetic starts from.  The exporter computes the shape of every `expand` through ConstantOfShape, even
# where all of it is constant, and constant folding leaves that operator alone.
_ORIGINS = ("Shape", "Size", "ConstantOfShape")
# Operators through which a value stays "computed from shapes alone".
_SHAPE_ARITHMETIC = frozenset(
    {
        "Shape", "Size", "Gather", "Concat", "Slice", "Unsqueeze", "Squeeze", "Cast", "Mul", "Div", "Add", "Sub", "Mod",
        "Floor", "Sqrt", "Reshape", "Identity", "Constant", "ConstantOfShape", "Equal", "Where", "Range", "Min", "Max",
        "Expand", "ReduceProd", "Transpose",
    }
)  # fmt: skip


def _from_shapes_alone(value: ir.Value | None, known: dict[int, bool]) -> bool:
    if value is None or value.const_value is not None:
        return True
    node = value.producer()
    if node is None:  # a graph input: data
        return False
    if id(value) not in known:
        inside = node.op_type in _SHAPE_ARITHMETIC and node.domain == ""
        known[id(value)] = inside and (
            node.op_type in ("Shape", "Size") or all(_from_shapes_alone(source, known) for source in node.inputs)
        )
    return known[id(value)]


def _border(model: ir.Model) -> tuple[list[ir.Node], list[ir.Value]]:
    """Return what stands between shape arithmetic and the data path: Reshape nodes, and operands of other nodes."""
    known: dict[int, bool] = {}
    reshapes: list[ir.Node] = []
    operands: dict[int, ir.Value] = {}
    for node in model.graph:
        if node.outputs and _from_shapes_alone(node.outputs[0], known):
            continue
        for index, value in enumerate(node.inputs):
            if value is None or value.const_value is not None or value.producer() is None:
                continue
            if not _from_shapes_alone(value, known):
                continue
            if node.op_type == "Reshape" and index == 1:
                reshapes.append(node)
            else:
                operands[id(value)] = value
    return reshapes, list(operands.values())


def _observe(model: ir.Model, values: Sequence[ir.Value], probes: Sequence[Feeds]) -> list[list[Array]]:
    """Return, for every value, what it was at each probe."""
    kept = list(model.graph.outputs)
    try:
        model.graph.outputs.extend(value for value in values if value not in kept)
        proto = ir.to_proto(model)
    finally:
        while len(model.graph.outputs) > len(kept):  # a slice deletion would leave the values marked as outputs
            model.graph.outputs.pop()
    names = list(dict.fromkeys(str(value.name) for value in values))
    answers = [answer(proto, feeds, names) for feeds in probes]
    return [[one[str(value.name)] for one in answers] for value in values]


def _fixed_shape(shapes: Sequence[tuple[int, ...]]) -> Array | None:
    """Return the one shape that all have, with -1 where exactly one dimension varies; None where there is none."""
    if len({len(shape) for shape in shapes}) != 1 or any(0 in shape for shape in shapes):
        return None
    stacked = np.array(shapes, dtype=np.int64)
    varies = (stacked != stacked[0]).any(axis=0)
    return np.where(varies, np.int64(-1), stacked[0]) if varies.sum() <= 1 else None


class ConstantShapes:
    """Replace shape operands that only the batch can change by constants."""

    name = "constant-shapes"
    speed = False

    def requires(self, model: ir.Model) -> bool:
        return any(node.op_type in _ORIGINS for node in model.graph)

    def call(self, model: ir.Model, probes: Sequence[Feeds]) -> int:
        before = count_nodes(model)
        reshapes, operands = _border(model)
        if not reshapes and not operands:
            return 0
        seen = _observe(model, [*(node.outputs[0] for node in reshapes), *operands], probes)
        for index, node in enumerate(reshapes):
            shape = _fixed_shape([array.shape for array in seen[index]])
            if shape is not None:
                node.replace_input_with(1, add_initializer(model, f"{node.name}_shape", shape))
        for value, arrays in zip(operands, seen[len(reshapes) :], strict=True):
            if arrays[0].size <= LARGEST_GROWN and all(np.array_equal(array, arrays[0]) for array in arrays[1:]):
                value.replace_all_uses_with(add_initializer(model, f"{value.name}_constant", arrays[0]))
        fold(model)
        return before - count_nodes(model)
