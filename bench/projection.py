"""How long a device that is not here would take: a roofline over the kernels of a graph.

For each kernel, from what it does (`tsexport.work`) and the device's dense peaks (`devices.toml`):

    products    sum over precisions of 2 * MACs / (efficiency * peak of that precision); tensor cores and plain cores
                have an efficiency each
    memory      (bytes read + bytes written) / (bandwidth efficiency * bandwidth)
    launch      launches * microseconds of one
    time        launch + max(products, memory)

The sum is the estimate.  The efficiencies are the same for all devices and models; they were fitted to published
latencies (`bench/data/projection.toml`), and their error there stands beside every projection.

The lower bound is another number: efficiency 1, no launches, and of the bytes only those that no fusion avoids and no
cache holds:

    least       max(sum of 2 * MACs / peak, (weights + inputs + outputs - CACHE_BYTES) / bandwidth)

A budget below it cannot be met even at peak by this artifact.  It takes products as they are counted: an algorithm
with fewer (Winograd's for 3 x 3 convolutions in floating point) could pass it.

Both are "projected" and never judge a budget.  Source of the method: S. Williams et al., "Roofline: an insightful
visual performance model", 2009.
"""

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from tsexport.codec import from_plain
from tsexport.devices import Device, Peak, version_key
from tsexport.errors import ConfigurationError, UnsupportedError
from tsexport.work import GraphWork, KernelWork

Bound = Literal["launch", "memory", "compute"]
CACHE_BYTES = 128_000_000
"""No device of the table holds more on its chip; weights that stay there from call to call need no bandwidth."""
_BF16_CAPABILITY = "8.0"
_TENSOR_CORES_CAPABILITY = "7.0"
_US_PER_MS = 1e3
FITTED_NAME = "projection.toml"


@dataclass(frozen=True)
class Efficiency:
    """The shares that a kernel reaches of the dense peak, on tensor cores and without, and of the bandwidth; and what
    it costs to start one."""

    tensor_cores: float
    plain_cores: float
    bandwidth: float
    launch_us: float


@dataclass(frozen=True)
class AnchorError:
    """How far projections were from published latencies, as |projected / measured - 1|.

    `left_out_median` is that of efficiencies which were fitted on the other devices.  `worst_ratio` is the projected /
    measured farthest from 1, by its logarithm.
    """

    anchors: int
    median: float
    left_out_median: float
    worst_ratio: float
    worst_anchor: str


@dataclass(frozen=True)
class Fitted:
    """projection.toml: the efficiencies, and the error that they leave on the anchors they were fitted on."""

    schema: int
    efficiency: Efficiency
    error: AnchorError


@dataclass(frozen=True)
class ProjectedKernel:
    """One kernel: its nodes' operators, what it does, its time and what that is mostly made of."""

    name: str
    operators: tuple[str, ...]
    macs: Mapping[str, int]
    bytes_read: int
    bytes_written: int
    launches: int
    ms: float
    bound: Bound


@dataclass(frozen=True)
class Projection:
    """One graph at one batch size in one power mode or size of a device.

    total_ms: the estimate, of which `launch_ms`, `memory_ms` and `compute_ms` are the kernels bound by each.
    least_ms: the lower bound.
    bound: what most of the estimate goes to.
    """

    device: str
    mode: str
    batch: int
    total_ms: float
    least_ms: float
    launch_ms: float
    memory_ms: float
    compute_ms: float
    bound: Bound
    kernels: tuple[ProjectedKernel, ...]


@functools.cache
def fitted() -> Fitted:
    """Return the efficiencies and their error on the anchors."""
    text = (files("tsexport.bench") / "data" / FITTED_NAME).read_text(encoding="utf-8")
    return from_plain(Fitted, tomllib.loads(text), what=FITTED_NAME, error=ConfigurationError)


def peak_flops(device: Device, peak: Peak, precision: str) -> float:
    """Return the dense peak of a precision in operations a second; fp32 in TF32 where tensor cores take it.

    Raises:
        UnsupportedError: the device has no such arithmetic.
    """
    rates = {
        "fp32": peak.tf32_tflops or peak.fp32_tflops,
        "fp16": peak.fp16_tflops,
        "bf16": peak.fp16_tflops if version_key(device.compute_capability) >= version_key(_BF16_CAPABILITY) else None,
        "int8": peak.int8_tops,
    }
    rate = rates.get(precision)
    if rate is None:
        able = ", ".join(name for name, one in rates.items() if one is not None)
        raise UnsupportedError(
            f"nothing can be projected for {device.title}: the graph computes in {precision}, the device in {able}",
            next_step=f"project an artifact in {able.replace(', ', ' or ')}, or name another device",
        )
    return rate * 1e12


def project(work: GraphWork, device: Device, peak: Peak, efficiency: Efficiency | None = None) -> Projection:
    """Return what a graph would take in one mode of a device.

    Args:
        work: of the graph at a batch size.
        peak: one of the device's.
        efficiency: by default the fitted one.

    Raises:
        UnsupportedError: the device has no arithmetic for one of the graph's precisions.
    """
    efficiency = fitted().efficiency if efficiency is None else efficiency
    rates = {precision: peak_flops(device, peak, precision) for precision in work.macs()}
    reached = {one: rate * share_of_peak(device, peak, one, efficiency) for one, rate in rates.items()}
    bandwidth = peak.bandwidth_gb_s * 1e9
    kernels = tuple(
        _kernel(one, reached, bandwidth * efficiency.bandwidth, efficiency.launch_us) for one in work.kernels
    )
    shares: dict[Bound, float] = {
        bound: sum(one.ms for one in kernels if one.bound == bound) for bound in ("launch", "memory", "compute")
    }
    return Projection(
        device=device.name,
        mode=peak.mode,
        batch=work.batch,
        total_ms=sum(one.ms for one in kernels),
        least_ms=_least_ms(work, rates, bandwidth),
        launch_ms=shares["launch"],
        memory_ms=shares["memory"],
        compute_ms=shares["compute"],
        bound=max(shares, key=lambda bound: shares[bound]),
        kernels=kernels,
    )


def share_of_peak(device: Device, peak: Peak, precision: str, efficiency: Efficiency) -> float:
    """Return the efficiency of the cores that compute in a precision: plain ones below compute capability 7.0, and in
    fp32 where there is no TF32."""
    old = version_key(device.compute_capability) < version_key(_TENSOR_CORES_CAPABILITY)
    plain = old or (precision == "fp32" and peak.tf32_tflops is None)
    return efficiency.plain_cores if plain else efficiency.tensor_cores


def _kernel(work: KernelWork, rates: Mapping[str, float], bandwidth: float, launch_us: float) -> ProjectedKernel:
    compute_ms = 1e3 * _seconds(work.macs, rates)
    memory_ms = 1e3 * (work.bytes_read + work.bytes_written) / bandwidth
    launch_ms = work.launches * launch_us / _US_PER_MS
    parts: dict[Bound, float] = {"launch": launch_ms, "memory": memory_ms, "compute": compute_ms}
    return ProjectedKernel(
        name=work.name,
        operators=work.operators,
        macs=work.macs,
        bytes_read=work.bytes_read,
        bytes_written=work.bytes_written,
        launches=work.launches,
        ms=launch_ms + max(memory_ms, compute_ms),
        bound=max(parts, key=lambda bound: parts[bound]),
    )


def _seconds(macs: Mapping[str, int], rates: Mapping[str, float]) -> float:
    return sum(2 * count / rates[precision] for precision, count in macs.items())


def _least_ms(work: GraphWork, rates: Mapping[str, float], bandwidth: float) -> float:
    compute = _seconds(work.macs(), rates)
    return 1e3 * max(compute, (work.least_bytes - CACHE_BYTES) / bandwidth, 0.0)
