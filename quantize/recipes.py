"""The recipes that are tried for a target, by its instruction set and its precision.

No recipe wins everywhere, so every one that suits the target is built and its accuracy judged.  Where the target is
this machine, its speed is measured too, and INT8 ships only where it is faster than fp32.  What decides the rows:

- Without VNNI the dot product of U8 activations and S8 weights adds two products in 16 bits and saturates; weights of
  7 bits (`reduce_range`) or U8 weights keep clear of that.  With VNNI nothing saturates, and full
  range is the more accurate.
- Transformers and LSTMs win with dynamic activations and constant weights in ONNX Runtime, convolutional models with
  static ones in OpenVINO.
- NNCF's mixed preset had a tenth of the error of its transformer preset on attention models.
- Arm64 multiplies S8 by S8 without saturating; on x86 without VNNI the same file is several times slower than fp32.
- TensorRT takes symmetric S8 as Q/DQ and nothing else, so its candidates are its own.

Source: measurements on AVX2 and AVX512-VNNI machines; `bench/suites` repeats them.

To add a recipe: define it, and add it to the tuple of each list that it suits.  A tool that has to be installed first
adds its rows all the same: where it is missing, the candidate is listed with that reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from tsexport.calibration.table import Observer
from tsexport.devices import version_key
from tsexport.targets import CpuFeatures, InstructionSet, Target
from tsexport.types import Format, Precision

MICROSOFT_DOMAIN = "com.microsoft"
"""ONNX Runtime's own operators; DynamicQuantizeLSTM is one of them.  Other runtimes know few of them or none."""

LAYER_NORM_FROM = (8, 6)
"""The first TensorRT that knows LayerNormalization."""


@dataclass(frozen=True)
class Recipe:
    """How one candidate is made: every choice that decides its numbers.

    `tool` is a key of `candidates.TOOLS`.  `activation_type` is that of static activations.  `domains` are the operator
    domains beside ONNX's own that its graph may use.  `float_layers` name the nodes of the fp32 graph that stay in
    floating point.  `observer` takes the ranges of activations where the recipe is static and its tool calibrates by
    table; None for the tool's own way.  `decompose_layer_norm` writes LayerNormalization out, with its parts in fp32.
    For TensorRT's INT8: `attention_products` are quantized too, or not, and `every_kernel` is False for GPUs before
    compute capability 8.0, which lack some INT8 kernels.
    """

    name: str
    tool: str
    activations: Literal["dynamic", "static", "none"]
    weights: Literal["u8", "s8", "bf16", "fp16"]
    reduce_range: bool
    per_channel: bool
    format: Format
    runtimes: tuple[str, ...]
    summary: str
    precision: Precision = "int8"
    domains: tuple[str, ...] = ()
    activation_type: Literal["u8", "s8"] = "u8"
    float_layers: tuple[str, ...] = ()
    observer: Observer | None = None
    decompose_layer_norm: bool = False
    attention_products: bool = False
    every_kernel: bool = True


DYNAMIC_U8 = Recipe(
    name="dynamic-u8",
    tool="onnxruntime",
    activations="dynamic",
    weights="u8",
    reduce_range=False,
    per_channel=False,
    format="onnx",
    runtimes=("onnxruntime",),
    summary="activations quantized at run time, U8 weights: no 16-bit saturation on any CPU",
    domains=(MICROSOFT_DOMAIN,),
)
DYNAMIC_S8_REDUCED = Recipe(
    name="dynamic-s8-reduced",
    tool="onnxruntime",
    activations="dynamic",
    weights="s8",
    reduce_range=True,
    per_channel=False,
    format="onnx",
    runtimes=("onnxruntime",),
    summary="activations quantized at run time, 7-bit S8 weights: keeps clear of 16-bit saturation",
    domains=(MICROSOFT_DOMAIN,),
)
DYNAMIC_S8 = Recipe(
    name="dynamic-s8",
    tool="onnxruntime",
    activations="dynamic",
    weights="s8",
    reduce_range=False,
    per_channel=False,
    format="onnx",
    runtimes=("onnxruntime",),
    summary="activations quantized at run time, S8 weights of full range: for CPUs with VNNI",
    domains=(MICROSOFT_DOMAIN,),
)
STATIC_U8S8_REDUCED = Recipe(
    name="static-u8s8-reduced",
    tool="onnxruntime",
    activations="static",
    weights="s8",
    reduce_range=True,
    per_channel=False,
    format="onnx",
    runtimes=("onnxruntime", "openvino"),
    summary="U8 activations by least squared error, 7-bit S8 weights",
    observer=Observer("mse"),
)
STATIC_U8S8 = Recipe(
    name="static-u8s8",
    tool="onnxruntime",
    activations="static",
    weights="s8",
    reduce_range=False,
    per_channel=True,
    format="onnx",
    runtimes=("onnxruntime", "openvino"),
    summary="U8 activations by least squared error, S8 weights of full range per channel: for CPUs with VNNI",
    observer=Observer("mse"),
)
NNCF_MIXED = Recipe(
    name="nncf-mixed",
    tool="nncf",
    activations="static",
    weights="s8",
    reduce_range=False,
    per_channel=True,
    format="openvino",
    runtimes=("openvino",),
    summary="NNCF's mixed preset with fast bias correction",
)
NNCF_MIXED_REDUCED = Recipe(
    name="nncf-mixed-reduced",
    tool="nncf",
    activations="static",
    weights="s8",
    reduce_range=True,
    per_channel=True,
    format="openvino",
    runtimes=("openvino",),
    summary="NNCF's mixed preset with fast bias correction and its fix for 16-bit saturation",
)
OPENVINO_BF16 = Recipe(
    name="openvino-bf16",
    tool="openvino",
    activations="none",
    weights="bf16",
    reduce_range=False,
    per_channel=False,
    format="openvino",
    runtimes=("openvino",),
    summary="OpenVINO computing in bf16, where the CPU has it",
    precision="bf16",
)
STATIC_S8S8 = Recipe(
    name="static-s8s8",
    tool="onnxruntime",
    activations="static",
    weights="s8",
    reduce_range=False,
    per_channel=True,
    format="onnx",
    runtimes=("onnxruntime",),
    summary="S8 activations by least squared error, S8 weights of full range per channel: what Arm64's products take",
    activation_type="s8",
    observer=Observer("mse"),
)

TENSORRT_IN_FP16 = Recipe(
    name="tensorrt-fp16",
    tool="fp16",
    activations="none",
    weights="fp16",
    reduce_range=False,
    per_channel=False,
    format="onnx",
    runtimes=("onnxruntime",),
    summary="fp16, with sums, softmax, powers and named layers in fp32",
    precision="fp16",
)
TENSORRT_IN_FP16_BEFORE_8_6 = replace(
    TENSORRT_IN_FP16,
    name="tensorrt-fp16-layernorm",
    summary=f"{TENSORRT_IN_FP16.summary}, and LayerNormalization written out in fp32, which TensorRT below 8.6 needs",
    decompose_layer_norm=True,
)
TENSORRT_IN_BF16 = replace(
    TENSORRT_IN_FP16,
    name="tensorrt-bf16",
    tool="bf16",
    weights="bf16",
    summary="bf16 where opset 17 has it, with sums, softmax, powers and named layers in fp32",
    precision="bf16",
)

# --- x86 -------------------------------------------------------------------------------------------------------------

WITHOUT_VNNI = (
    DYNAMIC_U8,
    DYNAMIC_S8_REDUCED,
    STATIC_U8S8_REDUCED,
    NNCF_MIXED_REDUCED,
)
"""AVX2, AVX512 without VNNI, and less: nothing with full-range S8 weights."""

WITH_VNNI = (
    DYNAMIC_S8,
    DYNAMIC_U8,
    STATIC_U8S8,
    NNCF_MIXED,
)

WITH_AMX = (
    DYNAMIC_S8,
    DYNAMIC_U8,
    STATIC_U8S8,
    NNCF_MIXED,
)

CPU_BF16 = (OPENVINO_BF16,)
"""Candidates of cpu4-bf16, and of cpu4-int8 where this machine has bf16."""

# --- Arm64 -----------------------------------------------------------------------------------------------------------

ARM64 = (
    STATIC_S8S8,
    DYNAMIC_S8,
    DYNAMIC_U8,
)

# --- TensorRT --------------------------------------------------------------------------------------------------------

TENSORRT_MINMAX = Recipe(
    name="tensorrt-minmax",
    tool="tensorrt-qdq",
    activations="static",
    weights="s8",
    reduce_range=False,
    per_channel=True,
    format="onnx",
    runtimes=("onnxruntime",),
    summary="symmetric S8 Q/DQ for TensorRT, activations by their largest magnitude",
    activation_type="s8",
    observer=Observer("minmax", symmetric=True),
)
TENSORRT_ENTROPY = replace(
    TENSORRT_MINMAX,
    name="tensorrt-entropy",
    summary="symmetric S8 Q/DQ for TensorRT, activations by least Kullback-Leibler divergence",
    observer=Observer("entropy", symmetric=True),
)
TENSORRT_PERCENTILE = replace(
    TENSORRT_MINMAX,
    name="tensorrt-percentile",
    summary="symmetric S8 Q/DQ for TensorRT, activations by the 99.99th percentile of magnitudes",
    observer=Observer("percentile", 99.99, symmetric=True),
)
TENSORRT_MSE = replace(
    TENSORRT_MINMAX,
    name="tensorrt-mse",
    summary="symmetric S8 Q/DQ for TensorRT, activations by least squared error",
    observer=Observer("mse", symmetric=True),
)
TENSORRT_ATTENTION = replace(
    TENSORRT_MSE,
    name="tensorrt-mse-attention",
    summary="symmetric S8 Q/DQ for TensorRT, attention's products of activations too, by least squared error",
    attention_products=True,
)
MODELOPT_ENTROPY = replace(
    TENSORRT_MINMAX,
    name="modelopt-entropy",
    tool="modelopt",
    summary="nvidia-modelopt's symmetric S8 Q/DQ, activations by least Kullback-Leibler divergence, in opset 17",
    observer=Observer("entropy", symmetric=True),
)
MODELOPT_MINMAX = replace(
    MODELOPT_ENTROPY,
    name="modelopt-minmax",
    summary="nvidia-modelopt's symmetric S8 Q/DQ, activations by their largest magnitude, in opset 17",
    observer=Observer("minmax", symmetric=True),
)

TENSORRT_INT8: tuple[Recipe, ...] = (
    TENSORRT_MINMAX,
    TENSORRT_ENTROPY,
    TENSORRT_PERCENTILE,
    TENSORRT_MSE,
    TENSORRT_ATTENTION,
    MODELOPT_ENTROPY,
    MODELOPT_MINMAX,
)
"""For TensorRT on GPUs from compute capability 8.0 on."""
TENSORRT_INT8_BEFORE_AMPERE = tuple(
    replace(
        recipe,
        name=f"{recipe.name}-sm75",
        summary=f"{recipe.summary}; without the layers that lack an INT8 kernel before compute capability 8.0",
        every_kernel=False,
    )
    for recipe in TENSORRT_INT8
    if not recipe.attention_products
)
"""For TensorRT on T4 and Xavier."""

TENSORRT_FP16: tuple[Recipe, ...] = (TENSORRT_IN_FP16,)
TENSORRT_FP16_BEFORE_8_6: tuple[Recipe, ...] = (TENSORRT_IN_FP16_BEFORE_8_6,)
"""For versions that do not know LayerNormalization."""
TENSORRT_BF16: tuple[Recipe, ...] = (TENSORRT_IN_BF16,)

INT8: Mapping[InstructionSet, tuple[Recipe, ...]] = {
    "generic": WITHOUT_VNNI,
    "avx2": WITHOUT_VNNI,
    "avx512-vnni": WITH_VNNI,
    "amx": WITH_AMX,
    "arm64": ARM64,
    "gpu": TENSORRT_INT8,
}


def artifact_name(recipe: Recipe) -> str:
    """Return what a recipe's artifact is called: `<precision>-<recipe>`."""
    return f"{recipe.precision}-{recipe.name}" if recipe.precision not in recipe.name else recipe.name


def recipes_for(target: Target, cpu: CpuFeatures) -> tuple[Recipe, ...]:
    """Return the recipes that suit a target, in the order in which they are tried; none for an fp32 target.

    The target's instruction set decides, not that of this machine: the two may differ.

    Args:
        target: where the artifact will run.
        cpu: this machine's, whose bf16 may win for an INT8 target that is this machine.
    """
    gpu = target.instruction_set == "gpu"
    if target.precision == "fp16":
        old = target.tensorrt is not None and version_key(target.tensorrt) < LAYER_NORM_FROM
        return (TENSORRT_FP16_BEFORE_8_6 if old else TENSORRT_FP16) if gpu else ()
    if target.precision == "bf16":
        return TENSORRT_BF16 if gpu else CPU_BF16
    if target.precision == "int8":
        int8 = TENSORRT_INT8_BEFORE_AMPERE if _is_before_ampere(target) else INT8[target.instruction_set]
        return (*int8, *CPU_BF16) if target.here and cpu.bf16 else int8
    return ()


def _is_before_ampere(target: Target) -> bool:
    """Return whether a target is a GPU that lacks INT8 kernels of some layers."""
    return target.compute_capability is not None and float(target.compute_capability) < 8.0
