"""What fp16 cannot hold, found by running the calibration data through the graph, before any device sees it.

fp16 ends at 65504, and below 6.1e-5 it loses digits, down to 6e-8, where everything becomes 0.  Calibration windows are
few, so a tensor whose largest magnitude comes within `HEADROOM` of the upper end counts as out of range already; so
does one whose largest magnitude is below the smallest normal number.  bf16 has the range of fp32: nothing but infinity
is out of it.  Infinities that the fp32 graph itself computes (masks) are no overflow, and NaN is an error.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from tsexport.calibration.activations import GROUP_BYTES, answers
from tsexport.calibration.arrays import ArrayDataset
from tsexport.calibration.datasets import Dataset
from tsexport.calibration.magnitudes import largest_magnitudes
from tsexport.errors import DataError, ExportError
from tsexport.exporters.onnx_file import write_onnx
from tsexport.quantize.casting import LARGEST, SMALLEST_NORMAL
from tsexport.runtimes.bf16_rounding import simulate_bf16
from tsexport.types import Array

HEADROOM = 4.0
"""How many times larger than in calibration a value may become before fp16 overflows."""


def magnitudes(model: Path, dataset: Dataset) -> dict[str, float]:
    """Return the largest finite magnitude of every fp32 input and computed tensor, over all calibration windows.

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
    largest = largest_magnitudes(model, dataset, tensors)
    for name, value in largest.items():
        if np.isnan(value):
            raise DataError(f"the tensor {name} holds NaN on calibration data: it cannot be cast to a narrow type")
    return largest


def out_of_range(largest: Mapping[str, float], narrow: ir.DataType) -> dict[str, float]:
    """Return the tensors, largest first, that come within HEADROOM of a type's end or stay below its normal numbers.

    A tensor that is 0 everywhere is exact in every type.
    """
    upper = LARGEST[narrow] / (HEADROOM if narrow is ir.DataType.FLOAT16 else 1.0)
    far = {name: value for name, value in largest.items() if value > upper or 0.0 < value < SMALLEST_NORMAL[narrow]}
    return dict(sorted(far.items(), key=lambda item: (-item[1], item[0])))


def require_finite(model: onnx.ModelProto, source: Path, dataset: Dataset) -> None:
    """Run a narrow graph, simulated, on the first calibration window, and look at every tensor that it shares with the
    fp32 graph: one that overflows within a graph can leave finite outputs behind, and wrong ones.

    Args:
        model: the narrow graph.
        source: the file of the fp32 graph that it was made from.
        dataset: the calibration windows.

    Raises:
        ExportError: a tensor is infinite or NaN where that of the fp32 graph is not; names the first one.
    """
    feeds = next(iter(dataset.batches(1))).feeds
    window = ArrayDataset({name: np.asarray(array) for name, array in feeds.items()})
    with tempfile.TemporaryDirectory(prefix="tsexport-overflow-") as folder:
        simulated = Path(folder) / "simulated.onnx"
        narrow = simulate_bf16(model)
        write_onnx(narrow, simulated, "simulated")
        known = {name for node in onnx.load(source, load_external_data=False).graph.node for name in node.output}
        shared = [name for node in narrow.graph.node for name in node.output if name in known and name]
        bad = [name for name, array in _pairs(simulated, window, shared) if not np.isfinite(array).all()]
        finite = {name for name, array in _pairs(source, window, bad) if np.isfinite(array).all()}
    first = next((name for name in bad if name in finite), None)
    if first is not None:
        raise ExportError(
            f"the tensor {first} becomes infinite or NaN on calibration data",
            next_step="Keep the layer that computes it in fp32, by name.",
        )


def _pairs(model: Path, dataset: Dataset, tensors: Sequence[str]) -> Iterator[tuple[str, Array]]:
    """Yield what tensors hold for a dataset of one window."""
    if tensors:
        for found in answers(model, dataset, tensors, group_bytes=GROUP_BYTES):
            yield from found.items()
