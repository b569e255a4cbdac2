"""The INT8 recipes that are tried, by instruction set.

No recipe wins everywhere, so every one that suits the CPU is built, its accuracy and its speed are measured, and INT8
ships only where it is faster than fp32.  What decides the rows:

- Without VNNI the dot product of U8 activations and S8 weights adds two products in 16 bits and saturates; weights of
  7 bits (`reduce_range`) or U8 weights keep clear of that.  With VNNI nothing saturates, and full
  range is the more accurate.
- Transformers and LSTMs win with dynamic activations and constant weights in ONNX Runtime, convolutional models with
  static ones in OpenVINO.
- NNCF's mixed preset had a tenth of the error of its transformer preset on attention models.

Source: measurements on AVX2 and AVX512-VNNI machines; `bench/suites` repeats them.
"""

from dataclasses import dataclass
from typing import Literal

from tsexport.targets import CpuFeatures
from tsexport.types import Format, Precision

MICROSOFT_DOMAIN = "com.microsoft"
"""ONNX Runtime's own operators; DynamicQuantizeLSTM is one of them.  Other runtimes know few of them or none."""


@dataclass(frozen=True)
class Recipe:
    """How one candidate is made: every choice that decides its numbers.

    `tool` is a key of `candidates.TOOLS`.  `domains` are the operator domains beside ONNX's own that its graph may use.
    `float_layers` name the nodes of the fp32 graph that stay in floating point.
    """

    name: str
    tool: str
    activations: Literal["dynamic", "static", "none"]
    weights: Literal["u8", "s8", "bf16"]
    reduce_range: bool
    per_channel: bool
    format: Format
    runtimes: tuple[str, ...]
    summary: str
    precision: Precision = "int8"
    domains: tuple[str, ...] = ()
    float_layers: tuple[str, ...] = ()


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
    summary="calibrated U8 activations, 7-bit S8 weights",
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
    summary="calibrated U8 activations, S8 weights of full range per channel: for CPUs with VNNI",
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

WITHOUT_VNNI = (DYNAMIC_U8, DYNAMIC_S8_REDUCED, STATIC_U8S8_REDUCED, NNCF_MIXED_REDUCED)
WITH_VNNI = (DYNAMIC_S8, DYNAMIC_U8, STATIC_U8S8, NNCF_MIXED)


def artifact_name(recipe: Recipe) -> str:
    """Return what a recipe's artifact is called: `<precision>-<recipe>`."""
    return f"{recipe.precision}-{recipe.name}" if recipe.precision not in recipe.name else recipe.name


def recipes_for(cpu: CpuFeatures) -> tuple[Recipe, ...]:
    """Return the recipes that suit a CPU, in the order in which they are tried.

    Arm64's dot product takes S8 by S8 and does not saturate, so it gets the recipes of full range.
    """
    full_range = cpu.vnni or cpu.instruction_set == "arm64"
    recipes = WITH_VNNI if full_range else WITHOUT_VNNI
    return (*recipes, OPENVINO_BF16) if cpu.bf16 else recipes
