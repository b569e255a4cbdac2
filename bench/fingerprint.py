"""What machine this is: everything a latency depends on and that can be read without being administrator.

`machine_id` hashes the hardware and what limits it (cgroup, affinity, governor), so that results of one machine meet
again after an update of the kernel or of a package; versions stand beside it in the record.  No host name, no time.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tsexport.codec import ADDED_LATER
from tsexport.gpus import Gpu, first_gpu
from tsexport.targets import InstructionSet, host_cpu

PACKAGES = ("numpy", "nncf", "onnx", "onnxruntime", "openvino", "torch", "tract", "tsexport")
_GIB = 1024**3


@dataclass(frozen=True)
class Machine:
    """A machine that something was measured on.

    `usable_cores` is what a process may really use: the least of its affinity and its cgroup's quota, rounded down.
    `governor` is the CPU frequency governor ("" where the kernel does not say).  `packages` are (name, version) of
    what is installed; they are read from metadata, nothing is imported.  `gpu` is the first NVIDIA GPU, the one that
    torch computes on, as the driver tells it; None where there is none.
    """

    machine_id: str
    cpu_model: str
    architecture: str
    instruction_set: InstructionSet
    vnni: bool
    bf16: bool
    flags: tuple[str, ...]
    logical_cores: int
    physical_cores: int
    usable_cores: int
    cgroup_cpu_quota: float | None
    memory_bytes: int
    cgroup_memory_bytes: int | None
    governor: str
    kernel: str
    operating_system: str
    python: str
    packages: tuple[tuple[str, str], ...]
    gpu: Gpu | None = field(default=None, metadata=ADDED_LATER)

    def __str__(self) -> str:
        return f"{self.cpu_model}, {self.usable_cores} cores, {self.instruction_set}"


def fingerprint() -> Machine:
    """Return the machine this process runs on."""
    import psutil

    cpu = host_cpu()
    logical = psutil.cpu_count(logical=True) or 1
    physical = psutil.cpu_count(logical=False) or logical
    quota, memory_bytes = cpu_quota(), int(psutil.virtual_memory().total)
    limit = memory_limit(memory_bytes)
    usable = usable_cores(affinity_cores(logical), quota)
    governor = cpu_governor()
    hardware = [
        cpu.model, platform.machine(), cpu.instruction_set, cpu.vnni, cpu.bf16, list(cpu.flags), logical, physical,
        usable, quota, round(memory_bytes / _GIB), None if limit is None else round(limit / _GIB), governor,
    ]  # fmt: skip
    gpu = first_gpu()
    hardware += [] if gpu is None else [gpu.name, round(gpu.memory_bytes / _GIB), gpu.power_limit_w, gpu.is_part]
    return Machine(
        machine_id=hashlib.sha256(json.dumps(hardware).encode()).hexdigest()[:12],
        cpu_model=cpu.model,
        architecture=platform.machine(),
        instruction_set=cpu.instruction_set,
        vnni=cpu.vnni,
        bf16=cpu.bf16,
        flags=cpu.flags,
        logical_cores=logical,
        physical_cores=physical,
        usable_cores=usable,
        cgroup_cpu_quota=quota,
        memory_bytes=memory_bytes,
        cgroup_memory_bytes=limit,
        governor=governor,
        kernel=f"{platform.system()} {platform.release()}",
        operating_system=operating_system(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        packages=installed_versions(PACKAGES),
        gpu=gpu,
    )


def affinity_cores(logical: int) -> int:
    """Return the number of cores this process may be scheduled on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return logical  # macOS has no affinity


def usable_cores(affinity: int, quota: float | None) -> int:
    """Return the whole cores that affinity and quota leave, at least 1."""
    return affinity if quota is None else max(1, min(affinity, int(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the cores that the process's cgroups (v2 or v1) grant in CPU time, or None without a limit."""
    quotas: list[float] = []
    for folder in _cgroup_folders(root, "cpu"):
        if (line := _read(folder / "cpu.max").split()) and line[0] != "max":
            quotas.append(int(line[0]) / int(line[1]))
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota and period and int(quota) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_limit(memory_bytes: int, root: Path = Path("/")) -> int | None:
    """Return the least memory limit of the process's cgroups in bytes, or None where the machine's memory is less."""
    limits: list[int] = []
    for folder in _cgroup_folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            if (text := _read(folder / name)) and text != "max":
                limits.append(int(text))
    limit = min(limits, default=None)
    return limit if limit is not None and limit < memory_bytes else None  # v1 writes 2^63 for "no limit"


def cpu_governor(root: Path = Path("/")) -> str:
    """Return the frequency governor of the first core, or "" where the kernel does not say."""
    return _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def operating_system() -> str:
    """Return the distribution's name, or the platform's where there is no os-release."""
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return f"{platform.system()} {platform.release()}"


def installed_versions(packages: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return (name, version) of those packages that are installed, without importing them."""
    found: list[tuple[str, str]] = []
    for name in packages:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folder of each cgroup this process is in, for one controller, and all folders above it."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = mount / controllers if controllers else mount
        folder = base / path.lstrip("/")
        # Inside a container the path may be the host's and absent here; the limit then stands in the root.
        yield from (parent for parent in (folder, *folder.parents) if parent.is_relative_to(base))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
