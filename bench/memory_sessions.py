"""What each runtime asks of the C library from load to the third call: the scripts that `bench.memory_heap` serves.

ONNX Runtime    reads the file through a buffer of 4 MiB into strings, turns each into a tensor, then packs the weights
                of products one by one (those of convolutions all before the first is given back); activations come
                from its arena (`bench.memory_arena`)
OpenVINO        maps the file of weights, page by page as they are read, and packs each weight; an LSTM's are reordered
                into constants first, then copied, then packed.  Activations lie in one block, overwritten in place
TorchScript     reads each weight into a tensor of its own.  Nothing is overwritten; each call takes and gives back
                every activation.  oneDNN copies a convolution's input, weight and output into its own layout and back,
                and an LSTM's or GRU's weights, at every call

Each was read off the requests of the runtimes themselves (malloc, free and their callers, from an interposed library),
on the reference models with ONNX Runtime 1.31, OpenVINO 2026.4 and torch 2.13.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tsexport.bench.memory_arena import Region, arena_regions
from tsexport.bench.memory_buffers import buffer_events, reordered
from tsexport.bench.memory_fusing import fuse_activation, fuse_bias, fuse_gelu, fuse_skip, fuse_sum
from tsexport.bench.memory_heap import Heap
from tsexport.bench.memory_plan import Event, MemoryGraph, Size, Step, live_peak, stated_scratch, trace

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
PACKED = frozenset({"MatMul", "Gemm", "LSTM", "GRU"})
READ_BUFFER_BYTES = 4 << 20
HANDLES_SHARE = 1 / 32
"""ONNX Runtime's arena keeps 8 bytes for every 256 of a region."""
CALLS = 3
PIN_EVERY = 8
PINNED_BYTES = 128 << 10
"""In torch's first call at a batch size, one tensor in 8 of those of 128 KiB and more has something small that stays
right behind it: with this, replays of the requests of five models were closest to what glibc did."""
ONEDNN_BYTES = 20_480 * 4
LSTM_GATES = 4
GRU_GATES = 3
MERGED_BATCH = 128
"""From this batch on oneDNN's recurrences compute the inputs' part of the gates step by step; measured, half of their
scratch is written to."""


@dataclass(frozen=True)
class EagerEvent:
    """A tensor that torch takes (`take`) or gives back under a key, the operator that makes it, the bytes of the
    activations that it reads, and those of each weight matrix."""

    take: bool
    key: str
    size: Size
    operator: str
    reads: Size
    weights: tuple[int, ...]


@dataclass(frozen=True)
class ModelGraphs:
    """A graph in the forms that runtimes compute it in.

    blocked: with the channels of convolutions in blocks.  unscored: without the scores of attention.  fused: both.
    eager: what torch takes and gives back in one call; none where that could not be recorded.
    """

    plain: MemoryGraph
    blocked: MemoryGraph
    unscored: MemoryGraph
    fused: MemoryGraph
    eager: tuple[EagerEvent, ...] = ()

    @property
    def is_recurrent(self) -> bool:
        return any(step.operator in RECURRENT for step in self.plain.steps)

    @property
    def convolves(self) -> bool:
        return any(step.operator in CONVOLUTIONS for step in self.plain.steps)


@dataclass(frozen=True)
class Use:
    """A process: the batch of the calls, the batch sizes that each get a model of their own (none: one model serves
    all), and whether activations and scratch are taken at all."""

    batch: int
    models: tuple[int, ...]
    scale: float = 1.0
    activations: bool = True
    scratch: bool = True


def onnxruntime(graphs: ModelGraphs, use: Use) -> int:
    """Return the most bytes that ONNX Runtime takes for a use."""
    heap = Heap()
    for at in range(max(1, len(use.models))):
        _load_onnxruntime(heap, graphs.plain, use.scale, f"model {at}")
    if use.activations:
        for at, region in enumerate(_regions(graphs.blocked, use)):
            heap.take(f"region {at}", region.size, region.used)
            heap.take(f"handles of region {at}", round(region.size * HANDLES_SHARE))
        heap.take("outputs", graphs.plain.bytes_of(graphs.plain.outputs, use.batch))
    return heap.peak_bytes


def _load_onnxruntime(heap: Heap, graph: MemoryGraph, scale: float, name: str) -> None:
    sizes = {key: round(size * scale) for key, size in graph.constants.items()}
    heap.take(f"{name} file", min(READ_BUFFER_BYTES, sum(sizes.values())), aligned=False)
    for key, size in sizes.items():
        heap.take(f"{name} {key} stored", size, aligned=False)
    heap.give(f"{name} file")
    for key, size in sizes.items():
        heap.take(f"{name} {key}", size, pinned=True)
        heap.give(f"{name} {key} stored")
    convolved = _constants_of(graph, CONVOLUTIONS)
    for key in convolved:
        heap.take(f"{name} {key} reordered", sizes[key], pinned=True)
        heap.take(f"{name} {key} bytes", sizes[key], aligned=False)
        heap.take(f"{name} {key} stored", sizes[key], aligned=False)
        heap.take(f"{name} {key} blocked", sizes[key], pinned=True)
        for part in ("bytes", "stored", "reordered"):
            heap.give(f"{name} {key} {part}")
    for key in convolved:
        heap.give(f"{name} {key}")
    for key in _constants_of(graph, PACKED):
        if key not in convolved:
            heap.take(f"{name} {key} packed", sizes[key], pinned=True)
            heap.give(f"{name} {key}")


def _constants_of(graph: MemoryGraph, operators: frozenset[str]) -> dict[str, None]:
    """Return the matrices that steps of some operators read, in their order: an LSTM's two, one of any other."""
    return {
        key: None
        for step in graph.steps
        if step.operator in operators
        for key in step.constants[: 2 if step.operator in RECURRENT else 1]
    }


def _regions(graph: MemoryGraph, use: Use) -> tuple[Region, ...]:
    fused = reordered(fuse_activation(fuse_sum(fuse_skip(fuse_gelu(fuse_bias(graph))))))
    events = list(buffer_events(fused, use.batch, fixed=bool(use.models)))
    if not use.scratch:
        events = [event for event in events if event.planned or event.key in graph.outputs]
    return arena_regions(events)


def openvino(graphs: ModelGraphs, use: Use) -> int:
    """Return the most bytes that OpenVINO takes for a use."""
    heap = Heap()
    for batch in use.models or (use.batch,):
        _load_openvino(heap, graphs, use, batch)
    if use.activations:
        heap.take("outputs", graphs.plain.bytes_of(graphs.plain.outputs, use.batch))
    return heap.peak_bytes


def _load_openvino(heap: Heap, graphs: ModelGraphs, use: Use, batch: int) -> None:
    graph, name = graphs.fused, f"model {batch}"
    sizes = {key: round(size * use.scale) for key, size in graph.constants.items()}
    heap.map_file(f"{name} file", sum(sizes.values()))
    recurrent = _constants_of(graph, RECURRENT)
    lstm = _constants_of(graph, frozenset({"LSTM"}))
    for key in lstm:
        for gate in range(4):
            heap.take(f"{name} {key} {gate}", sizes[key] // 4, aligned=False)
        heap.take(f"{name} {key} constant", sizes[key], aligned=False)
        for gate in range(4):
            heap.give(f"{name} {key} {gate}")
    for key in recurrent:
        heap.take(f"{name} {key} copied", sizes[key])
    if use.activations:
        block = _block(graph, use, batch)
        heap.take(f"{name} activations", block, block if batch == use.batch else 0)
    for key in _constants_of(graph, CONVOLUTIONS | PACKED):
        heap.take(f"{name} {key} packed", sizes[key])
    for key in recurrent:
        heap.give(f"{name} {key} copied")


def _block(graph: MemoryGraph, use: Use, batch: int) -> int:
    events = list(trace(graph, batch, in_place=True, scratch_of=onednn_gates if use.scratch else _none))
    return live_peak(events) + graph.bytes_of(graph.inputs, batch) + graph.bytes_of(graph.outputs, batch)


def torchscript(graphs: ModelGraphs, use: Use) -> int:
    """Return the most bytes that TorchScript takes for a use."""
    heap = Heap()
    for key, size in graphs.plain.constants.items():
        heap.take(key, round(size * use.scale))
    if use.activations:
        for batch in dict.fromkeys((1, use.batch)):
            events = _called(graphs, batch, scratch=use.scratch)
            for call in range(CALLS):
                _serve(heap, events, pins=call == 0)
    return heap.peak_bytes


def is_blocked(read: Size, batch: int) -> bool:
    """Return whether torch lets oneDNN compute a convolution that reads so much: more than one sample, or one of more
    than 20,480 values (`use_mkldnn` of aten/src/ATen/native/Convolution.cpp)."""
    return batch > 1 or read.at(1) > ONEDNN_BYTES


def blocked_convolutions(graph: MemoryGraph, batch: int) -> int:
    """Return how many convolutions torch lets oneDNN compute."""
    return sum(
        is_blocked(graph.sizes.get(step.reads[0], Size(0)), batch)
        for step in graph.steps
        if step.operator in CONVOLUTIONS and step.reads
    )


def onednn_gates(graph: MemoryGraph, step: Step, batch: int) -> Sequence[Sequence[int]]:
    """Return the gates of a recurrence as oneDNN writes them: of all steps, or half of that in large batches."""
    if step.operator not in RECURRENT:
        return stated_scratch(graph, step, batch)
    return ((step.scratch.at(batch + 1) if batch < MERGED_BATCH else step.scratch.at(batch) // 2,),)


def _called(graphs: ModelGraphs, batch: int, *, scratch: bool) -> list[Event]:
    if graphs.eager:
        return list(eager_events(graphs.eager, batch, scratch=scratch))
    graph = fuse_gelu(fuse_bias(graphs.unscored))
    return list(trace(graph, batch, in_place=False, scratch_of=torch_scratch if scratch else _none))


def eager_events(recorded: Sequence[EagerEvent], batch: int, *, scratch: bool) -> Iterator[Event]:
    """Yield what was recorded, at a batch size, with what oneDNN copies."""
    for at, event in enumerate(recorded):
        yield Event(event.take, event.key, event.size.at(batch), True)
        for group in _copies(event, batch) if scratch and event.take and event.weights else ():
            keys = [(f"scratch {at} {place}", size) for place, size in enumerate(group)]
            yield from (Event(True, key, size, False) for key, size in keys)
            yield from (Event(False, key, size, False) for key, size in reversed(keys))


def _copies(event: EagerEvent, batch: int) -> Sequence[Sequence[int]]:
    if event.operator == "convolution" and is_blocked(event.reads, batch):
        return (event.reads.at(batch), *event.weights), (event.size.at(batch),)
    if event.operator == "mkldnn_rnn_layer":
        answers = event.size.at(batch + 1) if batch < MERGED_BATCH else event.size.at(batch) // 2
        return ((*event.weights, LSTM_GATES * answers),)
    return ()


def _none(graph: MemoryGraph, step: Step, batch: int) -> Sequence[Sequence[int]]:
    return ()


def torch_scratch(graph: MemoryGraph, step: Step, batch: int) -> Sequence[Sequence[int]]:
    """Return oneDNN's copies: of a convolution's input and weight, then of its output; of an LSTM's weights beside its
    gates.  Torch itself computes GRUs, with every step's answer beside the gates, and convolves small samples."""
    if step.operator in CONVOLUTIONS and is_blocked(graph.sizes.get(step.reads[0], Size(0)), batch):
        weight = max((graph.constants[key] for key in step.constants), default=0)
        return (graph.bytes_of(step.reads, batch), weight), (graph.bytes_of(step.makes, batch),)
    if step.operator == "LSTM":
        return ((*(graph.constants[key] for key in step.constants[:2]), *onednn_gates(graph, step, batch)[0]),)
    if step.operator == "GRU":
        gates = step.scratch.at(batch)
        return ((gates, gates // GRU_GATES),)
    return stated_scratch(graph, step, batch)


def _serve(heap: Heap, events: Sequence[Event], *, pins: bool) -> None:
    held: dict[str, None] = {}
    taken = 0
    for event in events:
        if event.take:
            taken += event.size >= PINNED_BYTES
            heap.take(event.key, event.size, pinned=pins and event.size >= PINNED_BYTES and taken % PIN_EVERY == 0)
            held[event.key] = None
        else:
            heap.give(event.key)
            del held[event.key]
    for key in held:  # outputs, copied out
        heap.give(key)


SESSIONS: Mapping[str, Callable[[ModelGraphs, Use], int]] = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "torchscript": torchscript,
}
