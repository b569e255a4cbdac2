"""The processes of `gpu_runs.py`: one at a time to be timed, several together to compile.

A way may take its process with it (an illegal access on the GPU ends every later call there, too) or never come back:
it is kept as failed with the reason, and the next way begins in a fresh process.
"""

import contextlib
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Self

from tsexport.bench.suites.gpu_cases import CASES, Way
from tsexport.bench.suites.gpu_records import GpuRow
from tsexport.bench.suites.gpu_worker import Begun, Done, Job, from_line, to_line

_COMMAND = (sys.executable, "-P", "-m", "tsexport.bench.suites.gpu_worker")
_TIME_IS_UP = "the time was up"
_FEW_THREADS = {"OMP_NUM_THREADS": "2", "TORCHINDUCTOR_COMPILE_THREADS": "3"}
"""For each of the processes that compile together: torch would give each of them every core."""
_LATE = ""
_SHOWN = 300


class GpuProcess:
    """A worker that runs one job after the other, and is started anew where it ends.

    `environment` are variables beside those of this process.
    """

    def __init__(self, stuck_seconds: float, environment: Mapping[str, str] | None = None) -> None:
        self._environment = {**os.environ, **(environment or {})}
        self._stuck_seconds = stuck_seconds
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader: threading.Thread | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="tsexport-gpu-")
        self._log = Path(self._folder.name) / "worker.log"

    def run(self, job: Job, deadline: float) -> Iterator[GpuRow]:
        """Yield one row for each way of a job, also for those that failed or were not run.

        Args:
            deadline: in seconds of `time.monotonic`; what is running then is ended.
        """
        left = list(job.ways)
        while left:
            if time.monotonic() >= deadline:
                yield from (_not_run(job, way) for way in left)
                return
            yield from self._run_ways(job, left, deadline)

    def _run_ways(self, job: Job, left: list[Way], deadline: float) -> Iterator[GpuRow]:
        """Run what is left of a job in one process, until it is done or the process has ended."""
        worker = self._started()
        assert worker.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has just died of the job before: there is no line then
            worker.stdin.write(to_line(Job(job.case, tuple(left), job.device, job.seconds, job.only_prepare)))
            worker.stdin.flush()
        while left:
            line = self._next_line(min(deadline, time.monotonic() + self._stuck_seconds))
            if not line:
                reason = self._end(is_late=line == _LATE)
                if time.monotonic() >= deadline:
                    return
                yield GpuRow(CASES[job.case], left.pop(0), "failed", reason=reason)
                return
            message = from_line(line)
            if isinstance(message, Done):
                left.remove(message.row.way)
                yield message.row
            else:
                assert isinstance(message, Begun)

    def _started(self) -> "subprocess.Popen[str]":
        if self._process is None or self._process.poll() is not None:
            self._close()
            self._lines = queue.Queue()
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    _COMMAND,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=self._environment,
                )
            assert self._process.stdout is not None
            self._reader = threading.Thread(target=_read, args=(self._process.stdout, self._lines))
            self._reader.start()
        return self._process

    def _next_line(self, deadline: float) -> str | None:
        """Return the worker's next line, `_LATE` where it took too long, None where it ended."""
        try:
            return self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return _LATE

    def _end(self, *, is_late: bool) -> str:
        """End the worker and return why: that it was late, or the last line that it wrote."""
        assert self._process is not None
        if is_late:
            self._process.kill()
        code = self._process.wait()
        if is_late:
            return f"it did not answer in {self._stuck_seconds:g} s"
        said = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return f"its process ended with {code}: {said[-1][:_SHOWN] if said else 'no word'}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()
        self._folder.cleanup()

    def _close(self) -> None:
        """End the worker where it runs, and close what leads to it."""
        if self._process is None or self._reader is None:
            return
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._reader.join()
        self._process = None


def prepare_together(jobs: Sequence[Job], processes: int, deadline: float) -> None:
    """Run jobs in several processes at once, so that torch's cache holds what they compile.  Failures say nothing."""
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)

    def work() -> None:
        with GpuProcess(deadline - time.monotonic(), _FEW_THREADS) as process:
            while time.monotonic() < deadline:
                try:
                    job = waiting.get_nowait()
                except queue.Empty:
                    return
                list(process.run(job, deadline))

    threads = [threading.Thread(target=work) for _ in range(min(processes, len(jobs)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _not_run(job: Job, way: Way) -> GpuRow:
    return GpuRow(CASES[job.case], way, "not run", reason=_TIME_IS_UP)


def _read(stream: IO[str], lines: "queue.Queue[str | None]") -> None:
    """Put a stream's lines into a queue, and None at its end."""
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)
