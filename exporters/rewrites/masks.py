"""Graph rewrite: a mask of attention as something that is added, computed once for all layers.

    softmax(where(m, scores, -inf)) = softmax(scores + where(m, 0, -inf))

The right-hand Where depends on the mask alone: layers that share a mask share it, a constant mask becomes one constant,
and each layer is left with an addition, which runtimes have faster kernels for than for a broadcast Where.

Limits: the scores go into a Softmax over the last axis and nowhere else; the value put in is a constant scalar of -10^4
or less, where what is added to it no longer matters after the Softmax.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from tsexport.exporters.rewrites.cleaning import add_initializer, constant, fold
from tsexport.exporters.rewrites.linears import only_user
from tsexport.types import Feeds

LEAST = -1e4


def _masked(node: ir.Node) -> tuple[int, float] | None:
    """Return (which input holds the scores, the value put in) for a Where that masks attention."""
    if node.op_type != "Where":
        return None
    softmax = only_user(node.outputs[0])
    if softmax is None or softmax.op_type != "Softmax" or softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return None
    for scores, value in ((1, 2), (2, 1)):
        filled = constant(node.inputs[value])
        if filled is not None and filled.size == 1 and filled.dtype == np.float32 and filled.item() <= LEAST:
            return scores, float(filled.item())
    return None


class MaskAsAddition:
    """Add masks to the scores of attention, and compute each once."""

    name = "mask-as-addition"
    speed = True

    def requires(self, model: ir.Model) -> bool:
        return any(_masked(node) for node in model.graph)

    def call(self, model: ir.Model, probes: Sequence[Feeds]) -> int:
        masks: dict[tuple[int, int, float], ir.Value] = {}
        changes = 0
        for node in list(model.graph):
            found = _masked(node)
            if found is None:
                continue
            place, filled = found
            key = (id(node.inputs[0]), place, filled)
            if key not in masks:
                name = f"{node.name}_mask"
                zero = add_initializer(model, f"{name}_zero", np.zeros((), np.float32))
                fill = add_initializer(model, f"{name}_fill", np.array(filled, np.float32))
                made = ir.node("Where", [node.inputs[0], *((zero, fill) if place == 1 else (fill, zero))], name=name)
                model.graph.insert_before(node, made)
                masks[key] = made.outputs[0]
            added = ir.node("Add", [node.inputs[place], masks[key]], name=f"{node.name}_added")
            model.graph.insert_before(node, added)
            node.outputs[0].replace_all_uses_with(added.outputs[0])
            model.graph.remove(node, safe=True)
            changes += 1
        fold(model)
        return changes
