"""INT8 for TensorRT: explicit Q/DQ pairs in a clean fp32 graph, legal in opset 17.

Every pair is symmetric, S8, with zero point 0:

    q = clip(round(x / scale), -128, 127)    scale = amax / 127

Activations have one scale each, from a calibration table; weights one for each output channel, from their own largest
magnitude, and stay fp32 initializers in front of their pair.  Quantized are the inputs of Conv, ConvTranspose, Gemm and
MatMul, and the residual operand of an Add behind one of them.  Biases, softmax, normalizations and attention's mask
stay in floating point, and so does what has a dimension of 1 (see `exporters.qdq_regions` for where pairs may stand,
and `exporters.qdq_rules` for the rules that the result is held to).

Limits: LSTM, GRU and RNN have no INT8 in TensorRT; the bodies of loops and branches are not entered.  The file is no
smaller than the fp32 one: TensorRT quantizes the weights when it builds the engine.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from tsexport.calibration.datasets import Dataset
from tsexport.calibration.table import CalibrationTable, Observer, calibrate
from tsexport.errors import DataError
from tsexport.exporters.onnx_external import open_model
from tsexport.exporters.qdq_regions import (
    Regions,
    constant_of,
    find_regions,
    has_dimension_of_one,
    has_every_kernel,
    input_of,
    is_weighted,
    operands_of,
    residual_operand,
    shape_of,
    weight_axis,
)
from tsexport.exporters.qdq_rules import require_rules
from tsexport.quantize.onnx_candidate import write_candidate
from tsexport.quantize.recipe import Recipe
from tsexport.quantize.sources import Calibrate, NothingQuantizedError, Order
from tsexport.types import Array, Artifact

STEPS = 127
"""The largest magnitude in S8; -128 is left free, so that scales are the same on both sides."""
_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny) * 2**10
"""A scale must be above 0, and its reciprocal finite; what was always 0 in calibration gets this one."""


@dataclass(frozen=True)
class Read:
    """One input of a node that is to read a pair: `axis` for a weight with a scale a channel."""

    node: ir.Node
    index: int
    axis: int | None = None


@dataclass(frozen=True)
class Placement:
    """Which inputs get pairs.  Reads of the same activation share one pair, and so do reads of one weight and axis."""

    layers: tuple[ir.Node, ...]
    activations: Mapping[ir.Value, tuple[Read, ...]]
    weights: Mapping[tuple[ir.Value, int | None], tuple[Read, ...]]

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the activations, in the graph's order: what is calibrated."""
        return tuple(str(value.name) for value in self.activations)


def place_pairs(
    graph: ir.Graph,
    *,
    float_layers: Collection[str] = (),
    attention_products: bool = False,
    every_kernel: bool = True,
) -> Placement:
    """Return where pairs go in an fp32 graph whose shapes are inferred; nothing is changed.

    Args:
        graph: sorted.
        float_layers: names of nodes that stay in floating point.
        attention_products: quantize MatMuls of two activations too.
        every_kernel: False for GPUs before compute capability 8.0, which have no INT8 kernel for some layers.
    """
    regions = find_regions(graph)
    layers = tuple(_layers(graph, frozenset(float_layers), attention_products, every_kernel))
    activations: dict[ir.Value, list[Read]] = {}
    weights: dict[tuple[ir.Value, int | None], list[Read]] = {}
    for node in layers:
        operands = operands_of(node)
        assert operands is not None
        for index in operands.activations:
            activations.setdefault(_value(node, index), []).append(Read(node, index))
        if operands.weight is not None:
            weight = _value(node, operands.weight)
            axis = weight_axis(node, operands.weight, len(shape_of(weight) or ()))
            weights.setdefault((weight, axis), []).append(Read(node, operands.weight, axis))
    for read in _residuals(graph, frozenset(layers), regions, float_layers):
        activations.setdefault(_value(read.node, read.index), []).append(read)
    in_order = sorted(activations, key=lambda value: min(regions.order[read.node] for read in activations[value]))
    return Placement(
        layers,
        {value: tuple(activations[value]) for value in in_order},
        {key: tuple(reads) for key, reads in weights.items()},
    )


def _layers(graph: ir.Graph, names: frozenset[str], products: bool, every_kernel: bool) -> Iterator[ir.Node]:
    for node in graph:
        operands = operands_of(node)
        if operands is None or node.name in names or has_dimension_of_one(node):
            continue
        if (operands.weight is None and not products) or not (every_kernel or has_every_kernel(node)):
            continue
        if all(_is_float32(_value(node, index)) for index in (0, 1)):
            yield node


def _residuals(
    graph: ir.Graph, layers: frozenset[ir.Node], regions: Regions, float_layers: Collection[str]
) -> Iterator[Read]:
    for node in graph:
        index = None if node.name in float_layers else residual_operand(node, layers, regions)
        if index is not None:
            yield Read(node, index)


def _value(node: ir.Node, index: int) -> ir.Value:
    value = input_of(node, index)
    assert value is not None
    return value


def _is_float32(value: ir.Value) -> bool:
    tensor = value.const_value
    return (value.dtype if tensor is None else tensor.dtype) in (ir.DataType.FLOAT, None)


def activation_scale(table: CalibrationTable, tensor: str) -> Array:
    """Return the scale of an activation, fp32 without dimensions.

    Raises:
        DataError: the table has no range of it, or none that is finite.
    """
    amax = table.range_of(tensor).amax
    if not amax <= _LARGEST:  # NaN is neither
        raise DataError(
            f"calibration gives the tensor {tensor!r} the largest magnitude {amax}; it must be a finite fp32 number",
            next_step="Look for infinite or missing values in the calibration data.",
        )
    return np.array(max(amax / STEPS, _SMALLEST_SCALE), np.float32)


def weight_scale(weight: Array, axis: int | None) -> Array:
    """Return a weight's scale, fp32: without dimensions where `axis` is None, else one for each index of that axis."""
    others = None if axis is None else tuple(place for place in range(weight.ndim) if place != axis)
    amax = np.abs(weight).max(axis=others).astype(np.float64)
    scale: Array = np.maximum(amax / STEPS, _SMALLEST_SCALE).astype(np.float32)
    return scale


class _Pairs:
    """Adds Q/DQ pairs to a graph, under names that are not taken."""

    def __init__(self, graph: ir.Graph, order: Mapping[ir.Node, int]) -> None:
        self._graph = graph
        self._order = order
        self._taken = {value.name for node in graph for value in node.outputs}
        self._taken |= {value.name for value in graph.inputs} | set(graph.initializers)

    def add(self, value: ir.Value, reads: tuple[Read, ...], scale: Array, axis: int | None, name: str) -> None:
        """Put one pair between a value and the inputs that are to read it."""
        zero = np.zeros(scale.shape, np.int8)
        parts = [self._initializer(f"{name}_scale", scale), self._initializer(f"{name}_zero_point", zero)]
        attributes = {} if axis is None else {"axis": axis}
        quantize = ir.node("QuantizeLinear", [value, *parts], attributes, name=self._unique(f"{name}_quantize"))
        stored = quantize.outputs[0]
        stored.name = self._unique(f"{name}_quantized")
        dequantize = ir.node("DequantizeLinear", [stored, *parts], attributes, name=self._unique(f"{name}_dequantize"))
        dequantize.outputs[0].name = self._unique(f"{name}_dequantized")
        first = min(reads, key=lambda read: self._order[read.node]).node
        self._graph.insert_before(first, [quantize, dequantize])
        for read in reads:
            read.node.replace_input_with(read.index, dequantize.outputs[0])

    def _initializer(self, name: str, array: Array) -> ir.Value:
        unique = self._unique(name)
        tensor = ir.tensor(array, name=unique)
        value = ir.Value(name=unique, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.initializers.add(value)
        return value

    def _unique(self, name: str) -> str:
        found, number = name, 1
        while found in self._taken:
            found, number = f"{name}_{number}", number + 1
        self._taken.add(found)
        return found


def insert_pairs(graph: ir.Graph, placement: Placement, table: CalibrationTable) -> None:
    """Put the pairs of a placement into a graph, with the scales of a calibration table.

    Raises:
        DataError: the table has no usable range of an activation.
    """
    pairs = _Pairs(graph, {node: place for place, node in enumerate(graph)})
    for value, reads in placement.activations.items():
        name = str(value.name)
        pairs.add(value, reads, activation_scale(table, name), None, name)
    for (value, axis), reads in placement.weights.items():
        weight = constant_of(value)
        assert weight is not None
        name = str(value.name) if axis is None else f"{value.name}_axis{axis}"
        pairs.add(_as_initializer(graph, value), reads, weight_scale(weight, axis), axis, name)


def _as_initializer(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Return a weight as an initializer: that of a Constant node becomes one, under another name."""
    node = value.producer()
    if node is None:
        return value
    weight = constant_of(value)
    assert weight is not None
    name = f"{value.name}_weight"
    while name in graph.initializers:
        name += "_"
    tensor = ir.tensor(weight, name=name)
    made = ir.Value(name=name, shape=ir.Shape(weight.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.initializers.add(made)
    return made


def with_shapes(path: Path) -> ir.Model:
    """Return the model of an ONNX file with the shapes and types between its nodes inferred."""
    model: ir.Model = ir.from_proto(onnx.shape_inference.infer_shapes(open_model(path), data_prop=True))
    return model


def observed_tensors(graph: ir.Graph, attention_products: bool) -> tuple[str, ...]:
    """Return the activations that any choice of layers may quantize, so that one table serves every choice."""
    every = place_pairs(graph, attention_products=attention_products)
    added = {
        str(value.name)
        for reads in every.activations.values()
        for read in reads
        if read.node.op_type == "Add"
        for value in read.node.inputs
        if value is not None
    }
    return tuple(dict.fromkeys((*every.tensors, *sorted(added))))


def quantize_tensorrt(
    source: Path, recipe: Recipe, calibration: Dataset, calibrate: Calibrate = calibrate
) -> onnx.ModelProto:
    """Return an fp32 ONNX file quantized by a recipe of tool "tensorrt-qdq".

    Args:
        source: a clean opset-17 graph.
        recipe: its observer takes the ranges of activations; symmetric, whatever it says.
        calibration: windows named as the graph's inputs; read in a stream.
        calibrate: takes the ranges of activations.

    Raises:
        NothingQuantizedError: the graph has no layer that the recipe quantizes, or nothing beyond what the same recipe
            without attention's products does.
        ValueError: the recipe names a layer that the graph does not have.
        DataError: what `calibrate` raises.
    """
    model = with_shapes(source)
    unknown = sorted({*recipe.float_layers} - {str(node.name) for node in model.graph})
    if unknown:
        raise ValueError(f"float_layers names {unknown[0]!r}, and the graph has no such node")
    placement = place_pairs(
        model.graph,
        float_layers=recipe.float_layers,
        attention_products=recipe.attention_products,
        every_kernel=recipe.every_kernel,
    )
    if not placement.layers:
        raise NothingQuantizedError(
            "the graph has no Conv, ConvTranspose, Gemm or MatMul that TensorRT computes in INT8: one with constant "
            "weights, no dimension of 1, and not among the layers that stay in floating point"
        )
    if recipe.attention_products and all(is_weighted(node) for node in placement.layers):
        raise NothingQuantizedError("the graph has no product of two activations, which this recipe is for")
    taken = recipe.observer or Observer()
    observer = Observer(taken.method, taken.percentile, symmetric=True)
    tensors = observed_tensors(model.graph, recipe.attention_products)
    insert_pairs(model.graph, placement, calibrate(source, calibration, tensors, observer))
    quantized = ir.to_proto(model)
    del quantized.graph.value_info[:]  # runtimes infer them
    return quantized


def build(order: Order, folder: Path) -> Artifact:
    """Write the artifact of a recipe of tool "tensorrt-qdq".

    Raises:
        ExportError: the result breaks a rule of TensorRT (a fault of this module), or is no valid model.
    """
    recipe = order.recipe
    model = quantize_tensorrt(order.source.path, recipe, order.calibration, order.calibrate)
    require_rules(model, float_layers=recipe.float_layers, every_kernel=recipe.every_kernel)
    done = f"tensorrt-qdq with onnx-ir {version('onnx-ir')}: {recipe.summary}"
    return write_candidate(order, model, folder, done)
