"""What travels between a process whose memory is measured and its parent: JSON objects each way.

Requests: `PeakRequest` or `GrowthRequest`.  Answers: `PeakMemory`, `MemoryGrowth`, or `Failed` (of `bench.wire`), on a
line of its own, after any number of lines of `Progress`.
"""

from dataclasses import dataclass

from tsexport.bench.messages import Protocol
from tsexport.bench.wire import Failed
from tsexport.types import Artifact

GROWTH_LIMIT_BYTES = 1 << 20
"""What the second half of the calls may add to a process: 1 MiB."""


@dataclass(frozen=True)
class PeakRequest:
    """Load `artifact` on `runtime` and answer `calls` times at `batch`, on random feeds from `seed`."""

    artifact: Artifact
    runtime: str
    threads: int
    batch: int
    calls: int
    seed: int


@dataclass(frozen=True)
class PeakMemory:
    """One process's memory in bytes.

    idle_bytes: held after the runtime was imported and had answered on a model of one product.
    loaded_peak_bytes: the most it held until the artifact was loaded and had answered once at batch 1, as a session's
        load does.
    peak_bytes: the most it held until all calls at the batch were answered.
    resident_bytes: what it held after the last call.
    """

    idle_bytes: int
    loaded_peak_bytes: int
    peak_bytes: int
    resident_bytes: int

    @property
    def above_idle_bytes(self) -> int:
        """The measured peak above an idle session of the same runtime."""
        return self.peak_bytes - self.idle_bytes


@dataclass(frozen=True)
class GrowthRequest:
    """Load `artifact` on `runtime` and answer `calls` times at `batch`; `feeds` is an .npz of arrays [samples, ...]."""

    artifact: Artifact
    runtime: str
    threads: int
    batch: int
    calls: int
    feeds: str


@dataclass(frozen=True)
class MemoryGrowth:
    """What a process held, in bytes, after half of the calls and after all of them.

    Both are read after Python's garbage was collected and the C library had given back what it holds free (`trimmed`,
    False where it cannot), so that what is left is in use.
    """

    calls: int
    first_bytes: int
    half_bytes: int
    end_bytes: int
    trimmed: bool

    @property
    def growth_bytes(self) -> int:
        """What the second half of the calls added; negative where memory was given back."""
        return self.end_bytes - self.half_bytes

    @property
    def holds(self) -> bool:
        """Whether the second half added no more than `GROWTH_LIMIT_BYTES`."""
        return self.growth_bytes <= GROWTH_LIMIT_BYTES


@dataclass(frozen=True)
class Progress:
    """How many of all calls of a `GrowthRequest` are done, and the seconds that they took."""

    done: int
    calls: int
    seconds: float

    @property
    def left_s(self) -> float | None:
        """The seconds that the other calls take, if they are as fast as those that are done; None before the first."""
        if not self.done:
            return None
        return self.seconds / self.done * (self.calls - self.done)


Request = PeakRequest | GrowthRequest
Answer = PeakMemory | MemoryGrowth | Failed
PROTOCOL = Protocol(
    "a process whose memory is measured", (PeakRequest, GrowthRequest, PeakMemory, MemoryGrowth, Progress, Failed)
)
to_line, from_line = PROTOCOL.to_line, PROTOCOL.from_line
