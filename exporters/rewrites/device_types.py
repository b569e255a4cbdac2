"""Operators on booleans and integers, for versions that have them for other types alone.

    Gather, GatherND, GatherElements of booleans, and what scatters them    of INT32, between casts
    Equal of booleans                                                       of INT32
    Sums of counts: ReduceSum and CumSum of booleans cast to integers       of FP32, between casts
    Clip of integers, and of FP32 that will be FP16                         Min(Max(x, least), most)
    Range of INT64 whose limits are computed, as from the batch             of INT32, between casts

A boolean is 0 or 1 in any type.  FP32 counts exactly up to 2^24, so integers of any other source are left alone.
"""

from collections.abc import Sequence

import onnx_ir as ir

from tsexport.exporters.rewrites.parts import Parts, type_of

_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)


def booleans_moved(parts: Parts) -> bool:
    """Write a gather or a scatter of booleans as one of INT32."""
    return _booleans(parts, (0, 2) if parts.node.op_type.startswith("Scatter") else (0,), back=True)


def booleans_compared(parts: Parts) -> bool:
    """Write Equal of booleans as one of INT32."""
    return _booleans(parts, (0, 1), back=False)


def _booleans(parts: Parts, places: Sequence[int], *, back: bool) -> bool:
    node = parts.node
    if type_of(parts.given(0)) != ir.DataType.BOOL or "reduction" in node.attributes:
        return False
    inputs = list(node.inputs)
    for place in places:
        inputs[place] = _cast(parts, f"integers_{place}", inputs[place], ir.DataType.INT32)
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    made = parts.add(node.op_type, "of_integers", inputs, attributes)
    return parts.replace(_cast(parts, "booleans", made, ir.DataType.BOOL) if back else made)


def counts(parts: Parts) -> bool:
    """Write a sum of booleans that were cast to integers as one of FP32."""
    node, data = parts.node, parts.given(0)
    kind, producer = type_of(data), data.producer() if data is not None else None
    if kind not in _INTEGERS or producer is None or producer.op_type != "Cast":
        return False
    source = producer.inputs[0]
    if type_of(source) != ir.DataType.BOOL:
        return False
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    floats = _cast(parts, "floats", source, ir.DataType.FLOAT)
    made = parts.add(node.op_type, "of_floats", [floats, *list(node.inputs)[1:]], attributes)
    return parts.replace(_cast(parts, "integers", made, kind))


def clip_as_bounds(parts: Parts) -> bool:
    """Write Clip of integers or FP32 with Max and Min."""
    x, least, most = (parts.given(index) for index in range(3))
    if type_of(x) not in (*_INTEGERS, ir.DataType.FLOAT) or x is None or (least is None and most is None):
        return False
    made = parts.add("Max", "from_least", [x, least]) if least is not None else x
    return parts.replace(parts.add("Min", "to_most", [made, most]) if most is not None else made)


def range_of_integers(parts: Parts) -> bool:
    """Write Range of INT64 as one of INT32: it counts what a tensor holds, which is below 2^31."""
    if type_of(parts.given(0)) != ir.DataType.INT64:
        return False
    limits = [_cast(parts, f"limit_{place}", value, ir.DataType.INT32) for place, value in enumerate(parts.node.inputs)]
    return parts.replace(_cast(parts, "integers", parts.add("Range", "of_int32", limits), ir.DataType.INT64))


def _cast(parts: Parts, name: str, value: ir.Value | None, kind: ir.DataType) -> ir.Value:
    return parts.add("Cast", name, [value], {"to": int(kind)})
