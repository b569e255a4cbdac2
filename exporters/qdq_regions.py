"""Where a graph may carry Q/DQ pairs for TensorRT: the layers, what is added to them, and what stays in floating point.

Read by the quantizer that places the pairs and by the rules that check them.  Every function looks through a Q/DQ pair,
so that it answers the same before and after quantization.

Sources: NVIDIA's TensorRT developer guide ("Working with Quantized Types": placement of Q/DQ, INT8 limitations of
SM 7.5 and earlier) and the placement in nvidia-modelopt 0.47 (`onnx/quantization/graph_utils.py`), read, not copied.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from tsexport.types import Array

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
PRODUCTS = frozenset({"MatMul", "Gemm"})
LAYERS = CONVOLUTIONS | PRODUCTS
"""The operators whose inputs are quantized."""
SOFTMAX = frozenset({"Softmax", "LogSoftmax"})
NORMALIZATIONS = frozenset({"LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization"})

_TO_SOFTMAX = frozenset(
    {
        "Add", "Sub", "Mul", "Div", "Where", "Clip", "Max", "Min", "Neg", "Cast", "Identity", "Reshape", "Transpose",
        "Squeeze", "Unsqueeze", "Expand",
    }
)  # fmt: skip
"""What may stand between the scores of attention and their softmax: scaling, masking, other shapes."""
_BIAS_LIKE = frozenset({"Add", "Mul"})


def constant_of(value: ir.Value | None) -> Array | None:
    """Return the array of an initializer or of a Constant node, else None."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """Return whether a value is an initializer or comes from a Constant node; nothing is read."""
    return value is not None and not value.is_graph_input() and ir.convenience.get_const_tensor(value) is not None


def is_operator(node: ir.Node | None, *names: str) -> bool:
    """Return whether a node is one of ONNX's own operators of these names."""
    return node is not None and node.domain in ("", "ai.onnx") and node.op_type in names


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """Return an input, None where the node has none there."""
    return node.inputs[index] if index < len(node.inputs) else None


def before_pair(value: ir.Value | None) -> ir.Value | None:
    """Return the value that a Q/DQ pair was given, or the value itself where it comes from no pair."""
    dequantize = None if value is None else value.producer()
    if dequantize is None or not is_operator(dequantize, "DequantizeLinear"):
        return value
    stored = input_of(dequantize, 0)
    quantize = None if stored is None else stored.producer()
    if quantize is not None and is_operator(quantize, "QuantizeLinear"):
        return input_of(quantize, 0)
    return stored


def consumers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Yield (node, input index) of what reads a value, through Q/DQ pairs."""
    for use in value.uses():
        if is_operator(use.node, "QuantizeLinear", "DequantizeLinear") and use.idx == 0:
            yield from consumers(use.node.outputs[0])
        else:
            yield use.node, use.idx


def shape_of(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """Return a value's shape with None for what is not known, or None where not even the rank is."""
    if value is None:
        return None
    if value.shape is None:
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None else tuple(size if isinstance(size, int) else None for size in tensor.shape)
    return tuple(size if isinstance(size, int) else None for size in value.shape)


@dataclass(frozen=True)
class Operands:
    """Which inputs of a layer are activations, and which its constant weight (None: a product of activations)."""

    activations: tuple[int, ...]
    weight: int | None


def operands_of(node: ir.Node) -> Operands | None:
    """Return the operands of a layer; None for other nodes, and for a layer of constants alone or of a computed
    convolution weight."""
    if not is_operator(node, *LAYERS):
        return None
    places = (0, 1)
    constants = tuple(index for index in places if is_constant(before_pair(input_of(node, index))))
    if len(constants) == 2 or (node.op_type in CONVOLUTIONS and constants != (1,)):
        return None
    activations = tuple(index for index in places if index not in constants)
    return Operands(activations, constants[0] if constants else None)


def is_weighted(node: ir.Node) -> bool:
    """Return whether a node is a layer with a constant weight."""
    operands = operands_of(node)
    return operands is not None and operands.weight is not None


def weight_axis(node: ir.Node, index: int, rank: int) -> int | None:
    """Return the axis of output channels along which a layer's weight has scales; None for one scale.

    Conv [M, C/group, ...]: 0.  ConvTranspose [C, M/group, ...]: 1; None with groups, whose channels axis 1 does not
    tell apart.  Gemm and MatMul [K, N]: 1, Gemm with transB: 0.  A constant on the left or of three and more
    dimensions has one scale, since its output channels are no axis of a two-dimensional weight.
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if node.attributes.get_int("group", 1) == 1 else None
    if index != 1 or rank != 2:
        return None
    return 0 if node.op_type == "Gemm" and _flag(node, "transB") else 1


def _flag(node: ir.Node, name: str) -> bool:
    return node.attributes.get_int(name, 0) == 1


def has_dimension_of_one(node: ir.Node) -> bool:
    """Return whether a MatMul or Gemm has a rows, columns or inner dimension of exactly 1: a matrix by a vector.

    What is not known, or grows with the batch, counts as more.
    """
    if not is_operator(node, *PRODUCTS):
        return False
    left, right = (shape_of(before_pair(input_of(node, index))) for index in (0, 1))
    turned = [node.op_type == "Gemm" and _flag(node, name) for name in ("transA", "transB")]
    sizes: list[int | None] = []
    for shape, transposed in zip((left, right), turned, strict=True):
        if shape is None:
            continue
        if len(shape) < 2:
            return True
        sizes += list(reversed(shape[-2:]) if transposed else shape[-2:])
    # what is stacked in front of a matrix times a weight are rows too
    rows_in_front = left is not None and right is not None and len(right) == 2 and any(s != 1 for s in left[:-2])
    return 1 in (sizes[1:] if rows_in_front else sizes)


def has_every_kernel(node: ir.Node) -> bool:
    """Return whether GPUs before compute capability 8.0 (T4, Xavier) have an INT8 kernel for this layer for certain.

    NVIDIA says that INT8 may not be available for all layers there, without a list.  Taken as uncertain are
    transposed convolutions, those in groups, those of three spatial dimensions, and products of two activations.
    """
    if node.op_type == "ConvTranspose":
        return False
    if node.op_type == "Conv":
        weight = shape_of(before_pair(input_of(node, 1)))
        return node.attributes.get_int("group", 1) == 1 and (weight is None or len(weight) <= 4)
    return is_weighted(node)


def score_nodes(graph: ir.Graph) -> frozenset[ir.Node]:
    """Return the nodes that scale, mask or reshape what a softmax is given: they lie between a product and the softmax,
    or make the mask."""
    found: set[ir.Node] = set()
    waiting = [node for node in graph if is_operator(node, *SOFTMAX)]
    while waiting:
        node = waiting.pop()
        data = node.inputs if is_operator(node, "Add", "Sub", "Mul", "Div", "Where", "Max", "Min") else node.inputs[:1]
        for value in data:
            before = _producer(value)
            if before is not None and is_operator(before, *_TO_SOFTMAX) and before not in found:
                found.add(before)
                waiting.append(before)
    return frozenset(found)


def _squared(node: ir.Node | None) -> ir.Value | None:
    """Return x where a node computes x * x or x to the power of 2, else None."""
    if node is None:
        return None
    first, second = before_pair(input_of(node, 0)), before_pair(input_of(node, 1))
    if is_operator(node, "Mul") and first is second:
        return first
    power = constant_of(second) if is_operator(node, "Pow") else None
    return first if power is not None and power.size == 1 and float(power.reshape(())) == 2.0 else None


def _producer(value: ir.Value | None) -> ir.Node | None:
    found = before_pair(value)
    return None if found is None else found.producer()


def decomposed_normalizations(graph: ir.Graph) -> frozenset[ir.Node]:
    """Return the nodes of LayerNormalization and RMS normalization that are written out.

    What all spellings share is sqrt(mean(x * x) + epsilon), or a power of 0.5 or -0.5 of it; from there the centring
    before it and the division behind it are found.
    """
    found: set[ir.Node] = set()
    for root in graph:
        mean = _mean_square(root)
        if mean is None:
            continue
        added, average, square, centred = mean
        found |= {root, average, square} | ({added} if added is not None else set())
        found |= _centring(centred)
        for reader, _ in consumers(root.outputs[0]):
            if is_operator(reader, "Div", "Mul", "Reciprocal"):
                found.add(reader)
                if reader.op_type == "Reciprocal" or (
                    reader.op_type == "Div" and is_constant(before_pair(input_of(reader, 0)))
                ):
                    found |= {last for last, _ in consumers(reader.outputs[0]) if is_operator(last, "Mul")}
    return frozenset(found)


def _mean_square(root: ir.Node) -> tuple[ir.Node | None, ir.Node, ir.Node, ir.Value] | None:
    """Return (epsilon's Add, ReduceMean, square, what is squared) behind a square root, else None."""
    if is_operator(root, "Pow"):
        power = constant_of(input_of(root, 1))
        if power is None or power.size != 1 or abs(float(power.reshape(()))) != 0.5:
            return None
    elif not is_operator(root, "Sqrt"):
        return None
    node, added = _producer(input_of(root, 0)), None
    if node is not None and is_operator(node, "Add"):
        added = node
        sides = [_producer(input_of(node, index)) for index in (0, 1)]
        node = next((side for side in sides if side is not None and is_operator(side, "ReduceMean")), None)
    if node is None or not is_operator(node, "ReduceMean"):
        return None
    square = _producer(input_of(node, 0))
    centred = _squared(square)
    return None if square is None or centred is None else (added, node, square, centred)


def _centring(centred: ir.Value) -> set[ir.Node]:
    """Return the Sub and the ReduceMean that take the mean away, where there is a mean to take away."""
    subtract = centred.producer()
    if subtract is None or not is_operator(subtract, "Sub"):
        return set()
    mean = _producer(input_of(subtract, 1))
    return {subtract, mean} if mean is not None and is_operator(mean, "ReduceMean") else set()


def layer_behind(value: ir.Value | None) -> ir.Node | None:
    """Return the layer that gives a value, with nothing behind it but constants added or multiplied; else None."""
    node = _producer(value)
    while node is not None and is_operator(node, *_BIAS_LIKE, "BatchNormalization"):
        if node.op_type == "BatchNormalization":
            node = _producer(input_of(node, 0))
            continue
        others = [side for side in (before_pair(input_of(node, i)) for i in (0, 1)) if not is_constant(side)]
        if len(others) != 1:
            return None
        node = _producer(others[0])
    return node if node is not None and is_operator(node, *LAYERS) else None


@dataclass(frozen=True)
class Regions:
    """What of a graph decides where pairs may stand; the same before and after quantization.

    `order` are places of nodes in the graph, `scores` those between a product and its softmax, `normalizations` those
    of a normalization that is written out.
    """

    order: Mapping[ir.Node, int]
    scores: frozenset[ir.Node]
    normalizations: frozenset[ir.Node]


def find_regions(graph: ir.Graph) -> Regions:
    """Return the regions of a sorted graph."""
    order = {node: place for place, node in enumerate(graph)}
    return Regions(order, score_nodes(graph), decomposed_normalizations(graph))


def residual_operand(node: ir.Node, quantized: Collection[ir.Node], regions: Regions) -> int | None:
    """Return which operand of an Add is the residual one: added to what a quantized layer gives; None if there is none.

    Where both operands come from quantized layers, the residual one is that of the earlier layer: TensorRT adds it
    within the later one.

    Args:
        node: any node.
        quantized: the layers that compute in INT8.
        regions: of the graph.
    """
    if not is_operator(node, "Add") or node in regions.scores or node in regions.normalizations:
        return None
    sides = [before_pair(input_of(node, index)) for index in (0, 1)]
    if any(side is None or is_constant(side) for side in sides) or sides[0] is sides[1]:
        return None
    if not _same_shape(shape_of(sides[0]), shape_of(sides[1])):
        return None
    layers = [layer_behind(side) for side in sides]
    places = [regions.order[layer] if layer is not None and layer in quantized else -1 for layer in layers]
    if places[0] == places[1]:
        return None
    return 0 if places[0] < places[1] else 1


def _same_shape(one: tuple[int | None, ...] | None, other: tuple[int | None, ...] | None) -> bool:
    """Return whether two shapes may be the same: a broadcast operand is no residual."""
    if one is None or other is None:
        return True
    return len(one) == len(other) and all(a is None or b is None or a == b for a, b in zip(one, other, strict=True))
