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
_WARM_UP_CALLS = 2

Call = Callable[[], object]


def time_side_by_side(calls: Sequence[Call], *, seconds: float, seed: int = 0) -> tuple[Ratio, ...]:
    """Return how many times faster each call is than the first.

    Args:
        calls: what is timed; each is called with nothing, and its result is dropped.
        seconds: about how long all may take together, once 8 rounds are done: fewer give no interval.
        seed: of the bootstrap.
    """
    sizes = [_block_calls(call) for call in calls]
    blocks: list[list[list[float]]] = [[] for _ in calls]
    began = time.perf_counter()
    for turn in range(MAX_ROUNDS):
        if turn >= RATIO_MIN_ROUNDS and time.perf_counter() - began > seconds:
            break
        order = [(turn // 2 + place) % len(calls) for place in range(len(calls))]
        for one in order if turn % 2 == 0 else reversed(order):
            blocks[one].append(_time_block(calls[one], sizes[one]))
    return tuple(ratio_of_medians(blocks[0], block, seed=seed) for block in blocks)


def _block_calls(call: Call) -> int:
    """Return how many calls take about BLOCK_SECONDS, at least one."""
    for _ in range(_WARM_UP_CALLS):
        began = time.perf_counter()
        call()
        spent = time.perf_counter() - began
    return max(1, round(BLOCK_SECONDS / max(spent, 1e-6)))


def _time_block(call: Call, count: int) -> list[float]:
    call()
    times = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return times
