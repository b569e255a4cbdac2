"""What the device kit measured on a GPU or board, from and to `measurements/device-<id>.json` of a bundle."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tsexport.bench.tables import ServiceLevelRow
from tsexport.codec import ADDED_LATER, decode_versioned, encode, read_text, write_whole
from tsexport.types import Measurement, Precision, Verdict

SCHEMA_VERSION = 1
RUNTIME = "tensorrt"
PREFIX = "device-"
"""How the file names begin: those of machines that run Python are their hexadecimal ids."""

Transfers = Literal["included", "excluded"]
"""Whether a latency holds the copies to and from the device; such with and such without do not compare."""
Quantization = Literal["file", "implicit"]
"""Whether precisions are those of the ONNX file, or TensorRT chose them by a calibration cache."""


@dataclass(frozen=True)
class MeasuredDevice:
    """A GPU or board as it named itself.

    `machine_id` is that of the results; `name` is the board's, or the GPU's where there is no board; `power_mode` is
    nvpmodel's or the power limit; "" stands for what the device did not tell.
    """

    machine_id: str
    name: str
    cuda_device: str
    compute_capability: str
    power_mode: str
    tensorrt: str
    driver: str
    kernel: str

    def __str__(self) -> str:
        return ", ".join((self.name, *filter(None, (self.power_mode,)), f"TensorRT {self.tensorrt}"))


@dataclass(frozen=True)
class DeviceMeasurement:
    """Latency at one batch size, by trtexec, after warm-up.

    `samples_ms` are trtexec's latencyMs: the copy to the device, computing, and the copy back (without the copies where
    the record says that transfers are excluded).  `compute_ms` is the median of the computing alone.
    """

    batch: int
    samples_ms: tuple[float, ...]
    compute_ms: float


@dataclass(frozen=True)
class DeviceRecord:
    """Everything that one run of the kit measured.

    `sums_sha256` is the digest of the results' own SHA256SUMS, by which the same results are known again.
    `cuda_graph` and `spin_wait` say how trtexec ran the engine.  `clocks` are the texts of nvpmodel, jetson_clocks and
    nvidia-smi, by file name.  `service_levels` are the use cases that the measurements are held against.
    """

    device: MeasuredDevice
    target: str
    artifact: str
    precision: Precision
    quantization: Quantization
    graph_sha256: str
    engine_sha256: str
    engine_bytes: int
    transfers: Transfers
    cuda_graph: bool
    spin_wait: bool
    warm_up_ms: int
    duration_s: int
    iterations: int
    sums_sha256: str
    measurements: tuple[DeviceMeasurement, ...]
    verdicts: tuple[Verdict, ...] = ()
    clocks: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    service_levels: tuple[ServiceLevelRow, ...] = field(default=(), metadata=ADDED_LATER)


def device_record_name(record: DeviceRecord) -> str:
    """Return the name of a record's file."""
    return f"{PREFIX}{record.device.machine_id}.json"


def measurements_of(record: DeviceRecord) -> tuple[Measurement, ...]:
    """Return a record's latencies as measurements; memory and loading, which trtexec does not tell, are 0."""
    return tuple(
        Measurement(
            artifact=record.artifact,
            runtime=f"{RUNTIME} {record.device.tensorrt}",
            precision=record.precision,
            batch=one.batch,
            threads=1,
            machine=record.device.machine_id,
            samples_ms=one.samples_ms,
            load_ms=0.0,
            peak_memory_bytes=0,
            idle_memory_bytes=0,
            warmup_runs=0,
            processes=1,
        )
        for one in record.measurements
    )


def write_device_record(record: DeviceRecord, folder: Path) -> Path:
    """Write a record into `folder` (made where absent) and return its path; whole or not at all."""
    return write_whole(folder / device_record_name(record), encode(record))


def read_device_record(path: Path) -> DeviceRecord:
    """Return the record of a file.

    Raises:
        BundleError: it cannot be read, is no JSON, has another schema version, unknown or missing keys, or values of
            another type.
    """
    again = "attach the results again, or use the tsexport version that wrote it"
    return decode_versioned(DeviceRecord, read_text(path), version=SCHEMA_VERSION, what=path.name, next_step=again)
