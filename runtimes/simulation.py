"""What an artifact answers on a CPU or a device that is not this one: its numerics, computed here exactly.

Integer kernels differ from CPU to CPU (those without VNNI saturate), so none of them is used:

    Q/DQ in ONNX              session.disable_quant_qdq = 1: every pair is computed as written, in float32
    dynamic graphs            MatMulInteger, ConvInteger and DynamicQuantizeLSTM in exact form, see `exact_integers`
    OpenVINO's FakeQuantize   LP_TRANSFORMS_MODE = NO and DYNAMIC_QUANTIZATION_GROUP_SIZE = 0: no low-precision kernels;
                              inference in f32
    bf16 and fp16 in ONNX     computed in fp32, and every narrow tensor rounded to its type, see `bf16_rounding`
    bf16 in OpenVINO          an ONNX graph that rounds at every operator stands in for it, where the artifact was built
                              with one beside it; that is no exact simulation, and the artifact's caveat says so

    bf16 and fp16 in torch    torch's own kernels of this CPU in that type, whose sums may round otherwise

What else OpenVINO decides by itself at run time (activations quantized in groups, bf16 for the rest of an int8 graph)
cannot be simulated and is refused.  What is in fp32 runs as it is.

A device that computes as the file says answers the same but for the rounding of float32 sums; one that fuses Q/DQ pairs
away may answer closer to the source model.
"""

import shutil
import tempfile
import weakref
from dataclasses import replace
from pathlib import Path

from tsexport.errors import MissingDependencyError, UsageError
from tsexport.runtimes.registry import load
from tsexport.targets import Target
from tsexport.types import Artifact, Session

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


def simulate(artifact: Artifact, runtime: str, threads: int) -> Session:
    """Return a session that answers as the artifact does where its arithmetic is exact, on any CPU.

    Args:
        artifact: in any precision; one in fp32 runs as it is.
        runtime: the one that it is meant for: "onnxruntime" or "openvino", or any for fp32.  What is in ONNX is
            computed in ONNX Runtime for both.
        threads: that one inference uses.

    Raises:
        UsageError: the runtime, or an operator of the graph, cannot be simulated exactly; else as `registry.load`.
    """
    if artifact.precision == "fp32":
        return load(artifact, runtime, threads)
    if artifact.format == "torchscript":
        return load(artifact, "torchscript", threads)
    if runtime not in AS_WRITTEN:
        raise UsageError(
            f"artifact {artifact.name} is {artifact.precision}, and {runtime} cannot simulate it; "
            f"allowed are {', '.join(AS_WRITTEN)}"
        )
    if artifact.precision != "int8" and artifact.format == "openvino":
        stand_in = stand_in_beside(artifact.path)
        if stand_in.exists():
            rounded = replace(artifact, path=stand_in, files=(stand_in,), format="onnx", options=())
            return load(rounded, "onnxruntime", threads)
        raise UsageError(
            f"artifact {artifact.name} is {artifact.precision} in OpenVINO, which cannot be simulated",
            next_step=f"build on a machine that has {artifact.precision}",
        )
    asked = dict(artifact.options)
    if (
        asked.get("DYNAMIC_QUANTIZATION_GROUP_SIZE", "0") != "0"
        or asked.get("INFERENCE_PRECISION_HINT", "f32") != "f32"
    ):
        raise UsageError(
            f"artifact {artifact.name} has OpenVINO quantize activations in groups at run time, or compute the rest in "
            "bf16, which cannot be simulated",
            next_step="build on a machine of the target's kind",
        )
    computes = "openvino" if artifact.format == "openvino" else "onnxruntime"
    options = {**asked, **dict(AS_WRITTEN[computes])}
    plain = replace(artifact, options=tuple(options.items()))
    return load(plain, computes, threads) if computes == "openvino" else _rewritten(plain, threads)


def stand_in_beside(artifact: Path) -> Path:
    """Return where the ONNX graph stands that answers in place of an OpenVINO artifact in bf16; none in a bundle."""
    return artifact.with_name(f"{artifact.stem}.simulated.onnx")


def load_for(target: Target, artifact: Artifact, runtime: str, threads: int) -> Session:
    """Return a session on an artifact of a target's bundle, on this machine.

    As `registry.load`, but bf16 for a GPU, which no runtime of CPUs has kernels for, is simulated there.

    Raises:
        MissingDependencyError: simulating needs packages that are not installed.
        UsageError: as `simulate`.
    """
    if target.instruction_set == "gpu" and artifact.precision == "bf16" and runtime != "tensorrt":
        return simulate(artifact, runtime, threads)
    return load(artifact, runtime, threads)


def _rewritten(artifact: Artifact, threads: int) -> Session:
    """Load an ONNX artifact in exact form, from a folder of its own where it has to be written anew."""
    try:
        import onnx

        from tsexport.runtimes.bf16_rounding import simulate_bf16
        from tsexport.runtimes.exact_integers import needs_rewriting, with_exact_integers
    except ImportError as error:
        raise MissingDependencyError(
            f"simulating {artifact.name} needs {error.name}, which is not installed",
            next_step='pip install "tsexport[build]"',
        ) from error

    rounds = artifact.precision in ("bf16", "fp16")
    if not needs_rewriting(onnx.load(artifact.path, load_external_data=False)) and not rounds:
        return load(artifact, "onnxruntime", threads)
    model = with_exact_integers(onnx.load(artifact.path))
    if rounds:
        try:
            model = simulate_bf16(model)
        except ValueError as error:
            raise UsageError(
                f"artifact {artifact.name} cannot be simulated in {artifact.precision}: {error}"
            ) from error
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
