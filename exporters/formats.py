"""The table of export formats: the runtimes that each is meant for, and the tolerance that it is held to."""

from dataclasses import dataclass

from tsexport.types import Format


@dataclass(frozen=True)
class ExportFormat:
    """One row; `runtimes` are the defaults, best first, `tolerance` a name in `runtimes.comparison.TOLERANCES`."""

    name: Format
    suffix: str
    runtimes: tuple[str, ...]
    tolerance: str


EXPORT_FORMATS: dict[Format, ExportFormat] = {
    row.name: row
    for row in (
        ExportFormat(
            "torchscript",
            suffix=".pt",
            runtimes=("torchscript",),
            tolerance="fp32-same-math",
        ),
        ExportFormat(
            "onnx",
            suffix=".onnx",
            runtimes=("onnxruntime", "tract"),
            tolerance="fp32-export",
        ),
        ExportFormat(
            "openvino",
            suffix=".xml",
            runtimes=("openvino",),
            tolerance="fp32-export",
        ),
    )
}
