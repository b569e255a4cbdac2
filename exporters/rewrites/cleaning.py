"""Graph rewrites from onnxscript's and onnx-ir's own passes: constants folded, dead and doubled nodes gone.

`FoldConstants` evaluates what depends on constants alone, but for broadcasts, which would blow up the file (folding
the positions of a transformer grew it by a third), and drops Identity nodes: the exporter shares equal
initializers through Identity, and ONNX Runtime's quantizer then takes such weights for computed ones and skips them.
`DropNoOps` removes casts, transposes and reshapes that cancel or do nothing. `GemmAsMatMul` writes Gemm as MatMul and
Add, since dynamic quantization of a Gemm with a transposed weight writes files that do not load.
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes import common
from onnxscript.rewriter import RewriteRuleSet
from onnxscript.rewriter.rules import common as rules

from tsexport.types import Array, Feeds

LARGEST_GROWN = 16_384
"""Elements of a folded constant that may be larger than what it was computed from: 64 KiB in fp32."""


def count_nodes(model: ir.Model) -> int:
    """Return the number of nodes of the main graph."""
    return sum(1 for _ in model.graph)


def constant(value: ir.Value | None) -> Array | None:
    """Return the array a value holds if it is constant, else None."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def add_initializer(model: ir.Model, name: str, array: Array) -> ir.Value:
    """Add a constant to the main graph, under a name that is not taken yet."""
    taken = model.graph.initializers
    unique = next(n for n in (name, *(f"{name}_{i}" for i in range(1, len(taken) + 2))) if n not in taken)
    tensor = ir.tensor(array, name=unique)
    value = ir.Value(name=unique, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.initializers.add(value)
    return value


def _may_fold(node: ir.Node) -> bool | None:
    """Return False for a node whose value would be much larger in the file than what it is computed from.

    A position or a mask that is broadcast, or embedded from a few numbers, costs next to nothing at run time.
    """
    sizes = [value.const_value.size for value in node.inputs if value is not None and value.const_value is not None]
    shapes = [value.shape for value in node.outputs]
    if any(shape is None or not shape.is_static() for shape in shapes):
        return None
    made = sum(math.prod(shape.numpy()) for shape in shapes if shape is not None)
    return False if made > LARGEST_GROWN and made > sum(sizes) else None


def fold(model: ir.Model) -> None:
    """Fold constants, as far as the file does not grow by it, and drop what is dead, Identity included, in place."""
    onnxscript.optimizer.optimize_ir(model, should_fold=_may_fold)
    common.IdentityEliminationPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True)(model)
    common.DeduplicateInitializersPass()(model)
    common.RemoveUnusedNodesPass()(model)


class FoldConstants:
    """Evaluate what depends on constants alone; drop Identity and dead nodes."""

    name = "fold-constants"
    speed = False

    def requires(self, model: ir.Model) -> bool:
        return count_nodes(model) > 0

    def call(self, model: ir.Model, probes: Sequence[Feeds]) -> int:
        before = count_nodes(model)
        fold(model)
        return before - count_nodes(model)


class DropNoOps:
    """Remove casts, transposes and reshapes that cancel each other or do nothing."""

    name = "drop-no-ops"
    speed = False
    _types = frozenset(
        {"Cast", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Add", "Sub", "Mul", "Div", "Flatten"}
    )
    _rules = RewriteRuleSet(
        [
            rules.cast_cast_rule,
            rules.no_op_cast_rule,
            rules.transpose_transpose_rule,
            rules.no_op_transpose_rule,
            rules.reshape_reshape_rule,
            rules.unsqueeze_unsqueeze_rule,
            rules.no_op_expand_rule,
            rules.add_0_rule,
            rules.sub_0_rule,
            rules.mul_by_1_rule,
            rules.div_by_1_rule,
        ]
    )

    def requires(self, model: ir.Model) -> bool:
        return any(node.op_type in self._types for node in model.graph)

    def call(self, model: ir.Model, probes: Sequence[Feeds]) -> int:
        before = count_nodes(model)
        self._rules.apply_to_model(model)
        fold(model)
        return before - count_nodes(model)


class GemmAsMatMul:
    """Write Gemm (alpha = beta = 1, constant weight) as MatMul and Add over a weight stored [inputs, outputs]."""

    name = "gemm-as-matmul"
    speed = False

    def requires(self, model: ir.Model) -> bool:
        return any(self._fits(node) for node in model.graph)

    def _fits(self, node: ir.Node) -> bool:
        plain = node.attributes.get_float("alpha", 1.0) == node.attributes.get_float("beta", 1.0) == 1.0
        transposed = node.attributes.get_int("transA", 0)
        return node.op_type == "Gemm" and plain and not transposed and constant(node.inputs[1]) is not None

    def call(self, model: ir.Model, probes: Sequence[Feeds]) -> int:
        gemms = [node for node in model.graph if self._fits(node)]
        for gemm in gemms:
            weight = constant(gemm.inputs[1])
            assert weight is not None
            if gemm.attributes.get_int("transB", 0):
                weight = np.ascontiguousarray(weight.T)
            name = f"{gemm.name}_matmul"
            product = ir.node("MatMul", [gemm.inputs[0], add_initializer(model, f"{name}_weight", weight)], name=name)
            nodes, result = [product], product.outputs[0]
            if len(gemm.inputs) > 2 and gemm.inputs[2] is not None:
                added = ir.node("Add", [result, gemm.inputs[2]], name=f"{name}_add")
                nodes.append(added)
                result = added.outputs[0]
            result.name, result.shape, result.type = gemm.outputs[0].name, gemm.outputs[0].shape, gemm.outputs[0].type
            product.outputs[0].name = product.outputs[0].name or f"{name}_product"
            ir.convenience.replace_nodes_and_values(model.graph, gemm, [gemm], nodes, [gemm.outputs[0]], [result])
        fold(model)
        return len(gemms)
