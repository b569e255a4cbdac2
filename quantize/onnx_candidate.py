"""A quantized ONNX model becomes the artifact of a candidate: the last step of every tool that writes ONNX."""

from dataclasses import replace
from pathlib import Path

import onnx

from tsexport.exporters.onnx_file import finish_onnx
from tsexport.quantize.sources import Order
from tsexport.types import Artifact


def write_candidate(
    order: Order,
    model: onnx.ModelProto,
    folder: Path,
    *done: str,
    options: tuple[tuple[str, str], ...] | None = None,
) -> Artifact:
    """Write a candidate's file and return its artifact.

    Args:
        done: what was done to get it, in order, behind the provenance of the fp32 artifact.
        options: that the artifact is loaded with; by default those of the fp32 artifact.

    Raises:
        ExportError: the model is not valid, or has other inputs and outputs than the source.
    """
    recipe = order.recipe
    artifact = finish_onnx(
        model,
        order.spec,
        folder / f"{order.artifact_name}.onnx",
        (*order.source.provenance, *done),
        name=order.artifact_name,
        precision=recipe.precision,
        domains=recipe.domains,
    )
    return replace(artifact, runtimes=recipe.runtimes, options=order.source.options if options is None else options)
