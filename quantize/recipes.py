"""The recipes that are tried for a target, by its instruction set and its precision.

No recipe wins everywhere, so every one that suits the target is built and its accuracy judged.  Where the target is
this machine, its speed is measured too, and INT8 ships only where it is faster than fp32.  What decides the rows:

- Without VNNI the dot product of U8 activations and S8 weights adds two products in 16 bits and saturates; weights of
  7 bits (`reduce_range`) or U8 weights keep clear of that.  With VNNI nothing saturates, and full
  range is the more accurate.
- Transformers and LSTMs win with dynamic activations and constant weights in ONNX Runtime, convolutional models with
  static ones in OpenVINO.
- NNCF's mixed preset suits convolutions; on attention models its performance preset on products alone is faster and has
  a fraction of the error, and its transformer type wins nowhere (figures: `nncf_quantizer`).
- Attention as one operator of ONNX Runtime's makes short windows up to 1.2 times faster (`fused_attention`).
- Where a CPU has bf16, what INT8 leaves in floating point may be in bf16: 1.2 times on hrm-27m.
- Arm64 multiplies S8 by S8 without saturating; on x86 without VNNI the same file is several times slower than fp32.
- TensorRT takes symmetric S8 as Q/DQ and nothing else, so its candidates are its own.

Source: measurements on AVX2 and AVX512-VNNI machines; `bench/suites` repeats them.

To add a recipe: define it, and add it to the tuple of each list that it suits.  A tool that has to be installed first
adds its rows all the same: where it is missing, the candidate is listed with that reason.
"""

from collections.abc import Mapping

from tsexport.quantize.cpu_recipes import (
    ARM64,
    CPU_BF16,
    INT8_WITH_BF16,
    OPENVINO_BF16_ELSEWHERE,
    WITH_AMX,
    WITH_VNNI,
    WITHOUT_VNNI,
)
from tsexport.quantize.recipe import Recipe
from tsexport.quantize.tensorrt_recipes import (
    TENSORRT_BF16,
    TENSORRT_FP16,
    TENSORRT_INT8,
    TENSORRT_INT8_BEFORE_AMPERE,
)
from tsexport.targets import CpuFeatures, InstructionSet, Target

INT8: Mapping[InstructionSet, tuple[Recipe, ...]] = {
    "generic": WITHOUT_VNNI,
    "avx2": WITHOUT_VNNI,
    "avx512-vnni": WITH_VNNI,
    "amx": WITH_AMX,
    "arm64": ARM64,
    "gpu": TENSORRT_INT8,
}


def recipes_for(target: Target, cpu: CpuFeatures) -> tuple[Recipe, ...]:
    """Return the recipes that suit a target, in the order in which they are tried; none for an fp32 target.

    The target's instruction set decides, not that of this machine: the two may differ.

    Args:
        target: where the artifact will run.
        cpu: this machine's, whose bf16 may win for an INT8 target that is this machine.
    """
    gpu = target.instruction_set == "gpu"
    if target.precision == "fp16":
        return TENSORRT_FP16 if gpu else ()
    if target.precision == "bf16":
        elsewhere = () if target.here else (OPENVINO_BF16_ELSEWHERE,)
        return TENSORRT_BF16 if gpu else elsewhere or CPU_BF16
    if target.precision == "int8":
        int8 = _tensorrt_int8(target) if gpu else INT8[target.instruction_set]
        if not (target.here and cpu.bf16):
            return int8
        rest_in_bf16 = INT8_WITH_BF16 if target.instruction_set in ("avx512-vnni", "amx") else ()
        return (*int8, *rest_in_bf16, *CPU_BF16)
    return ()


def _is_before_ampere(target: Target) -> bool:
    """Return whether a target is a GPU that lacks INT8 kernels of some layers."""
    return target.compute_capability is not None and float(target.compute_capability) < 8.0


def _tensorrt_int8(target: Target) -> tuple[Recipe, ...]:
    """Return the INT8 recipes by what a GPU lacks."""
    return TENSORRT_INT8_BEFORE_AMPERE if _is_before_ampere(target) else INT8["gpu"]
