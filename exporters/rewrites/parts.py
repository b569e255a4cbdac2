"""Put the parts of an operator in its place: what the rewrites for devices are written with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tsexport.types import Array

Shape = tuple[int | str | None, ...]
"""Dimensions, each a number, a name, or None where nothing is known."""


@dataclass(frozen=True)
class Parts:
    """Adds nodes in front of the one that they replace, named after it."""

    graph: ir.Graph
    node: ir.Node

    def given(self, index: int) -> ir.Value | None:
        """Return an input of the node; None where it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def number(self, attribute: str, default: int) -> int:
        """Return an attribute of the node that is a whole number."""
        return self.node.attributes.get_int(attribute, default)

    def add(
        self,
        operator: str,
        name: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:
        """Return what a new node of an operator gives."""
        output = self.node.outputs[0].name
        part = ir.node(operator, inputs, dict(attributes or {}), name=f"{self.node.name or output}/{name}")
        part.outputs[0].name = f"{output}/{name}"
        self.graph.insert_before(self.node, part)
        return part.outputs[0]

    def constant(self, name: str, array: Array) -> ir.Value:
        """Return a new initializer."""
        tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=f"{self.node.outputs[0].name}/{name}")
        value = ir.Value(
            name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.graph.initializers.add(value)
        return value

    def whole(self, name: str, *numbers: int) -> ir.Value:
        """Return a new initializer of INT64 with these numbers, in one dimension."""
        return self.constant(name, np.array(numbers, np.int64))

    def replace(self, *results: ir.Value) -> bool:
        """Take the node out; `results`, which are new, give what its first outputs gave.  Returns True."""
        for output, result in zip(self.node.outputs, results, strict=False):
            name = output.name
            output.name = f"{name}/replaced"
            result.name, result.shape, result.type = name, output.shape, output.type
            output.replace_all_uses_with(result, replace_graph_outputs=True)
        self.graph.remove(self.node, safe=True)
        return True


def type_of(value: ir.Value | None) -> ir.DataType | None:
    """Return the element type of a value, None where it is not known."""
    if value is None:
        return None
    return value.const_value.dtype if value.const_value is not None else value.dtype


def array_of(value: ir.Value | None) -> Array | None:
    """Return what a constant holds, an initializer's or a Constant node's; None for what is computed."""
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def dimensions(value: ir.Value | None) -> Shape | None:
    """Return a value's dimensions; None where not even the rank is known."""
    if value is None or value.shape is None:
        return None
    return tuple(one if isinstance(one, int) else one.value for one in value.shape)


def kept_dimensions(places: Sequence[int | str | None], start: int = 0) -> list[int] | None:
    """Return dimensions as Reshape takes them, one at most as -1; None where more than one is not a number.

    Args:
        places: the dimensions.
        start: so many of the first stay as they are (0).
    """
    found = [0] * start + [one if isinstance(one, int) else -1 for one in places[start:]]
    return found if found.count(-1) <= 1 else None
