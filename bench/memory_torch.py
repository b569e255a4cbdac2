"""What TorchScript asks of the C library from load to the third call: the script that `bench.memory_heap` serves.

Each weight is read into a tensor of its own.  Nothing is overwritten; each call takes and gives back every activation:
as recorded from the module (`quantize.memory_eager`), else by liveness over the ONNX graph.  oneDNN copies a
convolution's input, weight and output into its own layout and back, and an LSTM's weights, at every call.

In the calls at load, in which the executor profiles and specializes, and in the first call at another batch size small
objects that stay come to lie right behind tensors, so that their holes are too small for the next ones.  Where they
come to lie differs from process to process: the same artifact's peak was measured from 112 to 145 MB.  So the peak is
simulated several times, with every fourth tensor pinned at load and every eighth later, from another one on each time;
replays of the recorded requests of seven models came closest to what glibc did with these.  The estimate is the mean,
and the range goes from the peak without pins to the highest of them.
"""

from collections.abc import Iterator, Sequence
from statistics import fmean

from tsexport.bench.memory_forms import CONVOLUTIONS, MERGED_BATCH, ModelGraphs, Use, no_scratch, onednn_gates
from tsexport.bench.memory_fusing import fuse_bias, fuse_gelu
from tsexport.bench.memory_heap import Heap
from tsexport.bench.memory_plan import EagerEvent, Event, MemoryGraph, Size, Step, stated_scratch, trace

CALLS = 3
PIN_EVERY = 8
PIN_EVERY_AT_LOAD = 4
PHASES = (0.0, 0.25, 0.5, 0.75)
PINNED_BYTES = 128 << 10
"""Smaller tensors come from bins, and are never pinned."""
LEAST_BYTES = 4 << 10
"""Tensors below this are left out: they find a place between the others."""
ONEDNN_BYTES = 20_480 * 4
LSTM_GATES = 4
GRU_GATES = 3


def torchscript(graphs: ModelGraphs, use: Use) -> int:
    """Return the most bytes that TorchScript takes for a use: the mean over where small objects come to lie."""
    return round(fmean(_peaks(graphs, use, PHASES)))


def torchscript_range(graphs: ModelGraphs, use: Use) -> tuple[int, int]:
    """Return the least and the most that a process may take, by where small objects come to lie."""
    return min(_peaks(graphs, use, (None, *PHASES))), max(_peaks(graphs, use, PHASES))


def _peaks(graphs: ModelGraphs, use: Use, phases: Sequence[float | None]) -> list[int]:
    calls = [_called(graphs, batch, scratch=use.scratch) for batch in dict.fromkeys((1, use.batch))]
    return [_peak(graphs, use, calls, phase) for phase in phases]


def _peak(graphs: ModelGraphs, use: Use, calls: Sequence[Sequence[Event]], phase: float | None) -> int:
    heap = Heap()
    for key, size in graphs.plain.constants.items():
        heap.take(key, round(size * use.scale))
    for at, events in enumerate(calls if use.activations else ()):
        pins = _pins(events, PIN_EVERY if at else PIN_EVERY_AT_LOAD, phase)
        for call in range(CALLS):
            _serve(heap, events, pins if call == 0 or at == 0 else frozenset())
    return heap.peak_bytes


def _pins(events: Sequence[Event], every: int, phase: float | None) -> frozenset[str]:
    """Return the tensors behind which something small stays."""
    if phase is None:
        return frozenset()
    large = [event.key for event in events if event.take and event.planned and event.size >= PINNED_BYTES]
    return frozenset(large[int(phase * every) :: every])


def _serve(heap: Heap, events: Sequence[Event], pins: frozenset[str]) -> None:
    held: dict[str, None] = {}
    for event in events:
        if event.take:
            heap.take(event.key, event.size, pinned=event.key in pins)
            held[event.key] = None
        else:
            heap.give(event.key)
            del held[event.key]
    for key in held:  # outputs, copied out
        heap.give(key)


def is_blocked(read: Size, batch: int) -> bool:
    """Return whether torch lets oneDNN compute a convolution that reads so much: more than one sample, or one of more
    than 20,480 values (`use_mkldnn` of aten/src/ATen/native/Convolution.cpp)."""
    return batch > 1 or read.at(1) > ONEDNN_BYTES


def convolves_in_blocks(graph: MemoryGraph, batch: int) -> bool:
    """Return whether torch lets oneDNN compute any convolution."""
    return any(
        is_blocked(graph.sizes.get(step.reads[0], Size(0)), batch)
        for step in graph.steps
        if step.operator in CONVOLUTIONS and step.reads
    )


def _called(graphs: ModelGraphs, batch: int, *, scratch: bool) -> list[Event]:
    events = eager_events(graphs.eager, batch, scratch=scratch)
    if not graphs.eager:
        graph = fuse_gelu(fuse_bias(graphs.unscored))
        events = trace(graph, batch, in_place=False, scratch_of=torch_scratch if scratch else no_scratch)
    return [event for event in events if event.size >= LEAST_BYTES]


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
