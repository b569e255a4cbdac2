"""The parent's end of a measuring process: start it, ask it, and turn its death, silence or garbage into errors."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tsexport.bench.affinity import bind
from tsexport.bench.wire import Block, Failed, Load, Loaded, Request, Timed, Warmed, WarmUp, from_line, to_line
from tsexport.errors import DataError, InconclusiveError
from tsexport.npz import write_arrays
from tsexport.types import Artifact, Feeds

WARM_TOLERANCE = 0.05
WARM_MAX_CALLS = 2000
WARM_MAX_SECONDS = 2.0
LEAD_IN_CALLS = 1
"""Each block begins with a call that does not count: another process has just emptied the caches."""
LOAD_TIMEOUT_SECONDS = 300.0
CALL_TIMEOUT_SECONDS = 120.0
_STDERR_TAIL_LINES = 12
_GOODBYE_SECONDS = 2.0
WORKER_COMMAND = (sys.executable, "-P", "-m", "tsexport.bench.worker")
"""-P: the working folder is no place to import from."""

Reply = TypeVar("Reply", Loaded, Warmed, Timed)


def write_feeds(feeds: Feeds, folder: Path) -> Path:
    """Write arrays [samples, ...] for the workers to read."""
    path = folder / "feeds.npz"
    write_arrays(path, feeds)
    return path


class WorkerProcess:
    """One fresh process with at most one artifact.  Idle, it blocks on a read of its stdin and uses no CPU.

    Use it as a context manager: leaving it ends the process.  `command` starts it; it is bound to `cpus` before it
    starts a thread, where any are named.
    """

    def __init__(
        self,
        artifact: Artifact,
        runtime: str,
        threads: int,
        *,
        command: Sequence[str] = WORKER_COMMAND,
        cpus: Sequence[int] = (),
    ) -> None:
        self._artifact, self._runtime, self._threads = artifact, runtime, threads
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed in close()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        bind(self._process.pid, cpus)
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read_lines, daemon=True).start()

    @property
    def label(self) -> str:
        return f"{self._artifact.name} on {self._runtime}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def load(self, feeds: Path, batch: int, *, timeout_s: float = LOAD_TIMEOUT_SECONDS) -> Loaded:
        """Load the artifact and answer once.

        Raises:
            TsexportError: what the runtime raised of that tree.
            InconclusiveError: the process died, did not answer in time, answered garbage, or the runtime failed.
        """
        request = Load(self._artifact, self._runtime, self._threads, str(feeds), batch)
        return self._ask(request, Loaded, timeout_s)

    def warm_up(
        self,
        batch: int,
        *,
        tolerance: float = WARM_TOLERANCE,
        max_calls: int = WARM_MAX_CALLS,
        max_seconds: float = WARM_MAX_SECONDS,
    ) -> Warmed:
        """Call until stable or capped.  Raises as `load`."""
        request = WarmUp(batch, tolerance, max_calls, max_seconds)
        return self._ask(request, Warmed, max_seconds + CALL_TIMEOUT_SECONDS)

    def time_block(
        self,
        batch: int,
        calls: int,
        *,
        lead_in: int = LEAD_IN_CALLS,
        quiet: bool = False,
        timeout_s: float = CALL_TIMEOUT_SECONDS,
    ) -> Timed:
        """Time `calls` single calls after `lead_in` that do not count.  Raises as `load`.

        With `quiet` it returns when the runtime's threads have stopped spinning, so that another process can be timed.
        """
        return self._ask(Block(batch, calls, lead_in, quiet), Timed, timeout_s)

    def close(self) -> None:
        """End the process: politely first, for it may have a cache to write."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):  # it died with a request unread
                self._process.stdin.close()
        try:
            self._process.wait(_GOODBYE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if not self._stderr.closed:
            self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                self._lines.put(line)
        self._lines.put(b"")

    def _ask(self, request: Request, kind: type[Reply], timeout_s: float) -> Reply:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(to_line(request).encode())
            self._process.stdin.flush()
            line = self._lines.get(timeout=timeout_s)
        except BrokenPipeError:
            line = b""
        except queue.Empty:
            self._process.kill()
            raise self._failure(f"gave no answer in {timeout_s:g} s") from None
        if not line:
            raise self._failure(f"ended ({self._ending()})")
        try:
            answer = from_line(line.decode(errors="replace"))
        except DataError as error:
            self._process.kill()
            raise self._failure(f"answered garbage: {error.message}") from None
        if isinstance(answer, Failed):
            raise answer.as_error(self.label) or self._failure(f"raised {answer.error}: {answer.message}")
        if not isinstance(answer, kind):
            self._process.kill()
            raise self._failure(f"answered {type(answer).__name__} where {kind.__name__} was expected")
        return answer

    def _failure(self, what: str) -> InconclusiveError:
        tail = self._stderr_tail()
        return InconclusiveError(
            f"the measuring process of {self.label} {what}" + (f"; it wrote last:\n{tail}" if tail else ""),
            next_step="build it again without this candidate, or see whether memory or a time limit ended the process",
        )

    def _ending(self) -> str:
        try:
            code = self._process.wait(_GOODBYE_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _stderr_tail(self) -> str:
        if self._stderr.closed:
            return ""
        size = os.fstat(self._stderr.fileno()).st_size
        text = os.pread(self._stderr.fileno(), 8192, max(0, size - 8192)).decode(errors="replace")
        return "\n".join(text.splitlines()[-_STDERR_TAIL_LINES:])
