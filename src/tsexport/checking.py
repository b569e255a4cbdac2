"""`tsexport check`: will the target's TensorRT take an ONNX file, and compute what it says?"""

from pathlib import Path
from typing import TYPE_CHECKING

from tsexport.errors import UnsupportedError, UsageError
from tsexport.extras import require
from tsexport.targets import HOST, parse_target

if TYPE_CHECKING:
    from tsexport.exporters.device_check import DeviceReport


def check_file(path: Path, target: str, device: str | None = None) -> "DeviceReport":
    """Return what a target's TensorRT would do with an ONNX file, node by node; the file is judged as it stands.

    Args:
        path: an .onnx file; weights in a second file lie beside it.
        target: one with TensorRT, such as "jetson-int8".
        device: the target's device, such as "xavier-nx@jetpack-5.1" or "@tensorrt-8.6".

    Raises:
        UsageError: an unknown target or device, a target without TensorRT, no file or a damaged one.
        UnsupportedError: the device has no arithmetic of that precision.
        MissingDependencyError: the extra `build` is not installed.
    """
    chosen = parse_target(target, device or HOST)
    if chosen.tensorrt is None:
        raise UsageError(
            f"check is for targets with TensorRT, and {target} has none",
            next_step="Name a target such as jetson-int8; for a CPU, build the model: it is run there.",
        )
    require("build", "tsexport check")
    from tsexport.exporters.device_check import check_onnx
    from tsexport.exporters.onnx_reading import require_readable

    require_readable(path)
    return check_onnx(
        path,
        tensorrt=chosen.tensorrt,
        precision=chosen.precision,
        target=chosen.name,
        device=chosen.device,
        compute_capability=chosen.compute_capability,
    )


def explain(report: "DeviceReport", what: str) -> str:
    """Return why TensorRT does not run `what`: the first node that stands in the way, and how many more do."""
    first, more = report.errors[0], len(report.errors) - 1
    others = f" (and {more} more)" if more else ""
    where = f"{first.node!r}: " if first.node else ""
    return f"TensorRT {report.tensorrt} does not run {what} as it is: {where}{first.reason}{others}"


def next_step_of(report: "DeviceReport") -> str:
    """Return what helps against the first node that stands in the way, "" where nothing is known."""
    first = report.errors[0]
    later = f"TensorRT {first.first_version} takes it" if first.first_version else ""
    return "; ".join(part for part in (first.rewrite, later) if part)


def raise_unless_accepted(report: "DeviceReport") -> None:
    """Raise UnsupportedError, with what stands in the way, where a node is refused or computed wrongly."""
    if not report.accepted:
        raise UnsupportedError(
            explain(report, report.file), next_step=next_step_of(report) or "See the report for each node."
        )
