"""How much memory a session takes: what its runtime asks of the C library, and what it brings itself.

    total     runtime + weights + activations + workspace, above an idle session of the same runtime

    weights       the peak of loading: `bench.memory_sessions` has what each runtime asks for, `bench.memory_heap` how
                  the C library serves it
    activations   what the calls add to that peak without scratch, and `workspace` what scratch adds
    runtime       what no request shows: code and tables that a model of one product does not touch, small objects

Only `runtime` is fitted: `RULES`, few constants a runtime, by least squares on the rows of
`bench/results/estimate-accuracy.json` (`bench/suites/memory_fit.py`); that file also says how far estimates are off
for models that took no part in the fit.  Measured on x86-64 with glibc, ONNX Runtime 1.31, OpenVINO 2026.4 and torch
2.13, on 2 threads; another version, C library or number of threads may need others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace

from tsexport.bench.memory_forms import ModelGraphs, Use
from tsexport.bench.memory_plan import live_peak, trace
from tsexport.bench.memory_sessions import RANGES, SESSIONS
from tsexport.bench.memory_torch import convolves_in_blocks

MB = 1_000_000
IDLE_BYTES: Mapping[str, int] = {"onnxruntime": 68 * MB, "openvino": 96 * MB, "torchscript": 295 * MB}
"""What a process with an idle session of a runtime holds, interpreter and numpy included."""
INT8_WIDTH = 0.25
HALF_WIDTH = 0.5


@dataclass(frozen=True)
class Rules:
    """What a runtime brings itself, in bytes, beyond an idle session.

    once: for any model.  step: for each step that is no view, and each model of a session.
    convolution: where there is any.  onednn: in torch, where oneDNN computes any.
    """

    once: float
    step: float
    convolution: float
    onednn: float

    def bytes_for(self, counts: Sequence[float]) -> int:
        """Return what the constants come to; `counts` as of `counts_of`."""
        constants: tuple[float, ...] = astuple(self)
        return round(sum(constant * count for constant, count in zip(constants, counts, strict=True)))


RULES: Mapping[str, Rules] = {
    "onnxruntime": Rules(1_403_000, 6_000, 0, 0),
    "openvino": Rules(10_199_000, 99_000, 2_246_000, 0),
    "torchscript": Rules(5_609_000, 47_000, 0, 7_382_000),
}
ENGINE_BYTES = 500 * MB
"""Assumed, not measured: a CUDA context with TensorRT's and cuDNN's kernels."""


@dataclass(frozen=True)
class MemoryParts:
    """Bytes above an idle session of the same runtime; they add up to `total_bytes`."""

    runtime_bytes: int
    weights_bytes: int
    activations_bytes: int
    workspace_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.runtime_bytes + self.weights_bytes + self.activations_bytes + self.workspace_bytes


def estimate_parts(
    graphs: ModelGraphs, runtime: str, batch: int, *, weights_scale: float = 1.0, fixes_batch: bool | None = None
) -> MemoryParts:
    """Return what a session on a runtime takes above an idle one, after it has answered at a batch size.

    Args:
        runtime: a key of `RULES`.
        weights_scale: bytes of the weights as they are stored, against those of the graph (`weights_scale`).
        fixes_batch: whether each batch size gets a model of its own; by default what the session of `tsexport.load`
            does.
    """
    use = Use(batch, models_of(graphs, runtime, batch, fixes_batch), weights_scale)
    session = SESSIONS[runtime]
    whole = session(graphs, use)
    weights = min(whole, session(graphs, replace(use, activations=False)))
    without_scratch = min(whole, max(weights, session(graphs, replace(use, scratch=False))))
    own = _own_bytes(graphs, runtime, batch, fixes_batch)
    return MemoryParts(own, weights, without_scratch - weights, whole - without_scratch)


def estimated_bytes(graphs: ModelGraphs, runtime: str, batch: int, *, weights_scale: float = 1.0) -> int:
    """Return the total of `estimate_parts`, in a third of the time."""
    use = Use(batch, models_of(graphs, runtime, batch), weights_scale)
    return SESSIONS[runtime](graphs, use) + _own_bytes(graphs, runtime, batch)


def estimated_range(
    graphs: ModelGraphs, runtime: str, batch: int, *, weights_scale: float = 1.0
) -> tuple[int, int] | None:
    """Return the least and the most that a process may take, where the C library's luck decides; None elsewhere."""
    if runtime not in RANGES:
        return None
    own = _own_bytes(graphs, runtime, batch)
    least, most = RANGES[runtime](graphs, Use(batch, models_of(graphs, runtime, batch), weights_scale))
    return least + own, most + own


def _own_bytes(graphs: ModelGraphs, runtime: str, batch: int, fixes_batch: bool | None = None) -> int:
    counts = counts_of(graphs, runtime, batch, fixes_batch)
    return RULES[runtime].bytes_for(counts)


def counts_of(graphs: ModelGraphs, runtime: str, batch: int, fixes_batch: bool | None = None) -> tuple[float, ...]:
    """Return how often each constant of `Rules` counts, in its order."""
    models = max(1, len(models_of(graphs, runtime, batch, fixes_batch)))
    steps = sum(step.kind != "view" for step in graphs.plain.steps)
    onednn = runtime == "torchscript" and convolves_in_blocks(graphs.plain, batch)
    return 1.0, float(models * steps), float(graphs.convolves), float(onednn)


def weights_scale(graphs: ModelGraphs, precision: str, fp32_bytes: int = 0) -> float:
    """Return the bytes of the weights in a precision against those in fp32.

    int8: the matrices of products in 8 bits, the rest in fp32.  fp16 and bf16: half, but for `fp32_bytes`, those of
    layers that stay in fp32.
    """
    weights = graphs.plain.weights
    whole = max(weights.total_bytes, 1)
    if precision == "int8":
        return 1 - (1 - INT8_WIDTH) * weights.product_bytes / whole
    if precision in ("fp16", "bf16"):
        return 1 - (1 - HALF_WIDTH) * max(0, weights.total_bytes - fp32_bytes) / whole
    return 1.0


def engine_parts(graphs: ModelGraphs, batch: int, *, weights_scale: float, floats_scale: float) -> MemoryParts:
    """Return what a TensorRT engine takes of a device, by assumption: the weights once, activations by liveness.

    No engine was measured for it.  `ENGINE_BYTES` are the driver's context and the kernels.
    """
    graph = graphs.fused
    events = list(trace(graph, batch, in_place=True))
    ends = graph.bytes_of(graph.inputs, batch) + graph.bytes_of(graph.outputs, batch)
    alone = live_peak([event for event in events if not event.key.startswith("scratch")])
    scratch = live_peak(events) - alone
    weights = graphs.plain.weights.total_bytes * weights_scale
    return MemoryParts(ENGINE_BYTES, round(weights), round(alone * floats_scale + ends), round(scratch * floats_scale))


def models_of(graphs: ModelGraphs, runtime: str, batch: int, fixes_batch: bool | None = None) -> tuple[int, ...]:
    """Return the batch sizes that get a model each in a session that has answered at one; none where one serves all."""
    own = runtime == "openvino" or (runtime == "onnxruntime" and graphs.plain.computes_shapes)
    return tuple(sorted({1, batch})) if (own if fixes_batch is None else fixes_batch) else ()
