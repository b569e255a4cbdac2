"""The NVIDIA GPUs of this machine, as `nvidia-smi` tells them, or the driver's library where that tool is missing.

Nothing is imported, and where there is neither nothing is started: a listing stays quick.  They are asked once a
process.  Limits: the library tells neither power nor clocks, and as the driver only the CUDA that it is for.
"""

import csv
import ctypes
import functools
import re
import shutil
import subprocess
from dataclasses import dataclass

NVIDIA_SMI = "nvidia-smi"
TIMEOUT_SECONDS = 10.0
_FIELDS = ("name", "memory.total", "driver_version", "compute_cap", "power.limit", "clocks.max.sm", "mig.mode.current")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_CAPABILITY = (75, 76)
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and MINOR."""
# Cards of another size or speed that bear the name of the device that the tables mean.
_OTHER_CARDS = frozenset({"PCIE", "NVL"})
_SOLD_AS_SXM = frozenset({"h100", "h200"})


@dataclass(frozen=True)
class Gpu:
    """One GPU.  What the driver does not tell is None; `is_part` says that it is cut into instances (MIG).

    `power_limit_w` and `max_clock_mhz` decide how fast it may be; the clock is that of its multiprocessors.
    """

    name: str
    memory_bytes: int
    driver: str
    compute_capability: str
    power_limit_w: float | None = None
    max_clock_mhz: int | None = None
    is_part: bool = False

    def __str__(self) -> str:
        return f"{self.name}, driver {self.driver}"


@functools.cache
def list_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs of this machine in the driver's order, () where there is none or it cannot be asked."""
    command = shutil.which(NVIDIA_SMI)
    if command is None:
        return _gpus_of_library()
    query = (command, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits")
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return read_gpus(done.stdout) if done.returncode == 0 else ()


def _gpus_of_library(library: str = "libcuda.so.1") -> tuple[Gpu, ...]:
    """Return the GPUs that CUDA's driver library tells, () where there is none."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return ()
    count, version = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or cuda.cuDriverGetVersion(ctypes.byref(version)):
        return ()
    driver = f"for CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    return tuple(_gpu_of_library(cuda, number, driver) for number in range(count.value))


def _gpu_of_library(cuda: ctypes.CDLL, number: int, driver: str) -> Gpu:
    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), number)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in _CAPABILITY:
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(str(value.value))
    told = name.value.decode(errors="replace")
    return Gpu(told, int(memory.value), driver, ".".join(capability), is_part=" MIG " in f"{told} ")


def read_gpus(text: str) -> tuple[Gpu, ...]:
    """Return the GPUs of `nvidia-smi`'s answer, one a line; lines of another form are left out."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines())]
    return tuple(_gpu(row) for row in rows if len(row) == len(_FIELDS) and _number(row[1]) is not None)


def _gpu(row: list[str]) -> Gpu:
    name, memory_mib, driver, capability, power, clock, mig = row
    max_clock = _number(clock)
    return Gpu(
        name=name,
        memory_bytes=round((_number(memory_mib) or 0.0) * 2**20),
        driver=driver,
        compute_capability=capability,
        power_limit_w=_number(power),
        max_clock_mhz=None if max_clock is None else round(max_clock),
        is_part=mig == "Enabled",
    )


def first_gpu() -> Gpu | None:
    """Return the GPU that torch computes on by default, None where there is none."""
    return next(iter(list_gpus()), None)


def _number(cell: str) -> float | None:
    """Return a cell's number, None for "[N/A]" and the like."""
    return float(cell) if _NUMBER.fullmatch(cell) else None


def is_device(gpu: Gpu, device: str) -> bool:
    """Return whether a GPU is the device of devices.toml that bears a name: "h100" is "NVIDIA H100 80GB HBM3".

    A part of a GPU is not the device, and an H100 or H200 as a PCIe or NVL card is another one.
    """
    words = {word.upper() for word in re.split(r"[\s-]+", gpu.name)}
    other = device in _SOLD_AS_SXM and bool(words & _OTHER_CARDS)
    return device.upper() in words and not gpu.is_part and not other
