"""How many channels each group gives: more where its readers hardly miss them.

Each group could give 8 channels at a time (of each of its segments), down to 1 - MOST of the fraction.  What that costs
is the share of its readers' answers that the other channels cannot make up for (`pruning_importance`), summed over the
readers, each in units of its own answers.  The cheapest eight are taken next, again and again, until the fraction of
all channels is gone: the last ones may take a little more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tsexport.quantize.pruning_importance import Reader, removal_order
from tsexport.quantize.pruning_widths import MULTIPLE, kept_width

MOST = 1.4
"""A group gives at most this many times the fraction: what is left of it has to serve what lies behind as well."""


@dataclass(frozen=True)
class Offer:
    """What a group could give: `gone[level]` are the channels of each segment that go, `costs[level]` what that costs
    in all; level 0 is nothing."""

    channels: int
    gone: tuple[tuple[int, ...], ...]
    costs: tuple[float, ...]


def offer_of(readers: Sequence[Reader], segments: Sequence[Sequence[int]], fraction: float) -> Offer:
    """Return what a group could give; the readers are used up."""
    steps = [_steps(len(part), fraction) for part in segments]
    levels = max(map(len, steps))
    gone = tuple(tuple(one[min(level, len(one) - 1)] for one in steps) for level in range(levels))
    order = removal_order(readers, segments, gone[-1])
    totals = [0.0]
    for _, cost in order:
        totals.append(totals[-1] + cost)
    return Offer(sum(map(len, segments)), gone, tuple(totals[sum(one)] for one in gone))


def _steps(width: int, fraction: float) -> list[int]:
    """Return how many channels of a segment may go: 0, then what leaves multiples of 8, ascending."""
    # What an even share would leave is always on offer: few channels have few multiples to choose from.
    least = min(max(MULTIPLE, width * (1 - MOST * fraction)), kept_width(width, fraction))
    kept = range(width // MULTIPLE * MULTIPLE, 0, -MULTIPLE)
    return [0, *(width - one for one in kept if least <= one < width)]


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
    """Return what the next channels of a group cost, each."""
    channels = sum(offer.gone[level + 1]) - sum(offer.gone[level])
    return (offer.costs[level + 1] - offer.costs[level]) / channels
