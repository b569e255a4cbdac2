"""Latency, throughput, load time and memory of one artifact on one runtime, in fresh processes.

A latency is the wall-clock time of `Session.run`, from arrays to arrays; on a GPU that includes the copies to it and
back, and the session's launches are also timed there by events, without copies (`Measurement.device_ms`).

Each of at least two processes loads the artifact, and for each batch size, smallest first, warms up until stable and is
timed.  Latencies of all processes are pooled: memory layout differs from process to process, and one may be lucky.
`load_ms` is the median over the processes, from the request to the first answer at the smallest batch, the import of
the runtime included.  `peak_memory_bytes` is the largest high-water mark of the processes after that batch; the batches
before it were smaller, so it is that batch's own.  `idle_memory_bytes` is the process before the runtime was imported.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tsexport.bench.fingerprint import Machine
from tsexport.bench.noise import NoiseWatch
from tsexport.bench.process import WORKER_COMMAND, WorkerProcess, write_feeds
from tsexport.bench.race import Progress, block_calls_for, lead_in_for
from tsexport.bench.statistics import P50_SAMPLES, P99_SAMPLES
from tsexport.bench.wire import Timed
from tsexport.errors import UsageError
from tsexport.types import Artifact, Feeds, Measurement

BATCHES = (1, 10, 32)
PROCESSES = 2


def measure(
    artifact: Artifact,
    runtime: str,
    *,
    feeds: Feeds,
    threads: int,
    machine: Machine,
    batches: Sequence[int] = BATCHES,
    processes: int = PROCESSES,
    samples: int = P99_SAMPLES,
    max_seconds: float = 10.0,
    cpus: Sequence[int] = (),
    command: Sequence[str] = WORKER_COMMAND,
    watch: NoiseWatch | None = None,
    progress: Progress | None = None,
) -> tuple[Measurement, ...]:
    """Return one measurement for each batch size, smallest first.

    Args:
        artifact, runtime, threads: what is measured; the processes load it as `tsexport.load` would.
        feeds: arrays [samples, ...] named as the inputs, repeated where a batch needs more.
        machine: this one (`fingerprint()`); the measurements carry its id.
        processes: fresh processes whose latencies are pooled, at least 1.
        samples: calls timed for each batch size, over all processes; 662 give a p99.
        max_seconds: no new block begins after it, for each batch size and over all processes, without warm-up and load;
            10 calls are always made.
        cpus: what the processes are bound to; () for nothing.
        command: starts a process.
        watch: looks at the machine between blocks.
        progress: told after each step.

    Raises:
        UsageError: no batch sizes, or one below 1.
        InconclusiveError: a process died, hung or answered garbage, or its runtime failed.
        TsexportError: what the runtime raised of that tree.
    """
    sizes = sorted(set(batches))
    if not sizes or sizes[0] < 1:
        raise UsageError(f"batch sizes are whole numbers from 1 on, at least one; given {list(batches)}")
    if processes < 1 or samples < 1 or threads < 1:
        raise ValueError("processes, samples and threads are at least 1")
    pooled: dict[int, list[float]] = {batch: [] for batch in sizes}
    on_device: dict[int, list[float]] = {batch: [] for batch in sizes}
    warmups = dict.fromkeys(sizes, 0)
    peaks = dict.fromkeys(sizes, 0)
    loads: list[float] = []
    idles: list[int] = []
    steps = processes * len(sizes)
    share = _Share(-(-samples // processes), -(-P50_SAMPLES // processes), max_seconds / processes)
    with tempfile.TemporaryDirectory(prefix="tsexport-bench-") as folder:
        path = write_feeds(feeds, Path(folder))
        for number in range(processes):
            # Only one process at a time: the next starts when this one is gone.
            with WorkerProcess(artifact, runtime, threads, command=command, cpus=cpus) as worker:
                loaded = worker.load(path, sizes[0])
                loads.append(loaded.load_ms)
                idles.append(loaded.idle_memory_bytes)
                for step, batch in enumerate(sizes):
                    if progress is not None:
                        progress(f"{worker.label}, batch {batch}", (number * len(sizes) + step) / steps)
                    warmed = worker.warm_up(batch)
                    warmups[batch] += warmed.calls
                    timed = _time(worker, batch, warmed.call_ms, share, watch)
                    pooled[batch] += [ns / 1e6 for ns in timed.times_ns]
                    on_device[batch] += timed.device_ms
                    peaks[batch] = max(peaks[batch], timed.peak_memory_bytes)
    if progress is not None:
        progress(f"{artifact.name} on {runtime}", 1.0)
    return tuple(
        Measurement(
            artifact=artifact.name,
            runtime=runtime,
            precision=artifact.precision,
            batch=batch,
            threads=threads,
            machine=machine.machine_id,
            samples_ms=tuple(pooled[batch]),
            load_ms=median(loads),
            peak_memory_bytes=peaks[batch],
            idle_memory_bytes=min(idles),
            warmup_runs=warmups[batch],
            processes=processes,
            device_ms=tuple(on_device[batch]),
        )
        for batch in sizes
    )


@dataclass(frozen=True)
class _Share:
    """What one process has to time at each batch size."""

    samples: int
    fewest: int
    seconds: float


def _time(worker: WorkerProcess, batch: int, call_ms: float, share: _Share, watch: NoiseWatch | None) -> Timed:
    """Return its share of calls (fewer where the time is up), and the peak memory by then."""
    times: tuple[int, ...] = ()
    on_device: tuple[float, ...] = ()
    peak, began = 0, time.perf_counter()
    while len(times) < share.samples:
        if len(times) >= share.fewest and time.perf_counter() - began >= share.seconds:
            break
        if watch is not None:
            watch.look()
        calls = min(block_calls_for(call_ms), share.samples - len(times))
        timed = worker.time_block(batch, calls, lead_in=lead_in_for(call_ms))
        times += timed.times_ns
        on_device += timed.device_ms
        peak = timed.peak_memory_bytes
    return Timed(times, peak, on_device)
