"""The records that every room shares: tensors, models, artifacts, sessions, comparisons, measurements, verdicts.

Data moves forward only: Checkpoint -> SourceModel -> Artifact(fp32) -> calibration -> Artifact(int8) -> Session ->
Comparison + Measurement -> Verdict -> Bundle.  All records are frozen; sequences are tuples.
"""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tsexport.codec import ADDED_LATER
from tsexport.work import Coverage

Format = Literal["onnx", "torchscript", "openvino"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
Task = Literal["forecast", "classification", "quantiles", "unknown"]
Array = NDArray[Any]
Feeds = Mapping[str, Array]

FORMATS: tuple[Format, ...] = ("onnx", "torchscript", "openvino")
BATCH = "batch"
"""The one symbolic dimension: the leading one of every input and output."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: `dtype` is numpy's name ("float32"), `shape` has ints and the string "batch"."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def with_batch(self, batch: int) -> tuple[int, ...]:
        """Return the shape with every symbolic dimension replaced by `batch`."""
        return tuple(batch if isinstance(dim, str) else dim for dim in self.shape)

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class ModelSpec:
    """What a source model is: its name, what it predicts, and the tensors it takes and gives.

    `component` names the part of the model that this is, None for all of it; the parameters are then the part's.
    `fp32_layers` are the modules that stay in fp32 where the rest is fp16 or bf16.
    """

    name: str
    family: str
    task: Task
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    component: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    parameters: int = 0
    source: str = ""
    caveats: tuple[str, ...] = ()
    fp32_layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeadLayout:
    """Where an attention keeps its heads, for what removes some (`quantize.pruning_heads`).

    `maps` are (name of a linear map, parts): its outputs are `parts` blocks of `heads` heads of `head_width` values,
    queries, keys and values for instance.  `output` names the linear map that reads the heads side by side.
    """

    heads: int
    head_width: int
    maps: tuple[tuple[str, int], ...]
    output: str


class SourceModel(Protocol):
    """The model that every artifact is held against.  `run` answers in fp32, eval mode, on one thread or more."""

    @property
    def spec(self) -> ModelSpec: ...

    def run(self, feeds: Feeds) -> dict[str, Array]: ...


@dataclass(frozen=True)
class Artifact:
    """One exported model on disk.

    `path` is what a runtime opens; `files` are all files it consists of (OpenVINO: .xml and .bin), path first.
    `runtimes` names the runtimes it is meant for, best first.  `options` are runtime settings that belong to the
    artifact (for example OpenVINO's inference precision), applied at every load.  `provenance` says, in order, what was
    done to get it.
    """

    name: str
    path: Path
    format: Format
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: tuple[Path, ...]
    sha256: str
    size_bytes: int
    opset: int | None = None
    runtimes: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    provenance: tuple[str, ...] = ()


@dataclass(frozen=True)
class RuntimeStatus:
    """Whether a runtime can be used here; `pip_command` installs it where it is missing."""

    name: str
    available: bool
    version: str | None
    formats: tuple[Format, ...]
    pip_command: str
    reason: str = ""


class Closing(Protocol):
    """What the end of a `with` block closes: a class that inherits from this needs a `close` only."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@runtime_checkable
class Session(Closing, Protocol):
    """A loaded artifact.  Feeds are checked before inference; any batch from 1 on is accepted."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, feeds: Feeds) -> dict[str, Array]: ...


@runtime_checkable
class DeviceTimed(Protocol):
    """A session that can also time its launches by the clock of the device."""

    def device_ms(self, batch: int) -> float:
        """Launch once what a call of that batch size launches; return milliseconds without copies."""
        ...


class Runtime(Protocol):
    """Something that loads artifacts of some formats and runs them."""

    @property
    def name(self) -> str: ...

    @property
    def formats(self) -> tuple[Format, ...]: ...

    def check(self) -> RuntimeStatus: ...

    def load(self, artifact: Artifact, *, threads: int) -> Session: ...


@dataclass(frozen=True)
class Tolerance:
    """Elementwise |actual - expected| <= atol + rtol * |expected|, with a name and the reason for its size."""

    name: str
    atol: float
    rtol: float
    reason: str


@dataclass(frozen=True)
class Comparison:
    """One output compared under a named tolerance.

    `max_abs_error` is the largest elementwise difference; `relative_rms` is sqrt(mean((a-e)^2)) / sqrt(mean(e^2)).
    `excess` is the largest |a-e| / (atol + rtol |e|): above 1 the comparison fails (NaN or a wrong shape is infinite).
    """

    output: str
    max_abs_error: float
    relative_rms: float
    excess: float
    tolerance: Tolerance
    passed: bool
    reason: str = ""


@dataclass(frozen=True)
class Parity:
    """An artifact on a runtime against the source model, on one set of feeds ("random" or "real")."""

    artifact: str
    runtime: str
    feeds: str
    batch: int
    comparisons: tuple[Comparison, ...]

    @property
    def passed(self) -> bool:
        return all(c.passed for c in self.comparisons)

    @property
    def worst(self) -> Comparison:
        return max(self.comparisons, key=lambda c: c.excess)


@dataclass(frozen=True)
class Accuracy:
    """How much worse an artifact is than its source model, on windows that calibration did not see.

    `degradation` is relative, positive when worse; None where there are no labels.  `output_error` is the relative RMS
    of the worst output.
    """

    artifact: str
    runtime: str
    windows: int
    output_error: float
    metric: str | None = None
    source_value: float | None = None
    value: float | None = None
    degradation: float | None = None


@dataclass(frozen=True)
class AccuracyBudget:
    """What may be lost: `max_degradation` of `metric` where there are labels, else `max_output_error`."""

    metric: str
    max_degradation: float
    max_output_error: float


@dataclass(frozen=True)
class Candidate:
    """One recipe that was tried for a precision.  Holds no latency: those stand in `measurements/`.

    `coverage` is None where it was not counted: for a candidate that is out, or a runtime that does not show its graph.
    """

    name: str
    recipe: Mapping[str, Any]
    runtime: str
    precision: Precision
    size_bytes: int | None
    accuracy: Accuracy | None
    status: Literal["selected", "eligible", "rejected", "failed"]
    reason: str
    artifact: str | None = None
    coverage: Coverage | None = None


@dataclass(frozen=True)
class Measurement:
    """Latency of one artifact on one runtime at one batch size, on one machine.

    `samples_ms` are wall-clock times of single calls after warm-up, pooled over `processes` fresh processes.
    They are of the whole call, from arrays to arrays: on a GPU with the copies to it and back.  `device_ms` are of
    other calls, between two events on the GPU's stream around the launches, without copies; () where the session has
    no such clock.  `load_ms` is from the request for the session to its first answer; `peak_memory_bytes` is that of
    the process, on the host.
    """

    artifact: str
    runtime: str
    precision: Precision
    batch: int
    threads: int
    machine: str
    samples_ms: tuple[float, ...]
    load_ms: float
    peak_memory_bytes: int
    idle_memory_bytes: int
    warmup_runs: int
    processes: int
    device_ms: tuple[float, ...] = field(default=(), metadata=ADDED_LATER)


@dataclass(frozen=True)
class Budget:
    """One published row.  Times in milliseconds; `source` names the document it was read from.

    `kind` is "latency", "throughput" or "memory".  A row with `min_ms` alone is a figure to refute; `formula` stands
    where the row names no figure; `samples` are the calls that a mean was taken over.  `max_memory_mb` bounds what the
    model adds to a process.  `range_ms` and `range_per_s` are what the document expects to see.
    """

    kind: str
    model: str
    device: str | None
    precision: str | None
    batch: int | None
    component: str | None = None
    max_ms: float | None = None
    min_ms: float | None = None
    range_ms: tuple[float, float] | None = None
    statistic: Literal["p90", "mean"] = "p90"
    via: str | None = None
    note: str = ""
    caveat: str = ""
    source: str = ""
    samples: int | None = None
    formula: str = ""
    min_requests_per_s: float | None = None
    min_samples_per_s: float | None = None
    max_memory_mb: float | None = None
    range_per_s: tuple[float, float] | None = None


VerdictStatus = Literal["met", "missed", "inconclusive", "not measured", "not possible", "refuted"]
"""`refuted` is for published figures that are no budget ("500 ms or more") and that a measurement contradicts."""


@dataclass(frozen=True)
class Verdict:
    """A budget judged: `value_ms` is the judged statistic (p90 or mean), None where nothing was measured.

    Throughput rows have `value_per_s`, memory rows `value_mb` instead.
    """

    status: VerdictStatus
    budget: Budget
    reason: str
    artifact: str | None = None
    runtime: str | None = None
    value_ms: float | None = None
    threads: int | None = None
    value_per_s: float | None = None
    value_mb: float | None = None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(files: tuple[Path, ...]) -> str:
    """Return one digest for the files of an artifact, whatever they are called."""
    return joint_sha256(tuple((file_sha256(path), path.suffix) for path in files))


def joint_sha256(files: tuple[tuple[str, str], ...]) -> str:
    """Return one digest for files of which (SHA-256, suffix) are known.

    The file's own for one file, else that over the lines "<sha256>  <suffix>".
    """
    if len(files) == 1:
        return files[0][0]
    return hashlib.sha256("".join(f"{digest}  {suffix}\n" for digest, suffix in files).encode()).hexdigest()


def random_feeds(inputs: tuple[TensorSpec, ...], batch: int, seed: int) -> dict[str, Array]:
    """Return feeds drawn from a standard normal distribution (small non-negative integers, booleans) for a seed."""
    generator = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in inputs:
        shape, dtype = spec.with_batch(batch), np.dtype(spec.dtype)
        if dtype.kind == "f":
            feeds[spec.name] = generator.standard_normal(shape).astype(dtype)
        elif dtype.kind == "b":
            feeds[spec.name] = generator.random(shape) < 0.5
        else:
            feeds[spec.name] = generator.integers(0, 2, shape).astype(dtype)
    return feeds


ELEMENTS_AT_ONCE = 2**16
"""Input elements that a model is given at once where the batch is free: a wide model holds a row of a few hundred
values for each of them, several times over.  64 rows of 128 bars x 8 features stay together, and of a day of 288 bars x
24 variables, each of which migt-tvdt makes 256 values of, only 7: below 1 GB where 64 took 6 GB."""


def rows_at_once(shapes: Iterable[tuple[int, ...]], most: int) -> int:
    """Return how many samples are run at once where the batch is free, from 1 to `most`.

    Args:
        shapes: the shapes of the inputs for a batch of 1.
        most: how many a small model is given; more bring no speed.
    """
    elements = sum(math.prod(shape) for shape in shapes)
    return max(1, min(most, ELEMENTS_AT_ONCE // elements))
