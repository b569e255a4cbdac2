"""Bring what torch's exporter writes of a converted PT2E module into the Q/DQ form that runtimes know.

The exporter leaves weights in fp32 with QuantizeLinear, Clip and DequantizeLinear behind them, multiplies by them
through a Transpose or a Gemm, and clips what cannot leave the range of its type.  Runtimes find an integer product only
where DequantizeLinear stands directly before MatMul or Conv, so here

- a constant behind QuantizeLinear becomes an integer initializer,
- a Transpose of such a weight is done once, now, and the axis of its scales with it,
- Gemm becomes MatMul and Add,
- a Clip to the whole range of its type goes.

No value changes.  Limits: weights of two dimensions are transposed; Gemm with alpha and beta of 1, without transA.
"""

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from tsexport.exporters.rewrites.cleaning import add_initializer, constant
from tsexport.types import Array


def _attribute(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else default


def quantize_array(values: Array, scale: Array, zero: Array, axis: int) -> Array:
    """Return what QuantizeLinear makes of constant values: round to even, clipped to the type of `zero`.

    Args:
        values: fp32, any shape.
        scale: one number, or one for each index of `axis`.
        zero: of the integer type, shaped as `scale`.
        axis: of the scales, where there are several.
    """
    shape = [1] * values.ndim
    if scale.ndim:
        shape[axis] = -1
    limits = np.iinfo(zero.dtype)
    rounded = np.rint(values / scale.reshape(shape)) + zero.reshape(shape).astype(np.float32)
    quantized: Array = np.clip(rounded, limits.min, limits.max).astype(zero.dtype)
    return quantized


def _drop_clips(model: ir.Model) -> None:
    for node in list(model.graph):
        if node.op_type != "Clip":
            continue
        bounds = [constant(value) for value in node.inputs[1:]]
        if len(bounds) != 2 or any(bound is None or bound.dtype.kind not in "iu" for bound in bounds):
            continue
        low, high = (int(bound.reshape(())) for bound in bounds if bound is not None)
        limits = np.iinfo(bounds[0].dtype)  # type: ignore[union-attr]  # looked at above
        if (low, high) == (limits.min, limits.max) and node.inputs[0] is not None:
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            model.graph.remove(node, safe=True)


def _store_weights(model: ir.Model) -> int:
    """Make integer initializers of quantized constants; return how many."""
    stored = 0
    for node in list(model.graph):
        if node.op_type != "QuantizeLinear":
            continue
        values, scale, zero = (constant(value) for value in node.inputs)
        if values is None or scale is None or zero is None:
            continue
        array = quantize_array(values, scale, zero, _attribute(node, "axis", 1))
        integer = add_initializer(model, f"{node.inputs[0].name}_quantized", array)  # type: ignore[union-attr]
        node.outputs[0].replace_all_uses_with(integer)
        model.graph.remove(node, safe=True)
        stored += 1
    return stored


def _dequantized_weight(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear of a two-dimensional constant that a value is, or None."""
    node = value.producer() if value is not None else None
    weight = constant(node.inputs[0]) if node is not None and node.op_type == "DequantizeLinear" else None
    return node if weight is not None and weight.ndim == 2 else None


def _transposed(model: ir.Model, dequantize: ir.Node) -> ir.Value:
    """Return the transpose of a dequantized weight, stored transposed."""
    weight = constant(dequantize.inputs[0])
    assert weight is not None
    name = f"{dequantize.inputs[0].name}_transposed"  # type: ignore[union-attr]  # a constant has a name
    stored = add_initializer(model, name, np.ascontiguousarray(weight.T))
    node = ir.node(
        "DequantizeLinear",
        [stored, *dequantize.inputs[1:]],
        {"axis": 1 - _attribute(dequantize, "axis", 1) % 2},
        name=f"{name}_dequantized",
    )
    model.graph.insert_before(dequantize, node)
    return node.outputs[0]


def _fold_transposes(model: ir.Model) -> None:
    for node in list(model.graph):
        if node.op_type != "Transpose":
            continue
        dequantize = _dequantized_weight(node.inputs[0])
        if dequantize is not None:
            node.outputs[0].replace_all_uses_with(_transposed(model, dequantize))
            model.graph.remove(node, safe=True)


def _split_gemms(model: ir.Model) -> None:
    for node in list(model.graph):
        dequantize = _dequantized_weight(node.inputs[1]) if node.op_type == "Gemm" else None
        if dequantize is None or _attribute(node, "transA", 0):
            continue
        if any(node.attributes[key].as_float() != 1.0 for key in ("alpha", "beta") if key in node.attributes):
            continue
        weight = _transposed(model, dequantize) if _attribute(node, "transB", 0) else node.inputs[1]
        product = ir.node("MatMul", [node.inputs[0], weight], name=f"{node.name}_product")
        nodes = [product]
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            nodes.append(ir.node("Add", [product.outputs[0], node.inputs[2]], name=f"{node.name}_bias"))
        model.graph.insert_before(node, nodes)
        result, old = nodes[-1].outputs[0], node.outputs[0]
        result.name, result.shape, result.type = old.name, old.shape, old.type
        if old.is_graph_output():
            model.graph.outputs[model.graph.outputs.index(old)] = result
        old.replace_all_uses_with(result)
        model.graph.remove(node, safe=True)


def store_integer_weights(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Return a model in that form, and how many weights it holds as integers; `model` is untouched."""
    graph_model = ir.from_proto(model)
    _drop_clips(graph_model)
    stored = _store_weights(graph_model)
    _fold_transposes(graph_model)
    _split_gemms(graph_model)
    common.RemoveUnusedNodesPass()(graph_model)
    result = ir.to_proto(graph_model)
    del result.graph.value_info[:]
    return result, stored
