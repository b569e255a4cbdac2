"""fp16 for TensorRT: the graph in fp16 with fp32 where fp16 is too short (see `quantize.narrowing`).

From TensorRT 8.6 on LayerNormalization stays one operator, which computes in fp32 by itself; for earlier versions the
graph has it written out (see `exporters.device_rewrites`), and its parts stay in fp32.
"""

from pathlib import Path

from tsexport.quantize.narrowing import build_narrow
from tsexport.quantize.sources import Order
from tsexport.types import Artifact


def build(order: Order, folder: Path) -> Artifact:
    """Write the artifact of a recipe of tool "fp16"."""
    return build_narrow(order, folder, "fp16")
