"""Calls side by side within one process: short, interleaved, as ratios with their intervals.

For choices that are made many times in a build, where a race of processes (`bench.race`) would take too long: all
contestants run on one thread in this process.  Each round times one block of every contestant, in an order that turns
from round to round, so that a clock or a neighbour that drifts hits all alike.  A block's first call does not count:
another contestant has just emptied the caches.

Limits: contestants share one heap and one set of caches; what is compared should differ in its graph alone.
"""

import time
from collections.abc import Callable, Sequence

from tsexport.bench.statistics import RATIO_MIN_ROUNDS, Ratio, ratio_of_medians

BLOCK_SECONDS = 0.005
MAX_ROUNDS = 31
FEWEST_ROUNDS = 3
PATIENCE_SECONDS = 10.0
"""After this long a comparison ends with what rounds it has, at least FEWEST_ROUNDS."""
SLOW_SECONDS = 0.05
"""A call this long is not slower for what ran before it, so it is neither warmed up twice nor led in to."""

Call = Callable[[], object]


def time_side_by_side(calls: Sequence[Call], *, seconds: float, seed: int = 0) -> tuple[Ratio, ...]:
    """Return how many times faster each call is than the first.

    Args:
        calls: what is timed; each is called with nothing, and its result is dropped.
        seconds: about how long all may take together, once there are 8 rounds, which the bootstrap needs.
        seed: of the bootstrap.
    """
    spent = [_warm_up(call) for call in calls]
    blocks: list[list[list[float]]] = [[] for _ in calls]
    began = time.perf_counter()
    for turn in range(MAX_ROUNDS):
        took = time.perf_counter() - began
        if took > (seconds if turn >= RATIO_MIN_ROUNDS else PATIENCE_SECONDS) and turn >= FEWEST_ROUNDS:
            break
        order = [(turn // 2 + place) % len(calls) for place in range(len(calls))]
        for one in order if turn % 2 == 0 else reversed(order):
            blocks[one].append(_time_block(calls[one], spent[one]))
    return tuple(_ratio(blocks[0], block, seed) for block in blocks)


def _ratio(baseline: Sequence[Sequence[float]], contestant: Sequence[Sequence[float]], seed: int) -> Ratio:
    """Return the ratio with its bootstrap interval; of few rounds that of the order statistics.

    All n rounds lie on one side of the true median with probability 2^(1 - n): from the least to the largest is an
    interval for it with that error.
    """
    ratio = ratio_of_medians(baseline, contestant, seed=seed)
    if ratio.high is not None:
        return ratio
    rounds = [min(a) / min(b) for a, b in zip(baseline, contestant, strict=True)]
    return Ratio(ratio.value, min(*rounds, ratio.value), max(*rounds, ratio.value), 1.0 - 2.0 ** (1 - len(rounds)))


def _warm_up(call: Call) -> float:
    """Return the seconds of a call."""
    for _ in range(2):
        began = time.perf_counter()
        call()
        spent = time.perf_counter() - began
        if spent > SLOW_SECONDS:
            break
    return max(spent, 1e-6)


def _time_block(call: Call, spent: float) -> list[float]:
    """Return the seconds of as many calls as take BLOCK_SECONDS, at least one."""
    if spent < SLOW_SECONDS:
        call()
    times = []
    for _ in range(max(1, round(BLOCK_SECONDS / spent))):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return times
