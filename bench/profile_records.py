"""Where the time of one call goes, node by node, from and to `measurements/profiles/` of a bundle.

A profile explains and judges nothing: the runtime times each node and so takes longer, by the overhead that the record
holds.  Its times are therefore read as shares of the nodes' sum; how long a call takes is what was measured without.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tsexport.bench.fingerprint import Machine
from tsexport.codec import decode_versioned, encode, read_text, write_whole
from tsexport.types import Precision

SCHEMA_VERSION = 1
PROFILES = "profiles"
"""The folder within `measurements/`, so that no reader takes times under a profiler for latencies."""
_DIGEST = 8
TOP_NODES = 30
"""How many nodes a record names; the rest are counted."""


@dataclass(frozen=True)
class NodeTime:
    """One node of the graph that the runtime made: `mean_ms` is its own time in one call of the model.

    `operator` and `kernel` are the runtime's words, "Gemm" and "CPUExecutionProvider", or "FullyConnected" and
    "brgemm_avx512_I8"; `kernel` is "" where the runtime says none.  A node within a loop counts with all its rounds,
    and the loop without what runs within it.
    """

    name: str
    operator: str
    kernel: str
    mean_ms: float


@dataclass(frozen=True)
class OperatorTime:
    """All nodes of one kind of operator: how many they are, and their time in one call of the model."""

    operator: str
    nodes: int
    mean_ms: float


@dataclass(frozen=True)
class ProfileRecord:
    """The profile of one artifact on one runtime, at one batch size.

    method: whose clock it is, and what it cannot tell.
    calls: how many calls the means are over, after warm-up.
    profiled_ms, plain_ms: the median call under the profiler, and in the same process without.
    operators: every kind of operator, the longest first; their times add up to `nodes_ms`.
    nodes: the TOP_NODES nodes that take longest, longest first; () where the runtime names operators alone.
    rest_nodes, rest_ms: the nodes that are not named, and their time together.
    reason: why there is no profile, "" where there is one.
    """

    machine: Machine
    artifact: str
    runtime: str
    precision: Precision
    batch: int
    threads: int
    method: str = ""
    calls: int = 0
    profiled_ms: float = 0.0
    plain_ms: float = 0.0
    operators: tuple[OperatorTime, ...] = ()
    nodes: tuple[NodeTime, ...] = ()
    rest_nodes: int = 0
    rest_ms: float = 0.0
    reason: str = ""
    kind: Literal["profiled"] = "profiled"
    schema_version: int = SCHEMA_VERSION

    @property
    def nodes_ms(self) -> float:
        """The sum over all nodes: what shares are of."""
        return sum(one.mean_ms for one in self.operators)

    @property
    def overhead(self) -> float:
        """How much longer a call took under the profiler, as a fraction; below 0 where noise is larger."""
        return self.profiled_ms / self.plain_ms - 1 if self.plain_ms else 0.0


def by_operator(nodes: Sequence[NodeTime]) -> tuple[OperatorTime, ...]:
    """Return the time of each kind of operator, the longest first."""
    kinds: dict[str, list[float]] = {}
    for node in nodes:
        kinds.setdefault(node.operator, []).append(node.mean_ms)
    found = [OperatorTime(name, len(times), sum(times)) for name, times in kinds.items()]
    return tuple(sorted(found, key=lambda one: (-one.mean_ms, one.operator)))


def longest(nodes: Sequence[NodeTime], count: int = TOP_NODES) -> tuple[tuple[NodeTime, ...], int, float]:
    """Return the nodes that take longest, how many are left, and the time of those."""
    ordered = sorted(nodes, key=lambda one: (-one.mean_ms, one.name))
    rest = ordered[count:]
    return tuple(ordered[:count]), len(rest), sum(one.mean_ms for one in rest)


def profile_name(record: ProfileRecord, *, headline: bool = True) -> str:
    """Return the name of a record's file: of the headline that of its machine alone, of others with a digest behind.

    Args:
        headline: it is of the selected artifact on its runtime at batch 1, which a build profiles.
    """
    machine = record.machine.machine_id
    if headline:
        return f"{machine}.json"
    # What an artifact is called may be no file name.
    of = hashlib.sha256("\0".join((record.artifact, record.runtime, str(record.batch))).encode()).hexdigest()
    return f"{machine}-{of[:_DIGEST]}.json"


def write_profile(record: ProfileRecord, measurements: Path, *, headline: bool = True) -> Path:
    """Write a record into `profiles/` of a bundle's `measurements/`, whole or not at all; return its path."""
    return write_whole(measurements / PROFILES / profile_name(record, headline=headline), encode(record))


def read_profile(path: Path) -> ProfileRecord:
    """Return the record of a file.

    Raises:
        BundleError: it cannot be read, is of another schema version, or holds something else.
    """
    again = "build the bundle again, or use the tsexport version that wrote it"
    return decode_versioned(ProfileRecord, read_text(path), version=SCHEMA_VERSION, what=path.name, next_step=again)
