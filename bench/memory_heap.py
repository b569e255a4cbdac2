"""How glibc serves a process's requests for memory, and what the process then holds: a simulation of its main arena.

    small       below the mapping threshold: the smallest free hole that fits, else the end of the heap
    large       where no hole fits: a mapping of its own, given back to the system when it is freed
    threshold   128 KiB at first; a mapping that is freed raises it to its size, up to 32 MiB, and the heap's end is
                given back only where more than twice the threshold is free there

So what a process holds depends on the order of its requests: after 16 MB were mapped and freed, the next 16 MB come
from the heap, and leave a hole when they are freed.  Only pages that were used count.

Sources: malloc/malloc.c of glibc 2.36 (`sysmalloc`, `munmap_chunk`, `systrim`, `_int_memalign`),
https://sourceware.org/git/glibc.git; mallopt(3) for the limits.  Left out: bins for small sizes, arenas of other
threads, what the interpreter left free.
"""

from dataclasses import dataclass

PAGE_BYTES = 4096
HEADER_BYTES = 16
ALIGNING_BYTES = 96
"""What a request that is aligned to 64 bytes looks for beyond its size.  The rest is given back in small pieces, which
join the block again when that is freed, unless they were used for something else: then the hole is too small for a
request of the same size."""
PIN_BYTES = 32
FIRST_THRESHOLD_BYTES = 128 << 10
LARGEST_THRESHOLD_BYTES = 32 << 20
TOP_PAD_BYTES = 128 << 10


@dataclass
class _Block:
    start: int
    size: int
    free: bool


class Heap:
    """Requests taken and given back under keys; `held_bytes` now, `peak_bytes` at most."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        """Of the heap, side by side, up to the top."""
        self._top = 0
        self._top_end = 0
        self._used_end = 0
        """How far the heap's pages were used since its end was last given back."""
        self._mapped: dict[str, tuple[int, int]] = {}
        """(size, used) of each mapping."""
        self._mapped_bytes = 0
        self._in_heap: dict[str, _Block] = {}
        self._threshold = FIRST_THRESHOLD_BYTES
        self.peak_bytes = 0

    @property
    def held_bytes(self) -> int:
        """What the process holds now."""
        return self._used_end + self._mapped_bytes

    def map_file(self, key: str, size: int) -> None:
        """Map a file and read all of it."""
        self._map(key, size, size)

    def take(self, key: str, size: int, used: int | None = None, *, aligned: bool = True, pinned: bool = False) -> None:
        """Take `size` bytes, of which `used` are written to; by default all.

        Args:
            aligned: to 64 bytes, as tensors are.
            pinned: something small that stays is taken right behind it.
        """
        rounded = -(-(size + HEADER_BYTES) // HEADER_BYTES) * HEADER_BYTES
        wanted = rounded + ALIGNING_BYTES * aligned
        written = min(rounded, size if used is None else used)
        hole = self._hole(wanted)
        if hole is not None:
            self._in_heap[key] = self._place(hole, wanted, pinned)
        elif self._top_end - self._top < wanted and wanted >= self._threshold:
            self._map(key, rounded, written)
        else:
            self._blocks.append(_Block(self._top, wanted, True))
            self._top += wanted
            self._top_end = max(self._top_end, self._top + TOP_PAD_BYTES)
            self._in_heap[key] = block = self._place(len(self._blocks) - 1, wanted, pinned)
            self._used_end = max(self._used_end, block.start + written)
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)

    def give(self, key: str) -> None:
        """Give back what was taken under a key."""
        mapped = self._mapped.pop(key, None)
        if mapped is not None:
            self._mapped_bytes -= mapped[1]
            if self._threshold < mapped[0] <= LARGEST_THRESHOLD_BYTES:
                self._threshold = mapped[0]
            return
        block = self._in_heap.pop(key)
        block.free = True
        self._join(self._blocks.index(block))

    def _map(self, key: str, size: int, used: int) -> None:
        self._mapped[key] = -(-size // PAGE_BYTES) * PAGE_BYTES, used
        self._mapped_bytes += used
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)

    def _hole(self, size: int) -> int | None:
        fitting = [(block.size, at) for at, block in enumerate(self._blocks) if block.free and block.size >= size]
        return min(fitting)[1] if fitting else None

    def _place(self, at: int, size: int, pinned: bool) -> _Block:
        """Return the beginning of a free block, taken; with `pinned` its last bytes are something else's for good."""
        block = self._blocks[at]
        self._cut(at, size)
        if pinned:
            self._cut(at, size - PIN_BYTES)
            self._blocks[at + 1].free = False
        block.free = False
        return block

    def _cut(self, at: int, size: int) -> None:
        block = self._blocks[at]
        if block.size > size:
            self._blocks.insert(at + 1, _Block(block.start + size, block.size - size, True))
            block.size = size

    def _join(self, at: int) -> None:
        blocks = self._blocks
        if at + 1 < len(blocks) and blocks[at + 1].free:
            blocks[at].size += blocks.pop(at + 1).size
        if at > 0 and blocks[at - 1].free:
            at -= 1
            blocks[at].size += blocks.pop(at + 1).size
        if at + 1 == len(blocks):
            self._top = blocks.pop(at).start
            self._trim()

    def _trim(self) -> None:
        limit = FIRST_THRESHOLD_BYTES if self._threshold == FIRST_THRESHOLD_BYTES else 2 * self._threshold
        if self._top_end - self._top >= limit:
            self._top_end = self._top + TOP_PAD_BYTES
            self._used_end = min(self._used_end, self._top_end)
