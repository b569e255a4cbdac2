"""Memory of an artifact on a runtime, measured in a fresh process each: the peak above an idle session, and growth.

`bench.memory_worker` says what is measured.  Memory needs no quiet machine: it does not depend on who else runs.
"""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TypeVar

from tsexport import errors
from tsexport.bench.memory_wire import GrowthRequest, MemoryGrowth, PeakMemory, PeakRequest, from_line, to_line
from tsexport.bench.process import write_feeds
from tsexport.bench.wire import Failed
from tsexport.errors import DataError, InconclusiveError, TsexportError
from tsexport.types import Artifact, Feeds

PEAK_CALLS = 3
PEAK_SECONDS = 900.0
GROWTH_CALLS = 10_000
GROWTH_SECONDS = 7200.0
_SEED = 7
_COMMAND = (sys.executable, "-P", "-m", "tsexport.bench.memory_worker")
_TAIL_LINES = 8

Reply = TypeVar("Reply", PeakMemory, MemoryGrowth)


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
) -> MemoryGrowth:
    """Return how much memory a fresh process holds after half of `calls` and after all.

    Args:
        feeds: arrays [samples, ...] named as the inputs; calls cycle through them.

    Raises:
        InconclusiveError, TsexportError: as `measure_peak`.
    """
    with tempfile.TemporaryDirectory(prefix="tsexport-growth-") as folder:
        path = write_feeds(feeds, Path(folder))
        request = GrowthRequest(artifact, runtime, threads, batch, calls, str(path))
        return _ask(request, MemoryGrowth, timeout_s)


def _ask(request: PeakRequest | GrowthRequest, kind: type[Reply], timeout_s: float) -> Reply:
    label = f"{request.artifact.name} on {request.runtime}"
    try:
        done = subprocess.run(_COMMAND, input=to_line(request), capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise _failure(label, f"gave no answer in {timeout_s:g} s", "") from None
    if done.returncode:
        code = done.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        raise _failure(label, f"ended ({how})", done.stderr)
    try:
        answer = from_line(done.stdout)
    except DataError as error:
        raise _failure(label, f"answered garbage: {error.message}", done.stderr) from None
    if isinstance(answer, Failed):
        raise _as_error(label, answer)
    if not isinstance(answer, kind):
        raise _failure(label, f"answered {type(answer).__name__} where {kind.__name__} was expected", "")
    return answer


def _as_error(label: str, failed: Failed) -> TsexportError:
    original = getattr(errors, failed.error, None) if failed.expected else None
    if isinstance(original, type) and issubclass(original, TsexportError):
        error: TsexportError = original(f"{label}: {failed.message}", next_step=failed.next_step)
        return error
    return _failure(label, f"raised {failed.error}: {failed.message}", "")


def _failure(label: str, what: str, stderr: str) -> InconclusiveError:
    tail = "\n".join(stderr.strip().splitlines()[-_TAIL_LINES:])
    return InconclusiveError(
        f"the process that measures the memory of {label} {what}" + (f"; it wrote last:\n{tail}" if tail else ""),
        next_step="see whether a limit of memory or time ended the process; a smaller batch needs less",
    )
