"""Targets: what `--target` and `--device` may name, and the instruction sets of CPUs.

A target is `<device>-<precision>`.  Sources: cpu4 is the published "4-core CPU without a GPU" deployment.
"""

import functools
from dataclasses import dataclass
from typing import Literal

from tsexport.errors import UnsupportedError, UsageError, did_you_mean
from tsexport.types import Precision

InstructionSet = Literal["avx2", "avx512-vnni", "amx", "arm64", "generic"]


@dataclass(frozen=True)
class Target:
    """Where an artifact will run, and in which precision.

    `cores` is the largest number of threads used; `instruction_set` decides the INT8 recipes.
    """

    name: str
    device: str
    precision: Precision
    cores: int
    instruction_set: InstructionSet
    summary: str


@dataclass(frozen=True)
class CpuFeatures:
    """What the CPU at hand can compute.  `flags` are those of cpuinfo that decide recipes, sorted."""

    model: str
    instruction_set: InstructionSet
    vnni: bool
    bf16: bool
    flags: tuple[str, ...]


_DECIDING_FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni", "avx512_bf16",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16",
)  # fmt: skip
_CPU_DEVICES: tuple[str, ...] = ("host", "avx2", "avx512-vnni", "amx", "arm64")
_PRECISIONS: dict[str, tuple[Precision, ...]] = {"cpu4": ("fp32", "int8")}


def classify(flags: frozenset[str], machine: str) -> tuple[InstructionSet, bool, bool]:
    """Return (instruction set, has VNNI, has bf16 arithmetic) for the flags of a CPU."""
    if machine in {"aarch64", "arm64"}:
        return "arm64", False, "bf16" in flags
    vnni = bool({"avx512_vnni", "avx512vnni", "avx_vnni"} & flags)
    bf16 = bool({"avx512_bf16", "amx_bf16"} & flags)
    if "amx_int8" in flags:
        return "amx", True, bf16
    if vnni:
        return "avx512-vnni", True, bf16
    return ("avx2" if "avx2" in flags else "generic"), False, bf16


@functools.cache
def host_cpu() -> CpuFeatures:
    """Detect the CPU of this machine, by py-cpuinfo."""
    import cpuinfo

    info = cpuinfo.get_cpu_info()
    flags = frozenset(info.get("flags", ()))
    machine = str(info.get("arch_string_raw", ""))
    instruction_set, vnni, bf16 = classify(flags, machine)
    return CpuFeatures(
        model=str(info.get("brand_raw", machine or "unknown")),
        instruction_set=instruction_set,
        vnni=vnni,
        bf16=bf16,
        flags=tuple(sorted(flags & set(_DECIDING_FLAGS))),
    )


def target_names() -> tuple[str, ...]:
    """Return every name that `--target` takes."""
    return tuple(f"{device}-{precision}" for device, all_ in _PRECISIONS.items() for precision in all_)


def parse_target(name: str, device: str = "host") -> Target:
    """Return the target that a name and a device mean.

    Raises:
        UsageError: an unknown target or device.
        UnsupportedError: a device whose latency and numerics cannot be established on this machine.
    """
    if name not in target_names():
        raise UsageError(
            f"unknown target {name!r}{did_you_mean(name, target_names())}; targets are {', '.join(target_names())}",
            next_step="run `tsexport targets` to see what each one is",
        )
    if device not in _CPU_DEVICES:
        raise UsageError(
            f"unknown device {device!r} for {name}{did_you_mean(device, _CPU_DEVICES)}; "
            f"devices are {', '.join(_CPU_DEVICES)}"
        )
    host = host_cpu()
    if device not in ("host", host.instruction_set):
        raise UnsupportedError(
            f"this machine is {host.instruction_set} ({host.model}), and --device asks for {device}",
            next_step=f"build on a machine with {device}, or leave --device out to build for this one",
        )
    base, precision = name.rsplit("-", 1)
    return Target(
        name=name,
        device=base,
        precision=precision,  # type: ignore[arg-type]  # checked against target_names() above
        cores=4,
        instruction_set=host.instruction_set,
        summary=f"4-core CPU without a GPU, {precision}",
    )
