"""Comparisons, remainders and other operators on single elements, written with those that every TensorRT has.

Where(c, x, y) of booleans    (c and x) or (not c and y)
IsNaN(x)                      not x = x
IsInf(x)                      |x| above the largest number, x above it, or x below its negative
Mod(a, b) of integers         the remainder of truncated division; for the sign of the divisor, of (r + b) once more
HardSwish(x)                  x * HardSigmoid(x; 1/6, 1/2)
TopK, smallest first          of the negated values, negated
Shape from start to end       the whole shape, sliced
Pad by less than nothing      what is left of a Slice, padded by the rest
"""

import numpy as np
import onnx_ir as ir

from tsexport.exporters.rewrites.parts import Parts, array_of, type_of

_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)


def where_of_booleans(parts: Parts) -> bool:
    """Write Where of booleans with And, Or and Not."""
    condition, x, y = (parts.given(index) for index in range(3))
    if type_of(x) != ir.DataType.BOOL:
        return False
    chosen = parts.add("And", "chosen", [condition, x])
    other = parts.add("And", "other", [parts.add("Not", "otherwise", [condition]), y])
    return parts.replace(parts.add("Or", "either", [chosen, other]))


def is_nan(parts: Parts) -> bool:
    """Write IsNaN as a comparison of a value with itself."""
    x = parts.given(0)
    return parts.replace(parts.add("Not", "differs", [parts.add("Equal", "same", [x, x])]))


def is_infinite(parts: Parts) -> bool:
    """Write IsInf of fp32 as a comparison with the largest number."""
    x = parts.given(0)
    positive, negative = parts.number("detect_positive", 1), parts.number("detect_negative", 1)
    if type_of(x) != ir.DataType.FLOAT or not (positive or negative):
        return False
    largest = np.array(np.finfo(np.float32).max)
    if not positive:
        return parts.replace(parts.add("Less", "below", [x, parts.constant("lowest", -largest)]))
    compared = parts.add("Abs", "magnitude", [x]) if negative else x
    return parts.replace(parts.add("Greater", "beyond", [compared, parts.constant("largest", largest)]))


def remainder(parts: Parts) -> bool:
    """Write Mod of integers as Div, Mul and Sub; division truncates, in ONNX and in TensorRT."""
    a, b = parts.given(0), parts.given(1)
    if type_of(a) not in _INTEGERS:
        return False

    def left(value: ir.Value | None, name: str) -> ir.Value:
        whole = parts.add("Div", f"{name}_quotient", [value, b])
        return parts.add("Sub", f"{name}_remainder", [value, parts.add("Mul", f"{name}_product", [whole, b])])

    first = left(a, "first")
    if parts.number("fmod", 0):
        return parts.replace(first)
    return parts.replace(left(parts.add("Add", "shifted", [first, b]), "second"))


def hard_swish(parts: Parts) -> bool:
    """Write HardSwish as a product with HardSigmoid."""
    x = parts.given(0)
    gate = parts.add("HardSigmoid", "gate", [x], {"alpha": 1 / 6, "beta": 0.5})
    return parts.replace(parts.add("Mul", "gated", [x, gate]))


def smallest(parts: Parts) -> bool:
    """Write TopK with largest=0 of fp32 with the negated values."""
    x, count = parts.given(0), parts.given(1)
    if type_of(x) != ir.DataType.FLOAT or parts.number("largest", 1):
        return False
    attributes = {"axis": parts.number("axis", -1), "largest": 1, "sorted": parts.number("sorted", 1)}
    node = ir.node(
        "TopK",
        [parts.add("Neg", "negated", [x]), count],
        attributes,
        num_outputs=2,
        name=f"{parts.node.name or parts.node.outputs[0].name}/largest",
    )
    for value, name in zip(node.outputs, ("values", "indices"), strict=True):
        value.name = f"{parts.node.outputs[0].name}/{name}"
    parts.graph.insert_before(parts.node, node)
    return parts.replace(parts.add("Neg", "smallest", [node.outputs[0]]), node.outputs[1])


def part_of_shape(parts: Parts) -> bool:
    """Write Shape with start or end as Slice of the whole shape."""
    start, end = parts.number("start", 0), parts.number("end", np.iinfo(np.int32).max)
    whole = parts.add("Shape", "whole", [parts.given(0)])
    bounds = [parts.whole("start", start), parts.whole("end", end), parts.whole("axis", 0)]
    return parts.replace(parts.add("Slice", "part", [whole, *bounds]))


def cut(parts: Parts) -> bool:
    """Write Pad with constants below 0 as Slice, and what is above 0 as Pad behind it."""
    pads = array_of(parts.given(1))
    constant = parts.node.attributes.get_string("mode", "constant") == "constant"
    if pads is None or pads.size % 2 or parts.given(3) is not None or not (constant or (pads <= 0).all()):
        return False
    before, behind = pads.reshape(2, -1)
    far = np.iinfo(np.int32).max
    starts, ends = np.maximum(-before, 0), np.where(behind < 0, behind, far)
    bounds = [parts.whole("starts", *map(int, starts)), parts.whole("ends", *map(int, ends))]
    left = parts.add("Slice", "left", [parts.given(0), *bounds])
    if (pads <= 0).all():
        return parts.replace(left)
    more = parts.whole("pads", *map(int, np.maximum(pads, 0)))
    return parts.replace(parts.add("Pad", "padded", [left, more, *list(parts.node.inputs)[2:3]]))
