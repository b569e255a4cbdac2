"""TensorRT's calibration cache: written from a table of ranges, and read.

The cache is text.  The first line is `TRT-<version>-EntropyCalibration2`; each further one is `tensor: <8 hex digits>`,
the digits being the float32 of amax / 127, big-endian.  The version is TensorRT's NV_TENSORRT_VERSION: 1000 major + 100
minor + patch up to 9, 10000 major + 100 minor + patch from 10 on.  TensorRT 8 to 10 read such a file in place of
calibrating (`IInt8EntropyCalibrator2`, `trtexec --calib`); 11 has no implicit calibration any more.

A cache has no digest of the model or the data, so it cannot stand in for a calibration table; 0 is the scale of a
tensor that held nothing but 0.
"""

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from tsexport.calibration.table import CalibrationTable
from tsexport.errors import ConfigurationError, DataError

ALGORITHM = "EntropyCalibration2"
_HEADER = re.compile(r"TRT-(\d+)-(\w+)")
_DIGITS = re.compile(r"[0-9a-fA-F]{8}")
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")
_WITHOUT = 11
"""The first major version without implicit calibration."""
_AGAIN = "write the cache again, or calibrate again"


@dataclass(frozen=True)
class TensorRtCache:
    """`version` is TensorRT's number as in the header; `scales` maps each tensor to amax / 127, a float32."""

    version: int
    scales: Mapping[str, float]

    @property
    def amax(self) -> dict[str, float]:
        """The largest magnitude of each tensor."""
        return {name: scale * 127 for name, scale in self.scales.items()}


def tensorrt_number(version: str) -> int:
    """Return NV_TENSORRT_VERSION of a version such as "8.5.2" or "10.3".

    Raises:
        ConfigurationError: it is no such version, or 11 or later, where there is no calibration cache.
    """
    match = _VERSION.fullmatch(version)
    if match is None:
        raise ConfigurationError(f"{version!r} is no version of TensorRT; allowed is, for example, 8.5.2 or 10.3")
    major, minor, patch = (int(part or 0) for part in match.groups())
    if major >= _WITHOUT:
        raise ConfigurationError(
            f"TensorRT {version} reads no calibration cache; implicit calibration is gone since 11",
            next_step="use a graph with Q/DQ nodes",
        )
    return (1000 if major < 10 else 10_000) * major + 100 * minor + patch


def has_cache(version: str) -> bool:
    """Return whether a version of TensorRT, such as "10.3", reads calibration caches."""
    return int(version.partition(".")[0]) < _WITHOUT


def cache_text(table: CalibrationTable, version: str) -> str:
    """Return the cache of a table's ranges for a version of TensorRT, in the table's order.

    Raises:
        ConfigurationError: as `tensorrt_number`.
        DataError: a tensor's name holds a line break, which the format has no way to write, or its range is no float32.
    """
    lines = [f"TRT-{tensorrt_number(version)}-{ALGORITHM}"]
    for one in table.ranges:
        if len(one.name.splitlines()) != 1:
            raise DataError(
                f"the tensor {one.name!r} cannot stand in a TensorRT cache: its name is empty or holds a line break",
                next_step="rename the tensor in the ONNX graph",
            )
        try:
            lines.append(f"{one.name}: {struct.pack('>f', one.amax / 127).hex()}")
        except OverflowError:
            raise DataError(f"the tensor {one.name!r} reaches {one.amax:g}, which float32 cannot hold") from None
    return "\n".join(lines) + "\n"


def read_cache(text: str, *, what: str = "the TensorRT cache") -> TensorRtCache:
    """Return what a calibration cache holds.

    Args:
        text: the file's content.
        what: its name, for messages.

    Raises:
        DataError: no header, another algorithm's, a line without a colon or without a name, digits that are no float32,
            a scale that is negative or not finite, a tensor that stands there twice, or no tensor.
    """
    lines = text.removesuffix("\n").split("\n")
    header = _HEADER.fullmatch(lines[0].rstrip("\r"))
    if header is None:
        raise _damaged(f"{what} begins with {_cut(lines[0])}, not with TRT-<version>-{ALGORITHM}")
    if header[2] != ALGORITHM:
        raise _damaged(f"{what} is of {header[2]}; only caches of {ALGORITHM} are read")
    scales: dict[str, float] = {}
    for number, line in enumerate(lines[1:], start=2):
        name, scale = _entry(f"{what}, line {number}", line.rstrip("\r"))
        if name in scales:
            raise _damaged(f"{what}, line {number}: the tensor {name!r} stands there twice")
        scales[name] = scale
    if not scales:
        raise _damaged(f"{what} holds no tensor")
    return TensorRtCache(int(header[1]), scales)


def _entry(where: str, line: str) -> tuple[str, float]:
    name, separator, digits = line.rpartition(": ")
    if not separator or not name:
        raise _damaged(f"{where} is {_cut(line)}, not 'tensor: <8 hex digits>'")
    if not _DIGITS.fullmatch(digits):
        raise _damaged(f"{where}: {_cut(digits)} is no float32 in 8 hex digits (tensor {name!r})")
    scale: float = struct.unpack(">f", bytes.fromhex(digits))[0]
    if not math.isfinite(scale) or scale < 0:
        raise _damaged(f"{where}: the scale of {name!r} is {scale:g}; scales are finite and not below 0")
    return name, abs(scale)


def _damaged(message: str) -> DataError:
    return DataError(message, next_step=_AGAIN)


def _cut(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
