"""Peaks of the reference models, measured: artifacts as of a build, fresh processes, rows that are kept."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tsexport.bench.fingerprint import Machine
from tsexport.bench.memory import measure_peak
from tsexport.codec import decode_versioned, encode, read_text, write_whole
from tsexport.errors import TsexportError
from tsexport.exporters.conversion import convert_to_onnx, convert_to_openvino, convert_to_torchscript
from tsexport.models.sources import OpenedSource
from tsexport.types import Artifact

ARTIFACTS_VERSION = 1
MEASURED_VERSION = 1
AGREE = 0.05
MEASURED = "measured.json"


@dataclass(frozen=True)
class Peak:
    """The peak of one artifact at one batch size above an idle session, in bytes.

    measured_bytes: the median of `runs` fresh processes, which gave from `lowest_bytes` to `highest_bytes`.
    """

    model: str
    runtime: str
    batch: int
    runs: int
    measured_bytes: int
    lowest_bytes: int
    highest_bytes: int

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells a row from others."""
        return self.model, self.runtime, self.batch


@dataclass(frozen=True)
class Measured:
    """The peaks of one machine with one set of packages; `failed` are those that gave none, with the reason."""

    machine: Machine
    threads: int
    libc: str
    packages: tuple[str, ...]
    peaks: tuple[Peak, ...] = ()
    failed: tuple[str, ...] = ()
    schema_version: int = MEASURED_VERSION

    def alike(self, other: "Measured") -> bool:
        """Whether both were measured under the same conditions."""
        mine = self.machine.cpu_model, self.threads, self.libc, self.packages
        return mine == (other.machine.cpu_model, other.threads, other.libc, other.packages)


@dataclass(frozen=True)
class _Artifacts:
    artifacts: tuple[tuple[str, Artifact], ...]
    schema_version: int = ARTIFACTS_VERSION


def read_measured(folder: Path) -> Measured | None:
    """Return the peaks kept in a folder, None where there are none."""
    path = folder / MEASURED
    if not path.is_file():
        return None
    return decode_versioned(
        Measured, read_text(path), version=MEASURED_VERSION, what=str(path), next_step="delete the file"
    )


def keep(measured: Measured, folder: Path) -> None:
    """Keep the peaks in a folder."""
    write_whole(folder / MEASURED, encode(measured))


def artifacts_of(label: str, source: OpenedSource, folder: Path) -> dict[str, Artifact]:
    """Return a model's fp32 artifact for each runtime, made as a build makes them, or those that are there."""
    home = folder / label.replace(" ", "-")
    index = home / "artifacts.json"
    if not index.is_file():
        home.mkdir(parents=True, exist_ok=True)
        assert source.module is not None
        onnx = convert_to_onnx(source.module, None, source.spec, None, home / "model.onnx").artifact
        script = convert_to_torchscript(source.module, source.spec, None, home / "model.pt").artifact
        ir = convert_to_openvino(onnx, home / "model.xml").artifact
        write_whole(index, encode(_Artifacts((("onnxruntime", onnx), ("openvino", ir), ("torchscript", script)))))
    return dict(
        decode_versioned(
            _Artifacts, read_text(index), version=ARTIFACTS_VERSION, what=str(index), next_step="delete the folder"
        ).artifacts
    )


@dataclass(frozen=True)
class Measuring:
    """How rows are measured: in `runs` fresh processes each, in as many again where those are further than `AGREE`
    apart, none started after `until_s` of the monotonic clock."""

    threads: int
    runs: int
    until_s: float

    def is_done(self, peaks: Sequence[int]) -> bool:
        """Whether these are enough."""
        agree = len(peaks) >= self.runs and max(peaks) - min(peaks) <= AGREE * min(peaks)
        return agree or len(peaks) >= 2 * self.runs


def measure_row(label: str, artifact: Artifact, runtime: str, batch: int, how: Measuring) -> Peak | str:
    """Return a peak, or why there is none; time that runs out leaves it with fewer runs."""
    peaks: list[int] = []
    while not how.is_done(peaks) and time.monotonic() < how.until_s:
        try:
            found = measure_peak(artifact, runtime, threads=how.threads, batch=batch)
        except TsexportError as error:
            return f"{label} on {runtime}, batch {batch}: {error.message.splitlines()[0]}"
        peaks.append(found.above_idle_bytes)
    if not peaks:
        return f"{label} on {runtime}, batch {batch}: no time was left"
    return Peak(label, runtime, batch, len(peaks), round(median(peaks)), min(peaks), max(peaks))
