"""A process that loads one artifact on one runtime and times it on request: `python -m tsexport.bench.worker`.

It reads requests on stdin and answers on stdout, one JSON object a line (`tsexport.bench.wire`), until stdin ends.
Libraries print to stdout, some from C: file descriptor 1 is pointed at stderr before anything else, and the answers
go out by a copy of the original.

Memory is that of the whole process (`tsexport.bench.own_memory`).  Idle is before the load is requested: the
interpreter, numpy and the feeds, no runtime.
"""

import os
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TextIO

import numpy as np

from tsexport.bench.own_memory import peak_bytes, resident_bytes
from tsexport.bench.wire import Answer, Block, Failed, Load, Loaded, Timed, Warmed, WarmUp, from_line, to_line
from tsexport.errors import DataError, TsexportError
from tsexport.types import Array, DeviceTimed, Session

DISTINCT_BATCHES = 8
"""Calls cycle through as many different batches, so that no call sees only its predecessor's data."""

WARM_BLOCK_SECONDS = 0.01
WARM_BLOCKS = 3
"""Warm means: the medians of three consecutive blocks of at least 10 ms (and 3 calls) agree within the tolerance."""

QUIET_WINDOWS = 3
QUIET_WINDOW_SECONDS = 0.003
QUIET_CPU_NS = 300_000
"""Waking up and looking at the clock costs some 50 us of a window; a spinning thread costs all of it."""
QUIET_MAX_SECONDS = 0.5


class Timer:
    """A loaded session and the feeds it is timed with."""

    def __init__(self, session: Session, feeds: dict[str, Array]) -> None:
        self._session = session
        self._feeds = feeds
        self._batches: dict[int, list[dict[str, Array]]] = {}
        self._next = count()

    def time_calls(self, batch: int, calls: int) -> list[int]:
        """Return the wall-clock nanoseconds of `calls` single calls."""
        batches = self._at(batch)
        times: list[int] = []
        for _ in range(calls):
            feeds = batches[next(self._next) % len(batches)]
            start = time.perf_counter_ns()
            self._session.run(feeds)
            times.append(time.perf_counter_ns() - start)
        return times

    def device_ms(self, batch: int, calls: int) -> tuple[float, ...]:
        """Return the device's milliseconds of `calls` launches, () where the session has no clock there."""
        if not isinstance(self._session, DeviceTimed):
            return ()
        return tuple(self._session.device_ms(batch) for _ in range(calls))

    def warm_up(self, request: WarmUp) -> Warmed:
        """Call until stable or capped."""
        started, calls, medians = time.perf_counter(), 0, list[float]()
        while True:
            block: list[int] = []
            while len(block) < 3 or sum(block) < WARM_BLOCK_SECONDS * 1e9:
                block += self.time_calls(request.batch, 1)
                if time.perf_counter() - started >= request.max_seconds:
                    break  # one call of a slow model may take longer than the cap
            calls += len(block)
            medians = [*medians, float(np.median(block))][-WARM_BLOCKS:]
            stable = len(medians) == WARM_BLOCKS and max(medians) <= min(medians) * (1 + request.tolerance)
            spent = time.perf_counter() - started
            if stable or calls >= request.max_calls or spent >= request.max_seconds:
                return Warmed(calls, stable, medians[-1] / 1e6)

    def _at(self, batch: int) -> list[dict[str, Array]]:
        if batch not in self._batches:
            self._batches[batch] = list(batches_of(self._feeds, batch))
        return self._batches[batch]


def batches_of(feeds: dict[str, Array], batch: int) -> Iterator[dict[str, Array]]:
    """Yield up to `DISTINCT_BATCHES` batches of consecutive samples [batch, ...]; few samples are repeated."""
    samples = len(next(iter(feeds.values())))
    for i in range(min(DISTINCT_BATCHES, -(-samples // batch))):
        rows = np.arange(i * batch, (i + 1) * batch) % samples
        yield {name: np.ascontiguousarray(array[rows]) for name, array in feeds.items()}


def read_feeds(path: Path) -> dict[str, Array]:
    """Return the arrays of an .npz file; pickled objects are refused.

    Raises:
        DataError: the file cannot be read, is empty, or its arrays hold different numbers of samples.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            feeds = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise DataError(f"the feeds {path.name} cannot be read: {error}") from None
    if {len(array) if array.ndim else 0 for array in feeds.values()} in ({0}, set()) or (
        len({len(array) for array in feeds.values()}) > 1
    ):
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items()) or "no arrays"
        raise DataError(f"feeds are arrays of as many samples each, at least one; given {shapes}")
    return feeds


def wait_until_quiet() -> bool:
    """Return when this process has used no CPU for three windows of 3 ms, or False after half a second.

    With two threads ONNX Runtime was seen to spin for 40 to 50 ms of CPU time after a call before its threads slept,
    torch for 3 ms; meanwhile they would take a core from whoever is timed next.  On a busy machine a spinning thread
    may wait for its turn and use no CPU, so no other thread may be runnable either (where the kernel says).
    """
    quiet, deadline = 0, time.perf_counter() + QUIET_MAX_SECONDS
    while quiet < QUIET_WINDOWS:
        used = time.process_time_ns()
        time.sleep(QUIET_WINDOW_SECONDS)
        is_quiet = time.process_time_ns() - used < QUIET_CPU_NS and not other_threads_run()
        quiet = quiet + 1 if is_quiet else 0
        if time.perf_counter() >= deadline:
            return False
    return True


def other_threads_run() -> bool:
    """Return whether any thread but this one is running or waiting for a core; False where there is no /proc."""
    for task in Path("/proc/self/task").glob("[0-9]*"):
        if int(task.name) == threading.get_native_id():
            continue
        try:
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue  # it ended meanwhile
        if state == "R":
            return True
    return False


def load(request: Load) -> tuple[Timer, Loaded]:
    """Load an artifact, answer once, and say how long that took."""
    feeds = read_feeds(Path(request.feeds))
    first = next(batches_of(feeds, request.batch))
    idle = resident_bytes()
    start = time.perf_counter_ns()
    from tsexport.runtimes.registry import load as load_session

    session = load_session(request.artifact, request.runtime, threads=request.threads)
    session.run(first)
    load_ms = (time.perf_counter_ns() - start) / 1e6
    return Timer(session, feeds), Loaded(load_ms, idle, peak_bytes())


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more."""
    timer: Timer | None = None
    for line in requests:
        answer: Answer
        try:
            request = from_line(line)
            if isinstance(request, Load):
                timer, answer = load(request)
            elif timer is None:
                raise DataError("nothing is loaded yet")
            elif isinstance(request, WarmUp):
                answer = timer.warm_up(request)
                wait_until_quiet()
            elif isinstance(request, Block):
                timer.time_calls(request.batch, request.lead_in)
                times_ns = tuple(timer.time_calls(request.batch, request.calls))
                answer = Timed(times_ns, peak_bytes(), timer.device_ms(request.batch, request.calls))
                if request.quiet:
                    wait_until_quiet()
            else:
                raise DataError(f"{type(request).__name__} is no request")
        except TsexportError as error:
            answer = Failed(type(error).__name__, error.message, error.next_step, expected=True)
        except Exception as error:
            # Whatever a runtime raises belongs to the parent, which knows what to say about it.
            answer = Failed(type(error).__name__, str(error))
        answers.write(to_line(answer))
        answers.flush()


def main() -> None:
    """Take the protocol's ends away from file descriptors 0 and 1, then serve."""
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    serve(requests, answers)


if __name__ == "__main__":
    main()
