"""What an artifact computes, counted: records of the core, filled by `tsexport.quantize.coverage` and `.kernels`."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Coverage:
    """What an artifact computes for one sample, in the graph that its runtime makes of it.

    `macs` are multiply-accumulates, `int8_macs` those of 8-bit integers.  `operators` are the runtime's, `conversions`
    those of them that only change how numbers are stored.  `weight_bytes` are constants, `activation_bytes` all that
    operators read and write otherwise.  `unknown_macs` are those that the runtime does not show the arithmetic of, for
    the reason `unknown`; they are none of `int8_macs`, and may be integers all the same.
    """

    macs: int
    int8_macs: int
    operators: int
    conversions: int
    weight_bytes: int
    activation_bytes: int
    unknown_macs: int = 0
    unknown: str = ""

    @property
    def int8_share(self) -> float | None:
        """The share of multiply-accumulates in 8-bit integers, 0 to 1; None where it is not known."""
        if self.unknown_macs:
            return None
        return self.int8_macs / self.macs if self.macs else 0.0

    @property
    def int8_text(self) -> str:
        """The share as a person reads it: "32%", or its bounds where it is not known."""
        if self.int8_share is not None:
            return f"{self.int8_share:.0%}"
        least, most = self.int8_macs / self.macs, (self.int8_macs + self.unknown_macs) / self.macs
        return f"not known, {least:.0%} to {most:.0%}"

    @property
    def macs_per_byte(self) -> float:
        """Arithmetic intensity: multiply-accumulates for each byte that is read or written once."""
        return self.macs / max(self.weight_bytes + self.activation_bytes, 1)


@dataclass(frozen=True)
class KernelWork:
    """What one kernel of an engine does for one call: nodes of a graph that are fused.

    `macs` are multiply-accumulates by the precision that they are computed in.  `launches` is how many times a kernel
    is started, more than 1 where a recurrence takes its steps one after another.
    """

    name: str
    operators: tuple[str, ...]
    macs: Mapping[str, int]
    bytes_read: int
    bytes_written: int
    launches: int = 1


@dataclass(frozen=True)
class GraphWork:
    """What a graph does for one call at a batch size, kernel by kernel.

    `least_bytes` are every weight once, the inputs and the outputs: what any fusion has to move.  `unknown` names the
    nodes whose shapes are not known; they count as nothing.
    """

    batch: int
    kernels: tuple[KernelWork, ...]
    least_bytes: int
    unknown: tuple[str, ...] = ()

    def macs(self) -> dict[str, int]:
        """Return the multiply-accumulates of all kernels by precision."""
        found: dict[str, int] = {}
        for kernel in self.kernels:
            for precision, count in kernel.macs.items():
                found[precision] = found.get(precision, 0) + count
        return found
