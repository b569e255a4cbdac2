"""TensorRT's rules for explicit Q/DQ, each a check of its own that needs neither TensorRT nor a device.

What is broken is either refused by TensorRT's parser or its builder, computed otherwise than ONNX says, or left without
an INT8 kernel.  `RULES` lists them in the order in which they are reported.

Sources: the importer of onnx-tensorrt from 8.0 to 10.10 (what the parser rejects, and what it reads otherwise: UINT8
run as INT8 up to 8.4, a zero point that must be there up to 8.6, axis 0 where none is written), and NVIDIA's TensorRT
developer guide on the placement of Q/DQ.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from tsexport.errors import ExportError
from tsexport.exporters.qdq_pairs import (
    Checked,
    Finding,
    axis_of,
    check_activations,
    check_axis_written,
    check_domain,
    check_lengths,
    check_opset,
    check_pairing,
    check_scale_constant,
    check_scale_positive,
    check_scale_type,
    check_types,
    check_zero_point_there,
    check_zero_point_zero,
    from_pair,
    is_per_channel,
    name_of,
    type_of,
)
from tsexport.exporters.qdq_regions import (
    CONVOLUTIONS,
    LAYERS,
    NORMALIZATIONS,
    SOFTMAX,
    before_pair,
    consumers,
    has_dimension_of_one,
    has_every_kernel,
    input_of,
    is_constant,
    is_operator,
    operands_of,
    residual_operand,
    shape_of,
    weight_axis,
)

_NAMED = 3
"""Violations that an error spells out; the others are counted."""


@dataclass(frozen=True)
class Violation:
    """One place where a graph breaks a rule.

    `node` is the node's name, or its operator and output where it has none; `allowed` is what the rule asks for.
    """

    rule: str
    node: str
    found: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.rule}: node {self.node!r} {self.found}; allowed is {self.allowed}"


@dataclass(frozen=True)
class Rule:
    """`allowed` is what the rule asks for; `check` yields each place where it is broken."""

    name: str
    allowed: str
    check: Callable[[Checked], Iterator[Finding]]


def _weight_axes(checked: Checked) -> Iterator[Finding]:
    for node in checked.dequantizes:
        axis = axis_of(node)
        if not is_per_channel(node) or axis is None or not is_constant(before_pair(node.outputs[0])):
            continue
        rank = len(shape_of(before_pair(node.outputs[0])) or ())
        for reader, index in checked.readers(node):
            if not is_operator(reader, *LAYERS) or index > 1:
                continue
            wanted = weight_axis(reader, index, rank)
            if -rank <= axis < rank and axis % rank != wanted:
                wants = "one scale for the whole weight" if wanted is None else f"axis {wanted}"
                yield node, f"has axis {axis} for {reader.op_type} {name_of(reader)!r}, which takes {wants}"


def _weights_through_both(checked: Checked) -> Iterator[Finding]:
    for node in checked.dequantizes:
        if is_constant(input_of(node, 0)):
            yield node, "takes a weight that is stored as integers"
    for node in checked.quantizes:
        kind = type_of(input_of(node, 0))
        if is_constant(input_of(node, 0)) and kind not in (ir.DataType.FLOAT, None):
            yield node, f"takes a weight of type {kind.name}"


def _float_bias(checked: Checked) -> Iterator[Finding]:
    for node in checked.dequantizes:
        constant = is_constant(before_pair(node.outputs[0]))
        for reader, index in checked.readers(node):
            if is_operator(reader, "Conv", "ConvTranspose", "Gemm") and index == 2:
                yield node, f"gives the bias of {name_of(reader)!r}"
            elif constant and is_operator(reader, "Add"):
                yield node, f"gives the constant that {name_of(reader)!r} adds"


def _float_softmax(checked: Checked) -> Iterator[Finding]:
    for node in checked.dequantizes:
        for reader, _ in checked.readers(node):
            if is_operator(reader, *SOFTMAX):
                yield node, f"gives the input of {reader.op_type} {name_of(reader)!r}"


def _float_normalization(checked: Checked) -> Iterator[Finding]:
    for node in checked.dequantizes:
        for reader, _ in checked.readers(node):
            if is_operator(reader, *NORMALIZATIONS) or reader in checked.regions.normalizations:
                yield node, f"gives an input of {reader.op_type} {name_of(reader)!r}, part of a normalization"


def _float_scores(checked: Checked) -> Iterator[Finding]:
    for node in checked.dequantizes:
        for reader, _ in checked.readers(node):
            if reader in checked.regions.scores:
                yield node, f"gives an input of {reader.op_type} {name_of(reader)!r}, between a product and its softmax"


def _every_operand(checked: Checked) -> Iterator[Finding]:
    for node in checked.regions.order:
        if node not in checked.quantized_layers:
            continue
        for index in (0, 1):
            value = input_of(node, index)
            if not from_pair(value):
                yield node, f"has a quantized operand, and {value.name if value else 'none'!r} without a pair"


def _inputs_not_outputs(checked: Checked) -> Iterator[Finding]:
    for node in checked.quantizes:
        value = input_of(node, 0)
        layer = None if value is None else value.producer()
        if layer is None or not is_operator(layer, *LAYERS):
            continue
        readers = list(consumers(node.outputs[0]))
        if not any(_takes_int8(reader) for reader, _ in readers):
            yield node, f"quantizes the output of {layer.op_type} {name_of(layer)!r}, which no quantized layer reads"


def _takes_int8(node: ir.Node) -> bool:
    """Return whether a pair in front of a node quantizes its input: a layer, or an Add of two activations."""
    if is_operator(node, *LAYERS):
        return True
    sides = [before_pair(input_of(node, index)) for index in (0, 1)]
    return is_operator(node, "Add", "Concat", "MaxPool", "AveragePool", "Reshape", "Transpose") and not (
        node.op_type == "Add" and any(is_constant(side) for side in sides)
    )


def _residuals(checked: Checked) -> Iterator[Finding]:
    for node in checked.graph:
        if node.name and node.name in checked.float_layers:
            continue
        index = residual_operand(node, checked.quantized_layers, checked.regions)
        if index is not None and not from_pair(input_of(node, index)):
            value = input_of(node, index)
            yield node, f"adds {value.name if value else ''!r} to what a quantized layer gives, without a pair"


def _no_vectors(checked: Checked) -> Iterator[Finding]:
    for node in checked.regions.order:
        if node in checked.quantized_layers and has_dimension_of_one(node):
            shapes = [shape_of(before_pair(input_of(node, index))) for index in (0, 1)]
            told = " by ".join("?" if one is None else str([size or "?" for size in one]) for one in shapes)
            yield node, f"is quantized and multiplies {told}"


def _kernels(checked: Checked) -> Iterator[Finding]:
    for node in checked.regions.order:
        if not checked.every_kernel and node in checked.quantized_layers and not has_every_kernel(node):
            what = "a transposed convolution" if node.op_type == "ConvTranspose" else "a convolution of this kind"
            what = what if node.op_type in CONVOLUTIONS else "a product of two activations"
            yield node, f"is quantized, {what}"


def _float_layers(checked: Checked) -> Iterator[Finding]:
    for node in checked.regions.order:
        if node in checked.quantized_layers and node.name and node.name in checked.float_layers:
            yield node, "is quantized, and was to stay in floating point"


def _weight_is_constant(checked: Checked) -> Iterator[Finding]:
    for node in checked.regions.order:
        if is_operator(node, *CONVOLUTIONS) and node in checked.quantized_layers and operands_of(node) is None:
            yield node, "is quantized and computes its weight"


RULES = (
    Rule("own-operators", "QuantizeLinear and DequantizeLinear of ONNX's own domain", check_domain),
    Rule("opset", "13 to 18, where scales are fp32", check_opset),
    Rule("symmetric-s8", "INT8, of data and zero points", check_types),
    Rule("zero-point-there", "a zero point as third input", check_zero_point_there),
    Rule("zero-point-zero", "a constant zero point of zeros", check_zero_point_zero),
    Rule("scale-fp32", "a scale of type FLOAT", check_scale_type),
    Rule("scale-constant", "a constant scale", check_scale_constant),
    Rule("scale-positive", "a finite scale above 0", check_scale_positive),
    Rule("lengths", "as many scales as zero points and as indices of the axis", check_lengths),
    Rule("axis-written", "the axis written: TensorRT takes 0 where ONNX takes 1", check_axis_written),
    Rule("activations-per-tensor", "one scale for an activation", check_activations),
    Rule("weight-axis", "0 for Conv and Gemm with transB, 1 for ConvTranspose, Gemm and MatMul", _weight_axes),
    Rule("weights-through-both", "an fp32 weight through QuantizeLinear and DequantizeLinear", _weights_through_both),
    Rule("weight-constant", "a constant weight of a quantized convolution", _weight_is_constant),
    Rule("in-pairs", "QuantizeLinear and DequantizeLinear in pairs of one scale, zero point and axis", check_pairing),
    Rule("every-operand", "a pair in front of every operand of a quantized layer", _every_operand),
    Rule("inputs-not-outputs", "pairs in front of layers, not behind them", _inputs_not_outputs),
    Rule("residual", "a pair in front of the residual operand", _residuals),
    Rule("float-bias", "a bias without a pair", _float_bias),
    Rule("float-softmax", "softmax in floating point", _float_softmax),
    Rule("float-normalization", "normalizations in floating point", _float_normalization),
    Rule("float-scores", "scaling and masking of attention's scores in floating point", _float_scores),
    Rule("no-vectors", "a MatMul or Gemm with a dimension of 1 in floating point", _no_vectors),
    Rule("kernels", "layers that GPUs before compute capability 8.0 have INT8 kernels for", _kernels),
    Rule("float-layers", "the named layers in floating point", _float_layers),
)
"""Every rule.  `kernels` asks for nothing where all kernels are there, `float-layers` where none are named."""


def check_rules(
    model: onnx.ModelProto, *, float_layers: Collection[str] = (), every_kernel: bool = True
) -> tuple[Violation, ...]:
    """Return every place where a model's Q/DQ pairs break a rule, rule by rule; () for a model without pairs.

    Args:
        model: a checked ONNX model, sorted.
        float_layers: names of nodes that were to stay in floating point.
        every_kernel: False for GPUs before compute capability 8.0.
    """
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True)).graph
    return check_graph_rules(graph, float_layers=float_layers, every_kernel=every_kernel)


def check_graph_rules(
    graph: ir.Graph, *, float_layers: Collection[str] = (), every_kernel: bool = True
) -> tuple[Violation, ...]:
    """Return what `check_rules` does, for a graph whose shapes are inferred."""
    checked = Checked(graph, frozenset(float_layers), every_kernel)
    if not checked.both:
        return ()
    found = ((rule, node, what) for rule in RULES for node, what in rule.check(checked))
    return tuple(Violation(rule.name, name_of(node), what, rule.allowed) for rule, node, what in found)


def require_rules(model: onnx.ModelProto, *, float_layers: Collection[str] = (), every_kernel: bool = True) -> None:
    """Check a model's Q/DQ pairs (see `check_rules`).

    Raises:
        ExportError: names the first violations and counts the others.
    """
    violations = check_rules(model, float_layers=float_layers, every_kernel=every_kernel)
    if not violations:
        return
    more = f" (and {len(violations) - _NAMED} more)" if len(violations) > _NAMED else ""
    raise ExportError(
        f"the Q/DQ pairs break TensorRT's rules: {'; '.join(map(str, violations[:_NAMED]))}{more}",
        next_step="Leave the named layers in floating point, or report it.",
    )
