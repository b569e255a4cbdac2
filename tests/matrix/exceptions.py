"""What cannot work, each with its reason: the one table that the matrix reads.

Everything else must: a case that is listed and passes fails the matrix, so that the table stays short and true.
"""

from dataclasses import dataclass

EVERY = "every case"


@dataclass(frozen=True)
class CannotWork:
    """A case (or `EVERY` one) that a runtime cannot run in a precision.

    For "int8", "fp16" and "bf16" a runtime is offered no candidate; with runtime "any" no recipe makes a candidate for
    the case at all.
    """

    precision: str
    runtime: str
    case: str
    reason: str


EXCEPTIONS: tuple[CannotWork, ...] = (
    CannotWork(
        precision="int8",
        runtime="tract",
        case=EVERY,
        reason="Q/DQ loads there without gain, and around Softmax it is silently wrong: it gets fp32 artifacts",
    ),
    CannotWork(
        precision="int8",
        runtime="torchscript",
        case=EVERY,
        reason="no recipe makes TorchScript: torch's own quantization exports to none of the other formats",
    ),
    *(
        CannotWork(
            precision=precision,
            runtime=runtime,
            case=EVERY,
            reason="casts are made in the ONNX graph, for TensorRT, and by OpenVINO: others get fp32 artifacts",
        )
        for precision in ("fp16", "bf16")
        for runtime in ("tract", "torchscript")
    ),
    CannotWork(
        precision="bf16",
        runtime="onnxruntime",
        case="unet-small",
        reason="its products are all convolutions, for which ONNX has no bf16 before opset 22; fp16 is what it gets",
    ),
)


def reason_against(precision: str, runtime: str, case: str) -> str:
    """Return why a case cannot run there, or ""."""
    found = (one for one in EXCEPTIONS if (one.precision, one.runtime) == (precision, runtime))
    return next((one.reason for one in found if one.case in (case, EVERY)), "")


@dataclass(frozen=True)
class NotOnDevice:
    """A case that a target cannot hold; `reason` names the node that forbids it."""

    target: str
    case: str
    reason: str


DEVICE_EXCEPTIONS: tuple[NotOnDevice, ...] = (
    NotOnDevice(
        target="a100-bf16",
        case="unet-small",
        reason="/down.0/down.0.0/Conv and every other product is a convolution, for which ONNX has no bf16 before "
        "opset 22; a100-fp16 is what it gets",
    ),
)


def reason_against_device(target: str, case: str) -> str:
    """Return why a case cannot be built for a target, or ""."""
    found = (one for one in DEVICE_EXCEPTIONS if one.target == target)
    return next((one.reason for one in found if one.case in (case, EVERY)), "")
