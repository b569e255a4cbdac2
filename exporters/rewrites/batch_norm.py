"""Graph rewrite: BatchNormalization between two transposes as one multiplication and one addition.

In evaluation mode BatchNormalization over channel c is  y = x s_c + t_c  with  s = gamma / sqrt(var + eps)  and t =
beta - mean s.  Encoders that normalise [batch, steps, width] over width transpose there and back for it; s and t can
be applied to the last axis as it stands.  Source: Ioffe and Szegedy 2015. Limits: constant parameters; the transposes
undo each other and have no other use.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from tsexport.exporters.rewrites.cleaning import add_initializer, constant, fold
from tsexport.types import Array, Feeds


def _scale_and_shift(norm: ir.Node) -> tuple[Array, Array] | None:
    gamma, beta, mean, variance = (constant(value) for value in norm.inputs[1:5])
    if gamma is None or beta is None or mean is None or variance is None:
        return None
    if norm.attributes.get_int("training_mode", 0) or len(norm.outputs) > 1:
        return None
    scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + norm.attributes.get_float("epsilon", 1e-5))
    shift = beta - mean * scale
    return scale.astype(gamma.dtype), shift.astype(gamma.dtype)


def _transposes_around(norm: ir.Node) -> tuple[ir.Node, ir.Node, int] | None:
    """Return (the one before, the one after, the channels' axis without them) where they undo each other."""
    before = norm.inputs[0].producer() if norm.inputs[0] is not None else None
    uses = list(norm.outputs[0].uses())
    after = uses[0].node if len(uses) == 1 and not norm.outputs[0].is_graph_output() else None
    if before is None or after is None or before.op_type != "Transpose" or after.op_type != "Transpose":
        return None
    there, back = before.attributes.get_ints("perm", ()), after.attributes.get_ints("perm", ())
    if len(there) < 2 or [there[axis] for axis in back] != list(range(len(there))):
        return None
    return before, after, there[1]


class BatchNormAsAffine:
    """Apply transposed batch normalisation in place, as Mul and Add."""

    name = "batch-norm-as-affine"
    speed = True

    def _fitting(self, model: ir.Model) -> list[ir.Node]:
        norms = [node for node in model.graph if node.op_type == "BatchNormalization"]
        return [norm for norm in norms if _transposes_around(norm) and _scale_and_shift(norm)]

    def requires(self, model: ir.Model) -> bool:
        return bool(self._fitting(model))

    def call(self, model: ir.Model, probes: Sequence[Feeds]) -> int:
        norms = self._fitting(model)
        for norm in norms:
            around, affine = _transposes_around(norm), _scale_and_shift(norm)
            assert around is not None
            assert affine is not None
            before, after, axis = around
            rank = len(before.attributes.get_ints("perm", ()))
            scale, shift = (array.reshape([-1] + [1] * (rank - 1 - axis)) for array in affine)
            multiplied = ir.node(
                "Mul", [before.inputs[0], add_initializer(model, f"{norm.name}_scale", scale)], name=f"{norm.name}_mul"
            )
            added = ir.node(
                "Add",
                [multiplied.outputs[0], add_initializer(model, f"{norm.name}_shift", shift)],
                name=f"{norm.name}_add",
            )
            result, old = added.outputs[0], after.outputs[0]
            result.name, result.shape, result.type = old.name, old.shape, old.type
            ir.convenience.replace_nodes_and_values(model.graph, after, [after], [multiplied, added], [old], [result])
        fold(model)
        return len(norms)
