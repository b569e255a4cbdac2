"""How ONNX Runtime's arena takes memory from the system: a simulation of its best-fit allocator with coalescing.

Regions come in sizes that double, from 1 MiB on; a request takes the smallest free chunk that holds it and splits it
where it is at least twice as large, or 128 MiB larger.  Of a region only what was ever used counts, since the system
gives a process no page before it is touched.

The first run of an input shape takes every activation for itself; it is recorded, and later runs take one block for all
of them, planned so that activations which live at different times share bytes.  The arena gives nothing back, so both
stay: what the first run took, and the block, unless a free chunk holds it.

Source: onnxruntime/core/framework/bfc_arena.cc and mem_pattern_planner.h of https://github.com/microsoft/onnxruntime.
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

from tsexport.bench.memory_plan import Event

ALIGNMENT_BYTES = 256
FIRST_REGION_BYTES = 1 << 20
MOST_DEAD_BYTES = 128 << 20
_BLOCK = "the block of all activations"


@dataclass
class _Chunk:
    start: int
    size: int
    free: bool = True


@dataclass(frozen=True)
class Region:
    """Bytes taken from the system, and those of them that were ever used."""

    size: int
    used: int


class Arena:
    """Chunks of memory, taken and given back under keys."""

    def __init__(self) -> None:
        self._regions: list[list[_Chunk]] = []
        self._touched: list[int] = []
        """For each region, the end of the highest chunk ever used."""
        self._next_region = FIRST_REGION_BYTES
        self._used: dict[str, tuple[int, _Chunk]] = {}

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions in the order in which they were taken."""
        return tuple(
            Region(sum(chunk.size for chunk in chunks), used)
            for chunks, used in zip(self._regions, self._touched, strict=True)
        )

    def take(self, key: str, size: int) -> None:
        """Take a chunk of at least `size` bytes."""
        rounded = max(ALIGNMENT_BYTES, -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
        found = self._best(rounded) or self._extend(rounded)
        region, chunk = found
        if chunk.size >= 2 * rounded or chunk.size - rounded >= MOST_DEAD_BYTES:
            chunks = self._regions[region]
            chunks.insert(chunks.index(chunk) + 1, _Chunk(chunk.start + rounded, chunk.size - rounded))
            chunk.size = rounded
        chunk.free = False
        self._used[key] = region, chunk
        self._touched[region] = max(self._touched[region], chunk.start + min(chunk.size, rounded))

    def give(self, key: str) -> None:
        """Give a chunk back, and join it with free neighbours."""
        region, chunk = self._used.pop(key)
        chunk.free = True
        chunks = self._regions[region]
        at = chunks.index(chunk)
        for left in (at, at - 1):
            if 0 <= left < len(chunks) - 1 and chunks[left].free and chunks[left + 1].free:
                chunks[left].size += chunks.pop(left + 1).size

    def _best(self, size: int) -> tuple[int, _Chunk] | None:
        fitting = (
            (chunk.size, region, chunk.start, chunk)
            for region, chunks in enumerate(self._regions)
            for chunk in chunks
            if chunk.free and chunk.size >= size
        )
        best = min(fitting, key=lambda one: one[:3], default=None)
        return None if best is None else (best[1], best[3])

    def _extend(self, size: int) -> tuple[int, _Chunk]:
        grown = self._next_region < size
        while self._next_region < size:
            self._next_region *= 2
        chunk = _Chunk(0, self._next_region)
        self._regions.append([chunk])
        self._touched.append(0)
        if not grown:
            self._next_region *= 2
        return len(self._regions) - 1, chunk


def planned_bytes(events: Sequence[Event]) -> int:
    """Return the size of the block that holds all planned activations, each in the smallest gap that fits it."""
    held: list[tuple[int, int, str]] = []  # (start, end, key), sorted
    most = 0
    for event in events:
        if not event.planned:
            continue
        if not event.take:
            held = [one for one in held if one[2] != event.key]
            continue
        start = _smallest_gap(held, event.size)
        insort(held, (start, start + event.size, event.key))
        most = max(most, start + event.size)
    return most


def _smallest_gap(held: Sequence[tuple[int, int, str]], size: int) -> int:
    found: tuple[int, int] | None = None  # (gap, start)
    end = 0
    for start, until, _ in held:
        gap = start - end
        if gap >= size and (found is None or gap < found[0]):
            found = gap, end
        end = max(end, until)
    return end if found is None else found[1]


def arena_regions(events: Sequence[Event]) -> tuple[Region, ...]:
    """Return the regions that the arena has taken after two runs of the same graph at the same input shapes."""
    arena = Arena()
    for event in events:
        arena.take(event.key, event.size) if event.take else arena.give(event.key)
    for key in _left(events):
        arena.give(key)
    block = planned_bytes(events)
    if block:
        arena.take(_BLOCK, block)
    others = [event for event in events if not event.planned]
    for event in others:
        arena.take(event.key, event.size) if event.take else arena.give(event.key)
    return arena.regions


def _left(events: Sequence[Event]) -> list[str]:
    """Return the keys that are held at the end: the graph's outputs, given back when they were copied out."""
    held: dict[str, None] = {}
    for event in events:
        if event.take:
            held[event.key] = None
        else:
            held.pop(event.key)
    return list(held)
