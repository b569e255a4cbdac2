"""The parent's end of a process that answers: start it, ask it, and turn its death, silence or garbage into errors.

Requests and answers are lines of JSON (`bench.messages`).  Every process that measures is one of these: the one that
times (`bench.process`), the one that runs scenarios (`bench.scenarios`), the one whose memory is measured
(`bench.memory`).
"""

import contextlib
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from tsexport.bench.affinity import bind
from tsexport.bench.memory_wire import Progress
from tsexport.bench.messages import Protocol
from tsexport.bench.wire import Failed
from tsexport.errors import DataError, InconclusiveError
from tsexport.types import Artifact, Closing

_STDERR_TAIL_LINES = 12
_GOODBYE_SECONDS = 2.0

Reply = TypeVar("Reply")


def label_of(artifact: Artifact, runtime: str) -> str:
    """Return what a process is about, in its errors."""
    return f"{artifact.name} on {runtime}"


class AnsweringProcess(Closing):
    """One fresh process that answers requests.  Idle, it blocks on a read of its stdin and uses no CPU.

    Use it as a context manager: leaving it ends the process.

    Args:
        command: starts it.
        protocol: of its lines.
        what: it is, for errors: "the measuring process".
        label: what it is about, for errors.
        next_step: of its errors.
        cpus: it is bound to these before it starts a thread, where any are named.
    """

    def __init__(
        self,
        command: Sequence[str],
        protocol: Protocol,
        *,
        what: str,
        label: str,
        next_step: str,
        cpus: Sequence[int] = (),
    ) -> None:
        self._protocol, self._what, self._next_step = protocol, what, next_step
        self.label = label
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
    def pid(self) -> int:
        return self._process.pid

    def ask(
        self,
        request: object,
        kind: type[Reply],
        timeout_s: float,
        tell: Callable[[Progress], None] = lambda progress: None,
    ) -> Reply:
        """Return the answer to a request.

        Args:
            kind: what the answer must be.
            timeout_s: until the answer; after it the process is killed.
            tell: is told what comes before the answer.

        Raises:
            TsexportError: what the runtime raised of that tree.
            InconclusiveError: the process died, did not answer in time, answered garbage, or the runtime failed.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died; what it wrote before is read all the same
            self._process.stdin.write(self._protocol.to_line(request).encode())
            self._process.stdin.flush()
        deadline = time.monotonic() + timeout_s
        answer = self._message(deadline, timeout_s)
        while isinstance(answer, Progress):
            tell(answer)
            answer = self._message(deadline, timeout_s)
        if isinstance(answer, Failed):
            raise answer.as_error(self.label) or self._failure(f"raised {answer.error}: {answer.message}")
        if not isinstance(answer, kind):
            self._process.kill()
            raise self._failure(f"answered {type(answer).__name__} where {kind.__name__} was expected")
        return answer

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

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                self._lines.put(line)
        self._lines.put(b"")

    def _message(self, deadline: float, timeout_s: float) -> object:
        try:
            line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            self._process.kill()
            raise self._failure(f"gave no answer in {timeout_s:g} s") from None
        if not line:
            self._lines.put(b"")  # whoever asks again is told the same
            raise self._failure(f"ended ({self._ending()})")
        try:
            return self._protocol.from_line(line.decode(errors="replace"))
        except DataError as error:
            self._process.kill()
            raise self._failure(f"answered garbage: {error.message}") from None

    def _failure(self, how: str) -> InconclusiveError:
        tail = self._stderr_tail()
        return InconclusiveError(
            f"{self._what} of {self.label} {how}" + (f"; it wrote last:\n{tail}" if tail else ""),
            next_step=self._next_step,
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
