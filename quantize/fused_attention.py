"""Dynamic INT8 with attention as one operator of ONNX Runtime's own.

A graph quantized at run time still computes attention by some ten small nodes (split, transpositions, two products of
activations, softmax), and for short windows starting a node costs more than its arithmetic.  Here

    softmax(c q k^T + mask) v     becomes    com.microsoft.MultiHeadAttention,

and where q, k and v are one product with weights quantized per tensor, that product goes in too:
com.microsoft.QAttention.  The same numbers are quantized as before; only the rounding of floating-point sums differs.

Limits: constant head counts and lengths (the batch may vary), softmax over the last axis, a constant mask or none
(QAttention: none), equal widths of q, k and v.  What is found otherwise stays as it is.

Measured on AVX512-VNNI, one thread, batch 1, CPU time of interleaved calls on a busy machine, against plain dynamic
INT8: patchtst-cpu 1.15 to 1.21 (1.07 without the product inside), itransformer 1.10 to 1.14, hrm-27m 1.0 (arithmetic
counts there, not the number of nodes).  Tried without gain: fusing Add and LayerNormalization to SkipLayerNormalization
(0.76 to 0.85: its kernel is slower than the two nodes), and the same fusion of attention in fp32 (1.01 to 1.04).
"""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from tsexport.exporters.rewrites.cleaning import add_initializer, constant
from tsexport.exporters.rewrites.linears import only_user
from tsexport.quantize.onnx_candidate import write_candidate
from tsexport.quantize.onnxruntime_quantizer import quantize_onnx
from tsexport.quantize.recipe import MICROSOFT_DOMAIN
from tsexport.quantize.sources import NothingQuantizedError, Order
from tsexport.types import Array, Artifact

_HEADS_FIRST = (0, 2, 1, 3)  # [batch, steps, heads, width] -> [batch, heads, steps, width]
_KEYS = (0, 2, 3, 1)  # the same, transposed for the product


@dataclass(frozen=True)
class _Attention:
    """softmax(scale q k^T + mask) v, with q, k and v as [batch, steps, heads, width], and what is left of it behind.

    `packed` is the value that holds q, k and v side by side, [.., 3 x heads x width], or None.
    """

    softmax: ir.Node
    merged: ir.Node
    parts: tuple[ir.Value, ir.Value, ir.Value]
    packed: ir.Value | None
    steps: int
    others: int
    heads: int
    width: int
    scale: float
    mask: Array | None


@dataclass(frozen=True)
class _QuantizedProduct:
    """What DynamicQuantizeLinear, MatMulInteger, Cast, Mul and Add compute: `values` by `weight` plus `bias`."""

    quantized: ir.Node
    weight: ir.Value
    weight_zero: ir.Value
    weight_scale: ir.Value
    bias: ir.Value


def _order(node: ir.Node) -> tuple[int, ...]:
    attribute = node.attributes.get("perm")
    return tuple(attribute.as_ints()) if attribute is not None else ()


def _made_by(value: ir.Value | None, kind: str) -> ir.Node | None:
    """Return the node that makes a value, where it is of a kind."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == kind else None


def _before_transposing(value: ir.Value | None, wanted: tuple[int, ...]) -> ir.Value | None:
    """Return the value that Transpose nodes bring into an order, or None where they bring another one."""
    order = tuple(range(4))
    while (node := _made_by(value, "Transpose")) is not None and len(_order(node)) == 4:
        order = tuple(_order(node)[axis] for axis in order)
        value = node.inputs[0]
        if order == wanted:
            return value
    return None


def _sizes(value: ir.Value | None) -> tuple[int, int, int] | None:
    """Return steps, heads and width of a value [batch, steps, heads, width]: all but the batch must be constant."""
    node = _made_by(value, "Reshape")
    if node is None:  # one of the parts of a split
        node = _made_by(value, "Split")
        parts = tuple(node.outputs) if node is not None else ()
        whole = _sizes(_split(parts, (2, -2))) if parts else None
        if whole is None or whole[1] % len(parts):
            return None
        return whole[0], whole[1] // len(parts), whole[2]
    shape = constant(node.inputs[1])
    if shape is None or shape.shape != (4,) or (shape[1:] <= 0).any():
        return None
    return int(shape[1]), int(shape[2]), int(shape[3])


def _split(parts: tuple[ir.Value | None, ...], axes: tuple[int, ...]) -> ir.Value | None:
    """Return what q, k and v are equal parts of along one of the axes, in this order and nothing else, or None."""
    node = _made_by(parts[0], "Split")
    if node is None or tuple(node.outputs) != parts:
        return None
    attribute = node.attributes.get("axis")
    lengths = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if attribute is None or attribute.as_int() not in axes or (lengths is not None and len(set(lengths.tolist())) > 1):
        return None
    return node.inputs[0]


def _before_reshape(value: ir.Value | None) -> ir.Value | None:
    node = _made_by(value, "Reshape")
    return node.inputs[0] if node is not None else value


def _packed(parts: tuple[ir.Value, ir.Value, ir.Value]) -> ir.Value | None:
    """Return the value that holds q, k and v side by side: split before or after the heads are told apart."""
    by_heads = _split(parts, (2, -2))
    if by_heads is not None:
        return _before_reshape(by_heads)
    reshaped = tuple(_before_reshape(part) for part in parts)
    return _before_reshape(_split(reshaped, (-1,)))


def _scores(softmax: ir.Node) -> tuple[ir.Node, float, Array | None] | None:
    """Return the product that a softmax is taken of, the constant factor on it, and the constant mask added to it."""
    attribute = softmax.attributes.get("axis")
    if attribute is not None and attribute.as_int() not in (-1, 3):
        return None
    value, scale, mask = softmax.inputs[0], 1.0, None
    while value is not None:
        node = value.producer()
        if node is None or only_user(value) is None:
            return None
        if node.op_type == "MatMul":
            return node, scale, mask
        first, second = node.inputs[0], node.inputs[-1]
        number = constant(second) if constant(second) is not None else constant(first)
        value = first if constant(second) is not None else second
        if number is None or number.dtype != np.float32:
            return None
        if node.op_type == "Add" and mask is None and scale == 1.0 and 2 <= number.ndim <= 4:
            mask = number
        elif node.op_type == "Mul" and number.size == 1:
            scale *= float(number.reshape(()))
        elif node.op_type == "Div" and number.size == 1 and constant(second) is not None:
            scale /= float(number.reshape(()))
        else:
            return None
    return None


def _find(softmax: ir.Node) -> _Attention | None:
    found = _scores(softmax)
    mixing = only_user(softmax.outputs[0])
    if found is None or mixing is None or mixing.op_type != "MatMul" or mixing.inputs[0] is not softmax.outputs[0]:
        return None
    merged = only_user(mixing.outputs[0])
    if merged is None or merged.op_type != "Transpose" or _order(merged) != _HEADS_FIRST:
        return None
    product, scale, mask = found
    query, values = product.inputs[0], mixing.inputs[1]
    keys = _before_transposing(product.inputs[1], (0, 1, 3, 2))  # [batch, heads, steps, width]
    together = _split((query, keys, values), (1, -3))
    if together is not None:  # transposed before the split
        whole = _before_transposing(together, _HEADS_FIRST)
        sizes = _sizes(whole)
        if whole is None or sizes is None or sizes[1] % 3:
            return None
        return _Attention(
            softmax,
            merged,
            parts=(whole, whole, whole),
            packed=_before_reshape(whole),
            steps=sizes[0],
            others=sizes[0],
            heads=sizes[1] // 3,
            width=sizes[2],
            scale=scale,
            mask=mask,
        )
    q, k, v = (
        _before_transposing(query, _HEADS_FIRST),
        _before_transposing(product.inputs[1], _KEYS),
        _before_transposing(values, _HEADS_FIRST),
    )
    of_query, of_keys, of_values = _sizes(q), _sizes(k), _sizes(v)
    if of_query is None or of_keys is None or of_keys != of_values or of_query[1:] != of_keys[1:]:
        return None
    assert q is not None
    assert k is not None
    assert v is not None
    return _Attention(
        softmax,
        merged,
        parts=(q, k, v),
        packed=_packed((q, k, v)) if of_query == of_keys else None,
        steps=of_query[0],
        others=of_keys[0],
        heads=of_query[1],
        width=of_query[2],
        scale=scale,
        mask=mask,
    )


def _full_mask(mask: Array, one: _Attention) -> Array | None:
    """Return a mask as [1, heads or 1, steps, others], or None where it differs over the batch."""
    shape = (1,) * (4 - mask.ndim) + mask.shape
    if shape[0] != 1 or shape[1] not in (1, one.heads):
        return None
    return np.broadcast_to(mask.reshape(shape), (1, shape[1], one.steps, one.others)).copy()


def _product_before(value: ir.Value | None) -> _QuantizedProduct | None:
    """Return the quantized product that a value is, where its weights have one scale; else None."""
    added = _made_by(value, "Add")
    if added is None or only_user(added.outputs[0]) is None:
        return None
    is_bias = [constant(operand) is not None for operand in added.inputs]
    if is_bias.count(True) != 1:
        return None
    bias, scaled = added.inputs[is_bias.index(True)], _made_by(added.inputs[is_bias.index(False)], "Mul")
    if scaled is None or only_user(scaled.outputs[0]) is None:
        return None
    cast = next((node for operand in scaled.inputs if (node := _made_by(operand, "Cast"))), None)
    scales = next((node for operand in scaled.inputs if (node := _made_by(operand, "Mul"))), None)
    product = _made_by(cast.inputs[0], "MatMulInteger") if cast is not None else None
    quantized = _made_by(product.inputs[0], "DynamicQuantizeLinear") if product is not None else None
    if product is None or scales is None or quantized is None or len(product.inputs) != 4:
        return None
    weight, weight_zero = product.inputs[1], product.inputs[3]
    weight_scale = next((operand for operand in scales.inputs if constant(operand) is not None), None)
    if weight is None or weight_zero is None or weight_scale is None or bias is None:
        return None
    scale, zero = constant(weight_scale), constant(weight_zero)
    if constant(weight) is None or scale is None or scale.size != 1 or zero is None or zero.size != 1:
        return None
    return _QuantizedProduct(quantized, weight, weight_zero, weight_scale, bias)


def _whole_attention(model: ir.Model, one: _Attention, name: str) -> list[ir.Node] | None:
    """Return nodes that compute attention with its projection, or None where that is no quantized product."""
    projected = _product_before(one.packed) if one.mask is None else None
    if projected is None:
        return None
    weight = constant(projected.weight)
    assert weight is not None
    values, scale, zero = projected.quantized.outputs[:3]
    shape = add_initializer(model, f"{name}_input_shape", np.array([-1, one.steps, weight.shape[0]], dtype=np.int64))
    rows = ir.node("Reshape", [values, shape], name=f"{name}_input")
    attention = ir.node(
        "QAttention",
        [
            rows.outputs[0],
            projected.weight,
            projected.bias,
            scale,
            projected.weight_scale,
            None,
            zero,
            projected.weight_zero,
        ],
        {"num_heads": one.heads, "scale": one.scale},
        domain=MICROSOFT_DOMAIN,
        name=name,
    )
    return [rows, attention]


def _bare_attention(model: ir.Model, one: _Attention, name: str) -> list[ir.Node] | None:
    """Return nodes that compute attention from q, k and v, or None where the mask does not fit."""
    mask = None
    if one.mask is not None:
        full = _full_mask(one.mask, one)
        if full is None:
            return None
        mask = add_initializer(model, f"{name}_mask", full)
    hidden = one.heads * one.width
    nodes: list[ir.Node] = []
    if one.packed is not None:
        shape = add_initializer(model, f"{name}_shape", np.array([-1, one.steps, 3 * hidden], dtype=np.int64))
        sizes = add_initializer(model, f"{name}_sizes", np.array([hidden] * 3, dtype=np.int64))
        rows = ir.node("Reshape", [one.packed, shape], name=f"{name}_rows")
        split = ir.node("Split", [rows.outputs[0], sizes], {"axis": 2}, num_outputs=3, name=f"{name}_split")
        nodes, inputs = [rows, split], list(split.outputs)
    else:
        inputs = []
        for part, length, letter in zip(one.parts, (one.steps, one.others, one.others), "qkv", strict=True):
            shape = add_initializer(model, f"{name}_{letter}_shape", np.array([-1, length, hidden], dtype=np.int64))
            nodes.append(ir.node("Reshape", [part, shape], name=f"{name}_{letter}"))
            inputs.append(nodes[-1].outputs[0])
    attention = ir.node(
        "MultiHeadAttention",
        [*inputs, None, None, mask] if mask is not None else inputs,
        {"num_heads": one.heads, "scale": one.scale},
        domain=MICROSOFT_DOMAIN,
        name=name,
    )
    return [*nodes, attention]


def _replace(model: ir.Model, one: _Attention, nodes: list[ir.Node], name: str) -> None:
    """Put nodes in the place of an attention; what follows its last transposition reads what they make."""
    sizes = np.array([-1, one.steps, one.heads, one.width], dtype=np.int64)
    shape = add_initializer(model, f"{name}_heads_shape", sizes)
    heads = ir.node("Reshape", [nodes[-1].outputs[0], shape], name=f"{name}_heads")
    model.graph.insert_before(one.merged, [*nodes, heads])
    replaced = one.merged.outputs[0]
    for use in list(replaced.uses()):
        target = constant(use.node.inputs[1]) if use.node.op_type == "Reshape" else None
        # a reshape of [batch, steps, heads, width] reads [batch, steps, heads x width] as well, but for copied sizes
        direct = target is not None and not (target[2:] == 0).any()
        use.node.replace_input_with(use.idx, nodes[-1].outputs[0] if direct else heads.outputs[0])
    model.graph.remove(one.merged, safe=True)
    common.RemoveUnusedNodesPass()(model)


def fuse_attention(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Return a dynamically quantized model with its attention fused, and how many were found; `model` is untouched."""
    graph_model = ir.from_proto(model)
    found = 0
    for softmax in [node for node in graph_model.graph if node.op_type == "Softmax"]:
        one = _find(softmax)
        if one is None:
            continue
        name = f"{softmax.name or 'Softmax'}_attention_{found}"
        nodes = _whole_attention(graph_model, one, name) or _bare_attention(graph_model, one, name)
        if nodes is None:
            continue
        _replace(graph_model, one, nodes, name)
        found += 1
    if found:
        graph_model.opset_imports[MICROSOFT_DOMAIN] = 1
    fused = ir.to_proto(graph_model)
    del fused.graph.value_info[:]
    return fused, found


def build(order: Order, folder: Path) -> Artifact:
    """Write the artifact of a recipe of tool "fused-attention".

    Raises:
        NothingQuantizedError: the graph has no constant products, or no attention that can be fused.
    """
    recipe = order.recipe
    model, found = fuse_attention(quantize_onnx(order.source.path, recipe, order.calibration))
    if not found:
        raise NothingQuantizedError("the graph has no attention of constant lengths that ONNX Runtime's operator takes")
    done = f"{recipe.tool}: onnxruntime {version('onnxruntime')} quantizer: {recipe.summary}"
    return write_candidate(order, model, folder, done)
