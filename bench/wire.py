"""What travels between a measuring process and its parent: one JSON object a line, both ways.

Requests: `Load`, then any number of `WarmUp` and `Block`.  Answers: `Loaded`, `Warmed`, `Timed`, or `Failed`.
Arrays go by an `.npz` file, whose path is in `Load`.
"""

from dataclasses import dataclass

from tsexport import errors
from tsexport.bench.messages import Protocol
from tsexport.errors import TsexportError
from tsexport.types import Artifact


@dataclass(frozen=True)
class Load:
    """Load `artifact` on `runtime` and answer once, at `batch`.  `feeds` is an .npz of arrays [samples, ...]."""

    artifact: Artifact
    runtime: str
    threads: int
    feeds: str
    batch: int


@dataclass(frozen=True)
class Loaded:
    """`load_ms` runs from the request to its first answer, the import of the runtime included."""

    load_ms: float
    idle_memory_bytes: int
    peak_memory_bytes: int


@dataclass(frozen=True)
class WarmUp:
    """Call at `batch` until the medians of consecutive blocks agree within `tolerance`, or a cap is reached."""

    batch: int
    tolerance: float
    max_calls: int
    max_seconds: float


@dataclass(frozen=True)
class Warmed:
    """`stable` is False where a cap ended the warm-up; `call_ms` is the median of its last block."""

    calls: int
    stable: bool
    call_ms: float


@dataclass(frozen=True)
class Block:
    """Time `calls` single calls at `batch`, after `lead_in` calls that do not count.

    With `quiet` the answer comes when no thread of the process runs any more.
    """

    batch: int
    calls: int
    lead_in: int
    quiet: bool


@dataclass(frozen=True)
class Timed:
    """Wall-clock nanoseconds of each call, in order, and the process's peak memory by now.

    `device_ms` are as many launches after them, by the device's own clock; () where the session has none.
    """

    times_ns: tuple[int, ...]
    peak_memory_bytes: int
    device_ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class Failed:
    """The request raised an error: its type, its text, and whether it is one of `tsexport.errors`."""

    error: str
    message: str
    next_step: str = ""
    expected: bool = False

    def as_error(self, label: str = "") -> TsexportError | None:
        """Return the error of `tsexport.errors` that was raised, its message behind the label; None for any other."""
        original = getattr(errors, self.error, None) if self.expected else None
        if not isinstance(original, type) or not issubclass(original, TsexportError):
            return None
        error: TsexportError = original(f"{label}: {self.message}" if label else self.message, next_step=self.next_step)
        return error


Request = Load | WarmUp | Block
Answer = Loaded | Warmed | Timed | Failed
PROTOCOL = Protocol("a measuring process", (Load, WarmUp, Block, Loaded, Warmed, Timed, Failed))
to_line, from_line = PROTOCOL.to_line, PROTOCOL.from_line
