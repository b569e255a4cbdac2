"""The rewrites that a TensorRT version needs: each writes nodes of some operators with others that every version has.

Which nodes need one is what the tables of `device_check` say: those that the version refuses, or computes wrongly.
So a rewrite ends with the first version that takes the node, and later ones get the graph as it is.  Like every rewrite
it proves itself on probes, and is taken back where it does not; what stays refused is named by the check.

The batch stays symbolic, as every version has it: an optimization profile gives its range, from 1 to the largest of the
batches asked for (`tsexport.device.kit`, `runtimes.tensorrt_plan`).  What is computed from it is rewritten where a
version wants it constant or of another type, and refused by name where that cannot be.  INT64 stays, since versions
before 9 narrow it to INT32 themselves, and the check says where values are beyond it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from tsexport.exporters.device_check import refused_by
from tsexport.exporters.device_table import version_key
from tsexport.exporters.layer_norm import write_layer_norm_out
from tsexport.exporters.rewrites.device_indexing import one_hot, scatter_elements, scatter_nd, triangle
from tsexport.exporters.rewrites.device_logic import (
    cut,
    hard_swish,
    is_infinite,
    is_nan,
    part_of_shape,
    remainder,
    smallest,
    where_of_booleans,
)
from tsexport.exporters.rewrites.device_products import dft, einsum, with_height
from tsexport.exporters.rewrites.device_types import (
    booleans_compared,
    booleans_moved,
    clip_as_bounds,
    counts,
    range_of_integers,
)
from tsexport.exporters.rewrites.parts import Parts
from tsexport.exporters.rewrites.proofs import Applied, answer, rewrite_graph
from tsexport.types import Array, Feeds

Replace = Callable[[Parts], bool]
"""Writes one node with others; returns whether it could.  Where it could not, nothing is changed."""


@dataclass(frozen=True)
class NodeRewrite:
    """One row of the table.

    operators: whose nodes it replaces.
    replace: how.
    before: the version before which it replaces those of fp32 too, which would be computed wrongly once cast to fp16.
    """

    name: str
    operators: tuple[str, ...]
    replace: Replace
    before: str = ""


_MOVERS = ("Gather", "GatherND", "GatherElements", "ScatterND", "ScatterElements")
DEVICE_REWRITES: tuple[NodeRewrite, ...] = (
    NodeRewrite("dft-as-product", ("DFT",), dft),
    NodeRewrite("einsum-as-product", ("Einsum",), einsum),
    NodeRewrite("convolution-with-height", ("Conv", "ConvTranspose"), with_height),
    NodeRewrite("layer-norm-as-parts", ("LayerNormalization",), write_layer_norm_out),
    NodeRewrite("scatter-as-sums", ("ScatterElements",), scatter_elements),
    NodeRewrite("scatter-nd-as-sums", ("ScatterND",), scatter_nd),
    NodeRewrite("one-hot-as-comparison", ("OneHot",), one_hot),
    NodeRewrite("triangle-as-mask", ("Trilu",), triangle),
    NodeRewrite("topk-of-negatives", ("TopK",), smallest),
    NodeRewrite("part-of-shape-as-slice", ("Shape",), part_of_shape),
    NodeRewrite("negative-pad-as-slice", ("Pad",), cut),
    NodeRewrite("remainder-by-division", ("Mod",), remainder),
    NodeRewrite("is-infinite-as-comparison", ("IsInf",), is_infinite),
    NodeRewrite("is-nan-as-comparison", ("IsNaN",), is_nan),
    NodeRewrite("hard-swish-as-product", ("HardSwish",), hard_swish),
    NodeRewrite("where-as-logic", ("Where",), where_of_booleans),
    NodeRewrite("counts-in-fp32", ("ReduceSum", "CumSum"), counts),
    NodeRewrite("clip-as-max-and-min", ("Clip",), clip_as_bounds, before="8.5"),
    NodeRewrite("range-in-int32", ("Range",), range_of_integers),
    NodeRewrite("equal-of-integers", ("Equal",), booleans_compared),
    NodeRewrite("booleans-as-integers", _MOVERS, booleans_moved),
)
"""In the order in which they are applied: what one writes, a later one may have to write once more."""


class ForVersion:
    """A row of the table as a graph rewrite for one TensorRT version: the nodes that it refuses are replaced."""

    speed = False

    def __init__(self, row: NodeRewrite, tensorrt: str) -> None:
        self.name = row.name
        self._row = row
        self._refuses = refused_by(tensorrt)
        self._always = bool(row.before) and version_key(tensorrt) < version_key(row.before)

    def requires(self, model: ir.Model) -> bool:
        return any(node.op_type in self._row.operators for node in model.graph)

    def call(self, model: ir.Model, probes: Sequence[Feeds]) -> int:
        common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
        known = [node for node in model.graph if node.op_type in self._row.operators]
        nodes = [node for node in known if self._always or self._refuses(node)]
        changes = sum(self._row.replace(Parts(model.graph, node)) for node in nodes)
        if changes:
            common.RemoveUnusedNodesPass()(model)
        return changes


def rewrite_for_device(
    model: onnx.ModelProto,
    probes: Sequence[Feeds],
    tensorrt: str,
    run: Callable[[onnx.ModelProto, Feeds], dict[str, Array]] = answer,
) -> tuple[onnx.ModelProto, tuple[Applied, ...]]:
    """Return a graph with what a TensorRT version refuses written otherwise, and what became of each rewrite.

    Args:
        model: a checked fp32 graph of opset 17.
        probes: feeds of at least two batch sizes, by which the rewrites prove themselves.
        tensorrt: such as "8.2" or "10.3".
        run: how a model is answered (by default ONNX Runtime, unoptimized; it has no Where of booleans).
    """
    rows = tuple(ForVersion(row, tensorrt) for row in DEVICE_REWRITES)
    rewritten, done = rewrite_graph(model, probes, rows, run)
    if rewritten is not model:
        del rewritten.graph.value_info[:]  # runtimes infer them
    return rewritten, done
