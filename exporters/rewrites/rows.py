"""Graph rewrite: x W + b over the last axis of [batch, a, b, width] as one product of rows [batch * a * b, width].

ONNX Runtime adds a bias within the product (Gemm), and an activation behind it, only where both sides are
two-dimensional; over three axes each is a pass over memory of its own.  The reshapes on both sides cost nothing, and
where two meet they are merged (`DropNoOps`).  An activation with no other operand moves in front of the second reshape.

Limits: a constant two-dimensional weight and a constant bias; everything but the leading dimension is constant.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from tsexport.exporters.rewrites.cleaning import add_initializer, fold
from tsexport.exporters.rewrites.linears import Linear, linear_at, only_user
from tsexport.types import Feeds

_ACTIVATIONS = frozenset({"Relu", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "Softplus"})


def _rest(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the dimensions behind the leading one where there are two or more and all are known, else None."""
    if value is None or value.shape is None or len(value.shape) < 3:
        return None
    rest = tuple(value.shape)[1:]
    return tuple(int(size) for size in rest) if all(isinstance(size, int) for size in rest) else None  # type: ignore[arg-type]


class RowProducts:
    """Write products over several axes as products of rows."""

    name = "row-products"
    speed = True

    def requires(self, model: ir.Model) -> bool:
        return any((linear := linear_at(node)) is not None and linear.bias is not None for node in model.graph)

    def call(self, model: ir.Model, probes: Sequence[Feeds]) -> int:
        common.ShapeInferencePass()(model)
        changes = 0
        for node in list(model.graph):
            linear = linear_at(node)
            rest = _rest(node.inputs[0]) if linear is not None else None
            if linear is not None and linear.bias is not None and rest is not None:
                self._flatten(model, linear, rest, changes)
                changes += 1
        if changes:
            fold(model)
        return changes

    def _flatten(self, model: ir.Model, linear: Linear, rest: tuple[int, ...], number: int) -> None:
        inputs, outputs = linear.weight.shape
        name = f"{linear.product.name}_rows_{number}"
        there = add_initializer(model, f"{name}_there", np.array([-1, inputs], dtype=np.int64))
        back = add_initializer(model, f"{name}_back", np.array([-1, *rest[:-1], outputs], dtype=np.int64))
        adder = linear.result.producer()
        assert adder is not None
        rows = ir.node("Reshape", [linear.product.inputs[0], there], name=f"{name}_in")
        model.graph.insert_before(linear.product, rows)
        linear.product.replace_input_with(0, rows.outputs[0])
        last, activation = adder, only_user(linear.result)
        if activation is not None and activation.op_type in _ACTIVATIONS:
            last = activation
        result = last.outputs[0]
        users, was_output = list(result.uses()), result.is_graph_output()
        shaped = ir.node("Reshape", [result, back], name=f"{name}_out")
        for user, index in users:
            user.replace_input_with(index, shaped.outputs[0])
        model.graph.insert_after(last, shaped)
        if was_output:
            shaped.outputs[0].name, result.name = result.name, f"{name}_rows"
            shaped.outputs[0].shape, shaped.outputs[0].type = result.shape, result.type
            place = list(model.graph.outputs).index(result)
            model.graph.outputs[place] = shaped.outputs[0]
        for value in {linear.product.outputs[0], linear.result, result}:
            value.shape = None  # they are rows now
