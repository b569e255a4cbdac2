"""Artifacts side by side: one fresh process each, blocks of calls interleaved, ratios with bootstrap intervals.

Each round times one block of every contestant, one after another, never two at once.  Odd rounds run in the reverse
order and every second round starts one contestant further (A B C, C B A, B C A, A C B, ...), so that a clock or a
neighbour that drifts hits all alike.  Between its blocks a contestant's process blocks on a read and uses no CPU: a
block is over only when the runtime's threads have stopped spinning, which lasts 50 ms in ONNX Runtime.  A block's first
call does not count, unless it takes so long that what ran before it makes no difference.  All contestants stay in
memory together; whether they fit is the caller's to know.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tsexport.bench.process import LEAD_IN_CALLS, WorkerProcess, write_feeds
from tsexport.bench.statistics import P99_SAMPLES, RATIO_MIN_ROUNDS, Ratio, Summary, ratio_of_medians, summarize
from tsexport.errors import InconclusiveError
from tsexport.types import Artifact, Feeds

BLOCK_SECONDS = 0.03
MAX_BLOCK_CALLS = 500
SLOW_CALL_MS = 50.0
"""From so long a call on, a block begins without a call that does not count."""

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction done, 0 to 1."""


@dataclass(frozen=True)
class Contestant:
    """An artifact on a runtime.  `name` is unique in a race; "" means "<artifact> on <runtime>"."""

    artifact: Artifact
    runtime: str
    threads: int
    name: str = ""

    @property
    def label(self) -> str:
        return self.name or f"{self.artifact.name} on {self.runtime}"


@dataclass(frozen=True)
class RaceEntry:
    """What one contestant did.  `blocks_ms` are [rounds][calls] milliseconds of single calls.

    `speedup` is baseline / this, round by round.  `stable_warmup` is False where a process was still drifting when its
    warm-up was capped.
    """

    name: str
    artifact: str
    runtime: str
    threads: int
    blocks_ms: tuple[tuple[float, ...], ...]
    summary: Summary
    speedup: Ratio
    stable_warmup: bool
    load_ms: float
    peak_memory_bytes: int

    @property
    def samples_ms(self) -> tuple[float, ...]:
        return tuple(value for block in self.blocks_ms for value in block)


@dataclass(frozen=True)
class RaceResult:
    """Entries in the order of the contestants, and the contestant that their `speedup` is against."""

    batch: int
    baseline: str
    rounds: int
    processes: int
    seconds: float
    entries: tuple[RaceEntry, ...]

    @property
    def fastest(self) -> RaceEntry:
        """The entry with the largest speed-up, which cancels drift; medians over the whole race do not."""
        return max(self.entries, key=lambda entry: entry.speedup.value)

    def entry(self, name: str) -> RaceEntry:
        """Return the entry of a contestant's label; KeyError where there is none."""
        return {entry.name: entry for entry in self.entries}[name]


def race(
    contestants: Sequence[Contestant],
    feeds: Feeds,
    batch: int,
    *,
    baseline: str | None = None,
    rounds: int | None = None,
    block_calls: int | None = None,
    max_seconds: float = 30.0,
    patience_seconds: float = 0.0,
    processes: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> RaceResult:
    """Time contestants against each other at one batch size.

    Args:
        contestants: at least one; labels differ.
        feeds: arrays [samples, ...] named as the inputs; each call gets `batch` of them, a few sets in turn.
        baseline: the label that speed-ups are against; the first contestant by default.
        rounds: how many; by default until every contestant has 662 samples (for a p99), and at least 8.
        block_calls: calls in a block; by default as many as take 30 ms, at least 1, for each contestant by itself.
        max_seconds: no new round begins after it, counted from the end of the warm-up and over all processes; the
            first round always runs.  Fewer than 8 rounds give speed-ups with an infinite interval.
        patience_seconds: where there are fewer than 8 rounds by then, it goes on until there are, at most this long.
        processes: how often the whole is repeated with fresh processes; rounds are pooled.
        seed: of the bootstrap.
        progress: told after each step.

    Raises:
        InconclusiveError: a process died, hung or answered garbage, or its runtime failed.
        TsexportError: what a runtime raised of that tree.
    """
    labels = [contestant.label for contestant in contestants]
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(f"a race needs contestants with different names; given {labels}")
    baseline = labels[0] if baseline is None else baseline
    if baseline not in labels:
        raise ValueError(f"the baseline {baseline!r} is not among {labels}")
    if (
        batch < 1
        or processes < 1
        or (rounds is not None and rounds < 1)
        or (block_calls is not None and block_calls < 1)
    ):
        raise ValueError("batch, processes, rounds and block_calls are at least 1")
    started = time.perf_counter()
    heats: list[_Heat] = []
    with tempfile.TemporaryDirectory(prefix="tsexport-race-") as folder:
        path = write_feeds(feeds, Path(folder))
        for number in range(processes):
            plan = _Plan(
                rounds=None if rounds is None else -(-rounds // processes),
                block_calls=block_calls,
                samples=-(-P99_SAMPLES // processes),
                min_rounds=-(-RATIO_MIN_ROUNDS // processes),
                seconds=max_seconds / processes,
                patience=patience_seconds / processes,
            )
            heats.append(_run_heat(contestants, path, batch, plan, _Part(progress, number, processes)))
    seconds = time.perf_counter() - started
    return _result(contestants, heats, batch, baseline, seed, seconds)


@dataclass(frozen=True)
class _Plan:
    """When one set of fresh processes has done enough."""

    rounds: int | None
    block_calls: int | None
    samples: int
    min_rounds: int
    seconds: float
    patience: float

    def is_done(self, blocks: Sequence[Sequence[Sequence[float]]], seconds: float) -> bool:
        done = len(blocks[0])
        if done == 0:
            return False
        if seconds >= self.seconds:
            return done >= self._awaited or seconds >= self.patience
        if self.rounds is not None:
            return done >= self.rounds
        return done >= self.min_rounds and all(sum(map(len, one)) >= self.samples for one in blocks)

    @property
    def _awaited(self) -> int:
        """How many rounds are waited for when the time is up."""
        return self.min_rounds if self.rounds is None else min(self.rounds, self.min_rounds)

    def fraction(self, blocks: Sequence[Sequence[Sequence[float]]], seconds: float) -> float:
        if self.rounds is not None:
            work = len(blocks[0]) / self.rounds
        else:
            fewest = min(sum(map(len, one)) for one in blocks)
            work = min(fewest / self.samples, len(blocks[0]) / self.min_rounds)
        return 1.0 if seconds >= self.seconds else min(1.0, max(work, seconds / self.seconds))


@dataclass(frozen=True)
class _Part:
    """One of several equal parts of the whole, for telling progress."""

    progress: Progress | None
    number: int
    parts: int

    def tell(self, what: str, fraction: float) -> None:
        if self.progress is not None:
            self.progress(what, (self.number + fraction) / self.parts)


@dataclass(frozen=True)
class _Heat:
    """What one set of fresh processes did; all tuples are in the order of the contestants."""

    blocks_ms: tuple[tuple[tuple[float, ...], ...], ...]
    stable: tuple[bool, ...]
    load_ms: tuple[float, ...]
    peak_memory_bytes: tuple[int, ...]


def order_of_round(number: int, contestants: int) -> tuple[int, ...]:
    """Return the order in which contestants run in a round: rotated every second round, reversed in the odd ones."""
    shift = (number // 2) % contestants
    order = tuple((i + shift) % contestants for i in range(contestants))
    return order[::-1] if number % 2 else order


def _run_heat(contestants: Sequence[Contestant], feeds: Path, batch: int, plan: _Plan, part: _Part) -> _Heat:
    with ExitStack() as stack:
        workers: list[WorkerProcess] = []
        stable: list[bool] = []
        loads: list[float] = []
        calls: list[int] = []
        lead_ins: list[int] = []
        for contestant in contestants:
            part.tell(f"warming up {contestant.label}", 0.0)
            worker = stack.enter_context(WorkerProcess(contestant.artifact, contestant.runtime, contestant.threads))
            loads.append(worker.load(feeds, batch).load_ms)
            warmed = worker.warm_up(batch)
            stable.append(warmed.stable)
            calls.append(plan.block_calls or block_calls_for(warmed.call_ms))
            lead_ins.append(lead_in_for(warmed.call_ms))
            workers.append(worker)
        blocks: list[list[tuple[float, ...]]] = [[] for _ in contestants]
        peaks = [0] * len(contestants)
        began = time.perf_counter()
        while not plan.is_done(blocks, time.perf_counter() - began):
            for i in order_of_round(len(blocks[0]), len(contestants)):
                timed = workers[i].time_block(batch, calls[i], lead_in=lead_ins[i], quiet=True)
                blocks[i].append(tuple(ns / 1e6 for ns in timed.times_ns))
                peaks[i] = timed.peak_memory_bytes
            part.tell(f"batch {batch}", plan.fraction(blocks, time.perf_counter() - began))
    return _Heat(tuple(tuple(one) for one in blocks), tuple(stable), tuple(loads), tuple(peaks))


def block_calls_for(call_ms: float) -> int:
    """Return how many calls take 30 ms, at least 1 and at most 500."""
    return max(1, min(MAX_BLOCK_CALLS, round(BLOCK_SECONDS * 1000 / max(call_ms, 1e-6))))


def lead_in_for(call_ms: float) -> int:
    """Return how many calls of a block do not count."""
    return LEAD_IN_CALLS if call_ms < SLOW_CALL_MS else 0


def _result(
    contestants: Sequence[Contestant], heats: Sequence[_Heat], batch: int, baseline: str, seed: int, seconds: float
) -> RaceResult:
    pooled = [tuple(block for heat in heats for block in heat.blocks_ms[i]) for i in range(len(contestants))]
    against = pooled[[contestant.label for contestant in contestants].index(baseline)]
    entries: list[RaceEntry] = []
    for i, contestant in enumerate(contestants):
        samples = [value for block in pooled[i] for value in block]
        if min(samples) <= 0:
            raise InconclusiveError(f"{contestant.label} answers faster than this machine's clock ticks")
        entries.append(
            RaceEntry(
                name=contestant.label,
                artifact=contestant.artifact.name,
                runtime=contestant.runtime,
                threads=contestant.threads,
                blocks_ms=pooled[i],
                summary=summarize(samples),
                speedup=ratio_of_medians(against, pooled[i], seed=seed),
                stable_warmup=all(heat.stable[i] for heat in heats),
                load_ms=sorted(heat.load_ms[i] for heat in heats)[len(heats) // 2],
                peak_memory_bytes=max(heat.peak_memory_bytes[i] for heat in heats),
            )
        )
    return RaceResult(batch, baseline, len(against), len(heats), seconds, tuple(entries))
