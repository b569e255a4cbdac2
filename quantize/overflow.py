"""What fp16 cannot hold, found by running the calibration data through the graph, before any device sees it.

fp16 ends at 65504, and below 6.1e-5 it loses digits, down to 6e-8, where everything becomes 0.  Calibration windows are
few, so a tensor whose largest magnitude comes within `HEADROOM` of the upper end counts as out of range already; so
does one whose largest magnitude is below the smallest normal number.  bf16 has the range of fp32: nothing but infinity
is out of it.  Infinities that the fp32 graph itself computes (masks) are no overflow, and NaN is an error.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from tsexport.calibration.activations import answers, calibration_batch
from tsexport.calibration.datasets import Dataset
from tsexport.errors import DataError, ExportError
from tsexport.exporters.rewrites.proofs import answer
from tsexport.quantize.casting import LARGEST, SMALLEST_NORMAL
from tsexport.runtimes.bf16_rounding import simulate_bf16
from tsexport.types import Array, Feeds

HEADROOM = 4.0
"""How many times larger than in calibration a value may become before fp16 overflows."""


def largest_magnitudes(model: Path, dataset: Dataset) -> dict[str, float]:
    """Return the largest finite magnitude of every fp32 input and computed tensor, over all calibration windows.

    Memory is bounded by the model: windows are streamed.

    Raises:
        DataError: a tensor holds NaN, or there are no windows.
    """
    inferred = onnx.shape_inference.infer_shapes(onnx.load(model, load_external_data=False)).graph
    computed = {name for node in inferred.node for name in node.output}
    tensors = [
        info.name
        for info in (*inferred.input, *inferred.value_info, *inferred.output)
        if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        and (info.name in computed or info in inferred.input)
    ]
    largest = dict.fromkeys(tensors, 0.0)
    for found in answers(model, dataset, tensors):
        for name, array in found.items():
            if np.isnan(array).any():
                raise DataError(f"the tensor {name} holds NaN on calibration data: it cannot be cast to a narrow type")
            magnitudes = np.abs(array, where=np.isfinite(array), out=np.zeros_like(array))
            largest[name] = max(largest[name], float(magnitudes.max(initial=0.0)))
    return largest


def out_of_range(largest: Mapping[str, float], narrow: ir.DataType) -> dict[str, float]:
    """Return the tensors, largest first, that come within HEADROOM of a type's end or stay below its normal numbers.

    A tensor that is 0 everywhere is exact in every type.
    """
    upper = LARGEST[narrow] / (HEADROOM if narrow is ir.DataType.FLOAT16 else 1.0)
    far = {name: value for name, value in largest.items() if value > upper or 0.0 < value < SMALLEST_NORMAL[narrow]}
    return dict(sorted(far.items(), key=lambda item: (-item[1], item[0])))


def require_finite(model: onnx.ModelProto, source: onnx.ModelProto, dataset: Dataset) -> None:
    """Run a narrow graph, simulated, on the first calibration windows (see `calibration_batch`).

    Args:
        model: the narrow graph.
        source: the fp32 graph it was made from.
        dataset: the calibration windows.

    Raises:
        ExportError: an output is infinite or NaN; names the first tensor that is so, and is not in the fp32 graph.
    """
    feeds = next(iter(dataset.batches(calibration_batch(dataset)))).feeds
    simulated = simulate_bf16(model)
    outputs = answer(simulated, feeds)
    if all(np.isfinite(array).all() for array in outputs.values()):
        return
    tensor = _first_overflow(simulated, source, feeds) or next(iter(outputs))
    raise ExportError(
        f"the tensor {tensor} becomes infinite or NaN on calibration data",
        next_step="Keep the layer that computes it in fp32, by name.",
    )


def _first_overflow(simulated: onnx.ModelProto, source: onnx.ModelProto, feeds: Feeds) -> str:
    known = {name for node in source.graph.node for name in node.output}
    shared = [name for node in simulated.graph.node for name in node.output if name in known]
    narrow, wide = (_all_answers(model, feeds, shared) for model in (simulated, source))
    return next((name for name in shared if not np.isfinite(narrow[name]).all() and np.isfinite(wide[name]).all()), "")


def _all_answers(model: onnx.ModelProto, feeds: Feeds, tensors: Sequence[str]) -> dict[str, Array]:
    """Return what named tensors of a graph hold."""
    opened = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    values = {value.name: value for node in opened.graph for value in node.outputs}
    opened.graph.outputs.clear()
    opened.graph.outputs.extend(values[name] for name in tensors)
    return answer(ir.to_proto(opened), feeds)
