"""How quiet a machine was while something was measured: an idle loop, context switches, steal time, frequency.

The idle loop is a fixed piece of work of this interpreter (a sum of integers: no memory traffic, no BLAS, some 0.2 ms),
timed over and over on a CPU that the measured processes run on, between their turns.  It computes the same each time:
what differs is the machine.  `jitter` is its p90 / median - 1.

Context switches are the kernel's counts for the measured processes, all threads of them (getrusage of children that
have ended): voluntary ones are waits, involuntary ones mean that something else took the CPU.  Start and load count
too.  Steal is the share of the CPUs' time in which a hypervisor ran something else.  Other programs' share is what
these CPUs spent neither idle, nor stolen, nor in this process and its children; the kernel counts both in steps of 10
ms.  Frequency is what cpufreq says, else /proc/cpuinfo, whose figure in a virtual machine is nominal.

What the operating system does not tell is None, and is shown as "n/a"; it is never taken for quiet.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil

from tsexport.bench.affinity import bound, cpus_text
from tsexport.bench.statistics import P90_SAMPLES, percentile

LOOP_NUMBERS = range(10_000)
LOOPS_AT_ONCE = 9
"""The median of so many loops, some 2 ms, is one look at the machine."""
NOT_TOLD = "n/a"


@dataclass(frozen=True)
class MachineNoise:
    """What was seen between two moments on `cpus`; () where processes were not bound to any.

    `idle_loop_us` is the loop's median over `idle_loops` of them, `jitter` its p90 / median - 1 (from 64 loops on).
    Switches are those of the measured processes, per second of their CPU time.  `steal` and `other_programs` are
    shares of the CPUs' time.
    """

    seconds: float
    cpus: tuple[int, ...]
    idle_loops: int
    idle_loop_us: float | None
    jitter: float | None
    voluntary_switches_per_s: float | None
    involuntary_switches_per_s: float | None
    steal: float | None
    other_programs: float | None
    min_frequency_mhz: float | None
    max_frequency_mhz: float | None
    load_average: float | None

    def __str__(self) -> str:
        return (
            f"{cpus_text(self.cpus)}; idle loop jitter {_percent(self.jitter)}; context switches a second: "
            f"{_number(self.involuntary_switches_per_s)} involuntary, {_number(self.voluntary_switches_per_s)} "
            f"voluntary; "
            f"steal {_percent(self.steal)}; other programs {_percent(self.other_programs)}; "
            f"frequency {_span(self.min_frequency_mhz, self.max_frequency_mhz)}; load average {_one(self.load_average)}"
        )


class NoiseWatch:
    """Watches from its making on: `look` between the turns of what is measured, `record` at the end.

    Args:
        cpus: what the measured processes are bound to; () for all CPUs.
    """

    def __init__(self, cpus: Sequence[int] = ()) -> None:
        self._cpus = tuple(cpus)
        self._began = time.perf_counter()
        self._use, self._times = _children_use(), _cpu_times(self._cpus)
        self._loops_us: list[float] = []
        self._mhz: list[float] = []
        self._note_frequency()

    @property
    def cpus(self) -> tuple[int, ...]:
        """What the measured processes are bound to."""
        return self._cpus

    def look(self) -> float:
        """Time the idle loop on a watched CPU and return its median in microseconds."""
        with bound(self._cpus[:1]):
            loops = [time_loop_us() for _ in range(LOOPS_AT_ONCE)]
        self._loops_us += loops
        return float(np.median(loops))

    def record(self) -> MachineNoise:
        """Return what was seen so far; processes that have not ended are not in the counts of switches."""
        self._note_frequency()
        use, times = _children_use(), _cpu_times(self._cpus)
        spent_s = use.cpu_s - self._use.cpu_s
        total_s = times.total_s - self._times.total_s
        steal = other = None
        if total_s > 0:
            steal = (times.steal_s - self._times.steal_s) / total_s if times.tells_steal else None
            idle_s = times.idle_s - self._times.idle_s
            stolen_s = times.steal_s - self._times.steal_s
            ours_s = spent_s + use.own_cpu_s - self._use.own_cpu_s
            other = min(1.0, max(0.0, (total_s - idle_s - stolen_s - ours_s) / total_s))
        return MachineNoise(
            seconds=time.perf_counter() - self._began,
            cpus=self._cpus,
            idle_loops=len(self._loops_us),
            idle_loop_us=float(np.median(self._loops_us)) if self._loops_us else None,
            jitter=jitter_of(self._loops_us),
            voluntary_switches_per_s=(use.voluntary - self._use.voluntary) / spent_s if spent_s > 0 else None,
            involuntary_switches_per_s=(use.involuntary - self._use.involuntary) / spent_s if spent_s > 0 else None,
            steal=steal,
            other_programs=other,
            min_frequency_mhz=min(self._mhz, default=None),
            max_frequency_mhz=max(self._mhz, default=None),
            load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        )

    def _note_frequency(self) -> None:
        self._mhz += [mhz for mhz in frequencies_mhz(self._cpus) if mhz > 0]


def time_loop_us() -> float:
    """Return the microseconds of one idle loop."""
    began = time.perf_counter_ns()
    sum(LOOP_NUMBERS)
    return (time.perf_counter_ns() - began) / 1000.0


def jitter_of(loops_us: Sequence[float]) -> float | None:
    """Return p90 / median - 1 of idle loops; None where they are too few for a p90."""
    if len(loops_us) < P90_SAMPLES:
        return None
    p90 = percentile(loops_us, 0.90)
    assert p90 is not None
    return max(0.0, p90 / float(np.median(loops_us)) - 1.0)


def frequencies_mhz(cpus: Sequence[int]) -> tuple[float, ...]:
    """Return the present frequencies of CPUs (all for ()); () where the operating system does not say."""
    try:
        found = psutil.cpu_freq(percpu=True) or []
    except (OSError, NotImplementedError, RuntimeError):
        return ()
    if len(found) == 1:
        return (float(found[0].current),)  # one figure for all of them
    return tuple(float(one.current) for cpu, one in enumerate(found) if not cpus or cpu in cpus)


@dataclass(frozen=True)
class _CpuTimes:
    """Seconds of some CPUs since the machine started, together."""

    total_s: float
    idle_s: float
    steal_s: float
    tells_steal: bool


@dataclass(frozen=True)
class _Use:
    """Of this process's children that have ended; `own_cpu_s` is this process's."""

    voluntary: int
    involuntary: int
    cpu_s: float
    own_cpu_s: float


def _cpu_times(cpus: Sequence[int]) -> _CpuTimes:
    every = psutil.cpu_times(percpu=True)
    chosen = [times for cpu, times in enumerate(every) if not cpus or cpu in cpus]
    total_s = idle_s = steal_s = 0.0
    for times in chosen:
        waiting = times.idle + getattr(times, "iowait", 0.0)
        stolen = getattr(times, "steal", 0.0)
        total_s += times.user + times.system + getattr(times, "nice", 0.0) + waiting + stolen
        total_s += getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0)
        idle_s += waiting
        steal_s += stolen
    return _CpuTimes(total_s, idle_s, steal_s, bool(chosen) and hasattr(chosen[0], "steal"))


def _children_use() -> _Use:
    import resource

    children, own = resource.getrusage(resource.RUSAGE_CHILDREN), resource.getrusage(resource.RUSAGE_SELF)
    return _Use(
        children.ru_nvcsw, children.ru_nivcsw, children.ru_utime + children.ru_stime, own.ru_utime + own.ru_stime
    )


def _percent(value: float | None) -> str:
    return NOT_TOLD if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return NOT_TOLD if value is None else f"{value:.0f}"


def _one(value: float | None) -> str:
    return NOT_TOLD if value is None else f"{value:.1f}"


def _span(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return NOT_TOLD
    return f"{low:.0f} MHz" if round(low) == round(high) else f"{low:.0f} to {high:.0f} MHz"
