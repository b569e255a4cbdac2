"""The candidates for TensorRT, by precision and by what a GPU lacks.

What a version of TensorRT lacks is written otherwise in the fp32 graph that they are made from (see
`exporters.device_rewrites`).
"""

from dataclasses import replace

from tsexport.calibration.table import Observer
from tsexport.quantize.recipe import Recipe

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
TENSORRT_IN_BF16 = replace(
    TENSORRT_IN_FP16,
    name="tensorrt-bf16",
    tool="bf16",
    weights="bf16",
    summary="bf16 where opset 17 has it, with sums, softmax, powers and named layers in fp32",
    precision="bf16",
)

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
TENSORRT_BF16: tuple[Recipe, ...] = (TENSORRT_IN_BF16,)
