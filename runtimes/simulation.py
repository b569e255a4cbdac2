"""What an artifact answers on a CPU or a device that is not this one: its numerics, computed here exactly.

Integer kernels differ from CPU to CPU (those without VNNI saturate), so none of them is used:

    Q/DQ in ONNX              session.disable_quant_qdq = 1: every pair is computed as written, in float32
    dynamic graphs            MatMulInteger, ConvInteger and DynamicQuantizeLSTM in exact form, see `exact_integers`
    OpenVINO's FakeQuantize   LP_TRANSFORMS_MODE = NO and DYNAMIC_QUANTIZATION_GROUP_SIZE = 0: no low-precision kernels;
                              inference in f32
    bf16 in ONNX              by a rewrite that the caller gives, which rounds to bf16 where the graph does

What is in fp32 or fp16 runs as it is.  A device that computes as the file says answers the same but for the rounding of
float32 sums; one that fuses Q/DQ pairs away may answer closer to the source model.
"""

import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tsexport.errors import UsageError
from tsexport.runtimes.registry import load
from tsexport.types import Artifact, Session

if TYPE_CHECKING:
    from onnx import ModelProto

AS_WRITTEN = {
    "onnxruntime": (("session.disable_quant_qdq", "1"),),
    "openvino": (
        ("LP_TRANSFORMS_MODE", "NO"),
        # Without low-precision kernels the constant int8 weights look compressed, and OpenVINO quantizes what they are
        # multiplied with at run time, in groups.
        ("DYNAMIC_QUANTIZATION_GROUP_SIZE", "0"),
        ("INFERENCE_PRECISION_HINT", "f32"),
    ),
}
"""The options with which each runtime computes Q/DQ pairs and FakeQuantize as they are written."""
EXTERNAL_FROM_BYTES = 2**30
"""A rewritten file above this keeps its weights beside it, since no ONNX file holds more than 2 GB."""

Rewrite = Callable[["ModelProto"], "ModelProto"]


def simulate(artifact: Artifact, runtime: str, threads: int, *, bf16: Rewrite | None = None) -> Session:
    """Return a session that answers as the artifact does where its arithmetic is exact, on any CPU.

    Args:
        artifact: in any precision.
        runtime: the one that it is meant for: "onnxruntime" or "openvino" for int8 and bf16; any for fp32 and fp16.
            What is in ONNX is computed in ONNX Runtime for both.
        threads: that one inference uses.
        bf16: turns an ONNX graph with bf16 tensors into one that rounds as it does and that ONNX Runtime computes.

    Raises:
        UsageError: the runtime, or an operator of the graph, cannot be simulated exactly; else as `registry.load`.
    """
    if artifact.precision in ("fp32", "fp16"):
        return load(artifact, runtime, threads)
    if runtime not in AS_WRITTEN:
        raise UsageError(
            f"artifact {artifact.name} is {artifact.precision}, and {runtime} cannot simulate it; "
            f"allowed are {', '.join(AS_WRITTEN)}"
        )
    if artifact.precision == "bf16" and (artifact.format == "openvino" or bf16 is None):
        raise UsageError(
            f"artifact {artifact.name} is bf16 in {artifact.format}, which cannot be simulated",
            next_step="build on a machine that has bf16",
        )
    computes = "openvino" if artifact.format == "openvino" else "onnxruntime"
    options = {**dict(artifact.options), **dict(AS_WRITTEN[computes])}
    plain = replace(artifact, options=tuple(options.items()))
    if computes == "openvino":
        return load(plain, computes, threads)
    return _rewritten(plain, threads, bf16)


def _rewritten(artifact: Artifact, threads: int, bf16: Rewrite | None) -> Session:
    """Load an ONNX artifact with its integer operators in exact form, from a folder of its own where it has any."""
    import onnx

    from tsexport.runtimes.exact_integers import needs_rewriting, with_exact_integers

    rounds = artifact.precision == "bf16"
    if not needs_rewriting(onnx.load(artifact.path, load_external_data=False)) and not rounds:
        return load(artifact, "onnxruntime", threads)
    model = with_exact_integers(onnx.load(artifact.path))
    if rounds and bf16 is not None:
        model = bf16(model)
    folder = Path(tempfile.mkdtemp(prefix="tsexport-simulation-"))
    try:
        path = folder / "simulated.onnx"
        large = model.ByteSize() > EXTERNAL_FROM_BYTES
        onnx.save(model, path, save_as_external_data=large, location=f"{path.name}.data" if large else None)
        session = load(replace(artifact, path=path, files=(path,)), "onnxruntime", threads)
    except BaseException:
        shutil.rmtree(folder)
        raise
    weakref.finalize(session, shutil.rmtree, folder, ignore_errors=True)  # it is opened again for other batch sizes
    return session
