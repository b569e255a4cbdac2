"""OneHot, Trilu and scatters that add, written with comparisons, masks, gathers and sums.

    OneHot(i, n)                 Where(i = range(n) or i = range(n) - n, on, off)
    Trilu(x)                     Where(mask, x, 0), the mask a constant
    Scatter of sums(x, i, u)     x + the sum over what is gathered for each place

For a scatter the indices must be constants (or one constant spread by Expand): then which updates go to which place is
known, and each place gathers its own by constant indices.  TensorRT takes any reduction of a scatter for none up to
9.3, and refuses it later.  Limits: other reductions, indices that are computed, and sizes that are not known, stay.
"""

import numpy as np
import onnx_ir as ir

from tsexport.exporters.rewrites.message_passing import bucket_receivers
from tsexport.exporters.rewrites.parts import Parts, array_of, dimensions, kept_dimensions, type_of
from tsexport.types import Array


def one_hot(parts: Parts) -> bool:
    """Write OneHot of a constant depth and constant values as a comparison with the range."""
    indices, depth, values = parts.given(0), array_of(parts.given(1)), array_of(parts.given(2))
    places, kind = dimensions(indices), type_of(indices)
    if places is None or kind is None or depth is None or values is None:
        return False
    off, on = values
    if values.dtype == np.bool_ and not (on and not off):
        return False
    axis, count = parts.number("axis", -1) % (len(places) + 1), int(depth.reshape(-1)[0])
    ahead = np.arange(count).astype(kind.numpy()).reshape(count, *[1] * (len(places) - axis))
    spread = parts.add("Unsqueeze", "spread", [indices, parts.whole("axis", axis)])
    same = [
        parts.add("Equal", f"same_{name}", [spread, parts.constant(f"range_{name}", array)])
        for name, array in (("ahead", ahead), ("behind", ahead - ahead.dtype.type(count)))
    ]
    hot = parts.add("Or", "hot", same)
    if values.dtype == np.bool_:
        return parts.replace(hot)
    return parts.replace(
        parts.add("Where", "chosen", [hot, parts.constant("on", np.array(on)), parts.constant("off", np.array(off))])
    )


def triangle(parts: Parts) -> bool:
    """Write Trilu of known last dimensions as a choice by a constant mask."""
    x, places, kind = parts.given(0), dimensions(parts.given(0)), type_of(parts.given(0))
    shift = np.zeros((), np.int64) if parts.given(1) is None else array_of(parts.given(1))
    last = [one for one in (places or ())[-2:] if isinstance(one, int)]
    if kind is None or shift is None or len(last) != 2:
        return False
    ones = np.ones(last, np.bool_)
    k = int(shift.reshape(-1)[0])
    mask = parts.constant("mask", np.triu(ones, k) if parts.number("upper", 1) else np.tril(ones, k))
    if kind == ir.DataType.BOOL:
        return parts.replace(parts.add("And", "kept", [x, mask]))
    return parts.replace(parts.add("Where", "kept", [mask, x, parts.constant("zero", np.zeros((), kind.numpy()))]))


def no_reduction(parts: Parts) -> bool:
    """Leave reduction=none out, which is the default; TensorRT 10.0 to 10.8 refuse the attribute as such."""
    if parts.node.attributes.get_string("reduction", "") != "none":
        return False
    return parts.replace(parts.add("ScatterND", "plain", list(parts.node.inputs)))


def scatter_elements(parts: Parts) -> bool:
    """Write ScatterElements that adds rows along one axis as gathers and sums."""
    data, indices, updates = (parts.given(index) for index in range(3))
    sizes, moved = dimensions(data), dimensions(updates)
    if sizes is None or moved is None or not _adds(parts):
        return False
    axis = parts.number("axis", 0) % len(sizes)
    rows = _rows(indices, axis)
    count = sizes[axis]
    # A row must cover all of its place: elsewhere the two have the same dimensions.
    alike = all(a == b for place, (a, b) in enumerate(zip(sizes, moved, strict=True)) if place != axis)
    if rows is None or moved[axis] != len(rows) or not alike or not isinstance(count, int):
        return False
    summed = _summed(parts, updates, rows, count, axis=axis, rank=len(sizes))
    return parts.replace(parts.add("Add", "added", [data, summed]))


def scatter_nd(parts: Parts) -> bool:
    """Write ScatterND that adds, with constant indices, as gathers and sums; what it drops otherwise stays."""
    data, indices, updates = parts.given(0), array_of(parts.given(1)), parts.given(2)
    sizes = dimensions(data)
    if sizes is None or indices is None or not _adds(parts):
        return no_reduction(parts)
    depth = indices.shape[-1]
    first, rest = sizes[:depth], sizes[depth:]
    whole, row = kept_dimensions(sizes), kept_dimensions((0, *rest))
    if whole is None or row is None or not all(isinstance(one, int) for one in first):
        return False
    ahead = [int(one) for one in first]  # type: ignore[arg-type]
    flat = indices.reshape(-1, depth) % np.array(ahead)  # those below 0 count from the end
    rows = np.ravel_multi_index(tuple(flat.T), tuple(ahead))
    count = int(np.prod(ahead))
    lines = parts.add("Reshape", "updates", [updates, parts.whole("updates_shape", len(rows), *row[1:])])
    summed = _summed(parts, lines, rows, count, rank=1 + len(rest))
    back = parts.add("Reshape", "placed", [summed, parts.whole("shape", *whole)])
    return parts.replace(parts.add("Add", "added", [data, back]))


def _adds(parts: Parts) -> bool:
    wanted = parts.node.attributes.get_string("reduction", "none") == "add"
    return wanted and type_of(parts.given(0)) == ir.DataType.FLOAT


def _rows(indices: ir.Value | None, axis: int) -> Array | None:
    """Return the places along an axis, where they are constant and the same at every other coordinate."""
    found = array_of(indices)
    if found is None:
        return _spread_rows(indices, axis)
    rows = np.moveaxis(found, axis, -1).reshape(-1, found.shape[axis])
    return rows[0] if len(rows) and (rows == rows[0]).all() else None


def _spread_rows(indices: ir.Value | None, axis: int) -> Array | None:
    """Return the places of a constant that Expand repeats along all axes but one."""
    node = indices.producer() if indices is not None else None
    shape = dimensions(indices)
    if node is None or node.op_type != "Expand" or shape is None:
        return None
    found = array_of(node.inputs[0])
    if found is None or axis - len(shape) + found.ndim < 0:
        return None
    along = found.shape[axis - len(shape) + found.ndim]
    return found.reshape(-1) if found.size == along else None


def _summed(
    parts: Parts, updates: ir.Value | None, rows: Array, count: int, *, axis: int = 0, rank: int = 1
) -> ir.Value:
    """Return, for each of `count` places along an axis, the sum of the updates, of so many axes, that go there."""
    buckets = bucket_receivers(rows % count, count)
    sums = []
    for number, bucket in enumerate(buckets):
        name = f"bucket_{number}"
        found = parts.add("Gather", name, [updates, parts.constant(f"{name}_rows", bucket.messages)], {"axis": axis})
        if not bucket.counts.all():
            behind = [1] * (rank - axis - 1)
            counts = bucket.counts.astype(np.float32).reshape(*bucket.counts.shape, *behind)
            found = parts.add("Mul", f"{name}_counted", [found, parts.constant(f"{name}_counts", counts)])
        over = parts.whole(f"{name}_axis", axis + 1)
        sums.append(parts.add("ReduceSum", f"{name}_sum", [found, over], {"keepdims": 0}))
    whole = parts.add("Concat", "sums", sums, {"axis": axis}) if len(sums) > 1 else sums[0]
    order = np.concatenate([bucket.receivers for bucket in buckets])
    if (order == np.arange(count)).all():
        return whole
    return parts.add("Gather", "in_order", [whole, parts.constant("order", np.argsort(order))], {"axis": axis})
