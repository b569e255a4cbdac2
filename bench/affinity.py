"""Which CPUs measured processes run on: chosen, set and stated.

One CPU of each physical core first, from the highest number down, since interrupts and small services gather on the
first.  Linux alone lets a program set this (sched_setaffinity); elsewhere nothing is bound, and that is stated too.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path


def can_bind() -> bool:
    """Return whether this operating system lets a process be bound to CPUs."""
    return hasattr(os, "sched_setaffinity")


def choose_cpus(threads: int, root: Path = Path("/")) -> tuple[int, ...]:
    """Return as many CPUs as there are threads, at most those this process may use; () where none can be bound."""
    if not can_bind():
        return ()
    allowed = sorted(os.sched_getaffinity(0), reverse=True)
    seen: set[str] = set()
    first: list[int] = []
    for cpu in allowed:
        core = core_of(cpu, root)
        if core not in seen:
            seen.add(core)
            first.append(cpu)
    others = [cpu for cpu in allowed if cpu not in first]
    return tuple(sorted([*first, *others][:threads]))


def core_of(cpu: int, root: Path = Path("/")) -> str:
    """Return what the CPUs of one physical core have in common; the CPU's own number where the kernel does not say."""
    siblings = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    try:
        return siblings.read_text().strip()
    except OSError:
        return str(cpu)


def bind(pid: int, cpus: Sequence[int]) -> None:
    """Bind a process to CPUs, with every thread it will start; nothing for no CPUs."""
    if cpus:
        os.sched_setaffinity(pid, cpus)


@contextlib.contextmanager
def bound(cpus: Sequence[int]) -> Iterator[None]:
    """Bind the thread that calls to CPUs for the while; nothing for no CPUs."""
    if not cpus:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def threads_text(threads: int) -> str:
    """Return "1 thread", "2 threads"."""
    return f"{threads} thread{'s' if threads > 1 else ''}"


def cpus_text(cpus: Sequence[int]) -> str:
    """Return "CPU 1", "CPUs 0, 1", or that nothing is bound."""
    if not cpus:
        return "not bound to CPUs"
    return f"CPU{'s' if len(cpus) > 1 else ''} {', '.join(map(str, cpus))}"
