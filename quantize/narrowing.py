"""Make an fp16 or bf16 artifact of an fp32 graph: ranges, islands, casts, proofs, the file.

What is proven before the file is written: ONNX's full checker takes the graph, which is sorted and of opset 17; its
simulation (`runtimes.bf16_rounding`) runs at two batch sizes, answers the same twice, and stays finite on calibration
data.  The narrow graph itself is not loaded in this process: ONNX Runtime has no bf16 kernels on the CPU, and fp16
graphs have ended its process, so another one tries those (`runtimes.rehearsal`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnx_ir as ir

from tsexport.exporters.onnx_cleanup import strip_traces
from tsexport.exporters.onnx_external import open_model
from tsexport.exporters.onnx_file import OPSET, describe_onnx, validate_onnx, validate_runs, write_onnx
from tsexport.quantize.casting import (
    FIRST_BF16_OPSET,
    NARROW,
    NarrowName,
    cast_graph,
    constant_of,
    narrow_places,
    open_graph,
    vanishing,
)
from tsexport.quantize.islands import NAMED, PREPARATION, PRODUCTS, RANGE, Islands, find_islands
from tsexport.quantize.overflow import HEADROOM, magnitudes, out_of_range, require_finite
from tsexport.quantize.sources import Order
from tsexport.runtimes.bf16_rounding import simulate_bf16
from tsexport.runtimes.options import GRAPH_OPTIMIZATION_LEVEL
from tsexport.runtimes.rehearsal import rehearse
from tsexport.types import Artifact

LISTED = 8
"""The most names that a line of provenance gives."""


class NothingNarrowedError(Exception):
    """No product of the graph may be computed in the narrow type."""


@dataclass(frozen=True)
class Narrowed:
    """A graph in a narrow type, the nodes that stayed in fp32, and what to tell about it, in order."""

    model: onnx.ModelProto
    islands: Islands
    notes: tuple[str, ...]


def narrow_graph(
    model: onnx.ModelProto,
    precision: NarrowName,
    *,
    layers: Sequence[str] = (),
    nodes: Sequence[str] = (),
    far: dict[str, float] | None = None,
) -> Narrowed:
    """Return a graph cast to fp16 or bf16, with the islands in fp32 that `quantize.islands` names.

    Args:
        model: a clean fp32 graph of opset 17.
        precision: the type of what is not kept.
        layers: scopes of layers that stay in fp32.
        nodes: names of nodes that stay in fp32.
        far: tensors that are out of the type's range, with their largest magnitude.

    Raises:
        NothingNarrowedError: no product may carry the type at opset 17.
    """
    narrow = NARROW[precision]
    opened = open_graph(model)
    islands = find_islands(opened, narrow, layers=layers, nodes=nodes, out_of_range=far)
    products = [node for node in opened.graph if node.op_type in PRODUCTS]
    cast = [node for node in products if node.name not in islands.reasons and any(narrow_places(node, narrow))]
    if not cast:
        raise NothingNarrowedError(_why_nothing(products, precision))
    notes = [f"{len(cast)} of {len(products)} products in {precision}", *_kept_notes(islands, far or {})]
    notes += _illegal(products, precision)
    lost = sum(vanishing(array, narrow) for node in cast for array in _weights(node))
    notes += [f"{lost} weights vanish in {precision}: each is below its smallest number"] if lost else []
    cast_graph(opened, narrow, islands.reasons)
    result = ir.to_proto(opened)
    del result.graph.value_info[:]
    return Narrowed(result, islands, tuple(notes))


def build_narrow(order: Order, folder: Path, precision: NarrowName) -> Artifact:
    """Write the artifact of a recipe of tool "fp16" or "bf16".

    Raises:
        NothingNarrowedError: no product may carry the type at opset 17.
        DataError: a tensor is NaN on calibration data.
        ExportError: the graph is not valid, or overflows on calibration data in spite of all.
        UsageError: ONNX Runtime's process ends on a graph in fp16.
    """
    source = open_model(order.source.path)
    far = out_of_range(magnitudes(order.source.path, order.calibration), NARROW[precision])
    narrowed = narrow_graph(
        source,
        precision,
        layers=order.spec.fp32_layers,
        nodes=order.recipe.float_layers,
        far=far,
    )
    model = narrowed.model
    strip_traces(model)
    validate_onnx(model, order.spec)
    validate_runs(simulate_bf16(model), order.spec)
    require_finite(model, order.source.path, order.calibration)
    done = (f"cast to {precision}: {order.recipe.summary}", *narrowed.notes)
    files = write_onnx(model, folder / f"{order.artifact_name}.onnx", order.artifact_name)
    artifact = describe_onnx(
        files,
        order.spec,
        (*order.source.provenance, *done),
        name=order.artifact_name,
        precision=order.recipe.precision,
        opset=OPSET,
    )
    artifact = replace(artifact, runtimes=order.recipe.runtimes, options=order.source.options)
    if precision == "fp16":
        # ONNX Runtime's further optimizations have ended its process on graphs in fp16; none is needed here.
        artifact = replace(artifact, options=(*artifact.options, (GRAPH_OPTIMIZATION_LEVEL, "basic")))
        window = next(iter(order.calibration.batches(1))).feeds
        for runtime in artifact.runtimes:
            rehearse(artifact, runtime, [window])
    return artifact


def _why_nothing(products: Sequence[ir.Node], precision: NarrowName) -> str:
    kinds = ", ".join(sorted({node.op_type for node in products})) or "none at all"
    if precision == "bf16" and products:
        return (
            f"opset {OPSET} has no bf16 for the products of this graph ({kinds}): they take it from opset "
            f"{FIRST_BF16_OPSET} on, which not all runtimes of opset {OPSET} read; use fp16"
        )
    return f"no product of the graph can be computed in {precision}: it has {kinds}"


def _illegal(products: Sequence[ir.Node], precision: NarrowName) -> list[str]:
    kinds = Counter(node.op_type for node in products if not any(narrow_places(node, NARROW[precision])))
    if not kinds:
        return []
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return [f"caveat: {listed} stay in fp32: opset {OPSET} has no {precision} for them"]


def _kept_notes(islands: Islands, far: dict[str, float]) -> list[str]:
    notes = []
    counts = Counter(islands.reasons.values())
    if counts:
        notes.append("nodes in fp32: " + ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())))
    for reason, what in ((NAMED, "by name"), (PREPARATION, "as preparation")):
        if names := islands.named(reason):
            notes.append(f"in fp32 {what}: {_listed(names)}")
    if islands.named(RANGE):
        seen = tuple(f"{name} reaches {value:.3g}" for name, value in far.items())
        notes.append(
            f"caveat: in fp32 since calibration left too little room to the type's limits (a factor of {HEADROOM:g}): "
            + _listed(seen)
        )
    return notes


def _listed(names: Sequence[str]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def _weights(node: ir.Node) -> list:  # type: ignore[type-arg]
    return [array for value in node.inputs if (array := constant_of(value)) is not None and array.dtype.kind == "f"]
