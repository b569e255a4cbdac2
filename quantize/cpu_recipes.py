"""The candidates for CPUs, and which of them suit an instruction set.  `recipes` says what decides the rows."""

from dataclasses import replace

from tsexport.calibration.table import Observer
from tsexport.quantize.recipe import MICROSOFT_DOMAIN, Recipe

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
DYNAMIC_S8_REDUCED = replace(
    DYNAMIC_U8,
    name="dynamic-s8-reduced",
    weights="s8",
    reduce_range=True,
    summary="activations quantized at run time, 7-bit S8 weights: keeps clear of 16-bit saturation",
)
DYNAMIC_S8 = replace(
    DYNAMIC_U8,
    name="dynamic-s8",
    weights="s8",
    summary="activations quantized at run time, S8 weights of full range: for CPUs with VNNI",
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
STATIC_U8S8 = replace(
    STATIC_U8S8_REDUCED,
    name="static-u8s8",
    reduce_range=False,
    per_channel=True,
    summary="U8 activations by least squared error, S8 weights of full range per channel: for CPUs with VNNI",
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
NNCF_MIXED_REDUCED = replace(
    NNCF_MIXED,
    name="nncf-mixed-reduced",
    reduce_range=True,
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
OPENVINO_BF16_ELSEWHERE = replace(OPENVINO_BF16, preset="simulated")
STATIC_S8S8 = replace(
    STATIC_U8S8,
    name="static-s8s8",
    runtimes=("onnxruntime",),
    summary="S8 activations by least squared error, S8 weights of full range per channel: what Arm64's products take",
    activation_type="s8",
)

# --- attention as one operator, OpenVINO and other tools -------------------------------------------------------------

DYNAMIC_ATTENTION_S8 = replace(
    DYNAMIC_S8,
    name="dynamic-attention-s8",
    tool="fused-attention",
    summary="as dynamic-s8, attention as one operator with its projection: for CPUs with VNNI",
)
DYNAMIC_ATTENTION_U8 = replace(
    DYNAMIC_U8,
    name="dynamic-attention-u8",
    tool="fused-attention",
    summary="as dynamic-u8, attention as one operator with its projection",
)
INC_STATIC = Recipe(
    name="inc-static",
    tool="inc",
    activations="static",
    weights="s8",
    reduce_range=False,
    per_channel=True,
    format="onnx",
    runtimes=("onnxruntime", "openvino"),
    summary="static quantization in PyTorch (PT2E), U8 activations, S8 weights of full range per channel",
)
INC_AUTOTUNE = replace(
    INC_STATIC,
    name="inc-autotune",
    summary="autotune over the static configurations in PyTorch (PT2E)",
    preset="autotune",
)

_BF16_REST = (("INFERENCE_PRECISION_HINT", "bf16"),)
_F32_REST = (("INFERENCE_PRECISION_HINT", "f32"),)
_GROUPS = (("DYNAMIC_QUANTIZATION_GROUP_SIZE", "128"),)

NNCF_PRODUCTS = replace(
    NNCF_MIXED,
    name="nncf-products",
    summary="NNCF's performance preset on products and convolutions alone",
    preset="products",
)
NNCF_PRODUCTS_BF16 = replace(
    NNCF_PRODUCTS,
    name="nncf-products-bf16",
    summary="NNCF's performance preset on products and convolutions alone, bf16 for the rest",
    options=_BF16_REST,
)
NNCF_PRODUCTS_REDUCED = replace(
    NNCF_PRODUCTS,
    name="nncf-products-reduced",
    reduce_range=True,
    summary="NNCF's performance preset on products and convolutions alone, with its fix for 16-bit saturation",
)
OPENVINO_DYNAMIC = Recipe(
    name="openvino-dynamic",
    tool="openvino-dynamic",
    activations="dynamic",
    weights="s8",
    reduce_range=False,
    per_channel=True,
    format="openvino",
    runtimes=("openvino",),
    summary="S8 weights, activations quantized at run time by OpenVINO in groups of 128",
    options=(*_GROUPS, *_F32_REST),
)
OPENVINO_DYNAMIC_BF16 = replace(
    OPENVINO_DYNAMIC,
    name="openvino-dynamic-bf16",
    summary="S8 weights, activations quantized at run time by OpenVINO in groups of 128, bf16 for the rest",
    options=(*_GROUPS, *_BF16_REST),
)

# --- x86 -------------------------------------------------------------------------------------------------------------

WITHOUT_VNNI = (
    DYNAMIC_U8,
    DYNAMIC_ATTENTION_U8,
    DYNAMIC_S8_REDUCED,
    STATIC_U8S8_REDUCED,
    NNCF_MIXED_REDUCED,
    NNCF_PRODUCTS_REDUCED,
)
"""AVX2, AVX512 without VNNI, and less: nothing with full-range S8 weights."""

WITH_VNNI = (
    DYNAMIC_S8,
    DYNAMIC_ATTENTION_S8,
    DYNAMIC_U8,
    STATIC_U8S8,
    NNCF_MIXED,
    NNCF_PRODUCTS,
    OPENVINO_DYNAMIC,
    INC_STATIC,
    INC_AUTOTUNE,
)

WITH_AMX = (
    DYNAMIC_S8,
    DYNAMIC_ATTENTION_S8,
    DYNAMIC_U8,
    STATIC_U8S8,
    NNCF_MIXED,
    NNCF_PRODUCTS,
    OPENVINO_DYNAMIC,
    INC_STATIC,
    INC_AUTOTUNE,
)

CPU_BF16 = (OPENVINO_BF16,)
"""Candidates of cpu4-bf16, and of cpu4-int8 where this machine has bf16."""

INT8_WITH_BF16 = (NNCF_PRODUCTS_BF16, OPENVINO_DYNAMIC_BF16)
"""INT8 whose rest is in bf16: for x86 with VNNI where this machine has bf16."""

# --- Arm64 -----------------------------------------------------------------------------------------------------------

ARM64 = (
    STATIC_S8S8,
    DYNAMIC_S8,
    DYNAMIC_U8,
)
