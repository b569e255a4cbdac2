"""How each fact of the TensorRT table is recognised: one small question about a node, by the fact's name.

A question that cannot be answered, since a shape or a constant is not known, is answered with no.
"""

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from tsexport.exporters.qdq_pairs import axis_of, from_pair, is_per_channel, type_of, unlike_lengths
from tsexport.exporters.qdq_regions import constant_of, input_of, is_constant, shape_of

_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_LARGEST_K = 3840
_COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
_CASTS = frozenset(
    {
        ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT8, ir.DataType.INT32, ir.DataType.INT64,
        ir.DataType.BOOL, ir.DataType.DOUBLE,
    }
)  # fmt: skip
_LATER_CASTS = _CASTS | {
    ir.DataType.UINT8, ir.DataType.BFLOAT16, ir.DataType.FLOAT8E4M3FN, ir.DataType.INT4, ir.DataType.FLOAT4E2M1,
}  # fmt: skip


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.value)


def _text(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None else str(attribute.value)


def _texts(node: ir.Node, name: str) -> list[str]:
    attribute = node.attributes.get(name)
    return [] if attribute is None else [str(one) for one in attribute.value]


def _rank(node: ir.Node, index: int = 0) -> int | None:
    shape = shape_of(input_of(node, index))
    return None if shape is None else len(shape)


def _computed(*places: int) -> Callable[[ir.Node], bool]:
    """Return the question whether one of these inputs is there and is no constant."""

    def asks(node: ir.Node) -> bool:
        values = [input_of(node, index) for index in places]
        return any(value is not None and not is_constant(value) for value in values)

    return asks


def _flag(name: str, default: int, wrong: int) -> Callable[[ir.Node], bool]:
    return lambda node: _int(node, name, default) == wrong


def _rank_outside(*allowed: int) -> Callable[[ir.Node], bool]:
    return lambda node: _rank(node) is not None and _rank(node) not in allowed


def _is_of(*types: ir.DataType) -> Callable[[ir.Node], bool]:
    return lambda node: type_of(input_of(node, 0)) in types


def _bool_choices(node: ir.Node) -> bool:
    return ir.DataType.BOOL in (type_of(input_of(node, 1)), type_of(input_of(node, 2)))


def _wrong_axis(node: ir.Node) -> bool:
    return is_per_channel(node) and axis_of(node) is None


def _uint8(node: ir.Node) -> bool:
    return ir.DataType.UINT8 in (type_of(input_of(node, 0)), type_of(input_of(node, 2)))


def _offset(node: ir.Node) -> bool:
    value = input_of(node, 2)
    zero = constant_of(value)
    return value is not None and (zero is None or bool(np.any(zero != 0)))


def _bad_scale(node: ir.Node) -> bool:
    scale = constant_of(input_of(node, 1))
    return scale is not None and not bool(np.all(np.isfinite(scale) & (scale > 0)))


def _other_scale_type(node: ir.Node) -> bool:
    return type_of(input_of(node, 1)) not in (ir.DataType.FLOAT, None)


def _half_bounds(node: ir.Node) -> bool:
    return ir.DataType.FLOAT16 in (type_of(input_of(node, 1)), type_of(input_of(node, 2)))


def _no_axes(node: ir.Node) -> bool:
    return input_of(node, 1) is None and "axes" not in node.attributes and _unknown_dimensions(node)


def _unquantized_weight(node: ir.Node) -> bool:
    weight = input_of(node, 1)
    return weight is not None and not is_constant(weight) and not from_pair(weight)


def _dilated(node: ir.Node) -> bool:
    attribute = node.attributes.get("dilations")
    return attribute is not None and any(int(one) != 1 for one in attribute.value)


def _second_output(node: ir.Node) -> bool:
    return any(bool(value.name) and (value.uses() or value.is_graph_output()) for value in node.outputs[1:])


def _letters(node: ir.Node) -> bool:
    return any(one.isupper() for one in _text(node, "equation", ""))


def _ellipsis(node: ir.Node) -> bool:
    equation = _text(node, "equation", "").replace(" ", "")
    terms = equation.split("->")[0].split(",")
    return "..." in equation or any(len(set(term)) < len(term) for term in terms)


def _negative(node: ir.Node) -> bool:
    indices = constant_of(input_of(node, 1))
    return indices is not None and bool(np.any(indices < 0))


def _not_two_dimensions(node: ir.Node) -> bool:
    return any(rank not in (2, None) for rank in (_rank(node), _rank(node, 1)))


def _dynamic_range(node: ir.Node) -> bool:
    computed = any(not is_constant(value) for value in node.inputs)
    return computed and type_of(input_of(node, 0)) not in (ir.DataType.INT32, None)


def _float_modulo(node: ir.Node) -> bool:
    return _int(node, "fmod", 0) == 0 and type_of(input_of(node, 0)) in _FLOATS


def _pixel(node: ir.Node) -> bool:
    return (
        _text(node, "coordinate_transformation_mode", "half_pixel") == "tf_half_pixel_for_nn"
        and _text(node, "nearest_mode", "round_prefer_floor") != "round_prefer_floor"
    )


def _modes(node: ir.Node) -> bool:
    mode = _text(node, "mode", "nearest")
    return (
        mode not in ("nearest", "linear")
        or _text(node, "coordinate_transformation_mode", "half_pixel") not in _COORDINATES
    )


def _resize_options(node: ir.Node) -> bool:
    return (
        _int(node, "antialias", 0) == 1
        or _int(node, "exclude_outside", 0) == 1
        or _text(node, "keep_aspect_ratio_policy", "stretch") != "stretch"
    )


def _large_k(node: ir.Node) -> bool:
    chosen = constant_of(input_of(node, 1))
    return _int(node, "sorted", 1) == 0 or (chosen is not None and bool(np.any(chosen >= _LARGEST_K)))


def _cast_outside(allowed: frozenset[ir.DataType]) -> Callable[[ir.Node], bool]:
    return lambda node: _int(node, "to", 1) not in allowed


def _unlike_directions(node: ir.Node) -> bool:
    activations = _texts(node, "activations")
    half = len(activations) // 2
    return _text(node, "direction", "forward") == "bidirectional" and activations[:half] != activations[half:]


def _same_names(node: ir.Node) -> bool:
    branches = [node.attributes.get(name) for name in ("then_branch", "else_branch")]
    names = [{value.name for value in one.value.outputs} for one in branches if one is not None]
    return len(names) == 2 and bool(names[0] & names[1])


def _training(node: ir.Node) -> bool:
    mode = input_of(node, 2)
    flag = constant_of(mode)
    return mode is not None and (flag is None or bool(np.any(flag)))


def _unknown_dimensions(node: ir.Node) -> bool:
    shape = shape_of(input_of(node, 0))
    return shape is None or None in shape


def _uneven_split(node: ir.Node) -> bool:
    shape, parts = shape_of(input_of(node, 0)), len(node.outputs)
    if shape is None or input_of(node, 1) is not None or "split" in node.attributes:
        return False
    axis = _int(node, "axis", 0)
    size = shape[axis] if -len(shape) <= axis < len(shape) else None
    return size is not None and size % parts != 0


def _axes_of_pad(node: ir.Node) -> bool:
    axes, rank = input_of(node, 3), _rank(node)
    if axes is None:
        return False
    found = constant_of(axes)
    if found is None or not rank:
        return True
    return [int(one) % rank for one in found.reshape(-1)] != list(range(rank - found.size, rank))


def _negative_pads(node: ir.Node) -> bool:
    pads = constant_of(input_of(node, 1))
    return pads is not None and bool(np.any(pads < 0))


def _pads_of_8_0(node: ir.Node) -> bool:
    pads, value = constant_of(input_of(node, 1)), constant_of(input_of(node, 2))
    sides = np.zeros(0) if pads is None else pads.reshape(-1)
    half = sides.size // 2
    padded = int(np.count_nonzero((sides[:half] != 0) | (sides[half : 2 * half] != 0)))
    return padded > 2 or (value is not None and bool(np.any(value != 0)))


CHECKS: Mapping[str, Callable[[ir.Node], bool]] = {
    "always": lambda node: True,
    "attribute layout=1": _flag("layout", 0, 1),
    "attribute start or end": lambda node: "start" in node.attributes or "end" in node.attributes,
    "attribute largest=0": _flag("largest", 1, 0),
    "attribute reduction": lambda node: _text(node, "reduction", "none") != "none",
    "attribute reduction written": lambda node: "reduction" in node.attributes,
    "attribute training_mode=1": _flag("training_mode", 0, 1),
    "attribute input_forget=1": _flag("input_forget", 0, 1),
    "attribute seed": lambda node: "seed" in node.attributes,
    "default axis of a scale per channel": _wrong_axis,
    "zero point of UINT8": _uint8,
    "no zero point": lambda node: input_of(node, 2) is None,
    "zero point not 0": _offset,
    "scale not above 0": _bad_scale,
    "scale not fp32": _other_scale_type,
    "lengths of a pair": lambda node: bool(unlike_lengths(node)),
    "data of INT32": _is_of(ir.DataType.INT32),
    "data of INT32 or INT64": _is_of(*_INTEGERS),
    "data not fp32": lambda node: type_of(input_of(node, 0)) not in (ir.DataType.FLOAT, None),
    "data of BOOL": lambda node: _bool_choices(node) if node.op_type == "Where" else _is_of(ir.DataType.BOOL)(node),
    "computed bias": _computed(2),
    "computed weight": _unquantized_weight,
    "one spatial dimension": lambda node: _rank(node) == 3,
    "dilations": _dilated,
    "second output": _second_output,
    "stash type": lambda node: _int(node, "stash_type", 1) != 1,
    "computed scale or bias": _computed(1, 2),
    "rank 3 to 5": _rank_outside(3, 4, 5),
    "rank 4": _rank_outside(4),
    "rank 2": _not_two_dimensions,
    "rank 2 or 3": _rank_outside(2, 3),
    "letters of an equation": _letters,
    "ellipsis or diagonal": _ellipsis,
    "negative constant indices": _negative,
    "integer modulo of floats": _float_modulo,
    "dynamic range": _dynamic_range,
    "tf_half_pixel_for_nn": _pixel,
    "modes of Resize": _modes,
    "options of Resize": _resize_options,
    "computed K": _computed(1),
    "K of 3840 or more": _large_k,
    "target of Cast": _cast_outside(_CASTS),
    "target of Cast with UINT8": _cast_outside(_CASTS | {ir.DataType.UINT8}),
    "target of Cast with bf16": _cast_outside(_LATER_CASTS),
    "computed min or max": _computed(1, 2),
    "bounds in fp16": _half_bounds,
    "no axes": _no_axes,
    "computed thresholds": _computed(2, 3, 4),
    "computed axes": _computed(1),
    "computed axes of Slice": _computed(3),
    "computed axes of Pad": _computed(3),
    "axes as an input": lambda node: input_of(node, 1) is not None,
    "axes of Pad": _axes_of_pad,
    "negative pads": _negative_pads,
    "computed split": _computed(1),
    "uneven split": _uneven_split,
    "attribute noop_with_empty_axes=1": lambda node: (
        _int(node, "noop_with_empty_axes", 0) == 1 and input_of(node, 1) is None
    ),
    "computed depth": _computed(1),
    "computed frame step or window": _computed(1, 2),
    "different activations of directions": _unlike_directions,
    "names of branches": _same_names,
    "training": _training,
    "dimensions known": _unknown_dimensions,
    "pad of 8.0": _pads_of_8_0,
}
