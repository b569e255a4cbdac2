"""The contestants of one model where tsexport's INT8 is held against the other tools' defaults."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tsexport.bench.suites.contest import Entrant, PlainFiles, Tell, dynamic_entrant, entrants_of_bundle
from tsexport.bench.suites.default_tools import (
    NNCF_IR,
    NNCF_TRANSFORMER_IR,
    OLIVE_ONNX,
    STATIC,
    make_default,
    make_olive,
    remove_windows,
    write_windows,
)
from tsexport.bench.suites.plain_exports import ONNX, QUANTIZED, make_plain_exports
from tsexport.bench.suites.plain_runtimes import EagerSource
from tsexport.bench.suites.rows import NNCF, NNCF_TRANSFORMER, OLIVE, PLAIN_ONNX, QUANTIZE_STATIC
from tsexport.bundles.bundle import Bundle
from tsexport.types import ModelSpec

if TYPE_CHECKING:
    from tsexport.calibration.datasets import Dataset

TRANSFORMERS = frozenset(("transformer", "hrm"))
"""The families whose models are transformers."""
TOOL_SECONDS = 1800.0
"""The most that one tool may take for one model."""


@dataclass(frozen=True)
class DefaultTools:
    """Makes the contestants: the other tools' defaults, and what the bundle has.

    Args:
        calibration: the windows that the bundle's own candidates are calibrated on.
        olive: the Python of Olive's environment, or None.
    """

    calibration: "Dataset"
    olive: Path | None

    def enter(
        self, spec: ModelSpec, eager: EagerSource, bundle: Bundle, folder: Path, say: Tell
    ) -> tuple[Entrant, ...]:
        """Make every tool's file in `folder`, and return all contestants; what failed says why."""
        eager.write(folder / "eager.json")
        failures = make_plain_exports(folder / "eager.json", folder, (ONNX, QUANTIZED))
        files = (STATIC, NNCF_IR, *((NNCF_TRANSFORMER_IR,) if spec.family in TRANSFORMERS else ()))
        if ONNX in failures:
            failures |= dict.fromkeys((*files, OLIVE_ONNX), f"there is no plain ONNX file: {failures[ONNX]}")
        else:
            failures |= self._run_tools(files, folder, say)
        plain = PlainFiles(spec, folder, failures)
        entrants = [
            plain.entrant(PLAIN_ONNX, "opset 17", ONNX, "onnx", "plain-onnxruntime"),
            plain.entrant(QUANTIZE_STATIC, "QDQ, of plain ONNX", STATIC, "onnx", "plain-onnxruntime", "int8"),
            dynamic_entrant(plain),
            *plain.openvino(),
            plain.entrant(NNCF, "of plain ONNX, in OpenVINO", NNCF_IR, "openvino", "plain-openvino-ir", "int8"),
        ]
        if NNCF_TRANSFORMER_IR in files:
            what = "model_type=TRANSFORMER"
            entrants.append(
                plain.entrant(NNCF_TRANSFORMER, what, NNCF_TRANSFORMER_IR, "openvino", "plain-openvino-ir", "int8")
            )
        what = "int8, of plain ONNX, in ONNX Runtime"
        entrants.append(plain.entrant(OLIVE, what, OLIVE_ONNX, "onnx", "plain-onnxruntime", "int8"))
        return (*entrants, *entrants_of_bundle(bundle))

    def _run_tools(self, files: tuple[str, ...], folder: Path, say: Tell) -> dict[str, str]:
        """Run the tools; return by file why those that are missing could not be made."""
        write_windows(self.calibration, folder)
        made: dict[str, str] = {}
        for file in files:
            say(file)
            made[file] = make_default(file, folder, seconds=TOOL_SECONDS)
        remove_windows(folder)
        say(OLIVE)
        made[OLIVE_ONNX] = make_olive(self.olive, folder, seconds=TOOL_SECONDS)
        return {file: reason for file, reason in made.items() if reason}
