"""The graph rewrites, in the order in which they are applied."""

from tsexport.exporters.rewrites.affine import AffineAsProduct
from tsexport.exporters.rewrites.batch_norm import BatchNormAsAffine
from tsexport.exporters.rewrites.cleaning import DropNoOps, FoldConstants, GemmAsMatMul
from tsexport.exporters.rewrites.linears import FoldScale, FuseParallelLinears
from tsexport.exporters.rewrites.proofs import GraphRewrite
from tsexport.exporters.rewrites.shapes import ConstantShapes

REWRITES: tuple[GraphRewrite, ...] = (
    FoldConstants(),
    ConstantShapes(),
    GemmAsMatMul(),
    AffineAsProduct(),
    BatchNormAsAffine(),
    FoldScale(),
    FuseParallelLinears(),
    DropNoOps(),
)
