"""What one candidate is: the record that every tool works from."""

from dataclasses import dataclass
from typing import Literal

from tsexport.calibration.table import Observer
from tsexport.types import Format, Precision

MICROSOFT_DOMAIN = "com.microsoft"
"""ONNX Runtime's own operators; DynamicQuantizeLSTM is one of them.  Other runtimes know few of them or none."""


@dataclass(frozen=True)
class Recipe:
    """How one candidate is made: every choice that decides its numbers.

    `tool` is a key of `candidates.TOOLS`.  `activation_type` is that of static activations.  `domains` are the operator
    domains beside ONNX's own that its graph may use.  `float_layers` name the nodes of the fp32 graph that stay in
    floating point.  `observer` takes the ranges of activations where the recipe is static and its tool calibrates by
    table; None for the tool's own way.
    For TensorRT's INT8: `attention_products` are quantized too, or not, and `every_kernel` is False for GPUs before
    compute capability 8.0, which lack some INT8 kernels.
    `preset` is the tool's own choice among its ways (NNCF's, see `nncf_quantizer`; "autotune" of INC; "simulated" of
    OpenVINO's bf16 where the target is not here).  `options` are
    runtime options that the artifact is loaded with.
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
    attention_products: bool = False
    every_kernel: bool = True
    preset: Literal["", "mixed", "products", "autotune", "simulated"] = ""
    options: tuple[tuple[str, str], ...] = ()


def artifact_name(recipe: Recipe) -> str:
    """Return what a recipe's artifact is called: `<precision>-<recipe>`."""
    return f"{recipe.precision}-{recipe.name}" if recipe.precision not in recipe.name else recipe.name
