"""How large a graph's tensors become on calibration windows, found within the graph: one pass, whatever they weigh.

Asked for as outputs, the tensors of one window of a large model take gigabytes, and so many passes of the whole graph.
Here each gets three nodes beside it, and only their scalars leave the graph:

    ReduceMax, ReduceMin   the largest magnitude is that of one of them
    ReduceSum              finite only where every value is: NaN and infinity survive each addition

A tensor whose sum is not finite (it holds masks, or its sum alone overflows) is then asked for itself, since what the
reductions make of NaN is the kernel's affair.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tsexport.calibration.activations import GROUP_BYTES, ObservedGraph, answers, reduction_name, windows_at_once
from tsexport.calibration.datasets import Dataset
from tsexport.errors import DataError

_FLOAT_BYTES = 4
_OPERATORS = ("ReduceMax", "ReduceMin", "ReduceSum")


def largest_magnitudes(
    model: Path, dataset: Dataset, tensors: Sequence[str], *, group_bytes: int = GROUP_BYTES
) -> dict[str, float]:
    """Return the largest finite magnitude of fp32 tensors over all windows, by name; NaN for one that ever holds NaN.

    It is 0 where every value is infinite, or there is none.

    Raises:
        DataError: no windows, or tensors that the graph does not compute.
    """
    if not dataset.count:
        raise DataError("the calibration data holds no window")
    graph = ObservedGraph(model, tensors)
    counts = graph.session_of_reductions(tensors, ("Size",)).run(next(iter(dataset.batches(1))).feeds)
    sizes = [_FLOAT_BYTES * int(count) for count in counts.values()]
    found = dict.fromkeys(tensors, 0.0)
    unclear: set[str] = set()
    session = graph.session_of_reductions(tensors, _OPERATORS)
    for batch in dataset.batches(windows_at_once(dataset, sizes, group_bytes)):
        numbers = {name: float(number) for name, number in session.run(batch.feeds).items()}
        for name in tensors:
            high, low, total = (numbers[reduction_name(operator, name)] for operator in _OPERATORS)
            found[name] = max(found[name], high, -low)  # of no values, -inf
            if not math.isfinite(total):
                unclear.add(name)
    asked = [name for name in tensors if name in unclear]
    return found | _of_values(model, dataset, asked, group_bytes)


def _of_values(model: Path, dataset: Dataset, tensors: Sequence[str], group_bytes: int) -> dict[str, float]:
    """Return what `largest_magnitudes` does, from the tensors' own values."""
    found = dict.fromkeys(tensors, 0.0)
    if not tensors:
        return found
    for values in answers(model, dataset, tensors, group_bytes=group_bytes):
        for name, array in values.items():
            largest = np.abs(array[~np.isinf(array)]).max(initial=0.0)  # NaN where there is one
            found[name] = float(np.maximum(found[name], largest))
    return found
