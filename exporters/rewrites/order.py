"""The rewrites, in the order in which they are applied: those of the module, then those of its ONNX graph.

The graph rewrites that only clean (`speed` is False) are applied wherever they prove themselves.  Those for speed, and
all module rewrites, are tried on each runtime, and left out where they bring nothing (see `tsexport.stages.rewriting`).
"""

from tsexport.exporters.rewrites.affine import AffineAsProduct
from tsexport.exporters.rewrites.attention import SeparateProjections
from tsexport.exporters.rewrites.batch_norm import BatchNormAsAffine
from tsexport.exporters.rewrites.cleaning import DropNoOps, FoldConstants, GemmAsMatMul
from tsexport.exporters.rewrites.encoder import EncoderAsMatrixProducts
from tsexport.exporters.rewrites.flat_convolutions import FlatConvolutions
from tsexport.exporters.rewrites.linears import FoldScale, FuseParallelLinears
from tsexport.exporters.rewrites.masks import MaskAsAddition
from tsexport.exporters.rewrites.message_passing import GatherMessages
from tsexport.exporters.rewrites.modules import ModuleRewrite
from tsexport.exporters.rewrites.proofs import GraphRewrite
from tsexport.exporters.rewrites.rows import RowProducts
from tsexport.exporters.rewrites.shapes import ConstantShapes
from tsexport.exporters.rewrites.spectral import SpectralAsMatrixProducts

MODULE_REWRITES: tuple[ModuleRewrite, ...] = (
    EncoderAsMatrixProducts(),
    SeparateProjections(),
    SpectralAsMatrixProducts(),
    GatherMessages(),
)
REWRITES: tuple[GraphRewrite, ...] = (
    FoldConstants(),
    ConstantShapes(),
    GemmAsMatMul(),
    AffineAsProduct(),
    BatchNormAsAffine(),
    MaskAsAddition(),
    FoldScale(),
    FuseParallelLinears(),
    RowProducts(),
    FlatConvolutions(),
    DropNoOps(),
)
SPEED: frozenset[str] = frozenset(
    (
        *(one.name for one in MODULE_REWRITES if not one.required),
        *(one.name for one in REWRITES if one.speed),
    )
)
"""The names of the rewrites that a runtime's artifact may be made without."""
EVERY: frozenset[str] = SPEED | {one.name for one in REWRITES}
"""The names of all that an export can do without; without them, it is the plain one."""
