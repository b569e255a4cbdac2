"""The simulated C library, against requests counted by hand, and against what glibc really holds."""

import platform
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.bench.memory_heap import (
    ALIGNING_BYTES,
    FIRST_THRESHOLD_BYTES,
    PAGE_BYTES,
    TOP_PAD_BYTES,
    Heap,
)

MIB = 1 << 20
SMALL = 64 << 10
REAL_TOLERANCE_BYTES = 2 * MIB


def test_what_is_mapped_goes_back_when_it_is_freed():
    heap = Heap()
    heap.take("a", 40 * MIB)
    assert heap.held_bytes == pytest.approx(40 * MIB, abs=PAGE_BYTES)
    heap.give("a")
    assert heap.held_bytes == 0
    heap.take("b", 40 * MIB)  # above 32 MiB the threshold never rises
    heap.give("b")
    assert heap.held_bytes == 0
    assert heap.peak_bytes == pytest.approx(40 * MIB, abs=PAGE_BYTES)


def test_a_freed_mapping_raises_the_threshold_so_that_the_next_one_leaves_a_hole():
    heap = Heap()
    heap.take("a", 16 * MIB)
    heap.give("a")
    heap.take("b", 8 * MIB)  # from the heap now
    heap.take("c", SMALL)
    heap.give("b")
    assert heap.held_bytes == pytest.approx(8 * MIB + SMALL, abs=PAGE_BYTES)
    heap.take("d", 4 * MIB)  # in the hole
    assert heap.held_bytes == pytest.approx(8 * MIB + SMALL, abs=PAGE_BYTES)


def hole_reused(pinned, size=SMALL, *, aligned=True):
    heap = Heap()
    heap.take("a", SMALL, pinned=pinned, aligned=aligned)
    heap.take("b", SMALL, aligned=aligned)
    heap.give("a")
    before = heap.held_bytes
    heap.take("c", size, aligned=aligned)
    return heap.held_bytes == before


def test_an_aligned_request_fits_the_hole_of_its_own_size_unless_something_small_lies_in_it():
    assert hole_reused(False)
    assert not hole_reused(True)
    assert hole_reused(True, SMALL - 2 * ALIGNING_BYTES)
    assert hole_reused(False, aligned=False)


def test_holes_join_unless_something_small_lies_between_them():
    for pinned in (False, True):
        heap = Heap()
        heap.take("a", SMALL, pinned=pinned)
        heap.take("b", SMALL)
        heap.take("end", SMALL)
        heap.give("a")
        heap.give("b")
        before = heap.held_bytes
        heap.take("c", SMALL + SMALL // 2)
        assert (heap.held_bytes > before) is pinned


def test_the_end_of_the_heap_is_given_back_where_enough_is_free():
    heap = Heap()
    heap.take("a", SMALL)
    heap.take("b", SMALL)
    heap.take("c", SMALL)
    for key in "cba":
        heap.give(key)
    assert heap.held_bytes <= TOP_PAD_BYTES + FIRST_THRESHOLD_BYTES


def test_of_a_request_only_what_is_written_to_counts():
    heap = Heap()
    heap.take("a", 64 * MIB, 5 * MIB)
    assert heap.held_bytes == 5 * MIB


requests = st.lists(st.tuples(st.booleans(), st.integers(1, 48 * MIB)), max_size=60)


@given(requests)
@settings(deadline=None)
def test_a_process_holds_at_least_what_is_taken_and_never_gives_twice(steps):
    heap = Heap()
    held: dict[str, int] = {}
    for at, (take, size) in enumerate(steps):
        if take or not held:
            held[f"{at}"] = size
            heap.take(f"{at}", size, pinned=at % 3 == 0)
        else:
            key = list(held)[size % len(held)]
            heap.give(key)
            del held[key]
        assert heap.held_bytes >= sum(held.values())
        assert heap.peak_bytes >= heap.held_bytes
    for key in held:
        heap.give(key)
    assert heap.held_bytes <= heap.peak_bytes


SCRIPT = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
MIB = 1 << 20
def held():
    line = next(l for l in open("/proc/self/smaps_rollup") if l.startswith("Rss:"))
    return int(line.split()[1]) * 1024
libc.malloc_trim(0)
held()
start, blocks = held(), {}
for text in sys.argv[1].split():
    key, size = text.split(":")
    if size == "-":
        libc.free(blocks.pop(key))
    else:
        blocks[key] = libc.malloc(int(size) * MIB)
        ctypes.memset(blocks[key], 1, int(size) * MIB)
    print(held() - start)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc is what is simulated")
@pytest.mark.parametrize(
    "steps",
    [
        "a:16 a:-",
        "a:16 a:- b:8 c:1 b:- d:4",
        "a:24 a:- b:20 c:1 b:- d:21 e:18",
        "a:40 a:- b:40 c:3",
        "a:30 b:30 a:- c:25 b:- d:25 e:28",
    ],
)
def test_glibc_holds_what_the_simulation_says(steps):
    run = subprocess.run([sys.executable, "-c", SCRIPT, steps], capture_output=True, text=True, check=True)
    heap = Heap()
    for text, real in zip(steps.split(), run.stdout.split(), strict=True):
        key, size = text.split(":")
        if size == "-":
            heap.give(key)
        else:
            heap.take(key, int(size) * MIB, aligned=False)
        assert heap.held_bytes == pytest.approx(int(real), abs=REAL_TOLERANCE_BYTES), text
