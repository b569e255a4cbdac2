"""What `projection.py` reads and records: latencies measured elsewhere, and what was projected for them."""

from dataclasses import dataclass
from typing import Literal

from tsexport.bench.projection import AnchorError, Efficiency
from tsexport.bench.suites.goals import Status

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Anchor:
    """A published latency of one call; see bench/data/anchors.toml for its fields."""

    model: str
    device: str
    precision: str
    batch: int
    measured_ms: float
    statistic: Literal["mean", "p50", "throughput"]
    source: str
    mode: str = ""
    tokens: int = 0
    plugins: bool = False
    left_out: str = ""

    def __str__(self) -> str:
        tokens = f", {self.tokens} tokens" if self.tokens else ""
        return f"{self.model} on {self.device}, {self.precision}, batch {self.batch}{tokens} ({self.source})"


@dataclass(frozen=True)
class Row:
    """One anchor, projected."""

    anchor: Anchor
    projected_ms: float
    least_ms: float
    ratio: float
    bound: str


@dataclass(frozen=True)
class Report:
    """What the suite found.  `of_devices` are (device, anchors, median error, that with the device left out)."""

    suite: str
    efficiency: Efficiency
    rows: tuple[Row, ...]
    left_out: tuple[Anchor, ...]
    of_devices: tuple[tuple[str, int, float, float], ...]
    error: AnchorError
    goal: float
    status: Status
    fitted_on_these: bool = True
    schema_version: int = SCHEMA_VERSION
