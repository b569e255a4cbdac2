"""Graph rewrites: parallel projections as one product, and constant factors folded into weights.

`FuseParallelLinears`: x W_q + b_q, x W_k + b_k, x W_v + b_v with constant weights become one product with [W_q | W_k
| W_v] and a Split.  `FoldScale`: a constant factor c behind a chain of reshapes, transposes and products moves into
the constant weight (and bias) where the chain begins, so that softmax(c q k^T) needs no Mul. Limits: MatMul with a
two-dimensional constant on the right (write Gemm as MatMul first); every value on the way has one use, so that
nothing else sees the factor.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from tsexport.exporters.rewrites.cleaning import add_initializer, constant
from tsexport.types import Array, Feeds

_CARRIES_A_FACTOR = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity"})


@dataclass(frozen=True)
class Linear:
    """A MatMul by a constant, and the Add of a constant bias behind it if there is one."""

    product: ir.Node
    weight: Array
    bias: Array | None
    result: ir.Value


def only_user(value: ir.Value) -> ir.Node | None:
    """Return the one node that takes a value, or None."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def linear_at(node: ir.Node) -> Linear | None:
    """Return the linear layer whose product a node is, or None."""
    weight = constant(node.inputs[1]) if node.op_type == "MatMul" else None
    if weight is None or weight.ndim != 2 or constant(node.inputs[0]) is not None:
        return None
    product = node.outputs[0]
    follower = only_user(product)
    if follower is not None and follower.op_type == "Add":
        other = follower.inputs[1] if follower.inputs[0] is product else follower.inputs[0]
        bias = constant(other)
        if bias is not None and bias.shape == (weight.shape[1],):
            return Linear(node, weight, bias, follower.outputs[0])
    return Linear(node, weight, None, product)


def _parallel(model: ir.Model) -> list[list[Linear]]:
    groups: dict[tuple[int, bool], list[Linear]] = defaultdict(list)
    for node in model.graph:
        linear = linear_at(node)
        if linear is not None and not linear.result.is_graph_output():
            groups[(id(node.inputs[0]), linear.bias is None)].append(linear)
    return [group for group in groups.values() if len(group) > 1]


class FuseParallelLinears:
    """One product for all projections of one value."""

    name = "fuse-parallel-linears"
    speed = True

    def requires(self, model: ir.Model) -> bool:
        return bool(_parallel(model))

    def call(self, model: ir.Model, probes: Sequence[Feeds]) -> int:
        groups = _parallel(model)
        for group in groups:
            self._fuse(model, group)
        common.RemoveUnusedNodesPass()(model)  # the separate weights would stay in the file
        return len(groups)

    def _fuse(self, model: ir.Model, group: Sequence[Linear]) -> None:
        first = group[0].product
        name = f"{first.name}_fused"
        weight = add_initializer(model, f"{name}_weight", np.concatenate([one.weight for one in group], axis=1))
        product = ir.node("MatMul", [first.inputs[0], weight], name=name)
        nodes, value = [product], product.outputs[0]
        biases = [one.bias for one in group if one.bias is not None]
        if biases:
            bias = add_initializer(model, f"{name}_bias", np.concatenate(biases))
            added = ir.node("Add", [value, bias], name=f"{name}_add")
            nodes.append(added)
            value = added.outputs[0]
        sizes = add_initializer(
            model, f"{name}_sizes", np.array([one.weight.shape[1] for one in group], dtype=np.int64)
        )
        split = ir.node("Split", [value, sizes], {"axis": -1}, num_outputs=len(group), name=f"{name}_split")
        nodes.append(split)
        model.graph.insert_before(first, nodes)
        for one, part in zip(group, split.outputs, strict=True):
            part.name, part.shape, part.type = f"{one.result.name}_part", one.result.shape, one.result.type
            one.result.replace_all_uses_with(part)
        for one in group:
            follower = one.result.producer()
            stale = [follower] if follower is not None and follower is not one.product else []
            model.graph.remove([*stale, one.product], safe=True)


def _factor(node: ir.Node) -> tuple[float, ir.Value] | None:
    """Return (constant factor, the value it multiplies) for a Mul or Div by a scalar."""
    if node.op_type not in ("Mul", "Div") or len(node.inputs) != 2:
        return None
    left, right = node.inputs
    scalar = constant(right)
    if scalar is not None and scalar.size == 1 and scalar.dtype == np.float32 and left is not None:
        number = float(scalar.reshape(()))
        return (number if node.op_type == "Mul" else 1.0 / number, left) if number else None
    scalar = constant(left)
    if (
        node.op_type == "Mul"
        and scalar is not None
        and scalar.size == 1
        and scalar.dtype == np.float32
        and right is not None
    ):
        return float(scalar.reshape(())), right
    return None


def _linear_behind(value: ir.Value | None) -> Linear | None:
    """Follow a value upstream, through what only carries a factor along, to the projection it comes from."""
    while value is not None and value.producer() is not None and len(list(value.uses())) == 1:
        if value.is_graph_output():
            return None
        node = value.producer()
        assert node is not None
        if node.op_type == "Add":
            source = node.inputs[0] if constant(node.inputs[1]) is not None else node.inputs[1]
            product = source.producer() if source is not None else None
            linear = linear_at(product) if product is not None else None
            return linear if linear is not None and linear.result is value else None
        if node.op_type == "MatMul":
            linear = linear_at(node)
            if linear is not None:
                return linear if linear.result is value else None
            return _linear_behind(node.inputs[0]) or _linear_behind(node.inputs[1])
        if node.op_type not in _CARRIES_A_FACTOR:
            return None
        value = node.inputs[0]
    return None


class FoldScale:
    """Move constant factors into the weights of the projections they come from."""

    name = "fold-scale"
    speed = True

    def requires(self, model: ir.Model) -> bool:
        return any(_factor(node) for node in model.graph)

    def call(self, model: ir.Model, probes: Sequence[Feeds]) -> int:
        changes = 0
        for node in list(model.graph):
            found = _factor(node)
            linear = _linear_behind(found[1]) if found else None
            if found is None or linear is None or node.outputs[0].is_graph_output():
                continue
            factor, scaled = found
            name = f"{linear.product.name}_scaled_{changes}"
            weight = add_initializer(model, f"{name}_weight", (linear.weight * factor).astype(linear.weight.dtype))
            linear.product.replace_input_with(1, weight)
            if linear.bias is not None:
                adder = linear.result.producer()
                assert adder is not None
                position = 1 if constant(adder.inputs[1]) is not None else 0
                bias = add_initializer(model, f"{name}_bias", (linear.bias * factor).astype(linear.bias.dtype))
                adder.replace_input_with(position, bias)
            node.outputs[0].replace_all_uses_with(scaled)
            model.graph.remove(node, safe=True)
            changes += 1
        common.RemoveUnusedNodesPass()(model)  # the unscaled weights would stay in the file
        return changes
