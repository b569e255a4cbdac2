"""bf16 for TensorRT, from 9.0 on, at opset 17: products, LayerNormalization and most elementwise operators in bf16,
what opset 17 gives no bf16 in fp32 between Casts (see `quantize.casting` and `quantize.narrowing`).

Convolutions and recurrent layers could carry bf16 at opset 22, which is not written: TensorRT reads it from 10.6 on
only, and every file of a bundle is opset 17.  A model of nothing else gets no bf16 candidate, and the reason says so.
"""

from pathlib import Path

from tsexport.quantize.narrowing import build_narrow
from tsexport.quantize.sources import Order
from tsexport.types import Artifact


def build(order: Order, folder: Path) -> Artifact:
    """Write the artifact of a recipe of tool "bf16"."""
    return build_narrow(order, folder, "bf16")
