"""Two artifacts against each other, in pairs of fresh processes: what `tsexport compare` runs.

A pair is one process of each side, bound to the same CPUs and never timed at the same time: both load, both warm up
until they are stable, then rounds of blocks alternate (A B B A, B A A B, ...).  While one is timed the other blocks on
a read.  The idle loop of `bench.noise` is timed before every block, on the same CPU.  What is made of the pairs, and
when it is enough, is in `bench.comparing_rule`.
"""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tsexport.bench.compare_records import ComparisonRun, Slowdown
from tsexport.bench.comparing_rule import FEWEST_PAIRS, LOOKS, Judgement, PairTimes, judge_pairs
from tsexport.bench.noise import NoiseWatch
from tsexport.bench.process import WORKER_COMMAND, WorkerProcess, write_feeds
from tsexport.bench.race import MAX_BLOCK_CALLS, lead_in_for
from tsexport.errors import InconclusiveError
from tsexport.types import Artifact, Feeds

BLOCK_SECONDS = 0.02
MOST_ROUNDS, FEWEST_ROUNDS = 6, 2
PAIR_SECONDS = 4.0
"""Of a slow model a pair has fewer rounds, so that its blocks take about so long, but at least 2."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Contender:
    """An artifact on a runtime; `command` starts the process that runs it."""

    artifact: Artifact
    runtime: str
    command: tuple[str, ...] = WORKER_COMMAND


@dataclass(frozen=True)
class Setting:
    """What holds for both sides: threads, the CPUs they are bound to, the batch, the feeds [samples, ...]."""

    feeds: Feeds
    batch: int
    threads: int
    cpus: tuple[int, ...]


@dataclass(frozen=True)
class Limits:
    """When to stop.  `seconds` are for everything together; `seed` is of the bootstrap."""

    threshold: float
    seconds: float
    seed: int = 0


def compare_contenders(
    base: Contender,
    candidate: Contender,
    setting: Setting,
    limits: Limits,
    *,
    watch: NoiseWatch,
    progress: Progress | None = None,
) -> tuple[ComparisonRun, ...]:
    """Return one run, or two where the first found a regression: the second is to confirm it.

    The first run leaves time for a second one of FEWEST_PAIRS, where 120 s hold as many; where they do not, a
    regression cannot be confirmed, and is inconclusive.

    Raises:
        InconclusiveError: a process died, hung or answered garbage, or its runtime failed.
        TsexportError: what a runtime raised of that tree.
    """
    clock = _Clock(time.perf_counter(), limits.seconds)
    with tempfile.TemporaryDirectory(prefix="tsexport-compare-") as folder:
        feeds = write_feeds(setting.feeds, Path(folder))

        def time_one() -> PairTimes:
            return time_pair((base, candidate), feeds, setting, watch)

        first = _run(time_one, clock, limits, reserve=FEWEST_PAIRS, what="comparing", progress=progress)
        if first.verdict != "regression":
            return (first,)
        if not _fits(clock, 0, 0):
            return (replace(first, verdict="inconclusive", reason=f"{first.reason}; no time is left to confirm it"),)
        again = replace(limits, seed=limits.seed + len(LOOKS))
        return first, _run(time_one, clock, again, reserve=0, what="confirming", progress=progress)


def time_pair(sides: tuple[Contender, Contender], feeds: Path, setting: Setting, watch: NoiseWatch) -> PairTimes:
    """Time one fresh process of each side, in rounds of interleaved blocks.  Raises as `compare_contenders`."""
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                WorkerProcess(side.artifact, side.runtime, setting.threads, command=side.command, cpus=setting.cpus)
            )
            for side in sides
        ]
        for worker in workers:
            worker.load(feeds, setting.batch)
        warmed = [worker.warm_up(setting.batch) for worker in workers]
        slowest_ms = max(one.call_ms for one in warmed)
        calls = tuple(calls_for(one.call_ms) for one in warmed)
        medians: tuple[list[float], list[float]] = ([], [])
        idles: tuple[list[float], list[float]] = ([], [])
        for number in range(rounds_for(slowest_ms)):
            for side in order_of(number):
                idles[side].append(watch.look())
                timed = workers[side].time_block(
                    setting.batch, calls[side], lead_in=lead_in_for(warmed[side].call_ms), quiet=True
                )
                median_ms = float(np.median(timed.times_ns)) / 1e6
                if median_ms <= 0:
                    raise InconclusiveError(f"{workers[side].label} answers faster than this machine's clock ticks")
                medians[side].append(median_ms)
    return PairTimes(
        _by_round(medians[0]), _by_round(medians[1]), _by_round(idles[0]), _by_round(idles[1]),
        sum(one.stable for one in warmed),
    )  # fmt: skip


def order_of(number: int) -> tuple[int, int, int, int]:
    """Return the order of the sides in a round: A B B A, then B A A B."""
    return (1, 0, 0, 1) if number % 2 else (0, 1, 1, 0)


def calls_for(call_ms: float) -> int:
    """Return how many calls take BLOCK_SECONDS, at least 1."""
    return max(1, min(MAX_BLOCK_CALLS, round(BLOCK_SECONDS * 1000 / max(call_ms, 1e-6))))


def rounds_for(call_ms: float) -> int:
    """Return the rounds of a pair: 6, and fewer where 4 blocks of single calls take long."""
    round_s = 4 * max(BLOCK_SECONDS, call_ms / 1000)
    return max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(PAIR_SECONDS / round_s)))


class _Clock:
    """The time that is left for everything, by what pairs have taken."""

    def __init__(self, began: float, seconds: float) -> None:
        self._began, self._seconds = began, seconds
        self._pairs_s: list[float] = []

    @property
    def pair_s(self) -> float:
        """The mean of the pairs so far."""
        return sum(self._pairs_s) / max(1, len(self._pairs_s))

    def note(self, pair_s: float) -> None:
        self._pairs_s.append(pair_s)

    def has_time_for(self, pairs: int) -> bool:
        """Whether so many pairs would fit, if one took as long as the longest yet and the others the mean."""
        spent = time.perf_counter() - self._began
        return spent + max(self._pairs_s, default=0.0) + (pairs - 1) * self.pair_s <= self._seconds

    def fraction(self) -> float:
        return min(1.0, (time.perf_counter() - self._began) / self._seconds)


def _run(
    time_one: Callable[[], PairTimes],
    clock: _Clock,
    limits: Limits,
    *,
    reserve: int,
    what: str,
    progress: Progress | None,
) -> ComparisonRun:
    """Time pairs until a look decides, or no further one fits in the time; one pair is timed however short that is.

    Args:
        reserve: pairs for which time has to be left.
    """
    began = time.perf_counter()
    pairs: list[PairTimes] = []
    looks: list[Judgement] = []

    def look() -> Judgement:
        looks.append(judge_pairs(pairs, threshold=limits.threshold, seed=limits.seed + len(looks)))
        return looks[-1]

    while not pairs or (len(pairs) < LOOKS[-1] and _fits(clock, len(pairs), reserve)):
        if progress is not None:
            progress(f"{what}, pair {len(pairs) + 1}", clock.fraction())
        started = time.perf_counter()
        pairs.append(time_one())
        clock.note(time.perf_counter() - started)
        if len(pairs) in LOOKS and look().verdict != "inconclusive":
            break
    if len(pairs) >= FEWEST_PAIRS and len(pairs) not in LOOKS:
        look()  # the time is up
    return _record(pairs, looks, time.perf_counter() - began, clock)


def _fits(clock: _Clock, done: int, reserve: int) -> bool:
    """Whether a further pair fits; before FEWEST_PAIRS are there, whether so many do, for else all are for nothing."""
    return clock.has_time_for(max(1, FEWEST_PAIRS - done) + (reserve if done >= FEWEST_PAIRS else 0))


def _record(pairs: Sequence[PairTimes], looks: Sequence[Judgement], seconds: float, clock: _Clock) -> ComparisonRun:
    ratios = tuple(pair.ratio for pair in pairs)
    judgement = looks[-1] if looks else _too_few(ratios, clock)
    return ComparisonRun(
        processes=len(pairs),
        rounds=min(len(pair.base_ms) for pair in pairs),
        base_medians_ms=tuple(pair.base_median_ms for pair in pairs),
        candidate_medians_ms=tuple(pair.candidate_median_ms for pair in pairs),
        pair_ratios=ratios,
        ratio=judgement.ratio,
        process_floor=judgement.process_floor,
        machine_floor=judgement.machine_floor,
        looks=len(looks),
        unstable=sum(2 - pair.stable_warmups for pair in pairs),
        verdict=judgement.verdict,
        reason=judgement.reason,
        seconds=seconds,
    )


def _too_few(ratios: Sequence[float], clock: _Clock) -> Judgement:
    """Return what stands for a look at fewer than FEWEST_PAIRS: a ratio without bounds, and no floors."""
    reason = (
        f"the time was up after {len(ratios)} of {FEWEST_PAIRS} pairs of processes, each of which took "
        f"{clock.pair_s:.0f} s"
    )
    value = math.exp(float(np.median(np.log(ratios))))
    return Judgement("inconclusive", reason, Slowdown(value, 0.0, None, 0.0), 0.0, 0.0)


def _by_round(values: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Return the two values of each round: [2 * rounds] -> [rounds][2]."""
    return tuple((values[i], values[i + 1]) for i in range(0, len(values), 2))
