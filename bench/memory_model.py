"""How much memory a session takes: the weights as each runtime keeps them, activations by liveness, and scratch.

    total     runtime + weights + activations + caller's copies, above an idle session of the same runtime

    runtime       code, tables and kernels that a model of one product does not touch, a little for every step
    weights       bytes of the constants, times what the runtime makes of them: ONNX Runtime unpacks a file into
                  tensors, and packs those of products and convolutions anew; what that leaves free stays in the process
    activations   ONNX Runtime: its arena (`bench.memory_arena`), overwriting in place.  OpenVINO: the most that lives
                  at once, overwriting in place.  TorchScript: the most that lives at once, nothing overwritten
    sessions      a session that fixes the batch holds the weights once for batch 1 and once for the batch

The formulas follow the runtimes' code; the factors in `RULES` were measured on x86-64 with glibc, ONNX Runtime 1.31,
OpenVINO 2026.4 and torch 2.13, and `bench/results/estimate-accuracy.md` says how far they are off.  Another version, C
library or number of threads may need others.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tsexport.bench.memory_arena import arena_bytes
from tsexport.bench.memory_plan import Event, MemoryGraph, live_peak, trace

MB = 1_000_000
IDLE_BYTES: Mapping[str, int] = {"onnxruntime": 68 * MB, "openvino": 96 * MB, "torchscript": 295 * MB}
"""What a process with an idle session of a runtime holds, interpreter and numpy included."""
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
GLIBC_MAPS_BYTES = 32 << 20
"""From this size on glibc maps a block for itself and gives it back when it is freed; smaller ones leave holes."""
INT8_WIDTH = 0.25
HALF_WIDTH = 0.5


@dataclass(frozen=True)
class Rules:
    """What a runtime makes of a graph, in bytes, and as multiples of the bytes of its constants.

    runtime_bytes, step_bytes: beyond an idle session, once and for each step.
    convolution_bytes, recurrent_bytes: what the first convolution or recurrence brings.
    weights, convolution_weights, recurrent_weights: of the first session, by what reads them.
    further_weights, further_recurrent_weights: of a session for another batch size.
    """

    runtime_bytes: float
    step_bytes: float
    convolution_bytes: float
    recurrent_bytes: float
    weights: float
    convolution_weights: float
    recurrent_weights: float
    further_weights: float
    further_recurrent_weights: float


RULES: Mapping[str, Rules] = {
    "onnxruntime": Rules(1.2 * MB, 0.0, 0.0, 0.0, 1.5, 2.5, 1.4, 2.3, 2.3),
    "openvino": Rules(13 * MB, 0.06 * MB, 0.0, 0.0, 2.3, 2.3, 3.9, 2.6, 3.5),
    "torchscript": Rules(3 * MB, 0.04 * MB, 13 * MB, 5 * MB, 1.05, 1.3, 2.4, 0.0, 0.0),
}
ENGINE_BYTES = 500 * MB
"""Assumed, not measured: a CUDA context with TensorRT's and cuDNN's kernels."""
_OPENVINO_GATES = 0.25


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


@dataclass(frozen=True)
class ModelGraphs:
    """A graph in the forms that runtimes compute it in.

    blocked: with the channels of convolutions in blocks.  unscored: without the scores of attention.  fused: both.
    """

    plain: MemoryGraph
    blocked: MemoryGraph
    unscored: MemoryGraph
    fused: MemoryGraph

    @property
    def is_recurrent(self) -> bool:
        return any(step.operator in RECURRENT for step in self.plain.steps)

    @property
    def convolves(self) -> bool:
        return self.plain.weights.convolution_bytes > 0


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
    rules = RULES[runtime]
    own = _own_models(graphs, runtime) if fixes_batch is None else fixes_batch
    weights = graphs.plain.weights
    convolved, other = weights.convolution_bytes * weights_scale, weights.other_bytes * weights_scale
    factor = rules.recurrent_weights if graphs.is_recurrent else rules.weights
    held = factor * other + rules.convolution_weights * convolved
    if own and batch != 1:
        again = rules.further_recurrent_weights if graphs.is_recurrent else rules.further_weights
        held += again * (other + convolved)
    base = rules.runtime_bytes + rules.step_bytes * len(graphs.plain.steps)
    base += rules.convolution_bytes * graphs.convolves + rules.recurrent_bytes * graphs.is_recurrent
    activations, workspace = _ACTIVATIONS[runtime](graphs, batch)
    return MemoryParts(round(base), round(held), round(activations), round(workspace))


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


def _own_models(graphs: ModelGraphs, runtime: str) -> bool:
    return runtime == "openvino" or (runtime == "onnxruntime" and graphs.plain.computes_shapes)


def _onnxruntime(graphs: ModelGraphs, batch: int) -> tuple[float, float]:
    graph = graphs.blocked
    events = list(trace(graph, batch, in_place=True))
    within = [event for event in events if event.planned or event.key in graph.outputs]
    alone, whole = arena_bytes(within), arena_bytes(events)
    return alone + graph.bytes_of(graph.outputs, batch), max(0, whole - alone)


def _openvino(graphs: ModelGraphs, batch: int) -> tuple[float, float]:
    graph = graphs.fused
    events = [_smaller_gates(event) for event in trace(graph, batch, in_place=True)]
    alone = live_peak([event for event in events if not event.key.startswith("scratch")])
    ends = graph.bytes_of(graph.inputs, batch) + 2 * graph.bytes_of(graph.outputs, batch)
    return alone + ends, live_peak(events) - alone


def _smaller_gates(event: Event) -> Event:
    if not event.key.startswith("scratch"):
        return event
    return Event(event.take, event.key, math.ceil(event.size * _OPENVINO_GATES), event.planned)


def _torchscript(graphs: ModelGraphs, batch: int) -> tuple[float, float]:
    events = list(trace(graphs.unscored, batch, in_place=False))
    if graphs.is_recurrent:  # a few large tensors, which leave few holes
        alone = live_peak([event for event in events if not event.key.startswith("scratch")])
        return alone, live_peak(events) - alone
    whole = _held_by_torch(events)
    without_scratch = _held_by_torch([event for event in events if not event.key.startswith("scratch")])
    return without_scratch, max(0.0, whole - without_scratch)


def _held_by_torch(events: Sequence[Event]) -> float:
    small = [event for event in events if event.size < GLIBC_MAPS_BYTES]
    mapped = [event for event in events if event.size >= GLIBC_MAPS_BYTES]
    taken = sum(event.size for event in small if event.take)
    return math.sqrt(float(live_peak(small)) * taken) + live_peak(mapped)


_ACTIVATIONS: Mapping[str, Callable[[ModelGraphs, int], tuple[float, float]]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "torchscript": _torchscript,
}
