"""How many channels each group gives: more where its readers hardly miss them, and where they cost much arithmetic.

What it costs that channels go is the share of its readers' answers that the other channels cannot make up for
(`pruning_importance`), summed over the readers, each in units of its own answers.  The price of an offer is the
geometric mean of that cost a channel and a floating-point operation:

    price = cost / (channels * sqrt(FLOPs that one channel carries))

A channel carries the arithmetic of the layers that give it and of those that read it, so that of two groups that would
be missed alike the one at full resolution gives more.  By operations alone (no square root) groups that are badly
missed would go, by channels alone those that hardly take any time.  The cheapest offer is taken next, again and again,
until the fraction of all channels is gone: the last ones may take a little more.

A group gives BLOCK channels at a time (of each of its segments): that is how wide runtimes compute on AVX512, where 24
channels take the time of 32.  Where no multiple of BLOCK is near enough it gives 8.  At most MOST times the
fraction of it goes, and at least half of what an even share would leave stays.

Measured with --prune 0.3 on AVX512, one thread, fp32 in ONNX Runtime, CPU time on a busy machine, times faster than the
whole model, and the output error after the refit; before: 8 at a time, priced by channels alone, MOST 1.4:

                      before             BLOCK alone       price as well
    unet              1.39 (3.8 %)       1.47 (3.3 %)      1.56 (3.7 %)
    inception-time    1.47 (0.03 %)      1.50 (0.1 %)       not timed; by operations alone 1.56 (0.1 %)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tsexport.quantize.pruning_importance import Reader, removal_order
from tsexport.quantize.pruning_widths import MULTIPLE, kept_width

MOST = 1.7
"""A group gives at most this many times the fraction: what is left of it has to serve what lies behind as well.  Of
0.3 it lets 32 channels become 16."""
BLOCK = 16
"""Channels that an AVX512 kernel computes at once, in fp32."""


@dataclass(frozen=True)
class Offer:
    """What a group could give: `gone[level]` are the channels of each segment that go, `costs[level]` what that costs
    in all; level 0 is nothing.  `flops` are the floating-point operations that one of its channels carries."""

    channels: int
    gone: tuple[tuple[int, ...], ...]
    costs: tuple[float, ...]
    flops: float = 1.0


def offer_of(
    readers: Sequence[Reader], segments: Sequence[Sequence[int]], fraction: float, flops: float = 1.0
) -> Offer:
    """Return what a group could give; the readers are used up."""
    steps = [_steps(len(part), fraction) for part in segments]
    levels = max(map(len, steps))
    gone = tuple(tuple(one[min(level, len(one) - 1)] for one in steps) for level in range(levels))
    order = removal_order(readers, segments, gone[-1])
    totals = [0.0]
    for _, cost in order:
        totals.append(totals[-1] + cost)
    return Offer(sum(map(len, segments)), gone, tuple(totals[sum(one)] for one in gone), flops)


def _steps(width: int, fraction: float) -> list[int]:
    """Return how many channels of a segment may go, ascending: 0, then what leaves multiples of BLOCK, else of 8."""
    # What an even share would leave is always on offer: few channels have few multiples to choose from.
    fewest = max(MULTIPLE, width * (1 - MOST * fraction), width * (1 - fraction) / 2)
    least = min(fewest, kept_width(width, fraction))
    for multiple in (BLOCK, MULTIPLE):
        kept = [one for one in range(width // multiple * multiple, 0, -multiple) if least <= one < width]
        if kept:
            return [0, *(width - one for one in kept)]
    return [0]


def allocate(offers: Mapping[str, Offer], fraction: float) -> dict[str, tuple[int, ...]]:
    """Return how many channels of each segment of each group go."""
    wanted = fraction * sum(offer.channels for offer in offers.values())
    level = dict.fromkeys(offers, 0)
    gone = 0
    while gone < wanted:
        ahead = {
            name: _price(offer, level[name]) for name, offer in offers.items() if level[name] + 1 < len(offer.gone)
        }
        if not ahead:
            break
        cheapest = min(ahead, key=lambda name: (ahead[name], name))
        level[cheapest] += 1
        now = offers[cheapest].gone
        gone += sum(now[level[cheapest]]) - sum(now[level[cheapest] - 1])
    return {name: offer.gone[level[name]] for name, offer in offers.items()}


def _price(offer: Offer, level: int) -> float:
    """Return the price of the next channels of a group."""
    channels = sum(offer.gone[level + 1]) - sum(offer.gone[level])
    return (offer.costs[level + 1] - offer.costs[level]) / (channels * math.sqrt(max(offer.flops, 1.0)))
