"""What other tools make of a plain ONNX file by their defaults, each tool in a process of its own.

`python -m tsexport.bench.suites.default_tools FILE FOLDER` writes the one that is named, from FOLDER/plain.onnx and the
windows in FOLDER/calibration (see `write_windows`):

quantize_static.onnx    onnxruntime.quantization.quantize_static (QDQ, min-max, all defaults), after quant_pre_process
                        as its documentation tells; without its symbolic shape inference where that fails
nncf.xml                nncf.quantize of the file in OpenVINO, all defaults, saved by openvino.save_model
nncf_transformer.xml    the same with model_type=TRANSFORMER, which its documentation asks for on transformers

Olive runs in its own environment (bench/suites/requirements.txt), as `olive auto-opt --precision int8` for the CPU.
Calibration is on the windows that tsexport's own candidates are calibrated on, one window a call.
"""

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsexport.bench.suites.plain_exports import ONNX
from tsexport.types import Array

if TYPE_CHECKING:
    from tsexport.calibration.datasets import Dataset

STATIC, NNCF_IR, NNCF_TRANSFORMER_IR, OLIVE_ONNX = (
    "quantize_static.onnx",
    "nncf.xml",
    "nncf_transformer.xml",
    "olive/model.onnx",
)
WITHOUT_OLIVE = "not run: give --olive-python, an environment made of bench/suites/requirements.txt"
_WINDOWS = "calibration"
_FAILED = "failed.json"


def write_windows(dataset: "Dataset", folder: Path) -> int:
    """Write calibration windows for the tools' processes, an array a file; return how many there are."""
    place = folder / _WINDOWS
    place.mkdir()
    names = list(dataset.names)
    (place / "names.json").write_text(json.dumps(names))
    batches = [batch.feeds for batch in dataset.batches(1)]
    for index, name in enumerate(names):
        np.save(place / f"{index}.npy", np.concatenate([feeds[name] for feeds in batches]))
    return len(batches)


def read_windows(folder: Path) -> Iterator[dict[str, Array]]:
    """Yield the feeds of each calibration window, of batch 1; the files are mapped, not read."""
    place = folder / _WINDOWS
    names: list[str] = json.loads((place / "names.json").read_text())
    arrays = [np.load(place / f"{index}.npy", mmap_mode="r") for index in range(len(names))]
    for row in range(len(arrays[0])):
        yield {name: np.array(array[row : row + 1]) for name, array in zip(names, arrays, strict=True)}


def make_default(file: str, folder: Path, *, seconds: float) -> str:
    """Make one of the files from `folder`/plain.onnx in a fresh process; return "" or why it could not be made."""
    command = [sys.executable, "-P", "-m", "tsexport.bench.suites.default_tools", file, str(folder)]
    failed = folder / _FAILED
    failed.unlink(missing_ok=True)
    reason = _run(command, seconds, os.environ)
    if failed.exists():
        reason = json.loads(failed.read_text())
    return reason or _missing(folder / file)


def make_olive(python: Path | None, folder: Path, *, seconds: float) -> str:
    """Let Olive's environment make its int8 file; return "" or why there is none."""
    if python is None:
        return WITHOUT_OLIVE
    output = folder / Path(OLIVE_ONNX).parent
    command = [
        str(python), "-m", "olive", "auto-opt", "--model_name_or_path", str(folder / ONNX), "--output_path",
        str(output), "--device", "cpu", "--provider", "CPUExecutionProvider", "--precision", "int8",
        "--disable_telemetry",
    ]  # fmt: skip
    # It caches under its working directory, looks for models on the network, and knows nothing of our packages.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    reason = _run(command, seconds, {**environment, "HF_HUB_OFFLINE": "1"}, folder)
    return reason or _missing(folder / OLIVE_ONNX)


def _run(command: list[str], seconds: float, environment: Mapping[str, str], folder: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env=dict(environment), cwd=folder
        )
    except subprocess.TimeoutExpired:
        return f"it took longer than {seconds:g} s"
    except OSError as error:
        return f"{command[0]} cannot be run: {error.strerror}"
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return f"its process ended with {done.returncode}: {lines[-1][:200] if lines else 'no message'}"


def _missing(path: Path) -> str:
    return "" if path.exists() else f"it ended without an error, and without {path.name}"


def _static(folder: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime ships no types
        def __init__(self) -> None:
            self._windows = read_windows(folder)

        def get_next(self) -> dict[str, Array] | None:
            return next(self._windows, None)

    prepared = folder / "prepared.onnx"
    try:
        quant_pre_process(folder / ONNX, prepared)
    except Exception:  # its documentation says to leave symbolic shapes out where their inference fails
        quant_pre_process(folder / ONNX, prepared, skip_symbolic_shape=True)
    quantize_static(prepared, folder / STATIC, Reader())


def _nncf(folder: Path, file: str) -> None:
    os.environ["CI"] = "true"  # the documented way to keep openvino-telemetry from sending anything
    import nncf
    import openvino

    model = openvino.Core().read_model(folder / ONNX)
    windows = nncf.Dataset(list(read_windows(folder)))
    options: dict[str, Any] = {"model_type": nncf.ModelType.TRANSFORMER} if file == NNCF_TRANSFORMER_IR else {}
    openvino.save_model(nncf.quantize(model, windows, **options), folder / file)


def main() -> None:
    warnings.simplefilter("ignore")
    file, folder = sys.argv[1], Path(sys.argv[2])
    try:
        if file == STATIC:
            _static(folder)
        else:
            _nncf(folder, file)
    except Exception as error:  # whatever a tool raises is what its user would meet
        (folder / file).unlink(missing_ok=True)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        (folder / _FAILED).write_text(json.dumps(f"{type(error).__name__}: {(lines or [''])[0][:200]}"))


def remove_windows(folder: Path) -> None:
    """Remove the calibration windows: of large models they take more room than the model."""
    shutil.rmtree(folder / _WINDOWS, ignore_errors=True)


if __name__ == "__main__":
    main()
