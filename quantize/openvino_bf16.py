"""The fp32 graph, computed in bf16 by OpenVINO: an artifact of its own, since the precision is stated at load."""

from pathlib import Path

import openvino

from tsexport.exporters.artifacts import describe
from tsexport.exporters.openvino import write_ir
from tsexport.quantize.sources import Order
from tsexport.types import Artifact


def build(order: Order, folder: Path) -> Artifact:
    """Write the artifact of a recipe of tool "openvino"."""
    files = write_ir(openvino.Core().read_model(order.source.path), folder / f"{order.artifact_name}.xml", order.source)
    return describe(
        files,
        "openvino",
        order.spec,
        (*order.source.provenance, order.recipe.summary),
        name=order.artifact_name,
        precision=order.recipe.precision,
        runtimes=order.recipe.runtimes,
        options=(("INFERENCE_PRECISION_HINT", "bf16"),),
    )
