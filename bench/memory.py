"""Memory of an artifact on a runtime, measured in a fresh process each: the peak above an idle session, and growth.

`bench.memory_worker` says what is measured.  Memory needs no quiet machine: it does not depend on who else runs.
"""

import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

from tsexport.bench.memory_wire import (
    Answer,
    GrowthRequest,
    MemoryGrowth,
    PeakMemory,
    PeakRequest,
    Progress,
    from_line,
    to_line,
)
from tsexport.bench.process import write_feeds
from tsexport.bench.wire import Failed
from tsexport.errors import DataError, InconclusiveError
from tsexport.types import Artifact, Feeds

PEAK_CALLS = 3
PEAK_SECONDS = 900.0
GROWTH_CALLS = 10_000
GROWTH_SECONDS = 7200.0
_SEED = 7
_COMMAND = (sys.executable, "-P", "-m", "tsexport.bench.memory_worker")
_TAIL_LINES = 8

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
    label = f"{request.artifact.name} on {request.runtime}"
    expired = threading.Event()
    answer: Answer | None = None
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):

        def stop() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(timeout_s, stop)
        timer.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError), process.stdin:  # a request that it did not live to read
                process.stdin.write(to_line(request))
            answer = _last(process.stdout, tell)
            code = process.wait()
        except DataError as error:
            raise _failure(label, f"answered garbage: {error.message}", _text(stderr)) from None
        finally:
            timer.cancel()
            process.kill()  # it holds nothing that is worth keeping
        if expired.is_set():
            raise _failure(label, f"gave no answer in {timeout_s:g} s", "")
        if code:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise _failure(label, f"ended ({how})", _text(stderr))
    if isinstance(answer, Failed):
        raise answer.as_error(label) or _failure(label, f"raised {answer.error}: {answer.message}", "")
    if not isinstance(answer, kind):
        raise _failure(label, f"answered {type(answer).__name__} where {kind.__name__} was expected", "")
    return answer


def _last(lines: IO[str], tell: Tell) -> Answer | None:
    """Return the answer, None where there was none; lines of progress before it are passed on."""
    answer: Answer | None = None
    for line in lines:
        message = from_line(line)
        if isinstance(message, Progress):
            tell(message)
        else:
            answer = message
    return answer


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _failure(label: str, what: str, stderr: str) -> InconclusiveError:
    tail = "\n".join(stderr.strip().splitlines()[-_TAIL_LINES:])
    return InconclusiveError(
        f"the process that measures the memory of {label} {what}" + (f"; it wrote last:\n{tail}" if tail else ""),
        next_step="see whether a limit of memory or time ended the process; a smaller batch needs less",
    )
