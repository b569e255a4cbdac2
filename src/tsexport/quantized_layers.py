"""What a recipe could leave in floating point: operators that its tool quantizes, and names that a graph has."""

from tsexport.quantize.recipe import Recipe
from tsexport.types import Artifact


def operators_of(recipe: Recipe) -> tuple[str, ...] | None:
    """Return the operators that a recipe's tool quantizes; None for all."""
    if recipe.tool not in ("onnxruntime", "fused-attention"):
        return None
    from tsexport.quantize.onnxruntime_quantizer import DYNAMIC_OPERATORS, STATIC_OPERATORS

    return tuple(DYNAMIC_OPERATORS if recipe.activations == "dynamic" else STATIC_OPERATORS)


def names_in_ir(source: Artifact) -> frozenset[str]:
    """Return the names of operators and tensors in an OpenVINO IR."""
    from xml.etree import ElementTree

    root = ElementTree.parse(source.path).getroot()
    tensors = (name for port in root.iter("port") for name in port.get("names", "").split(","))
    return frozenset((*(layer.get("name", "") for layer in root.iter("layer")), *tensors))
