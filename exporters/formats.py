"""The table of export formats: who writes each, which runtimes it is meant for, and the tolerance it is held to."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from tsexport.types import Artifact, Format


@dataclass(frozen=True)
class ExportFormat:
    """One row.

    `exporter` is "module:function", imported when it is called for (it brings torch or openvino along).  It takes
    (nn.Module, ModelSpec, Feeds, Path) where `made_from` is "module", and (ONNX Artifact, Path) where it is "onnx".
    `runtimes` are the defaults, best first; `tolerance` is a name in `tsexport.runtimes.comparison.TOLERANCES`.
    """

    name: Format
    suffix: str
    made_from: Literal["module", "onnx"]
    exporter: str
    runtimes: tuple[str, ...]
    tolerance: str

    def load_exporter(self) -> Callable[..., Artifact]:
        """Import and return the function that writes this format."""
        module, _, function = self.exporter.partition(":")
        exporter: Callable[..., Artifact] = getattr(import_module(module), function)
        return exporter


EXPORT_FORMATS: dict[Format, ExportFormat] = {
    row.name: row
    for row in (
        ExportFormat(
            "torchscript",
            suffix=".pt",
            made_from="module",
            exporter="tsexport.exporters.torchscript:export_torchscript",
            runtimes=("torchscript",),
            tolerance="fp32-same-math",
        ),
        ExportFormat(
            "onnx",
            suffix=".onnx",
            made_from="module",
            exporter="tsexport.exporters.onnx:export_onnx",
            runtimes=("onnxruntime", "tract"),
            tolerance="fp32-export",
        ),
        ExportFormat(
            "openvino",
            suffix=".xml",
            made_from="onnx",
            exporter="tsexport.exporters.openvino:export_openvino",
            runtimes=("openvino",),
            tolerance="fp32-export",
        ),
    )
}
