"""A graph as TensorRT's Q/DQ rules see it, and the rules of a pair itself: types, zero points, scales, axes, pairing.

Each rule is a function that yields every place where it is broken; `exporters.qdq_rules` has those on where pairs
stand, and the table of all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from tsexport.exporters.qdq_regions import (
    LAYERS,
    Regions,
    constant_of,
    consumers,
    find_regions,
    input_of,
    is_constant,
    is_operator,
    shape_of,
)

Finding = tuple[ir.Node, str]
"""A node, and what was found there."""


@dataclass(frozen=True)
class Checked:
    """A graph with what the rules ask of it."""

    graph: ir.Graph
    float_layers: frozenset[str]
    every_kernel: bool

    @cached_property
    def regions(self) -> Regions:
        return find_regions(self.graph)

    @cached_property
    def quantizes(self) -> tuple[ir.Node, ...]:
        return tuple(node for node in self.graph if node.op_type == "QuantizeLinear")

    @cached_property
    def dequantizes(self) -> tuple[ir.Node, ...]:
        return tuple(node for node in self.graph if node.op_type == "DequantizeLinear")

    @cached_property
    def both(self) -> tuple[ir.Node, ...]:
        return tuple(node for node in self.graph if node.op_type in ("QuantizeLinear", "DequantizeLinear"))

    @cached_property
    def quantized_layers(self) -> frozenset[ir.Node]:
        """The layers of which at least one operand comes from a pair."""
        return frozenset(
            node
            for node in self.graph
            if is_operator(node, *LAYERS) and any(from_pair(input_of(node, index)) for index in (0, 1))
        )

    def readers(self, dequantize: ir.Node) -> Iterator[tuple[ir.Node, int]]:
        """Yield (node, input index) of what reads a DequantizeLinear."""
        return consumers(dequantize.outputs[0])


def from_pair(value: ir.Value | None) -> bool:
    return value is not None and is_operator(value.producer(), "DequantizeLinear")


def name_of(node: ir.Node) -> str:
    return node.name or f"{node.op_type} of {node.outputs[0].name}"


def type_of(value: ir.Value | None) -> ir.DataType | None:
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return value.dtype if tensor is None else tensor.dtype


def axis_of(node: ir.Node) -> int | None:
    attribute = node.attributes.get("axis")
    return None if attribute is None else attribute.as_int()


def is_per_channel(node: ir.Node) -> bool:
    """Return whether a pair has several scales; TensorRT takes one for the whole tensor, in no or in one dimension."""
    shape = shape_of(input_of(node, 1))
    return shape is not None and any(size != 1 for size in shape)


def unlike_lengths(node: ir.Node) -> str:
    """Return how scales, zero points and the axis of a pair differ in length, "" where they do not."""
    scale, zero, data = (shape_of(input_of(node, index)) for index in (1, 2, 0))
    if scale is None:
        return ""
    if zero is not None and scale != zero and (is_per_channel(node) or any(size != 1 for size in zero)):
        return f"has scales of shape {list(scale)} and zero points of shape {list(zero)}"
    axis = axis_of(node)
    if not is_per_channel(node) or len(scale) != 1 or data is None or axis is None:
        return ""
    if not -len(data) <= axis < len(data):
        return f"has axis {axis} for data of {len(data)} dimensions"
    if data[axis] not in (None, scale[0]):
        return f"has {scale[0]} scales for the {data[axis]} indices of axis {axis}"
    return ""


def check_domain(checked: Checked) -> Iterator[Finding]:
    for node in checked.both:
        if node.domain not in ("", "ai.onnx"):
            yield node, f"is of the domain {node.domain}"


def check_opset(checked: Checked) -> Iterator[Finding]:
    version = checked.graph.opset_imports.get("", 0)
    for node in checked.both[:1]:
        if not 13 <= version <= 18:
            yield node, f"stands in a graph of opset {version}"


def check_types(checked: Checked) -> Iterator[Finding]:
    for node in checked.both:
        place = 0 if node.op_type == "DequantizeLinear" else 2
        for index in dict.fromkeys((place, 2)):
            kind = type_of(input_of(node, index))
            if kind not in (ir.DataType.INT8, None):
                yield node, f"has {'data' if index == 0 else 'a zero point'} of type {kind.name}"
                break


def check_zero_point_there(checked: Checked) -> Iterator[Finding]:
    for node in checked.both:
        if input_of(node, 2) is None:
            yield node, "has no zero point"


def check_zero_point_zero(checked: Checked) -> Iterator[Finding]:
    for node in checked.both:
        value = input_of(node, 2)
        if value is None:
            continue
        zero = constant_of(value)
        if zero is None:
            yield node, "computes its zero point"
        elif np.any(zero != 0):
            yield node, f"has the zero point {int(zero[zero != 0].flat[0])}"


def check_scale_type(checked: Checked) -> Iterator[Finding]:
    for node in checked.both:
        kind = type_of(input_of(node, 1))
        if kind not in (ir.DataType.FLOAT, None):
            yield node, f"has a scale of type {kind.name}"


def check_scale_constant(checked: Checked) -> Iterator[Finding]:
    for node in checked.both:
        if not is_constant(input_of(node, 1)):
            yield node, "computes its scale"


def check_scale_positive(checked: Checked) -> Iterator[Finding]:
    for node in checked.both:
        scale = constant_of(input_of(node, 1))
        if scale is None:
            continue
        wrong = scale[~(np.isfinite(scale) & (scale > 0))]
        if wrong.size:
            yield node, f"has the scale {float(wrong.flat[0]):g}"


def check_lengths(checked: Checked) -> Iterator[Finding]:
    for node in checked.both:
        found = unlike_lengths(node)
        if found:
            yield node, found


def check_axis_written(checked: Checked) -> Iterator[Finding]:
    for node in checked.both:
        if is_per_channel(node) and axis_of(node) is None:
            yield node, "has a scale for each channel and no attribute axis"


def check_activations(checked: Checked) -> Iterator[Finding]:
    for node in checked.quantizes:
        if is_per_channel(node) and not is_constant(input_of(node, 0)):
            yield node, "has a scale for each channel of an activation"


def check_pairing(checked: Checked) -> Iterator[Finding]:
    for node in checked.quantizes:
        stored = node.outputs[0]
        others = [use.node for use in stored.uses() if not is_operator(use.node, "DequantizeLinear")]
        if others or not stored.uses() or stored.is_graph_output():
            yield node, f"is read by {name_of(others[0])!r}" if others else "is read by no DequantizeLinear"
    for node in checked.dequantizes:
        data = input_of(node, 0)
        quantize = None if data is None else data.producer()
        if quantize is None or quantize.op_type != "QuantizeLinear":
            if not is_constant(data):
                yield node, "has no QuantizeLinear in front"
            continue
        for index, what in ((1, "scale"), (2, "zero point")):
            mine, other = input_of(node, index), input_of(quantize, index)
            if mine is not other and not _alike(mine, other):
                yield node, f"has another {what} than its QuantizeLinear"
        if is_per_channel(node) and axis_of(node) != axis_of(quantize):
            yield node, f"has axis {axis_of(node)} and its QuantizeLinear {axis_of(quantize)}"


def _alike(one: ir.Value | None, other: ir.Value | None) -> bool:
    first, second = constant_of(one), constant_of(other)
    return first is not None and second is not None and np.array_equal(first, second)
