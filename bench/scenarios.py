"""MLPerf Inference's scenarios on one artifact, in a fresh process (`bench.scenario_worker`).

    SingleStream    p90 latency of queries one after another
    Offline         throughput of all samples at once, at the best of several batch sizes
    Server          the highest rate of Poisson arrivals at which the p99 from the scheduled arrival holds a bound

The highest rate is looked for as LoadGen's "find peak performance" does: from the rate that single calls would allow,
halved until a run is valid, then by bisection until valid and invalid rates are within 5 %.  Each run repeats the seed,
so that its arrivals are those of another rate, stretched.
"""

import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tsexport.bench.answering import AnsweringProcess, label_of
from tsexport.bench.process import write_feeds
from tsexport.bench.scenario_records import (
    Offline,
    OfflineRequest,
    Server,
    ServerRequest,
    ServerRun,
    SingleStream,
    SingleStreamRequest,
    Subject,
)
from tsexport.bench.scenario_worker import PROTOCOL
from tsexport.bench.statistics import P99_SAMPLES
from tsexport.types import Artifact, Feeds

OFFLINE_BATCHES = (1, 2, 4, 8, 16, 32, 64)
SINGLE_STREAM_QUERIES = 1024
CLOSE_ENOUGH = 1.05
MOST_RUNS = 14
LONGEST_RUN = 10.0
"""No rate is looked for at which the queries that a p99 needs would take longer than so many times `min_seconds`."""
CALL_SECONDS = 600.0
"""Beyond its own length, a request may take so much for loading, warm-up and slow calls."""
_COMMAND = (sys.executable, "-P", "-m", "tsexport.bench.scenario_worker")

Say = Callable[[str], None]


class ScenarioProcess(AnsweringProcess):
    """One fresh process with one artifact; `feeds` are arrays [samples, ...] named as its inputs."""

    def __init__(self, artifact: Artifact, runtime: str, threads: int, feeds: Feeds) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tsexport-scenario-")
        self.subject = Subject(artifact, runtime, threads, str(write_feeds(feeds, Path(self._folder.name))))
        super().__init__(
            _COMMAND,
            PROTOCOL,
            what="the scenario process",
            label=label_of(artifact, runtime),
            next_step="see whether memory or a time limit ended it, and run the scenario again",
        )

    def close(self) -> None:
        super().close()
        self._folder.cleanup()


@dataclass(frozen=True)
class ServerTerms:
    """What a rate is held to, and how long it is tried.  `bound_from` says where the bound is from."""

    p99_bound_ms: float
    bound_from: str
    min_seconds: float
    min_queries: int = P99_SAMPLES
    max_batch: int = 1
    seed: int = 0


def single_stream(
    process: ScenarioProcess, min_seconds: float, min_queries: int = SINGLE_STREAM_QUERIES
) -> SingleStream:
    """Return latencies of queries one after another.  Raises as `ScenarioProcess.ask`."""
    request = SingleStreamRequest(process.subject, min_queries, min_seconds)
    return process.ask(request, SingleStream, min_seconds + CALL_SECONDS)


def offline(process: ScenarioProcess, min_seconds: float, batches: tuple[int, ...] = OFFLINE_BATCHES) -> Offline:
    """Return throughput and latency at each batch size, `min_seconds` each.  Raises as `ScenarioProcess.ask`."""
    request = OfflineRequest(process.subject, batches, min_seconds)
    return process.ask(request, Offline, len(batches) * min_seconds + CALL_SECONDS)


def server(process: ScenarioProcess, terms: ServerTerms, qps: float | None, say: Say = lambda line: None) -> Server:
    """Return a run at `qps`, or with None at the rates that lead to the highest valid one.

    Args:
        say: told before each run how long it and those after it will take, and after it what it gave.

    Raises:
        InconclusiveError, TsexportError: as `ScenarioProcess.ask`.
    """
    request = ServerRequest(
        subject=process.subject,
        qps=qps or 1.0,
        seed=terms.seed,
        min_queries=terms.min_queries,
        min_seconds=terms.min_seconds,
        p99_bound_ms=terms.p99_bound_ms,
        max_batch=terms.max_batch,
    )

    runs: list[ServerRun] = []

    def run_at(rate: float) -> ServerRun:
        lasting = max(terms.min_seconds, max(terms.min_queries, P99_SAMPLES) / rate)
        left = lasting * (1 if qps is not None else runs_left(runs))
        say(f"{rate:.4g} queries/s for {lasting:.0f} s; about {left:.0f} s left")
        runs.append(process.ask(replace(request, qps=rate), ServerRun, 2 * lasting + CALL_SECONDS))
        say(f"{rate:.4g} queries/s: {'valid' if runs[-1].valid else 'not valid'}")
        return runs[-1]

    if qps is not None:
        run_at(qps)
    else:
        say("looking for a rate to begin with")
        quick = single_stream(process, min_seconds=0.5, min_queries=64)
        lowest = max(terms.min_queries, P99_SAMPLES) / (LONGEST_RUN * terms.min_seconds)
        search(1000 / quick.mean_ms * terms.max_batch, run_at, lowest)
    valid = [run.qps for run in runs if run.valid]
    return Server(
        terms.p99_bound_ms, terms.bound_from, terms.max_batch, terms.seed, tuple(runs), max(valid, default=None)
    )


def runs_left(runs: Sequence[ServerRun]) -> int:
    """Return how many runs a search still needs after these, as far as they tell: no fewer than 1.

    Before there are both a valid and an invalid rate, the next one is taken for the first that closes the bracket.
    """
    low = max((run.qps for run in runs if run.valid), default=None)
    high = min((run.qps for run in runs if not run.valid), default=None)
    apart, first = (2.0, 1) if low is None or high is None else (high / low, 0)
    halvings = max(1, math.ceil(math.log2(math.log(apart) / math.log(CLOSE_ENOUGH))))
    return max(1, min(first + halvings, MOST_RUNS - len(runs)))


def search(start_qps: float, run_at: Callable[[float], ServerRun], lowest_qps: float) -> list[ServerRun]:
    """Return the runs that enclose the highest valid rate within 5 %, at most `MOST_RUNS` of them.

    Args:
        start_qps: a rate beyond what can be valid; where it is valid after all, rates go up from it.
        lowest_qps: no rate below it is tried, unless it is the first.
    """
    runs: list[ServerRun] = []
    low: float | None = None
    high: float | None = None
    rate = start_qps
    while len(runs) < MOST_RUNS:
        runs.append(run_at(rate))
        if runs[-1].valid:
            low = rate
        else:
            high = rate
        if low is None:
            rate /= 2
            if rate < lowest_qps:
                break
        elif high is None:
            rate *= 2
        elif high / low <= CLOSE_ENOUGH:
            break
        else:
            rate = (low * high) ** 0.5
    return runs
