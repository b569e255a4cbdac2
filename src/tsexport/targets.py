"""Targets: what `--target` and `--device` may name, and the instruction sets of CPUs.

A target is `<family>-<precision>`: `cpu4-int8`, `jetson-int8`, `a100-bf16`.  cpu4 is the published "4-core CPU without
a GPU" deployment, on this machine's instruction set or on another (`--device avx2`).  The GPUs and boards are those of
`devices.toml`, each with a TensorRT version that `--device NAME@jetpack-6.2` or `--device @tensorrt-8.6` chooses.
Latency can be measured only where the target is this machine (`Target.here`); elsewhere numerics are simulated.  A GPU
target is never this machine, since TensorRT does not run here; `gpu_here` says whether its device is, so that PyTorch
can be timed on it.
"""

import functools
from dataclasses import dataclass
from typing import Literal

from tsexport.devices import BF16_FROM, Device, broken_devices, facts, list_devices, version_key
from tsexport.errors import ConfigurationError, UnsupportedError, UsageError, did_you_mean
from tsexport.gpus import first_gpu, is_device
from tsexport.types import FORMATS, Format, Precision

InstructionSet = Literal["avx2", "avx512-vnni", "amx", "arm64", "generic", "gpu"]
"""What arithmetic decides INT8 recipes; "gpu" is TensorRT's."""

HOST = "host"
"""The device of a target that names none: this machine for cpu4, the family's first device elsewhere."""


@dataclass(frozen=True)
class Target:
    """Where an artifact will run, and in which precision.

    device: "cpu4", or the name of a GPU or board ("orin-nano").
    cores: the largest number of threads used; on this machine also where the target is another.
    instruction_set: the target's, which may differ from this machine's; it decides the recipes.
    here: latency can be measured on this machine, since it is of the target's kind.
    tensorrt: the version that the target has, such as "10.3", None for a CPU.
    jetpack: the release that brings it, where one does.
    compute_capability: of the GPU, such as "8.7".
    formats: the formats that its bundles hold, as far as they are asked for.
    caveats: what the reader of any result for it has to know.
    """

    name: str
    device: str
    precision: Precision
    cores: int
    instruction_set: InstructionSet
    summary: str
    here: bool = True
    tensorrt: str | None = None
    jetpack: str | None = None
    compute_capability: str | None = None
    formats: tuple[Format, ...] = FORMATS
    caveats: tuple[str, ...] = ()

    @property
    def device_name(self) -> str:
        """The device as a person names it: a GPU's or board's name, or a CPU's instruction set."""
        return self.device if self.instruction_set == "gpu" else f"{self.instruction_set} CPU"


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
CPU_DEVICES: tuple[str, ...] = (HOST, "avx2", "avx512-vnni", "amx", "arm64")
"""What --device may name for a CPU target: this machine, or an instruction set."""
_CPU_PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
_CPU = "cpu4"
_BF16_CAPABILITY, _INT8_CAPABILITY = "8.0", "6.1"
"""The first compute capabilities with arithmetic in bf16, and with dot products of 8-bit integers."""
CORES = 4
GPU_FORMATS: tuple[Format, ...] = ("onnx", "torchscript")


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
    names = [f"{_CPU}-{precision}" for precision in _CPU_PRECISIONS]
    names += [f"{device.family}-{precision}" for device in list_devices() for precision in device.precisions]
    return tuple(dict.fromkeys(names))


def parse_target(name: str, device: str = HOST) -> Target:
    """Return the target that a name and a device mean.

    Raises:
        UsageError: an unknown target or device, or a JetPack or TensorRT that the device never had.
        UnsupportedError: the device has no arithmetic of that precision; names the way that works.
        ConfigurationError: the target is a third party's, and its entry point cannot be used.
    """
    target = resolve_target(name, device)
    refusal = refusal_of(target)
    if refusal is not None:
        raise refusal
    return target


def resolve_target(name: str, device: str = HOST) -> Target:
    """Return what a name and a device mean, also where the device cannot compute in that precision.

    Raises:
        UsageError, ConfigurationError: as `parse_target`.
    """
    family, _, word = name.rpartition("-")
    precision = next((one for one in _PRECISIONS if one == word), None)
    if family == _CPU and precision in _CPU_PRECISIONS:
        return _cpu_target(name, precision, device)
    members = tuple(one for one in list_devices() if one.family == family)
    if not members or precision is None:
        raise _unknown_target(name, family)
    return _gpu_target(name, precision, members, device)


def formats_of(target: Target, asked: tuple[Format, ...]) -> tuple[Format, ...]:
    """Return the formats that a target's bundle gets, of those asked for.

    Raises:
        UsageError: the target runs none of them.
    """
    formats = tuple(one for one in asked if one in target.formats)
    if not formats:
        raise UsageError(
            f"{target.name} runs none of {', '.join(asked)}; its formats are {', '.join(target.formats)}",
            next_step="leave --formats out, or name one of them",
        )
    return formats


def gpu_here(target: Target) -> bool:
    """Return whether the first GPU of this machine is the target's device; False for a CPU."""
    gpu = first_gpu()
    return target.instruction_set == "gpu" and gpu is not None and is_device(gpu, target.device)


def caveats_of(target: Target) -> tuple[str, ...]:
    """Return what a bundle's reader has to know about its target: the device's caveats, and what was not measured."""
    if target.here:
        return target.caveats
    exact = target.instruction_set == "gpu" or target.precision != "bf16"  # OpenVINO's bf16 is told at load alone
    unmeasured = (
        f"latency was not measured, since the build ran on no {target.device_name}; accuracy is that of "
        f"{'an exact' if exact else 'a'} simulation, without the kernels of this or that CPU"
    )
    return (*target.caveats, unmeasured)


def refusal_of(target: Target) -> UnsupportedError | None:
    """Return the error for a device that has no arithmetic of the target's precision, None where it has."""
    if target.instruction_set == "gpu":
        return _gpu_refusal(target)
    if target.precision != "bf16":
        return None
    host = host_cpu()
    if host.bf16 if target.here else target.instruction_set == "amx":
        return None
    some = target.instruction_set in ("avx512-vnni", "arm64")
    elsewhere = f"not every {target.instruction_set} CPU has it" if some else f"{target.instruction_set} has none"
    lacks = f"{host.model} has none" if target.here else elsewhere
    return UnsupportedError(
        f"{target.name} needs arithmetic in bf16 (AVX512_BF16, AMX or Arm's), and {lacks}",
        next_step="build for cpu4-int8 or cpu4-fp32, or name --device amx",
    )


def _unknown_target(name: str, family: str) -> UsageError | ConfigurationError:
    broken = broken_devices()
    if family in broken:
        return broken[family]
    names = target_names()
    return UsageError(
        f"unknown target {name!r}{did_you_mean(name, names)}; targets are {', '.join(names)}",
        next_step="run `tsexport targets` to see what each one is",
    )


def _cpu_target(name: str, precision: Precision, device: str) -> Target:
    if device not in CPU_DEVICES:
        raise UsageError(
            f"unknown device {device!r} for {name}{did_you_mean(device, CPU_DEVICES)}; "
            f"devices are {', '.join(CPU_DEVICES)}"
        )
    host = host_cpu()
    asked = host.instruction_set if device == HOST else device
    here = asked == host.instruction_set
    return Target(
        name=name,
        device=_CPU,
        precision=precision,
        cores=CORES,
        instruction_set=asked,  # type: ignore[arg-type]  # one of CPU_DEVICES
        summary=f"4-core CPU without a GPU, {precision}" + ("" if here else f", {asked}"),
        here=here,
    )


def _gpu_target(name: str, precision: Precision, members: tuple[Device, ...], device: str) -> Target:
    wanted, _, release = ("", "", "") if device == HOST else device.partition("@")
    names = [one.name for one in members]
    if wanted and wanted not in names:
        raise UsageError(
            f"unknown device {wanted!r} for {name}{did_you_mean(wanted, names)}; devices are {', '.join(names)}, "
            f"each with or without a release such as @{members[0].default}"
        )
    one = members[names.index(wanted)] if wanted else members[0]
    if device != HOST and not release and (not wanted or "@" in device):
        raise UsageError(f"--device {device!r} names no release; {one.name} may have {_listed(one.releases())}")
    tensorrt, jetpack = _release(one, release or one.default)
    has = f"JetPack {jetpack} with TensorRT {tensorrt}" if jetpack else f"TensorRT {tensorrt}"
    return Target(
        name=name,
        device=one.name,
        precision=precision,
        cores=CORES,
        instruction_set="gpu",
        summary=f"{one.title}, {has}, {precision}",
        here=False,
        tensorrt=tensorrt,
        jetpack=jetpack,
        compute_capability=one.compute_capability,
        formats=GPU_FORMATS,
        caveats=one.caveats,
    )


def _listed(words: tuple[str, ...]) -> str:
    return ", ".join(f"@{word}" for word in words)


def _release(device: Device, release: str) -> tuple[str, str | None]:
    """Return the TensorRT version and the JetPack, if any, that `jetpack-6.2` or `tensorrt-8.6` means on a device.

    Raises:
        UsageError: the device never had it.
    """
    allowed = device.releases()
    kind, _, version = release.partition("-")
    if release in allowed:
        return (version, None) if kind == "tensorrt" else (facts().jetpack[version], version)
    kinds = tuple(one for one in allowed if one.startswith(f"{kind}-")) or allowed
    if kind == "jetpack" and not device.jetpack:
        raise UsageError(
            f"{device.title} has no JetPack, and --device asks for {release}; name a TensorRT: {_listed(allowed)}"
        )
    raise UsageError(
        f"{device.title} never had {release}{did_you_mean(release, allowed)}; it may have {_listed(kinds)}",
        next_step=f"leave @{release} out for {device.default}",
    )


def _gpu_refusal(target: Target) -> UnsupportedError | None:
    device = next(one for one in list_devices() if one.name == target.device)
    family, _, precision = target.name.rpartition("-")
    works = " or ".join(f"{family}-{one}" for one in device.precisions if one != "fp32") or f"{family}-fp32"
    if precision not in device.precisions:
        reason = _missing_arithmetic(device, precision) or f"it is built for in {' or '.join(device.precisions)} alone"
        named = f" --device {device.name}" if device.name != family else ""
        return UnsupportedError(
            f"{target.name} on {device.title}: {reason}",
            next_step=f"build for {works}{named}",
        )
    assert target.tensorrt is not None
    if precision == "bf16" and version_key(target.tensorrt) < version_key(BF16_FROM):
        return UnsupportedError(
            f"{target.name} with TensorRT {target.tensorrt}: TensorRT computes in bf16 from {BF16_FROM} on",
            next_step=f"build for {family}-fp16, or name a later version, such as --device @{device.default}",
        )
    return None


def _missing_arithmetic(device: Device, precision: str) -> str:
    """Return why a GPU of that compute capability cannot compute in a precision, or ""."""
    capability = version_key(device.compute_capability)
    if precision == "bf16" and capability < version_key(_BF16_CAPABILITY):
        return f"compute capability {device.compute_capability} has no bf16 arithmetic"
    if precision == "int8" and capability < version_key(_INT8_CAPABILITY):
        return f"compute capability {device.compute_capability} has no INT8 arithmetic, and TensorRT refuses Q/DQ there"
    return ""
