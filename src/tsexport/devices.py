"""Devices that run TensorRT: what each can compute, and which TensorRT it may have.

The facts are a table with sources, `devices.toml`, and third parties add devices of their own through the entry point
group `tsexport.targets`: an entry loads to a `Device` of the entry's name, and its family gives the targets
`<family>-<precision>`.  The names of the table cannot be replaced.
"""

import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files

from tsexport.codec import from_plain
from tsexport.errors import ConfigurationError, TsexportError
from tsexport.gpus import Gpu, is_device
from tsexport.types import Precision

ENTRY_POINT_GROUP = "tsexport.targets"
_NOT_IN_A_NAME = re.compile(r"[^a-z0-9]+")
BF16_FROM = "9.0"
"""TensorRT computes in bf16 from this version on."""


@dataclass(frozen=True)
class Peak:
    """What a device reaches at most in one of its power modes or sizes, dense; None where it has no such arithmetic.

    `basis` says which figures are published and how the others were calculated.  bf16 runs at the speed of fp16 where
    there is any, and fp32 at that of TF32, which TensorRT allows itself unless told otherwise.
    """

    mode: str
    bandwidth_gb_s: float
    fp32_tflops: float
    fp16_tflops: float
    basis: str
    int8_tops: float | None = None
    tf32_tflops: float | None = None


@dataclass(frozen=True)
class Device:
    """One GPU or board.

    family: the part of a target's name before the precision; `jetson` has several devices, of which the first is meant
        where none is named.
    precisions: those that targets of the family may ask of it.
    tensorrt: the first and the last version that runs on it.
    default: what it has where nothing else is named, "jetpack-6.2" or "tensorrt-10.3".
    jetpack: the first and the last JetPack that it had, () where it has none.
    """

    name: str
    family: str
    title: str
    compute_capability: str
    precisions: tuple[Precision, ...]
    tensorrt: tuple[str, str]
    default: str
    memory_gb: tuple[float, ...]
    peak: tuple[Peak, ...]
    jetpack: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()

    def tensorrt_versions(self) -> tuple[str, ...]:
        """Return the TensorRT versions that run on it, oldest first."""
        first, last = self.tensorrt
        return tuple(one for one in facts().tensorrt if version_key(first) <= version_key(one) <= version_key(last))

    def jetpacks(self) -> tuple[str, ...]:
        """Return the JetPack releases that it had and whose TensorRT is known, oldest first."""
        if not self.jetpack:
            return ()
        first, last = map(version_key, self.jetpack)
        return tuple(one for one in facts().jetpack if first <= version_key(one) <= last)

    def releases(self) -> tuple[str, ...]:
        """Return what `--device NAME@...` may name: "jetpack-6.2" where it has JetPacks, and "tensorrt-8.6"."""
        jetpacks = (f"jetpack-{one}" for one in self.jetpacks())
        return (*jetpacks, *(f"tensorrt-{one}" for one in self.tensorrt_versions()))


@dataclass(frozen=True)
class Facts:
    """devices.toml: `tensorrt` the versions there are, `jetpack` the TensorRT of each JetPack, both oldest first."""

    schema: int
    tensorrt: tuple[str, ...]
    jetpack: Mapping[str, str]
    device: tuple[Device, ...]


def version_key(version: str) -> tuple[int, ...]:
    """Return a version such as "10.3" as numbers, which compare as versions do."""
    return tuple(int(part) for part in version.split("."))


@functools.cache
def facts() -> Facts:
    """Return the table of devices.toml."""
    path = files("tsexport") / "devices.toml"
    return from_plain(Facts, tomllib.loads(path.read_text(encoding="utf-8")), what="devices.toml", defaults=True)


def list_devices() -> tuple[Device, ...]:
    """Return every device: the table's in its order, then third parties' by name.

    A third party's that cannot be loaded is left out; `broken_devices` says why, and asking for it raises.
    """
    found = [_load_or_none(point) for point in _foreign()]
    return (*facts().device, *(device for device in found if device is not None))


def broken_devices() -> dict[str, ConfigurationError]:
    """Return, for every third party's device that cannot be used, its name and the error that says why."""
    broken = {}
    for point in _foreign():
        try:
            _load(point)
        except ConfigurationError as error:
            broken[point.name] = error
    return broken


def _foreign() -> list[EntryPoint]:
    taken = {device.name for device in facts().device} | {device.family for device in facts().device} | {"cpu4"}
    points = (point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name not in taken)
    return sorted(points, key=lambda point: point.name)


def _load_or_none(point: EntryPoint) -> Device | None:
    try:
        return _load(point)
    except TsexportError:
        return None


def _load(point: EntryPoint) -> Device:
    owner = point.dist.name if point.dist else "an unknown package"
    try:
        device = point.load()
    except Exception as error:  # a third party's code may raise anything
        raise ConfigurationError(
            f"the target device {point.name!r} of {owner} cannot be loaded from {point.value}: {error!r}",
            next_step=f"repair or uninstall {owner}",
        ) from error
    if not isinstance(device, Device) or device.name != point.name:
        raise ConfigurationError(
            f"the entry point {point.name!r} of {owner} gives {device!r}, not a tsexport.devices.Device of that name",
            next_step=f"repair or uninstall {owner}",
        )
    if device.default not in device.releases():
        raise ConfigurationError(
            f"the target device {point.name!r} of {owner} has the default {device.default!r}; it may have "
            f"{', '.join(device.releases()) or 'nothing'}",
            next_step=f"repair or uninstall {owner}",
        )
    return device


def device_of(gpu: Gpu) -> str:
    """Return the name that a GPU has in the tables, such as "h100", else the driver's in small letters."""
    known = next((one.name for one in list_devices() if is_device(gpu, one.name)), None)
    return known or _NOT_IN_A_NAME.sub("-", gpu.name.lower()).strip("-")
