"""What a scenario gave, as requests, answers and the record that is kept.

Terms are those of MLPerf Inference's LoadGen: a query holds one sample; SingleStream, Offline and Server are its
scenarios.  Its own runs last at least 600 s and Offline takes at least 24,576 samples; a run here says how far it went
(`long_enough`), and its figures are never called an MLPerf result.

Source: https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc, "Scenarios".
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tsexport.bench.fingerprint import Machine
from tsexport.bench.kept_records import not_kept
from tsexport.bench.memory_wire import GROWTH_LIMIT_BYTES, MemoryGrowth, PeakMemory
from tsexport.codec import decode_versioned, encode, read_text, write_whole
from tsexport.errors import BundleError
from tsexport.types import Artifact

SCHEMA_VERSION = 1
_MIB = 1 << 20
_NEXT_STEP = "run the scenario again with `tsexport bench --scenario`"
MLPERF_SECONDS = 600.0
MLPERF_OFFLINE_SAMPLES = 24_576
ScenarioName = Literal["single-stream", "offline", "server", "memory"]
FOLDER = "scenarios"
"""Where records lie, within `measurements/` of a bundle or in what `--record` names."""
SCENARIOS: tuple[ScenarioName, ...] = ("single-stream", "offline", "server", "memory")


@dataclass(frozen=True)
class Subject:
    """What is run: an artifact on a runtime; `feeds` is an .npz of arrays [samples, ...]."""

    artifact: Artifact
    runtime: str
    threads: int
    feeds: str


@dataclass(frozen=True)
class SingleStreamRequest:
    """One query after another, until both `min_queries` and `min_seconds` are reached."""

    subject: Subject
    min_queries: int
    min_seconds: float


@dataclass(frozen=True)
class OfflineRequest:
    """All samples at once: for each batch size, calls without a pause for `min_seconds` and at least 10 calls."""

    subject: Subject
    batches: tuple[int, ...]
    min_seconds: float


@dataclass(frozen=True)
class ServerRequest:
    """Poisson arrivals at `qps` from `seed`, until both minima are reached; up to `max_batch` that wait go together.

    p99_bound_ms: where more than 1 % of the queries exceed it, the rest is not sent, for it cannot hold any more.
    """

    subject: Subject
    qps: float
    seed: int
    min_queries: int
    min_seconds: float
    p99_bound_ms: float
    max_batch: int


@dataclass(frozen=True)
class SingleStream:
    """Latencies of queries one after another, in milliseconds; the scenario's figure is `p90_ms`."""

    queries: int
    seconds: float
    mean_ms: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    long_enough: bool


@dataclass(frozen=True)
class BatchPoint:
    """Throughput against latency at one batch size: latencies are of whole calls, in milliseconds."""

    batch: int
    calls: int
    seconds: float
    p50_ms: float | None
    p90_ms: float | None
    samples_per_s: float


@dataclass(frozen=True)
class Offline:
    """All batch sizes, and the one with the highest throughput, which is the scenario's figure."""

    points: tuple[BatchPoint, ...]
    best_batch: int
    samples_per_s: float
    samples: int
    long_enough: bool


@dataclass(frozen=True)
class ServerRun:
    """One rate.  Latencies run from the scheduled arrival, queueing included.

    valid: p99 within the bound, over at least the queries that a p99 needs.
    cut_short: more than 1 % of all queries had exceeded the bound, so the run was ended.
    """

    qps: float
    queries: int
    answered: int
    seconds: float
    mean_batch: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    over_bound: int
    cut_short: bool
    valid: bool
    long_enough: bool


@dataclass(frozen=True)
class Server:
    """Runs at several rates; `max_qps` is the highest valid one, None where none was."""

    p99_bound_ms: float
    bound_from: str
    max_batch: int
    seed: int
    runs: tuple[ServerRun, ...]
    max_qps: float | None


@dataclass(frozen=True)
class Memory:
    """Peak above an idle session of the same runtime at a batch size, and growth over many calls."""

    batch: int
    peak: PeakMemory
    growth: MemoryGrowth


@dataclass(frozen=True)
class ScenarioRecord:
    """What one scenario gave for one artifact on one machine; exactly the field of `scenario` is set."""

    machine: Machine
    bundle: str
    artifact: str
    runtime: str
    threads: int
    scenario: ScenarioName
    single_stream: SingleStream | None = None
    offline: Offline | None = None
    server: Server | None = None
    memory: Memory | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def failure(self) -> str:
        """Why the scenario failed, "" where it did not: memory that grows, or no rate that is valid."""
        if self.memory is not None and not self.memory.growth.holds:
            growth = self.memory.growth
            return (
                f"memory grew by {growth.growth_bytes / _MIB:.2f} MiB over the last "
                f"{growth.calls - growth.calls // 2:,} calls; allowed is {GROWTH_LIMIT_BYTES / _MIB:g} MiB"
            )
        if self.server is not None and self.server.max_qps is None:
            tried = min(run.qps for run in self.server.runs)
            return (
                f"no rate held a p99 of {self.server.p99_bound_ms:g} ms ({self.server.bound_from}); the lowest tried "
                f"was {tried:.4g} queries/s"
            )
        return ""


def write_scenario(record: ScenarioRecord, folder: Path) -> Path:
    """Write `<scenario>-<machine_id>.json` into `folder`, whole or not at all; return its path.

    Raises:
        UsageError: the folder cannot be written to.
    """
    try:
        return write_whole(folder / f"{record.scenario}-{record.machine.machine_id}.json", encode(record))
    except OSError as error:
        raise not_kept(folder, error) from error


def read_scenario(path: Path) -> ScenarioRecord:
    """Return the record of a file.

    Raises:
        BundleError: it cannot be read, is of another schema version, or holds something else.
    """
    record = decode_versioned(
        ScenarioRecord, read_text(path), version=SCHEMA_VERSION, what=path.name, next_step=_NEXT_STEP
    )
    parts = (record.single_stream, record.offline, record.server, record.memory)
    found = [name for name, part in zip(SCENARIOS, parts, strict=True) if part is not None]
    if found != [record.scenario]:
        raise BundleError(
            f"{path.name} is called {record.scenario} and holds {' and '.join(found) or 'nothing'}",
            next_step=_NEXT_STEP,
        )
    runs = record.offline.points if record.offline else record.server.runs if record.server else (record,)
    if not runs:
        raise BundleError(f"{path.name} holds no run of {record.scenario}", next_step=_NEXT_STEP)
    return record
