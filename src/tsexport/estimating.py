"""`tsexport estimate`: how much memory a model takes on a target, and the largest batch that fits, before it is built.

The graph is the one that a build would export (`exporters.sketch`), read at two batch sizes, so that every batch is
arithmetic (`bench.memory_model` has the formulas and their limits).  Nothing is run on a runtime and nothing is kept.

    fits        idle session + estimate at the batch <= memory of the target
    cpu4        the published container's 12 GiB; what this machine grants this process is shown beside it
    GPU         each memory size of the device; a Jetson shares it with the system, which is assumed to keep 1.5 GB

Memory grows with the batch, so the largest batch is found by doubling and halving.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tsexport.bench.memory_forms import ModelGraphs
from tsexport.bench.memory_model import (
    HALF_WIDTH,
    IDLE_BYTES,
    RULES,
    MemoryParts,
    engine_parts,
    estimate_parts,
    estimated_bytes,
    estimated_range,
    weights_scale,
)
from tsexport.bench.published_memory import PublishedMemory, published_memory
from tsexport.bench.tables import load_tables
from tsexport.devices import Device, list_devices
from tsexport.errors import UsageError
from tsexport.extras import require
from tsexport.options import read_config
from tsexport.targets import HOST, Target, parse_target
from tsexport.types import TensorSpec

if TYPE_CHECKING:
    from tsexport.models.sources import OpenedSource, SourceIdentity

GB = 1_000_000_000
GIB = 1 << 30
SYSTEM_KEEPS_BYTES = 1_500_000_000
"""Assumed: what the system of a Jetson keeps of the memory that it shares with the GPU."""
LARGEST_ASKED = 1 << 24
"""A batch beyond this is given as this: no model of the registry has a use for more."""
ENGINE = "tensorrt"
_CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class MemoryLimit:
    """Memory that a process may take; `assumed` says what it rests on, where it is no plain fact."""

    name: str
    limit_bytes: int
    assumed: str = ""


@dataclass(frozen=True)
class LargestBatch:
    """The largest batch that fits a limit; 0 where not even one sample does, None where more than 2^24 would."""

    limit: MemoryLimit
    batch: int | None


@dataclass(frozen=True)
class RuntimeMemory:
    """One runtime at the batch: `parts` above an idle session, `process_bytes` with that session.

    range_bytes: the least and the most above an idle session where the C library's luck decides; None elsewhere.
    """

    runtime: str
    parts: MemoryParts
    total_bytes: int
    process_bytes: int
    range_bytes: tuple[int, int] | None
    largest: tuple[LargestBatch, ...]


@dataclass(frozen=True)
class PublishedFigure:
    """A published figure at this model's size and batch, and how many times it misses ours by."""

    config: str
    claimed_mb: float
    source: str
    misses_by: Mapping[str, float]


@dataclass(frozen=True)
class MemoryEstimate:
    """What `tsexport estimate` says.  All figures are estimated; `notes` say on what they rest."""

    model: str
    target: str
    device: str
    precision: str
    batch: int
    parameters: int
    runtimes: tuple[RuntimeMemory, ...]
    published: tuple[PublishedFigure, ...]
    notes: tuple[str, ...]
    kind: Literal["estimated"] = "estimated"


@dataclass(frozen=True)
class EstimateOptions:
    """What is estimated: MODEL and its settings as `tsexport build` takes them."""

    model: str
    target: str
    batch: int = 1
    device: str = HOST
    checkpoint: Path | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    component: str | None = None
    inputs: tuple[TensorSpec, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= LARGEST_ASKED:
            raise UsageError(f"batch is {self.batch}; allowed are whole numbers from 1 to {LARGEST_ASKED}")


def options_of(
    model: str,
    target: str,
    batch: int,
    config: Path | None,
    *,
    settings: Mapping[str, object],
    inputs: tuple[TensorSpec, ...],
    over: Mapping[str, Any],
) -> EstimateOptions:
    """Return the options from a --config file's values and those given, which win; settings are merged key by key.

    Args:
        over: device, checkpoint, component and seed; None where they are not given.

    Raises:
        ConfigurationError: the file cannot be read, or has unknown keys.
    """
    base = read_config(config) if config is not None else {}
    taken = {key: base.get(key) if value is None else value for key, value in over.items()}
    return EstimateOptions(
        model=model,
        target=target,
        batch=batch,
        device=taken["device"] or HOST,
        checkpoint=taken["checkpoint"],
        settings={**base.get("settings", {}), **settings},
        component=taken["component"],
        inputs=inputs or base.get("inputs", ()),
        seed=taken["seed"] or 0,
    )


def estimate_memory(options: EstimateOptions) -> MemoryEstimate:
    """Return the memory of a model on a target, and the largest batch that fits.

    Raises:
        UsageError: unknown names, files that are not there, or a batch below 1.
        UnsupportedError: the device has no arithmetic of the target's precision.
        ExportError: the model cannot be exported to ONNX.
        MissingDependencyError: the packages of the extra `build` are not all here.
    """
    target = parse_target(options.target, options.device)
    require("build", "tsexport estimate")
    from tsexport.models.sources import identify, open_source

    identity = identify(
        options.model,
        checkpoint=options.checkpoint,
        settings=options.settings,
        seed=options.seed,
        component=options.component,
    )
    source = open_source(identity, options.inputs)
    graphs = read_graphs(source)
    scale = weights_scale(graphs, target.precision, _fp32_bytes(source))
    rows = _rows(graphs, target, options.batch, scale)
    return MemoryEstimate(
        model=source.spec.name,
        target=target.name,
        device=target.device_name,
        precision=target.precision,
        batch=options.batch,
        parameters=source.spec.parameters,
        runtimes=rows,
        published=_published(identity, options.batch, rows),
        notes=_notes(graphs, target),
    )


def read_graphs(source: "OpenedSource") -> ModelGraphs:
    """Return the graphs of an opened model, as each runtime computes them."""
    from tsexport.exporters.sketch import sketch_file, sketch_module
    from tsexport.quantize.memory_eager import record_eager
    from tsexport.quantize.memory_graph import memory_graph, model_graphs

    if source.module is not None:
        graphs = model_graphs(memory_graph(sketch_module(source.module, source.spec)))
        return replace(graphs, eager=record_eager(source.module, source.spec))
    assert source.onnx_path is not None  # the only kind without a module
    return model_graphs(memory_graph(sketch_file(source.onnx_path, source.spec)))


def largest_batch(bytes_at: Callable[[int], int], limit_bytes: int) -> int | None:
    """Return the largest batch whose bytes are within the limit, 0 where none is, None beyond `LARGEST_ASKED`.

    Args:
        bytes_at: never falls as the batch grows.
    """
    if bytes_at(1) > limit_bytes:
        return 0
    low = 1
    while bytes_at(2 * low) <= limit_bytes:
        low *= 2
        if low >= LARGEST_ASKED:
            return None
    high = 2 * low
    while high - low > 1:
        middle = (low + high) // 2
        if bytes_at(middle) <= limit_bytes:
            low = middle
        else:
            high = middle
    return low


def _rows(graphs: ModelGraphs, target: Target, batch: int, scale: float) -> tuple[RuntimeMemory, ...]:
    limits = limits_of(target)
    if target.instruction_set == "gpu":
        floats = 1.0 if target.precision == "fp32" else HALF_WIDTH

        def engine(n: int) -> MemoryParts:
            return engine_parts(graphs, n, weights_scale=scale, floats_scale=floats)

        return (_row(ENGINE, 0, limits, engine(batch), None, lambda n: engine(n).total_bytes),)
    return tuple(
        _row(
            name,
            IDLE_BYTES[name],
            limits,
            estimate_parts(graphs, name, batch, weights_scale=scale),
            estimated_range(graphs, name, batch, weights_scale=scale),
            partial(estimated_bytes, graphs, name, weights_scale=scale),
        )
        for name in RULES
    )


def _row(
    runtime: str,
    idle: int,
    limits: Sequence[MemoryLimit],
    parts: MemoryParts,
    span: tuple[int, int] | None,
    total_at: Callable[[int], int],
) -> RuntimeMemory:
    monotone = _never_falling(lambda n: idle + total_at(n))
    return RuntimeMemory(
        runtime=runtime,
        parts=parts,
        total_bytes=parts.total_bytes,
        process_bytes=idle + parts.total_bytes,
        range_bytes=span,
        largest=tuple(LargestBatch(one, largest_batch(monotone, one.limit_bytes)) for one in limits),
    )


def _never_falling(bytes_at: Callable[[int], int]) -> Callable[[int], int]:
    """Return the bytes as a function that never falls: regions that double may fit one batch better than a smaller."""
    known: dict[int, int] = {}

    def bounded(batch: int) -> int:
        known.setdefault(batch, bytes_at(batch))
        return max(value for size, value in known.items() if size <= batch)

    return bounded


def limits_of(target: Target) -> tuple[MemoryLimit, ...]:
    """Return the memory that a target has: of a CPU the published container's and what there is here."""
    if target.instruction_set == "gpu":
        device = next(one for one in list_devices() if one.name == target.device)
        return tuple(_device_limit(device, size) for size in device.memory_gb)
    container = next(one.container for one in load_tables().memory if one.container is not None)
    published = MemoryLimit(f"container of {container.memory_gib:g} GiB", round(container.memory_gib * GIB))
    return published, MemoryLimit("this machine", memory_here())


def _device_limit(device: Device, size_gb: float) -> MemoryLimit:
    name = f"{device.title}, {size_gb:g} GB"
    if device.jetpack:
        keeps = f"the system keeps {SYSTEM_KEEPS_BYTES / GB:g} GB of the memory that it shares with the GPU"
        return MemoryLimit(name, round(size_gb * GB) - SYSTEM_KEEPS_BYTES, keeps)
    return MemoryLimit(name, round(size_gb * GB))


def memory_here() -> int:
    """Return what this machine has, or its control group grants, whichever is less."""
    import psutil

    found = int(psutil.virtual_memory().total)
    for path in _CGROUP:
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            found = min(found, int(text))
    return found


def _fp32_bytes(source: "OpenedSource") -> int:
    """Return the bytes of layers that stay in fp32 where the rest is fp16 or bf16."""
    if source.module is None:
        return 0
    layers = source.spec.fp32_layers
    return sum(
        parameter.numel() * 4
        for name, parameter in source.module.named_parameters()
        if any(name == layer or name.startswith(f"{layer}.") for layer in layers)
    )


def _published(identity: "SourceIdentity", batch: int, rows: Sequence[RuntimeMemory]) -> tuple[PublishedFigure, ...]:
    return tuple(
        PublishedFigure(
            config=one.row.config,
            claimed_mb=one.row.claimed_mb,
            source=one.row.source,
            misses_by={row.runtime: round(one.misses_by(row.total_bytes), 1) for row in rows},
        )
        for one in published_memory()
        if one.batch == batch and _is_meant(one, identity)
    )


def _is_meant(one: PublishedMemory, identity: "SourceIdentity") -> bool:
    from tsexport.models.definition import sizes_of

    config = identity.config
    if config is None or identity.component is not None or one.model != identity.name or one.size is None:
        return False
    return all(getattr(config, key) == value for key, value in sizes_of(type(config))[one.size].items())


def _notes(graphs: ModelGraphs, target: Target) -> tuple[str, ...]:
    if target.instruction_set == "gpu":
        notes = [
            "estimated and never measured: an engine's weights once, activations by liveness, attention without its "
            "scores, and 0.5 GB assumed for the CUDA context and kernels"
        ]
        notes += sorted({limit.assumed for limit in limits_of(target) if limit.assumed})
    else:
        notes = [
            "above an idle session of the same runtime; the factors were measured on x86-64 with 2 "
            "threads, and bench/results/estimate-accuracy.md says how far they are off"
        ]
        if target.precision != "fp32":
            notes.append(
                f"activations are counted in fp32; no {target.precision} artifact was measured for the factors"
            )
    if graphs.plain.unknown:
        names = ", ".join(graphs.plain.unknown[:3])
        notes.append(f"{len(graphs.plain.unknown)} tensor(s) of unknown shape count as nothing: {names}")
    return tuple(notes)
