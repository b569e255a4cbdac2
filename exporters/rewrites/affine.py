"""Graph rewrite: a model that is one affine map of the past, the same for every channel, becomes one product.

y[:, :, c] = W x[:, :, c] + b for x [batch, past, channels] and y [batch, future, channels], whatever the graph does to
get there: dlinear takes a padded moving average out of the series, maps both parts and adds them, all of which is
linear, so W = W_remainder (I - A) + W_trend A with A the moving average.  W is read off the graph's answers to unit
impulses, b off its answer to zeros.

Limits: every operator is affine in the input whatever its values (`_is_affine`), one input and one output of three
dimensions, W no larger than the constants it replaces, and the map checked on the probes before anything is changed,
since a map that mixes channels answers impulses on all channels alike.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from tsexport.exporters.rewrites.cleaning import add_initializer, count_nodes, fold
from tsexport.exporters.rewrites.proofs import REWRITE_TOLERANCE, answer, worst_difference
from tsexport.types import Array, Feeds

NODES = 4
"""Transpose, MatMul, Add, Transpose: what the map becomes."""
IMPULSES = 64
"""Impulses answered at once: as many copies of the series are in memory."""
ALIKE = 1e-5
"""How far channels may differ, in units of the largest value: one sum in another order."""

_OF_ALL_OPERANDS = frozenset({"Add", "Sub", "Concat"})
_OF_ONE_OPERAND = frozenset({"Mul", "MatMul"})
_OF_THE_FIRST_OPERAND = frozenset(
    {
        "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Gather", "Split", "Expand",
        "Pad", "AveragePool", "ReduceMean", "ReduceSum", "Conv", "Div", "Neg",
    }
)  # fmt: skip


class AffineAsProduct:
    """One product with a constant matrix for a whole graph that is affine along time."""

    name = "affine-as-product"
    speed = True

    def requires(self, model: ir.Model) -> bool:
        graph = model.graph
        if len(graph.inputs) != 1 or len(graph.outputs) != 1 or count_nodes(model) <= NODES:
            return False
        past, future = _steps_and_channels(graph.inputs[0]), _steps_and_channels(graph.outputs[0])
        if past is None or future is None or past[1] != future[1]:
            return False
        stored = sum(one.const_value.size for one in graph.initializers.values() if one.const_value is not None)
        return past[0] * future[0] <= stored and _is_affine(model)

    def call(self, model: ir.Model, probes: Sequence[Feeds]) -> int:
        found = _affine_map(model)
        if found is None:
            return 0
        weight, bias = found
        graph = model.graph
        series, forecast = graph.inputs[0], graph.outputs[0]
        expected = [answer(ir.to_proto(model), feeds) for feeds in probes]
        computed = [{str(forecast.name): _apply(weight, bias, feeds[str(series.name)])} for feeds in probes]
        if worst_difference(expected, computed, REWRITE_TOLERANCE)[1]:
            return 0
        before = list(graph)
        turned = ir.node("Transpose", [series], {"perm": [0, 2, 1]}, name="affine_past")
        stored_weight = add_initializer(model, "affine_weight", np.ascontiguousarray(weight.T))
        product = ir.node("MatMul", [turned.outputs[0], stored_weight], name="affine_product")
        added = ir.node("Add", [product.outputs[0], add_initializer(model, "affine_bias", bias)], name="affine_sum")
        result = ir.node("Transpose", [added.outputs[0]], {"perm": [0, 2, 1]}, name="affine_future")
        for node in (turned, product, added):
            node.outputs[0].name = f"{node.name}_value"
        made = result.outputs[0]
        made.name, made.shape, made.type = forecast.name, forecast.shape, forecast.type
        graph.extend([turned, product, added, result])
        graph.outputs[0] = made
        forecast.name = "affine_replaced"
        graph.remove(before, safe=True)
        fold(model)
        return len(before)


def _steps_and_channels(value: ir.Value) -> tuple[int, int] | None:
    """Return (steps, channels) of a value [batch, steps, channels] of float32; None for any other."""
    if value.shape is None or len(value.shape) != 3 or value.dtype != ir.DataType.FLOAT:
        return None
    _, steps, channels = value.shape
    return (steps, channels) if isinstance(steps, int) and isinstance(channels, int) else None


def _is_affine(model: ir.Model) -> bool:
    """Return whether every operator is affine in the graph's input, for all of its values."""
    data = set(model.graph.inputs)
    for node in model.graph:
        places = [index for index, value in enumerate(node.inputs) if value in data]
        if not places:
            return False  # not folded into a constant: made at random, or from shapes
        fits = node.domain == "" and (
            node.op_type in _OF_ALL_OPERANDS
            or (node.op_type in _OF_ONE_OPERAND and len(places) == 1)
            or (node.op_type in _OF_THE_FIRST_OPERAND and places == [0])
        )
        if not fits:
            return False
        data.update(node.outputs)
    return True


def _affine_map(model: ir.Model) -> tuple[Array, Array] | None:
    """Return (W [future, past], b [future]) of float32; None where they differ from channel to channel."""
    series, forecast = model.graph.inputs[0], model.graph.outputs[0]
    sizes = _steps_and_channels(series)
    assert sizes is not None
    steps, channels = sizes
    proto = ir.to_proto(model)

    def responses() -> Iterator[Array]:
        for first in range(0, steps, IMPULSES):
            impulses = np.eye(steps, dtype=np.float32)[first : first + IMPULSES, :, None].repeat(channels, axis=2)
            yield answer(proto, {str(series.name): impulses})[str(forecast.name)]

    rest = answer(proto, {str(series.name): np.zeros((1, steps, channels), np.float32)})[str(forecast.name)][0]
    moved = np.concatenate(list(responses())).astype(np.float64) - rest  # [past, future, channels]
    alike = [np.abs(values - values[..., :1]).max() <= ALIKE * np.abs(values).max() for values in (moved, rest)]
    return (moved[..., 0].T.astype(np.float32), rest[:, 0]) if all(alike) else None


def _apply(weight: Array, bias: Array, series: Array) -> Array:
    product: Array = np.einsum("ft,btc->bfc", weight, series) + bias[:, None]
    return product
