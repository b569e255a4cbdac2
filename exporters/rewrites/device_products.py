"""DFT, Einsum and convolutions over one dimension, written with what every TensorRT has.

    DFT(x)               x, real and imaginary parts side by side, times a constant matrix of cosines and sines:
                         X[m] = sum over n of x[n] exp(-2 pi i m n / N); inverse with the other sign, divided by N
    Einsum of two        Transpose and Reshape to [kept by both, kept of one, summed], MatMul, and back
    Conv over 1-D        the same with a height of 1

Limits: the length of a DFT must be known.  Einsum is of two terms without a repeated letter and of as many known
dimensions as Reshape needs, and what is summed over stands in both; a height of 1 is for constant weights and biases.

Source of the operators' definitions: https://onnx.ai/onnx/operators/
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tsexport.exporters.rewrites.parts import Parts, Shape, array_of, dimensions, kept_dimensions, type_of
from tsexport.types import Array


def dft(parts: Parts) -> bool:
    """Write DFT of opset 17 as one product with a constant matrix."""
    x, places = parts.given(0), dimensions(parts.given(0))
    length = parts.given(1)
    if places is None or type_of(x) != ir.DataType.FLOAT or places[-1] not in (1, 2):
        return False
    axis = parts.number("axis", 1) % len(places)
    given = places[axis]
    taken = given if length is None else _first(array_of(length))
    inverse, onesided = parts.number("inverse", 0), parts.number("onesided", 0)
    if not isinstance(given, int) or taken is None or axis == len(places) - 1 or (inverse and onesided):
        return False
    matrix = dft_matrix(given, int(taken), int(places[-1]), inverse=bool(inverse), onesided=bool(onesided))
    order = [*(one for one in range(len(places) - 1) if one != axis), axis, len(places) - 1]
    back = [order.index(one) for one in range(len(order))]
    ahead = [0] * (len(places) - 2)
    moved = parts.add("Transpose", "moved", [x], {"perm": order})
    flat = parts.add("Reshape", "flat", [moved, parts.whole("flat_shape", *ahead, matrix.shape[0])])
    product = parts.add("MatMul", "product", [flat, parts.constant("matrix", matrix)])
    pairs = parts.add("Reshape", "pairs", [product, parts.whole("pairs_shape", *ahead, matrix.shape[1] // 2, 2)])
    return parts.replace(parts.add("Transpose", "back", [pairs], {"perm": back}))


def _first(array: Array | None) -> int | None:
    return None if array is None else int(array.reshape(-1)[0])


def dft_matrix(given: int, taken: int, parts: int, *, inverse: bool, onesided: bool) -> Array:
    """Return the matrix [given * parts, made * 2] of a DFT whose numbers lie as real and imaginary parts.

    Args:
        given: the length of what is transformed.
        taken: the length of the transform; what is given is cut or padded with zeros to it.
        parts: 1 where what is transformed is real, 2 where it is complex.
        inverse: transform back, divided by the length.
        onesided: give the first half of the frequencies alone.
    """
    made = taken // 2 + 1 if onesided else taken
    turns = np.outer(np.arange(given), np.arange(made)) % taken  # exact, so that large angles lose no digit
    angles = (2 if inverse else -2) * np.pi / taken * turns
    cosines, sines = np.cos(angles), np.sin(angles)
    blocks = np.array([[cosines, sines], [-sines, cosines]])[:parts]  # [part, part made, given, made]
    blocks[:, :, taken:] = 0.0
    matrix = blocks.transpose(2, 0, 3, 1).reshape(given * parts, made * 2)
    scaled: Array = (matrix / taken if inverse else matrix).astype(np.float32)
    return scaled


def einsum(parts: Parts) -> bool:
    """Write Einsum of two terms as a product of matrices."""
    equation = parts.node.attributes.get_string("equation", "")
    shapes = [dimensions(value) for value in parts.node.inputs]
    known = [shape for shape in shapes if shape is not None]
    if len(shapes) != 2 or len(known) != 2 or type_of(parts.given(0)) != ir.DataType.FLOAT:
        return False
    terms = _terms(equation, [len(shape) for shape in known])
    sizes = _sizes(terms[:2], known) if terms is not None else None
    plan = _plan(*terms) if terms is not None else None
    if terms is None or sizes is None or plan is None:
        return False
    first = _form(sizes, plan.both, plan.rows, plan.summed)
    second = _form(sizes, plan.both, plan.summed, plan.columns)
    letters = (*plan.both, *plan.rows, *plan.columns)
    whole = kept_dimensions([sizes[one] for one in letters], len(plan.both))
    if first is None or second is None or whole is None:
        return False
    orders = ((*plan.both, *plan.rows, *plan.summed), (*plan.both, *plan.summed, *plan.columns))
    factors = [
        _as_matrices(parts, index, [terms[index].index(one) for one in orders[index]], form)
        for index, form in enumerate((first, second))
    ]
    product = parts.add("MatMul", "product", factors)
    spread = parts.add("Reshape", "spread", [product, parts.whole("spread_shape", *whole)])
    return parts.replace(parts.add("Transpose", "made", [spread], {"perm": [letters.index(one) for one in terms[2]]}))


@dataclass(frozen=True)
class _Plan:
    """The letters of a product of matrices: of its batch, its rows, its columns, and those that are summed over."""

    both: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    summed: tuple[str, ...]


def _plan(left: str, right: str, made: str) -> _Plan | None:
    """Return which letter is what; None where one term alone has a letter that is summed over."""
    both = tuple(one for one in made if one in left and one in right)
    rows, columns = (tuple(one for one in made if one in term and one not in both) for term in (left, right))
    summed = tuple(one for one in left if one in right and one not in made)
    known = {*both, *rows, *columns}
    return _Plan(both, rows, columns, summed) if {*left, *right} == known | {*summed} and {*made} == known else None


def _sizes(terms: Sequence[str], shapes: Sequence[Shape]) -> dict[str, int | str | None] | None:
    """Return the dimension of each letter; None where one of size 1 may be broadcast."""
    sizes: dict[str, int | str | None] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, size in zip(term, shape, strict=True):
            before = sizes.get(letter, size)
            if before != size and 1 in (before, size):
                return None
            sizes[letter] = size if isinstance(size, int) else before
    return sizes


def _terms(equation: str, ranks: Sequence[int]) -> list[str] | None:
    """Return the two terms and the result of an equation, an ellipsis written as digits; None for what is not written.

    An ellipsis must stand for as many dimensions in both terms, and no letter may come twice in a term.
    """
    given, arrow, made = equation.replace(" ", "").partition("->")
    terms = given.split(",")
    if not arrow or len(terms) != len(ranks):
        return None
    hidden = {rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True) if "..." in term}
    if len(hidden) > 1 or ("..." in made and not hidden):
        return None
    digits = "".join(map(str, range(next(iter(hidden), 0))))
    written = [term.replace("...", digits) for term in (*terms, made)]
    return written if all(len({*term}) == len(term) for term in written) else None


def _form(
    sizes: dict[str, int | str | None], both: Sequence[str], rows: Sequence[str], columns: Sequence[str]
) -> list[int] | None:
    """Return the dimensions [both..., rows, columns] as Reshape takes them, one at most unknown."""
    flat: list[int | str | None] = []
    for letters in (rows, columns):
        known = [sizes[one] for one in letters]
        numbers = [one for one in known if isinstance(one, int)]
        flat.append(int(np.prod(numbers)) if len(numbers) == len(known) else None)
    return kept_dimensions([*(sizes[one] for one in both), *flat], len(both))


def _as_matrices(parts: Parts, index: int, order: Sequence[int], form: Sequence[int]) -> ir.Value:
    moved = parts.add("Transpose", f"moved_{index}", [parts.given(index)], {"perm": list(order)})
    return parts.add("Reshape", f"matrices_{index}", [moved, parts.whole(f"matrices_{index}_shape", *form)])


def with_height(parts: Parts) -> bool:
    """Write Conv or ConvTranspose over one dimension as one over two, the first of size 1."""
    node, weight, bias = parts.node, array_of(parts.given(1)), parts.given(2)
    if weight is None or weight.ndim != 3 or (bias is not None and array_of(bias) is None):
        return False  # no height helps against what is computed
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    for name, first in (("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("output_padding", 0)):
        if name in attributes:
            attributes[name] = [first, *attributes[name]]
    if "output_shape" in attributes:
        attributes["output_shape"] = [1, *attributes["output_shape"]]
    if "pads" in attributes:
        begin, end = attributes["pads"]
        attributes["pads"] = [0, begin, 0, end]
    axis = parts.whole("height", 2)
    high = parts.add("Unsqueeze", "high", [parts.given(0), axis])
    inputs = [high, parts.constant("weight", weight[:, :, None]), *list(node.inputs)[2:]]
    made = parts.add(node.op_type, "made", inputs, attributes)
    return parts.replace(parts.add("Squeeze", "flat", [made, axis]))
