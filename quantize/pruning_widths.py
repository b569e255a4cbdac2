"""How many channels stay, and which: widths that are multiples of 8, chosen by importance.

Runtimes compute convolutions and products in blocks of 8 or 16 channels, so that a width between two multiples costs
what the next one costs.  A width w of which the fraction f goes keeps the multiple of 8 nearest to w (1 - f), at least
8 and fewer than w; a width of which nothing can go keeps all.  Heads are kept so that all of them together are a
multiple of 8 wide, as near to the fraction as can be, at least one.
"""

from collections.abc import Mapping, Sequence

MULTIPLE = 8


def kept_width(width: int, fraction: float, multiple: int = MULTIPLE) -> int:
    """Return how many of `width` channels stay, `width` itself where none can go."""
    kept = multiple * max(1, int(width * (1 - fraction) / multiple + 0.5))
    return kept if kept < width else width


def kept_heads(heads: int, head_width: int, fraction: float, multiple: int = MULTIPLE) -> int:
    """Return how many of `heads` heads of `head_width` values stay, `heads` itself where none can go."""
    wanted = heads * (1 - fraction)
    fitting = [count for count in range(1, heads) if count * head_width % multiple == 0]
    best = min(fitting, key=lambda count: (abs(count - wanted), -count), default=heads)
    # Nearer to none gone than to the next that fits: the heads are too few for the fraction.
    return heads if abs(heads - wanted) <= abs(best - wanted) else best


def segments(count: int, members: Mapping[str, Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Return the channels of a group, cut so that each layer's own channels are whole segments of it.

    Args:
        count: channels of the group's root, 0 to count - 1.
        members: for each layer whose outputs the group removes, which of the root's channels they are.
    """
    found: dict[tuple[str, ...], list[int]] = {}
    held = {name: frozenset(places) for name, places in members.items()}
    for channel in range(count):
        found.setdefault(tuple(name for name, places in held.items() if channel in places), []).append(channel)
    return tuple(tuple(channels) for channels in found.values())


def least_important(
    importance: Sequence[float] | Mapping[int, float], candidates: Sequence[int], count: int
) -> tuple[int, ...]:
    """Return `count` of the candidates with the least importance, in ascending order; the first ones of equals stay."""
    ranked = sorted(candidates, key=lambda channel: (importance[channel], -channel))
    return tuple(sorted(ranked[:count]))
