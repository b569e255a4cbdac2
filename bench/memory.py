"""Memory of an artifact on a runtime, measured in a fresh process each: the peak above an idle session, and growth.

`bench.memory_worker` says what is measured.  Memory needs no quiet machine: it does not depend on who else runs.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tsexport.bench.answering import AnsweringProcess, label_of
from tsexport.bench.memory_wire import PROTOCOL, GrowthRequest, MemoryGrowth, PeakMemory, PeakRequest, Progress
from tsexport.bench.process import write_feeds
from tsexport.types import Artifact, Feeds

PEAK_CALLS = 3
PEAK_SECONDS = 900.0
GROWTH_CALLS = 10_000
GROWTH_SECONDS = 7200.0
_SEED = 7
_COMMAND = (sys.executable, "-P", "-m", "tsexport.bench.memory_worker")

Reply = TypeVar("Reply", PeakMemory, MemoryGrowth)
Tell = Callable[[Progress], None]


def measure_peak(
    artifact: Artifact,
    runtime: str,
    *,
    threads: int,
    batch: int,
    calls: int = PEAK_CALLS,
    timeout_s: float = PEAK_SECONDS,
) -> PeakMemory:
    """Return the peak memory of a fresh process that answers at one batch size.

    Raises:
        InconclusiveError: the process died, gave no answer in time, or memory cannot be read on this system.
        TsexportError: what the runtime raised of that tree.
    """
    request = PeakRequest(artifact, runtime, threads, batch, calls, _SEED)
    return _ask(request, PeakMemory, timeout_s)


def measure_growth(
    artifact: Artifact,
    runtime: str,
    *,
    feeds: Feeds,
    threads: int,
    batch: int = 1,
    calls: int = GROWTH_CALLS,
    timeout_s: float = GROWTH_SECONDS,
    tell: Tell = lambda progress: None,
) -> MemoryGrowth:
    """Return how much memory a fresh process holds after half of `calls` and after all.

    Args:
        feeds: arrays [samples, ...] named as the inputs; calls cycle through them.
        tell: is told every few seconds how far it is.

    Raises:
        InconclusiveError, TsexportError: as `measure_peak`.
    """
    with tempfile.TemporaryDirectory(prefix="tsexport-growth-") as folder:
        path = write_feeds(feeds, Path(folder))
        request = GrowthRequest(artifact, runtime, threads, batch, calls, str(path))
        return _ask(request, MemoryGrowth, timeout_s, tell)


def _ask(
    request: PeakRequest | GrowthRequest, kind: type[Reply], timeout_s: float, tell: Tell = lambda progress: None
) -> Reply:
    with AnsweringProcess(
        _COMMAND,
        PROTOCOL,
        what="the process that measures the memory",
        label=label_of(request.artifact, request.runtime),
        next_step="see whether a limit of memory or time ended the process; a smaller batch needs less",
    ) as process:
        return process.ask(request, kind, timeout_s, tell)
