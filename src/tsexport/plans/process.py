"""The starting end of a building process: start it, wait for its row, and turn its death into one."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tsexport.codec import decode, to_plain
from tsexport.errors import DataError
from tsexport.plans.records import Job, Row
from tsexport.plans.state import StatePlace
from tsexport.plans.worker import EXIT_INTERRUPTED, GOODBYE_SECONDS

COMMAND = (sys.executable, "-P", "-m", "tsexport.plans.worker")
"""-P: the working folder is no place to import from."""
EXIT_DIED = 1
_KILLED_SECONDS = 5.0
"""What a build may take after it killed itself."""
_POLL_SECONDS = 0.2
_TAIL_LINES, _TAIL_BYTES = 8, 8192


def build_in_process(job: Job, is_wanted: Callable[[], bool]) -> Row:
    """Build what a job asks for in a fresh process, and return what became of it.

    Args:
        job: what to build.
        is_wanted: asked several times a second; where it says no, the build is ended.
    """
    place = StatePlace(job.options.output, job.name)
    place.folder.mkdir(parents=True, exist_ok=True)
    with place.log.open("ab") as log:
        process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=job.folder if job.folder.is_dir() else None,
            env={**os.environ, "TSEXPORT_CACHE": str(job.cache)},
            start_new_session=True,  # Ctrl-C is for who started it, which then ends it in order
        )
        with process:  # which closes its pipes, and waits
            try:
                answer = _talk(process, job, is_wanted)
            finally:
                _end(process)
    options = job.options
    row = Row(job.name, options.model, options.target, options.device, job.path, "failed", log=str(place.log))
    if process.returncode == 0:
        with contextlib.suppress(DataError):
            row = decode(Row, answer, what="the answer of a build", error=DataError)
            return replace(row, log=str(place.log))
    return replace(row, exit_code=EXIT_DIED, reason=_ending(process.returncode, place.log))


def _talk(process: "subprocess.Popen[bytes]", job: Job, is_wanted: Callable[[], bool]) -> bytes:
    """Tell a process its job, and return its answer, which is shorter than what a pipe holds."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # it is dead already, and what it wrote says why
        process.stdin.write((json.dumps(to_plain(job)) + "\n").encode())
        process.stdin.flush()
    while process.poll() is None and is_wanted():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_SECONDS)
    _end(process)
    return process.stdout.read()


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all that it started: it has a while to clean up once its stdin has ended."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(GOODBYE_SECONDS + _KILLED_SECONDS)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ending(code: int, log: Path) -> str:
    if code == EXIT_INTERRUPTED:
        return "interrupted"
    if code == -signal.SIGKILL:
        how = "by SIGKILL, as the kernel does where memory runs out"
    else:
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    tail = last_lines(log, _TAIL_LINES)
    return f"its process ended {how}" + (f"; it wrote last: {' | '.join(tail)}" if tail else "")


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a file that are not empty."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.strip()][-count:]
