"""The CUDA calls that a TensorRT session makes: a stream, memory on the device, copies, and which GPU it is.

They come from NVIDIA's `cuda-bindings`, which brings its own CUDA runtime and needs the driver alone: no torch, and no
CUDA toolkit.  Sizes are in bytes; addresses are integers.
"""

import re
from pathlib import Path
from typing import Any

from cuda.bindings import runtime as cuda

from tsexport.runtimes.tensorrt_cache import GpuFacts
from tsexport.types import Array

_DRIVER_FILE = Path("/proc/driver/nvidia/version")


class CudaFailure(Exception):
    """A call of the CUDA runtime failed; the text names the call and CUDA's reason."""


def call(name: str, *arguments: Any) -> Any:
    """Return what a function of the CUDA runtime gives besides its error code (None, a value, or a tuple).

    Raises:
        CudaFailure: the code is no success.
    """
    code, *values = getattr(cuda, name)(*arguments)
    if code != cuda.cudaError_t.cudaSuccess:
        _, text = cuda.cudaGetErrorString(code)
        reason = text.decode() if isinstance(text, bytes) else str(text)
        hint = ""
        if "insufficient" in reason:
            hint = '; there is no driver, or an older one, for which: pip install "cuda-bindings<13"'
        raise CudaFailure(f"{name}: {reason}{hint}")
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def gpu_facts() -> GpuFacts:
    """Return which GPU is the current one, and its driver.

    Raises:
        CudaFailure: there is none, or the driver does not answer.
    """
    properties = call("cudaGetDeviceProperties", call("cudaGetDevice"))
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return GpuFacts(name.strip("\0"), f"{properties.major}.{properties.minor}", _driver())


def _driver() -> str:
    """Return the kernel module's version, or the CUDA version that the driver speaks where it is not told."""
    try:
        found = re.search(r"Kernel Module\D*([\d.]+)", _DRIVER_FILE.read_text())
    except OSError:
        found = None
    if found is not None:
        return found[1]
    number = call("cudaDriverGetVersion")
    return f"CUDA {number // 1000}.{number % 1000 // 10}"


def device_bytes() -> int:
    """Return the size of the device's memory."""
    _, total = call("cudaMemGetInfo")
    return int(total)


class DeviceBuffer:
    """A piece of device memory that grows with what is put into it, and is never smaller than it was."""

    def __init__(self) -> None:
        self.address = 0
        self._size = 0

    def reserve(self, size: int) -> int:
        """Return the address of at least `size` bytes (of one at least); what lay there may be lost."""
        if size > self._size or not self.address:
            self.free()
            self.address = int(call("cudaMalloc", max(1, size)))
            self._size = size
        return self.address

    def free(self) -> None:
        """Give the memory back; twice is fine."""
        if self.address:
            call("cudaFree", self.address)
        self.address, self._size = 0, 0


class Stream:
    """A CUDA stream, in whose order copies and inference run."""

    def __init__(self) -> None:
        self._stream = call("cudaStreamCreate")

    @property
    def handle(self) -> int:
        """The stream as a number, as TensorRT takes it."""
        return int(self._stream)

    def copy_in(self, address: int, array: Array) -> None:
        """Copy an array, contiguous, to the device."""
        kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self._stream)

    def copy_out(self, array: Array, address: int) -> None:
        """Copy from the device into an array, contiguous, which is filled after `synchronize`."""
        kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self._stream)

    def synchronize(self) -> None:
        """Wait until everything on the stream is done."""
        call("cudaStreamSynchronize", self._stream)

    def free(self) -> None:
        """Destroy the stream; twice is fine."""
        if self._stream is not None:
            call("cudaStreamDestroy", self._stream)
        self._stream = None
