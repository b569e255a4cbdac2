"""What was measured on one machine, from and to `measurements/<machine_id>.json` of a bundle."""

from dataclasses import dataclass, field
from pathlib import Path

from tsexport.bench.container import ContainerLimits
from tsexport.bench.fingerprint import Machine
from tsexport.bench.noise import MachineNoise
from tsexport.bench.race import RaceResult
from tsexport.bench.tables import ServiceLevelRow
from tsexport.codec import ADDED_LATER, decode_versioned, encode, read_text, write_whole
from tsexport.types import Measurement, Verdict

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Balance:
    """What a machine sustains: multiply-accumulates a second (in 10^9) with `threads` threads, and a copy on one.

    The copies count the bytes read and those written, in 10^9: of what no cache holds, and of what one does.
    """

    threads: int
    fp32_gmacs_per_s: float
    int8_gmacs_per_s: float
    copy_gb_per_s: float
    cached_copy_gb_per_s: float


@dataclass(frozen=True)
class MachineRecord:
    """Everything that was measured on one machine.

    `races` are artifacts side by side, `stage_seconds` the wall-clock time of a build's stages.  `balance` is None
    where no artifacts were raced.  `noise` was seen while the measurements were taken, None where there are none;
    its `cpus` are what the measuring processes were bound to.  `container` are the limits that they ran in, None for
    none of their own; the machine is then what was seen from inside.  `service_levels` are the use cases that the
    measurements are held against (`bench.use_cases`), () where none were asked.
    """

    machine: Machine
    measurements: tuple[Measurement, ...] = ()
    races: tuple[RaceResult, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    stage_seconds: tuple[tuple[str, float], ...] = ()
    balance: Balance | None = None
    noise: MachineNoise | None = None
    container: ContainerLimits | None = None
    schema_version: int = SCHEMA_VERSION
    service_levels: tuple[ServiceLevelRow, ...] = field(default=(), metadata=ADDED_LATER)


def record_to_text(record: MachineRecord) -> str:
    """Return the record as JSON text with a final newline; the same record gives the same text."""
    return encode(record)


def record_from_text(text: str, *, name: str) -> MachineRecord:
    """Return the record that `record_to_text` wrote; `name` is the file's, for messages.

    Raises:
        BundleError: no JSON, another schema version, unknown or missing keys, or values of another type.
    """
    again = "measure again with `tsexport bench`, or use the tsexport version that wrote it"
    return decode_versioned(MachineRecord, text, version=SCHEMA_VERSION, what=name, next_step=again)


def write_record(record: MachineRecord, folder: Path) -> Path:
    """Write `<machine_id>.json` into `folder` (made where absent) and return its path; whole or not at all."""
    return write_whole(folder / f"{record.machine.machine_id}.json", record_to_text(record))


def read_record(path: Path) -> MachineRecord:
    """Return the record of a file.

    Raises:
        BundleError: it cannot be read, or as `record_from_text`.
    """
    return record_from_text(read_text(path), name=path.name)
