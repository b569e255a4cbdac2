"""What a plan asks for and what came of it: the records that go to building processes and back, and into files.

They hold names, paths, options and figures; never a model, an array or anything else that a bundle holds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tsexport.options import BuildOptions

SCHEMA_VERSION = 1
Status = Literal["to build", "built", "there already", "failed"]
Executor = Literal["local", "dask"]
EXECUTORS: tuple[Executor, ...] = ("local", "dask")


@dataclass(frozen=True)
class PlannedBuild:
    """One build of a plan: what it is asked to do, and where the plan asks for it ("builds 2", "matrix")."""

    options: BuildOptions
    where: str

    @property
    def label(self) -> str:
        """The model and the target with its device, as they were written."""
        device = f" {self.options.device}" if self.options.device != "host" else ""
        return f"{self.options.model} for {self.options.target}{device}"


@dataclass(frozen=True)
class Job:
    """One build as a process of its own is told it; every path is absolute.

    name: of the bundle.
    folder: the working folder, where factories are imported from.
    cache: the cache folder.
    running: a file that is there as long as the plan runs; without it the build ends.
    """

    name: str
    options: BuildOptions
    folder: Path
    cache: Path
    running: Path

    @property
    def path(self) -> str:
        """The bundle's folder, by which a job is known."""
        return str(self.options.output / self.name)


@dataclass(frozen=True)
class MeasureJob:
    """One bundle whose device kit is to be run on a worker; paths are absolute.

    results: a folder that gets a folder with the kit's results.
    cache, running: as of a `Job`.
    """

    bundle: Path
    results: Path
    cache: Path
    running: Path


@dataclass(frozen=True)
class KitRun:
    """What came of running a device kit: the folder of its results, or why there is none."""

    results: Path | None
    reason: str = ""


@dataclass(frozen=True)
class Surroundings:
    """What a worker looks at before it is given work: whether it sees these files, and what it runs.

    missing: packages of the extra `build` that are not installed there.
    """

    unseen: tuple[str, ...]
    code: str
    versions: Mapping[str, str]
    missing: str


@dataclass(frozen=True)
class Accuracy:
    """How much worse the selected artifact is than its source: a metric's relative change, or the output error."""

    metric: str
    loss: float


@dataclass(frozen=True)
class Latency:
    """What was measured of the selected artifact at the smallest batch size: milliseconds, and on what.

    A percentile is None where there are too few samples for it.
    """

    p50_ms: float | None
    p90_ms: float | None
    batch: int
    samples: int
    runtime: str
    threads: int
    device: str


@dataclass(frozen=True)
class Headline:
    """What the table says of a bundle: the selected artifact on its runtime, and its figures.

    `latency` is None where nothing was measured, for the reason `not_measured`.  `missed` are the published rows that
    a device missed, in words.
    """

    selected: str
    runtime: str
    accuracy: Accuracy | None
    latency: Latency | None
    not_measured: str = ""
    missed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """What became of one build.

    name: of the bundle; "" where it could not be told.
    path: the bundle's folder, as it was asked for.
    exit_code: what `tsexport build` would have ended with: 0, or that of the error.
    seconds: that its process took; 0 where none was needed.
    reason, next_step: why it failed, and what to do.
    log: the file with all that its process wrote; "" where there was none.
    """

    name: str
    model: str
    target: str
    device: str
    path: str
    status: Status
    exit_code: int = 0
    headline: Headline | None = None
    seconds: float = 0.0
    reason: str = ""
    next_step: str = ""
    log: str = ""


@dataclass(frozen=True)
class PlanResult:
    """All rows of a plan, in its order."""

    plan: str
    executor: Executor
    rows: tuple[Row, ...]
    seconds: float
    schema_version: int = SCHEMA_VERSION

    @property
    def exit_code(self) -> int:
        """0 where every row has 0, else the smallest other one: what is worse has the smaller code."""
        return worst_code([row.exit_code for row in self.rows])

    def count(self, status: Status) -> int:
        """Return how many rows have a status."""
        return sum(row.status == status for row in self.rows)


def worst_code(codes: Sequence[int]) -> int:
    """Return 0 where all are, else the smallest other one: 1 is a bug or a death, 2 bad input, 3 a missed accuracy."""
    return min((code for code in codes if code), default=0)


@dataclass(frozen=True)
class BuildState:
    """What is known of a bundle that a plan builds: `<output>/.tsexport-plan/<name>.json`.

    status: "building" from before the first stage on, "built" once the bundle stands in its place, or "failed".
    inputs_sha256: of all that the build depends on.
    sources: of files that are known only once the model was opened (a factory's): their SHA-256, by absolute path.
    sums_sha256: of the bundle's SHA256SUMS; where it is being built, that of the one that it replaces, or "".
    """

    status: Literal["building", "built", "failed"]
    name: str
    inputs_sha256: str
    sums_sha256: str
    sources: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    schema_version: int = SCHEMA_VERSION
