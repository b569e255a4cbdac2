"""Run rewrites in order, and keep each one only when it proves itself numerically.

`requires` says whether a rewrite has anything to do, `call` does it, and the proof here is what it must ensure: on
every probe (feeds of different batch sizes) the answers stay within REWRITE_TOLERANCE of those of the untouched
model.  A rewrite that fails its proof is taken back and reported; it never fails a build, since the graph before it
was right.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx
import onnx_ir as ir

from tsexport.runtimes.comparison import compare_outputs
from tsexport.types import Array, Feeds, Tolerance

REWRITE_TOLERANCE = Tolerance(
    name="rewrite",
    atol=2e-5,
    rtol=2e-4,
    reason="the same sums in another order: fp32 rounding over a few thousand terms",
)


@dataclass(frozen=True)
class Applied:
    """What became of one rewrite: `changes` places changed, `max_abs_error` against the untouched model.

    `nodes_before` and `nodes_after` count the graph's nodes; both are 0 for a module, which has none yet.
    """

    name: str
    changes: int
    kept: bool
    max_abs_error: float
    reason: str = ""
    nodes_before: int = 0
    nodes_after: int = 0

    def __str__(self) -> str:
        places = f"{self.changes} place{'s' if self.changes != 1 else ''}"
        if self.kept:
            nodes = f", {self.nodes_before} nodes became {self.nodes_after}" if self.nodes_before else ""
            return f"rewrite {self.name}: {places}{nodes}, largest difference {self.max_abs_error:.1e}"
        return f"rewrite {self.name} not kept: {self.reason}"


class GraphRewrite(Protocol):
    """A rewrite of an ONNX graph.  `call` changes `model` in place and returns how many places it changed.

    `speed` says that it is there for speed alone, so that a runtime it brings nothing goes without it.
    """

    name: str
    speed: bool

    def requires(self, model: ir.Model) -> bool: ...

    def call(self, model: ir.Model, probes: Sequence[Feeds]) -> int: ...


def answer(model: onnx.ModelProto, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
    """Run a model once in ONNX Runtime, unoptimized, on one thread."""
    import onnxruntime

    from tsexport.exporters.onnx_external import create_session

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = create_session(model, options)
    names = list(outputs) if outputs is not None else [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def worst_difference(
    expected: Sequence[dict[str, Array]], actual: Sequence[dict[str, Array]], tolerance: Tolerance
) -> tuple[float, str]:
    """Return (largest absolute difference, "" or why the tolerance is missed) over all probes."""
    largest, reason = 0.0, ""
    for before, after in zip(expected, actual, strict=True):
        for comparison in compare_outputs(before, after, tolerance, scaled=True):
            largest = max(largest, comparison.max_abs_error)
            if not comparison.passed:
                reason = (
                    f"output {comparison.output} departs by {comparison.max_abs_error:.2e} "
                    f"(tolerance {tolerance.name}: atol {tolerance.atol}, rtol {tolerance.rtol})"
                )
    return largest, reason


def rewrite_graph(
    model: onnx.ModelProto,
    probes: Sequence[Feeds],
    rewrites: Sequence[GraphRewrite],
    run: Callable[[onnx.ModelProto, Feeds], dict[str, Array]] = answer,
    without: Collection[str] = (),
) -> tuple[onnx.ModelProto, tuple[Applied, ...]]:
    """Apply graph rewrites in order; return the rewritten model and what became of each.

    Args:
        model: a checked ONNX model.
        probes: feeds of at least two batch sizes.
        rewrites: applied in this order.
        run: how a model is answered (by default ONNX Runtime, unoptimized).
        without: names of rewrites that are not applied.
    """
    rewrites = [rewrite for rewrite in rewrites if rewrite.name not in without]
    expected = [run(model, feeds) for feeds in probes] if rewrites else []
    applied: list[Applied] = []
    for rewrite in rewrites:
        graph = ir.from_proto(model)
        if not rewrite.requires(graph):
            continue
        changes = rewrite.call(graph, probes)
        if not changes:
            continue
        candidate = ir.to_proto(graph)
        try:
            largest, reason = worst_difference(expected, [run(candidate, f) for f in probes], REWRITE_TOLERANCE)
        except Exception as error:  # whatever ONNX Runtime raises on a graph it cannot run: the rewrite is taken back
            largest, reason = np.inf, f"ONNX Runtime refuses the result: {str(error).splitlines()[0]}"
        nodes = (len(model.graph.node), len(candidate.graph.node))
        applied.append(Applied(rewrite.name, changes, not reason, float(largest), reason, *nodes))
        if not reason:
            model = candidate
    return model, tuple(applied)
