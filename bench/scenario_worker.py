"""A process that runs scenarios on one artifact: `python -m tsexport.bench.scenario_worker`, one request a line.

Server is an open loop.  The arrivals are drawn before it begins, with exponential gaps from a seed, and a latency runs
from the moment its query was due, whether or not the session was free then.  So a slow call makes every query behind it
late, as it would in service, and nothing is left out while the session is busy (no coordinated omission).
"""

import os
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TextIO

import numpy as np

from tsexport.bench.messages import Protocol
from tsexport.bench.scenario_records import (
    MLPERF_OFFLINE_SAMPLES,
    MLPERF_SECONDS,
    BatchPoint,
    Offline,
    OfflineRequest,
    ServerRequest,
    ServerRun,
    SingleStream,
    SingleStreamRequest,
    Subject,
)
from tsexport.bench.statistics import P50_SAMPLES, P99_SAMPLES, percentile
from tsexport.bench.wire import Failed, WarmUp
from tsexport.bench.worker import Timer, batches_of, read_feeds
from tsexport.errors import TsexportError
from tsexport.types import Array, Session

WARM = (0.05, 2000, 3.0)
"""Tolerance, calls and seconds of the warm-up at each batch size."""
Request = SingleStreamRequest | OfflineRequest | ServerRequest
Answer = SingleStream | Offline | ServerRun | Failed
PROTOCOL = Protocol(
    "a scenario process",
    (SingleStreamRequest, OfflineRequest, ServerRequest, SingleStream, Offline, ServerRun, Failed),
)
to_line, from_line = PROTOCOL.to_line, PROTOCOL.from_line


def arrivals(qps: float, seed: int, queries: int) -> Array:
    """Return the seconds at which queries are due, [queries]: a Poisson process, the same for the same seed."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / qps, queries))


def queries_for(qps: float, min_queries: int, min_seconds: float) -> int:
    """Return how many queries reach both minima; never fewer than a p99 needs."""
    return max(min_queries, P99_SAMPLES, int(np.ceil(qps * min_seconds)))


def serve_arrivals(
    due_s: Array,
    call: Callable[[int], None],
    *,
    bound_s: float,
    max_batch: int,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[list[float], list[int]]:
    """Answer queries that are due at given times, first come, first served; return latencies in seconds and batches.

    Args:
        due_s: ascending, in seconds from now.
        call: answers that many queries at once.
        bound_s: the loop ends once more than 1 % of all queries took longer.
        max_batch: at most so many that wait are answered together.
    """
    latencies: list[float] = []
    batches: list[int] = []
    late, allowed = 0, len(due_s) // 100
    start = clock()
    while len(latencies) < len(due_s) and late <= allowed:
        first = len(latencies)
        wait = float(due_s[first]) - (clock() - start)
        if wait > 0:
            sleep(wait)
            continue
        waiting = int(np.searchsorted(due_s, clock() - start, side="right")) - first
        size = min(max(waiting, 1), max_batch)
        call(size)
        end = clock() - start
        taken = [end - float(due) for due in due_s[first : first + size]]
        latencies += taken
        batches.append(size)
        late += sum(one > bound_s for one in taken)
    return latencies, batches


class Runner:
    """A loaded session, warmed at each batch size before it counts."""

    def __init__(self, subject: Subject) -> None:
        from tsexport.runtimes.registry import load

        self._feeds = read_feeds(Path(subject.feeds))
        self._session: Session = load(subject.artifact, subject.runtime, subject.threads)
        self._timer = Timer(self._session, self._feeds)
        self._batches: dict[int, list[dict[str, Array]]] = {}
        self._next = count()

    def warm(self, batch: int) -> None:
        """Call at a batch size until stable or capped."""
        tolerance, calls, seconds = WARM
        self._timer.warm_up(WarmUp(batch, tolerance, calls, seconds))

    def call(self, batch: int) -> None:
        """Answer one batch."""
        if batch not in self._batches:
            self._batches[batch] = list(batches_of(self._feeds, batch))
        batches = self._batches[batch]
        self._session.run(batches[next(self._next) % len(batches)])

    def single_stream(self, request: SingleStreamRequest) -> SingleStream:
        self.warm(1)
        times_ms, seconds = self._calls(1, request.min_queries, request.min_seconds)
        return SingleStream(
            queries=len(times_ms),
            seconds=seconds,
            mean_ms=float(np.mean(times_ms)),
            p50_ms=percentile(times_ms, 0.50),
            p90_ms=percentile(times_ms, 0.90),
            p99_ms=percentile(times_ms, 0.99),
            long_enough=seconds >= MLPERF_SECONDS,
        )

    def offline(self, request: OfflineRequest) -> Offline:
        points = []
        for batch in request.batches:
            self.warm(batch)
            times_ms, seconds = self._calls(batch, P50_SAMPLES, request.min_seconds)
            points.append(
                BatchPoint(
                    batch=batch,
                    calls=len(times_ms),
                    seconds=seconds,
                    p50_ms=percentile(times_ms, 0.50),
                    p90_ms=percentile(times_ms, 0.90),
                    samples_per_s=batch * len(times_ms) / seconds,
                )
            )
        best = max(points, key=lambda point: point.samples_per_s)
        samples = best.batch * best.calls
        enough = samples >= MLPERF_OFFLINE_SAMPLES and best.seconds >= MLPERF_SECONDS
        return Offline(tuple(points), best.batch, best.samples_per_s, samples, enough)

    def server(self, request: ServerRequest) -> ServerRun:
        for batch in range(1, request.max_batch + 1):
            self.warm(batch)
        due = arrivals(request.qps, request.seed, queries_for(request.qps, request.min_queries, request.min_seconds))
        start = time.perf_counter()
        latencies, batches = serve_arrivals(
            due, self.call, bound_s=request.p99_bound_ms / 1000, max_batch=request.max_batch
        )
        seconds = time.perf_counter() - start
        times_ms = [one * 1000 for one in latencies]
        p99_ms = percentile(times_ms, 0.99)
        over = sum(one > request.p99_bound_ms for one in times_ms)
        cut_short = over > len(due) // 100
        return ServerRun(
            qps=request.qps,
            queries=len(due),
            answered=len(times_ms),
            seconds=seconds,
            mean_batch=float(np.mean(batches)),
            p50_ms=percentile(times_ms, 0.50),
            p90_ms=percentile(times_ms, 0.90),
            p99_ms=p99_ms,
            over_bound=over,
            cut_short=cut_short,
            valid=not cut_short and p99_ms is not None and p99_ms <= request.p99_bound_ms,
            long_enough=seconds >= MLPERF_SECONDS,
        )

    def _calls(self, batch: int, least: int, min_seconds: float) -> tuple[list[float], float]:
        """Return milliseconds of calls one after another, and the seconds from the first one's start to the last's
        end."""
        times_ms: list[float] = []
        start = last = time.perf_counter()
        while len(times_ms) < least or last - start < min_seconds:
            self.call(batch)
            now = time.perf_counter()
            times_ms.append((now - last) * 1000)
            last = now
        return times_ms, last - start


def run_requests(requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more; all are about the first one's subject."""
    runner: Runner | None = None
    for line in requests:
        answer: Answer
        try:
            request = from_line(line)
            runner = runner or Runner(request.subject)
            if isinstance(request, SingleStreamRequest):
                answer = runner.single_stream(request)
            elif isinstance(request, OfflineRequest):
                answer = runner.offline(request)
            else:
                answer = runner.server(request)
        except TsexportError as error:
            answer = Failed(type(error).__name__, error.message, error.next_step, expected=True)
        except Exception as error:  # whatever a runtime raises belongs to the parent, which knows what to say
            answer = Failed(type(error).__name__, str(error))
        answers.write(to_line(answer))
        answers.flush()


def main() -> None:
    """Take stdout away from libraries that print, then answer."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    run_requests(sys.stdin, answers)


if __name__ == "__main__":
    main()
