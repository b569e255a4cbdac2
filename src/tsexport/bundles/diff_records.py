"""What `tsexport diff` finds, as records; `tsexport.bundles.diffing` finds it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """One thing that differs; None where a bundle does not have it."""

    what: str
    a: str | None
    b: str | None


@dataclass(frozen=True)
class FileChange:
    """A file outside `measurements/` and the report: "changed", "only in a" or "only in b", and why."""

    path: str
    status: str
    why: str


@dataclass(frozen=True)
class GraphChange:
    """An artifact's operator and how often it stands there, or a layer and its precision; None where it is absent."""

    artifact: str
    what: str
    a: str | None
    b: str | None


@dataclass(frozen=True)
class AccuracyChange:
    """An artifact on a runtime: relative RMS output error and degradation, None where there are none."""

    artifact: str
    runtime: str
    output_error_a: float | None
    output_error_b: float | None
    degradation_a: float | None
    degradation_b: float | None


@dataclass(frozen=True)
class LatencyChange:
    """Measured medians of one artifact, each with its machine; `ratio` is b / a, None where the two do not compare."""

    artifact: str
    runtime: str
    batch: int
    threads: int | None
    machine: str
    a_ms: float | None
    b_ms: float | None
    ratio: float | None


@dataclass(frozen=True)
class BundleDiff:
    """Everything that differs.  `same_bytes` is true where no file outside `measurements/` and the report does."""

    a: str
    b: str
    same_bytes: bool
    files: tuple[FileChange, ...]
    settings: tuple[Change, ...]
    candidates: tuple[Change, ...]
    operators: tuple[GraphChange, ...]
    layers: tuple[GraphChange, ...]
    accuracy: tuple[AccuracyChange, ...]
    latency: tuple[LatencyChange, ...]
    versions: tuple[Change, ...]
    licences: tuple[Change, ...]
    not_compared: tuple[str, ...]
