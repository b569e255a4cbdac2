"""What `gpu_runs.py` records: one row for each case and way, and the GPU it ran on."""

from dataclasses import dataclass
from typing import Literal

from tsexport.bench.statistics import Summary
from tsexport.bench.suites.gpu_cases import Case, Way
from tsexport.gpus import Gpu
from tsexport.types import Precision

SCHEMA_VERSION = 1
Status = Literal["measured", "wrong", "failed", "not run"]


@dataclass(frozen=True)
class OutputLimit:
    """The largest relative RMS error that an answer of a precision may have, with the reason for its size."""

    name: str
    limit: float
    reason: str


OUTPUT_LIMITS: dict[Precision, OutputLimit] = {
    "fp32": OutputLimit("gpu-fp32", 1e-5, "fp32 without TF32: the same products summed in another order"),
    "fp16": OutputLimit("gpu-fp16", 1e-2, "11 bits in some ten layers one after the other"),
    "bf16": OutputLimit("gpu-bf16", 5e-2, "8 bits; the output error that a build allows by default"),
}


@dataclass(frozen=True)
class GpuRow:
    """One way of running a case.

    `device` is between two events on the stream, without copies; `wall` is the whole call from arrays to arrays, with
    both copies; None where it was not taken.  `output_error` is the relative RMS error of the worst output against the
    source module in fp32 on the CPU, over `checked` samples.  `memory_bytes` is the most that torch allocated on the
    device beyond what it held before the session: weights, activations, a graph's buffers, and cuBLAS's workspaces of
    the streams that were used.  `first_call_s` is from the module to its first answer: load, compilation and capture.
    `clock_mhz` is that of the multiprocessors, read just after the calls.  `reason` says why a row is not measured,
    `notes` what to know of one that is.  `run` is the place of its run in `GpuReport.runs`.
    """

    case: Case
    way: Way
    status: Status
    device: Summary | None = None
    wall: Summary | None = None
    output_error: float | None = None
    checked: int = 0
    memory_bytes: int | None = None
    first_call_s: float | None = None
    notes: tuple[str, ...] = ()
    reason: str = ""
    clock_mhz: int | None = None
    run: int = 0


@dataclass(frozen=True)
class GpuFacts:
    """Where and when it ran: `gpu` as the driver tells it, None in a rehearsal on the CPU; the versions of what
    computed; the day in UTC, such as "2026-11-26".
    """

    gpu: Gpu | None
    torch: str
    cuda: str | None
    triton: str | None
    python: str
    cpu: str
    day: str

    @property
    def compared(self) -> tuple[str, str, str | None]:
        """What two runs must share, so that their rows may stand in one table: GPU, torch and its CUDA."""
        return self.gpu.name if self.gpu else "no GPU", self.torch, self.cuda


@dataclass(frozen=True)
class GpuReport:
    """bench/results/gpu-NAME.json.  `rehearsal` says that nothing of it was measured on a GPU.

    A run may have been resumed by others on the same GPU with the same torch: `runs` are in the order of time, and
    `remarks` what to know of them.
    """

    suite: str
    rehearsal: bool
    runs: tuple[GpuFacts, ...]
    rows: tuple[GpuRow, ...]
    remarks: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION
