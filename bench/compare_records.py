"""What a comparison of two bundles found (`tsexport compare`), and as JSON.

Ratios are candidate / base of median latencies: above 1 the candidate is slower.
"""

from dataclasses import dataclass
from statistics import median
from typing import Literal

from tsexport.bench.fingerprint import Machine
from tsexport.bench.noise import MachineNoise
from tsexport.codec import decode_versioned, encode
from tsexport.types import Precision

SCHEMA_VERSION = 1

ComparisonVerdict = Literal["regression", "improved", "unchanged", "inconclusive"]
EXIT_CODES: dict[ComparisonVerdict, int] = {"regression": 4, "improved": 0, "unchanged": 0, "inconclusive": 6}


@dataclass(frozen=True)
class Slowdown:
    """candidate / base with its interval at `confidence`; `high` is None where there were too few processes for one."""

    value: float
    low: float
    high: float | None
    confidence: float

    def __str__(self) -> str:
        high = "no bound" if self.high is None else percent_text(self.high)
        return f"{percent_text(self.value)} [{percent_text(self.low)}, {high}]"


@dataclass(frozen=True)
class ComparedSide:
    """One side of a comparison.

    `given` is what the user named, `bundle` the manifest's name; artifact and runtime are the selected ones.
    `medians_ms` are the medians of its fresh processes in the run that decided, in the order of the pairs.
    """

    given: str
    bundle: str
    artifact: str
    runtime: str
    precision: Precision
    medians_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """The median of the processes' medians."""
        return median(self.medians_ms)


@dataclass(frozen=True)
class ComparisonRun:
    """One run: pairs of fresh processes, one of each side, whose blocks were interleaved.

    `pair_ratios` are candidate / base pair by pair.  `noise_floor` is the change that two copies of one bundle may show
    in such a run: the larger of `process_floor` (spread between processes of one side) and `machine_floor` (the idle
    loop beside both sides).  `unstable` counts processes that still drifted when their warm-up was capped.
    """

    processes: int
    rounds: int
    base_medians_ms: tuple[float, ...]
    candidate_medians_ms: tuple[float, ...]
    pair_ratios: tuple[float, ...]
    ratio: Slowdown
    process_floor: float
    machine_floor: float
    looks: int
    unstable: int
    verdict: ComparisonVerdict
    reason: str
    seconds: float

    @property
    def noise_floor(self) -> float:
        return max(self.process_floor, self.machine_floor)


@dataclass(frozen=True)
class ComparisonResult:
    """Base against candidate on one machine; `tsexport compare` ends with `exit_code`.

    `ratio`, `noise_floor` and `processes` (fresh ones of each side) are those of the run that decided, the last of
    `runs`; a red first run has a second one.  `confirmed` is True where both were red.  `threshold` and `noise_floor`
    are fractions: 0.05 is 5 %.  `cpus` are what the processes were bound to, () where nothing could be bound.
    """

    base: ComparedSide
    candidate: ComparedSide
    verdict: ComparisonVerdict
    reason: str
    confirmed: bool
    ratio: Slowdown
    threshold: float
    noise_floor: float
    processes: int
    threads: int
    cpus: tuple[int, ...]
    batch: int
    seconds: float
    runs: tuple[ComparisonRun, ...]
    machine: Machine
    noise: MachineNoise
    schema_version: int = SCHEMA_VERSION

    @property
    def exit_code(self) -> int:
        """0 for improved and unchanged, 4 for a regression, 6 for inconclusive."""
        return EXIT_CODES[self.verdict]


def percent_text(ratio: float) -> str:
    """Return a ratio as a change: "+3.2 %" for 1.032."""
    return f"{100 * (ratio - 1):+.1f} %"


def result_to_text(result: ComparisonResult) -> str:
    """Return the result as JSON text with a final newline."""
    return encode(result)


def result_from_text(text: str, *, name: str) -> ComparisonResult:
    """Return the result that `result_to_text` wrote; `name` is the file's, for messages.

    Raises:
        BundleError: no JSON, another schema version, unknown or missing keys, or values of another type.
    """
    again = "compare again, or use the tsexport version that wrote it"
    return decode_versioned(ComparisonResult, text, version=SCHEMA_VERSION, what=name, next_step=again)
