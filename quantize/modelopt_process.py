"""Run nvidia-modelopt's INT8 quantizer in a process of its own: it replaces parts of ONNX Runtime's quantizer.

    python -m tsexport.quantize.modelopt_process FOLDER < order.json

FOLDER has source.onnx and batch-*.npz, and gets quantized.onnx.  The order is {"method": "max" or "entropy", "exclude":
names of nodes that stay in floating point}.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader

from tsexport.types import Array


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime ships no types
    """The batches of a folder, one in memory at a time; modelopt asks for the first one beforehand, too."""

    def __init__(self, folder: Path) -> None:
        self._files = sorted(folder.glob("batch-*.npz"))
        self.rewind()

    def rewind(self) -> None:
        self._left = iter(self._files)

    def get_next(self) -> dict[str, Array] | None:
        path = next(self._left, None)
        return None if path is None else _read(path)

    def get_first(self) -> dict[str, Array]:
        return _read(self._files[0])


def _read(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def main(folder: Path, order: str) -> None:
    """Quantize `folder`/source.onnx as an order says, and write `folder`/quantized.onnx."""
    from modelopt.onnx.quantization import quantize

    asked = json.loads(order)
    quantize(
        str(folder / "source.onnx"),
        quantize_mode="int8",
        calibration_data_reader=_Batches(folder),
        calibration_method=asked["method"],
        calibration_eps=["cpu"],
        # names are taken as patterns that match a beginning
        nodes_to_exclude=[f"{re.escape(name)}$" for name in asked["exclude"]] or None,
        high_precision_dtype="fp32",
        output_path=str(folder / "quantized.onnx"),
        log_level="ERROR",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.stdin.read())
