"""The profilers of the runtimes: each loads an artifact as its session would, with the runtime's own clock on.

    onnxruntime   the events of its profiler, one a node and call, of the faster half of the calls: a call that waited
                  for a core says nothing of its nodes.  A node that holds others (Loop, If) counts without them.  Whole
                  microseconds.
    openvino      PERF_COUNT of the CPU plugin: the mean over all calls so far, from which the mean since the warm-up
                  follows as (n2 m2 - n1 m1) / (n2 - n1).  Whole microseconds, cut off, so a node is off by up to one.
    torchscript   torch's profiler, which names operators and no nodes.

A graph that the runtime has optimized is what is timed, so fused nodes are one node.
"""

import json
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tsexport.bench.profile_records import NodeTime
from tsexport.types import Array, Artifact

Call = Callable[[], object]
MAX_CALLS = 300
FEWEST_CALLS = 5
TORCH_CALLS = 50
"""torch keeps every event, and takes seconds to add up those of a few hundred calls."""
WARM_UP_CALLS = 5
SECONDS = 0.5
"""How long calls are made for, without the profiler and again with it."""
_ONLY_PROVIDER = "CPUExecutionProvider"
_MICROSECOND_MS = 1e-3


@dataclass(frozen=True)
class Profiled:
    """What a profiler said: times of nodes in one call, and the median call with it and without."""

    method: str
    calls: int
    profiled_ms: float
    plain_ms: float
    nodes: tuple[NodeTime, ...]
    names_nodes: bool = True


@dataclass(frozen=True)
class Event:
    """One execution of a node: where it began, how long it took, in microseconds of the profiler's clock."""

    name: str
    operator: str
    kernel: str
    start_us: int
    duration_us: int


def profile_onnxruntime(artifact: Artifact, threads: int, feeds: Mapping[str, Array], folder: Path) -> Profiled:
    """Profile with ONNX Runtime's own profiler; its file goes into `folder`."""
    import onnxruntime

    from tsexport.runtimes.onnxruntime import session_options
    from tsexport.runtimes.options import FIX_BATCH, own_options

    fixed = own_options(artifact, "onnxruntime").get(FIX_BATCH) != "no"
    batch = len(next(iter(feeds.values()))) if fixed else None

    def session(profiled: bool) -> Any:
        options = session_options(artifact, threads=threads, batch=batch)
        options.enable_profiling = profiled
        options.profile_file_prefix = str(folder / "profile")
        return onnxruntime.InferenceSession(str(artifact.path), options, providers=["CPUExecutionProvider"])

    plain, profiled = session(False), session(True)
    plain_ms, _ = _time_calls(lambda: plain.run(None, dict(feeds)))
    profiled_ms, _ = _time_calls(lambda: profiled.run(None, dict(feeds)))
    runs, events = read_events(json.loads(Path(profiled.end_profiling()).read_text(encoding="utf-8")))
    # The first calls are the warm-up, and the profiler stops by itself after a million events.
    kept = faster_half(runs[WARM_UP_CALLS:])
    method = "ONNX Runtime's profiler, in whole microseconds, over the faster half of the calls"
    return Profiled(method, len(kept), profiled_ms, plain_ms, mean_times(within(events, kept), len(kept)))


def faster_half(runs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the calls, (start, end), that are among the faster half, in their order; one of one."""
    ordered = sorted(runs, key=lambda run: run[1] - run[0])
    return sorted(ordered[: -(-len(ordered) // 2)])


def within(events: Sequence[Event], runs: Sequence[tuple[int, int]]) -> list[Event]:
    """Return the events that began within one of the calls; both sorted."""
    starts = [start for start, _ in runs]
    found = []
    for event in events:
        index = bisect_right(starts, event.start_us) - 1
        if index >= 0 and event.start_us <= runs[index][1]:
            found.append(event)
    return found


def read_events(document: Iterable[Mapping[str, Any]]) -> tuple[list[tuple[int, int]], list[Event]]:
    """Return (start, end) of each call of the model, and the events of its nodes, both sorted."""
    runs, events = [], []
    for one in document:
        if one.get("cat") == "Session" and one.get("name") == "model_run":
            runs.append((int(one["ts"]), int(one["ts"]) + int(one["dur"])))
        elif one.get("cat") == "Node" and str(one.get("name", "")).endswith("_kernel_time"):
            arguments = one.get("args", {})
            provider = str(arguments.get("provider", ""))
            events.append(
                Event(
                    str(one["name"]).removesuffix("_kernel_time"),
                    str(arguments.get("op_name", "")),
                    "" if provider == _ONLY_PROVIDER else provider,
                    int(one["ts"]),
                    int(one["dur"]),
                )
            )
    # A node that holds others begins no later than they, and lasts longer.
    return sorted(runs), sorted(events, key=lambda event: (event.start_us, -event.duration_us))


def mean_times(events: Sequence[Event], calls: int) -> tuple[NodeTime, ...]:
    """Return the mean time of each node in one call, what runs within a node left out of it.

    Args:
        events: sorted by start, the longer first where two start together; nested or apart, never overlapping.
        calls: of the model that they are of.
    """
    own = [event.duration_us for event in events]
    holding: list[int] = []
    for index, event in enumerate(events):
        while holding and events[holding[-1]].start_us + events[holding[-1]].duration_us <= event.start_us:
            holding.pop()
        if holding and event.duration_us > 0:
            outer = events[holding[-1]]
            if event.start_us + event.duration_us <= outer.start_us + outer.duration_us and _holds(outer):
                own[holding[-1]] -= event.duration_us
        holding.append(index)
    sums: dict[tuple[str, str, str], int] = {}
    for event, time_us in zip(events, own, strict=True):
        key = (event.name, event.operator, event.kernel)
        sums[key] = sums.get(key, 0) + max(0, time_us)
    return tuple(NodeTime(*key, total * _MICROSECOND_MS / calls) for key, total in sums.items())


def _holds(event: Event) -> bool:
    """Return whether a node runs a graph of its own; others that seem to overlap do so by the clock's rounding."""
    return event.operator in ("Loop", "If", "Scan")


def profile_openvino(artifact: Artifact, threads: int, feeds: Mapping[str, Array], folder: Path) -> Profiled:
    """Profile with the performance counts of OpenVINO's CPU plugin."""
    import openvino

    from tsexport.runtimes.openvino import properties

    batch = len(next(iter(feeds.values())))

    def request(profiled: bool) -> Any:
        core = openvino.Core()
        model = core.read_model(artifact.path)
        model.reshape({spec.name: list(spec.with_batch(batch)) for spec in artifact.inputs})
        settings = {**properties(artifact, threads=threads), "PERF_COUNT": "YES" if profiled else "NO"}
        return core.compile_model(model, "CPU", settings).create_infer_request()

    plain, profiled = request(False), request(True)
    plain_ms, _ = _time_calls(lambda: plain.infer(dict(feeds)))
    before: list[list[Any]] = []
    profiled_ms, calls = _time_calls(
        lambda: profiled.infer(dict(feeds)), warmed=lambda: before.append(profiled.get_profiling_info())
    )
    warm = {one.node_name: _ms(one) for one in before[0]}
    total = WARM_UP_CALLS + calls
    nodes = tuple(
        NodeTime(
            one.node_name,
            one.node_type,
            one.exec_type,
            max(0.0, (_ms(one) * total - warm.get(one.node_name, 0.0) * WARM_UP_CALLS) / calls),
        )
        for one in profiled.get_profiling_info()
        if one.status == openvino.ProfilingInfo.Status.EXECUTED
    )
    return Profiled("OpenVINO's performance counts, in whole microseconds", calls, profiled_ms, plain_ms, nodes)


def _ms(info: Any) -> float:
    return float(info.real_time.total_seconds() * 1e3)


def profile_torchscript(artifact: Artifact, threads: int, feeds: Mapping[str, Array], folder: Path) -> Profiled:
    """Profile with torch's profiler: operators, for it names no nodes."""
    import torch

    from tsexport.runtimes.registry import load

    with load(artifact, "torchscript", threads) as session:

        def call() -> object:
            return session.run(dict(feeds))

        plain_ms, _ = _time_calls(call)
        profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        profiled_ms, calls = _time_calls(call, warmed=profiler.start, most=TORCH_CALLS)
        profiler.stop()
    nodes = tuple(
        NodeTime(one.key, one.key, "", one.self_cpu_time_total * _MICROSECOND_MS / calls)
        for one in profiler.key_averages()
    )
    return Profiled("torch's profiler, which names operators and no nodes", calls, profiled_ms, plain_ms, nodes, False)


PROFILERS: Mapping[str, Callable[[Artifact, int, Mapping[str, Array], Path], Profiled]] = {
    "onnxruntime": profile_onnxruntime,
    "openvino": profile_openvino,
    "torchscript": profile_torchscript,
}
"""The runtimes that tell what their nodes take; tract's Python package does not."""


def _time_calls(call: Call, *, warmed: Call = lambda: None, most: int = MAX_CALLS) -> tuple[float, int]:
    """Return the median milliseconds of a call and how many were made, after WARM_UP_CALLS and then `warmed`."""
    for _ in range(WARM_UP_CALLS):
        call()
    warmed()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < FEWEST_CALLS or (len(times) < most and time.perf_counter() - began < SECONDS):
        start = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start) / 1e6)
    return median(times), len(times)
