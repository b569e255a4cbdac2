"""What each runtime asks of the C library from load to the third call: the scripts that `bench.memory_heap` serves.

ONNX Runtime    reads the file through a buffer of 4 MiB into strings, turns each into a tensor, then packs the weights
                of products one by one (those of convolutions all before the first is given back); whether the next one
                fits the hole of the last depends on where small objects came to lie, so both are simulated, and the
                estimate is the mean.  Activations come from its arena (`bench.memory_arena`)
OpenVINO        maps the file of weights, page by page as they are read, and packs each weight; an LSTM's are reordered
                into constants first, then copied, then packed.  Activations lie in one block, overwritten in place
TorchScript     `bench.memory_torch`

Each was read off the requests of the runtimes themselves (malloc, free and their callers, from an interposed library),
on the reference models with ONNX Runtime 1.31, OpenVINO 2026.4 and torch 2.13.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from tsexport.bench.memory_arena import Region, arena_regions
from tsexport.bench.memory_buffers import buffer_events, reordered
from tsexport.bench.memory_forms import CONVOLUTIONS, RECURRENT, ModelGraphs, Use, no_scratch, onednn_gates
from tsexport.bench.memory_fusing import fuse_activation, fuse_bias, fuse_gelu, fuse_skip, fuse_sum
from tsexport.bench.memory_heap import Heap
from tsexport.bench.memory_plan import MemoryGraph, live_peak, trace
from tsexport.bench.memory_torch import torchscript, torchscript_range

PACKED = frozenset({"MatMul", "Gemm", "LSTM", "GRU"})
READ_BUFFER_BYTES = 4 << 20
GRU_PARTS = (2 / 3, 1 / 3)
"""ONNX Runtime packs a GRU's recurrent weights in two: update and reset gates, and the hidden one."""
HANDLES_SHARE = 1 / 32
"""ONNX Runtime's arena keeps 8 bytes for every 256 of a region."""


def onnxruntime(graphs: ModelGraphs, use: Use) -> int:
    """Return the most bytes that ONNX Runtime takes for a use: the mean over whether holes of weights can be filled."""
    return round(fmean(_onnxruntime_peaks(graphs, use)))


def onnxruntime_range(graphs: ModelGraphs, use: Use) -> tuple[int, int]:
    """Return the least and the most that a process may take, by whether holes of weights can be filled."""
    peaks = _onnxruntime_peaks(graphs, use)
    return min(peaks), max(peaks)


def _onnxruntime_peaks(graphs: ModelGraphs, use: Use) -> list[int]:
    regions = _regions(graphs.blocked, use) if use.activations else ()
    return [_onnxruntime_peak(graphs, use, regions, pinned=pinned) for pinned in (False, True)]


def _onnxruntime_peak(graphs: ModelGraphs, use: Use, regions: Sequence[Region], *, pinned: bool) -> int:
    heap = Heap()
    for at in range(max(1, len(use.models))):
        _load_onnxruntime(heap, graphs.plain, use.scale, f"model {at}", pinned=pinned)
    if use.activations:
        for at, region in enumerate(regions):
            heap.take(f"region {at}", region.size, region.used)
            heap.take(f"handles of region {at}", round(region.size * HANDLES_SHARE))
        heap.take("outputs", graphs.plain.bytes_of(graphs.plain.outputs, use.batch))
    return heap.peak_bytes


def _load_onnxruntime(heap: Heap, graph: MemoryGraph, scale: float, name: str, *, pinned: bool) -> None:
    sizes = {key: round(size * scale) for key, size in graph.constants.items()}
    heap.take(f"{name} file", min(READ_BUFFER_BYTES, sum(sizes.values())), aligned=False)
    for key, size in sizes.items():
        heap.take(f"{name} {key} stored", size, aligned=False)
    heap.give(f"{name} file")
    for key, size in sizes.items():
        heap.take(f"{name} {key}", size, pinned=pinned)
        heap.give(f"{name} {key} stored")
    convolved = _constants_of(graph, CONVOLUTIONS)
    for key in convolved:
        heap.take(f"{name} {key} reordered", sizes[key], pinned=pinned)
        heap.take(f"{name} {key} bytes", sizes[key], aligned=False)
        heap.take(f"{name} {key} stored", sizes[key], aligned=False)
        heap.take(f"{name} {key} blocked", sizes[key], pinned=pinned)
        for part in ("bytes", "stored", "reordered"):
            heap.give(f"{name} {key} {part}")
    for key in convolved:
        heap.give(f"{name} {key}")
    apart = {step.constants[1] for step in graph.steps if step.operator == "GRU" and len(step.constants) > 1}
    for key in _constants_of(graph, PACKED):
        if key not in convolved:
            for at, share in enumerate(GRU_PARTS if key in apart else (1.0,)):
                heap.take(f"{name} {key} packed {at}", round(sizes[key] * share), pinned=pinned)
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
    events = list(trace(graph, batch, in_place=True, scratch_of=onednn_gates if use.scratch else no_scratch))
    return live_peak(events) + graph.bytes_of(graph.inputs, batch) + graph.bytes_of(graph.outputs, batch)


RANGES: Mapping[str, Callable[[ModelGraphs, Use], tuple[int, int]]] = {
    "onnxruntime": onnxruntime_range,
    "torchscript": torchscript_range,
}
"""Where the C library's luck decides."""
SESSIONS: Mapping[str, Callable[[ModelGraphs, Use], int]] = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "torchscript": torchscript,
}
