"""What a graph holds in memory while it runs, step by step: the record that memory estimates are made of.

Sizes are affine in the batch, `fixed + per_sample * batch` bytes, so that one reading of a graph serves every batch
size.  `trace` gives, in the order of the steps, what is taken and what is given back:

    take    a step's scratch and outputs, before it runs
    give    its scratch, and every tensor that no later step reads, after it has run

A view takes nothing and keeps what it looks at.  With `in_place` a pointwise step writes into an input of the same
size that nobody reads later.  The graph's inputs are the caller's and never counted; its outputs stay to the end.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["step", "pointwise", "view"]


@dataclass(frozen=True)
class Size:
    """Bytes that grow with the batch."""

    fixed: float
    per_sample: float = 0.0

    def at(self, batch: int) -> int:
        """Return the bytes at a batch size, never below 0."""
        return max(0, round(self.fixed + self.per_sample * batch))


@dataclass(frozen=True)
class Step:
    """One operator: the activations that it reads and makes, the scratch that it needs meanwhile, and its constants."""

    name: str
    operator: str
    kind: Kind
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    scratch: Size = Size(0)
    constants: tuple[str, ...] = ()


@dataclass(frozen=True)
class Weights:
    """Bytes of a graph's constants: those that convolutions read, and all others.

    `product_bytes` of both are matrices of products, convolutions and recurrences, which an int8 artifact keeps in 8
    bits; what is left of them stays in floating point.
    """

    convolution_bytes: int
    other_bytes: int
    product_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.convolution_bytes + self.other_bytes


@dataclass(frozen=True)
class MemoryGraph:
    """A graph as memory sees it.

    sizes: of every activation, inputs and outputs among them.
    computes_shapes: a runtime that fixes the batch at load makes a model of its own for each batch size.
    constants: bytes of each constant that a step reads.
    matrices: the constants of two dimensions.
    symbolic: activations whose shapes are known while the batch is but a symbol.
    unknown: activations whose shapes are not known; they count as nothing.
    """

    steps: tuple[Step, ...]
    sizes: Mapping[str, Size]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Weights
    computes_shapes: bool
    unknown: tuple[str, ...] = ()
    constants: Mapping[str, int] = field(default_factory=dict)
    symbolic: frozenset[str] = frozenset()
    matrices: frozenset[str] = frozenset()

    def bytes_of(self, names: Sequence[str], batch: int) -> int:
        """Return the bytes of some activations at a batch size."""
        return sum(self.sizes[name].at(batch) for name in names if name in self.sizes)


@dataclass(frozen=True)
class EagerEvent:
    """A tensor that torch takes (`take`) or gives back under a key, the operator that makes it, the bytes of the
    activations that it reads, and those of each weight matrix."""

    take: bool
    key: str
    size: Size
    operator: str
    reads: Size
    weights: tuple[int, ...]


@dataclass(frozen=True)
class Event:
    """Bytes taken (`take`) or given back under a key; `planned` are activations within the graph, the rest is scratch
    or the graph's outputs."""

    take: bool
    key: str
    size: int
    planned: bool


ScratchOf = Callable[[MemoryGraph, Step, int], Sequence[Sequence[int]]]
"""The blocks of scratch that a runtime takes for a step at a batch size, in bytes, group after group: those of a group
are held together, and given back before the next."""


def stated_scratch(graph: MemoryGraph, step: Step, batch: int) -> Sequence[Sequence[int]]:
    """Return the scratch that the step itself states, as one block."""
    size = step.scratch.at(batch)
    return ((size,),) if size else ()


def trace(
    graph: MemoryGraph,
    batch: int,
    *,
    in_place: bool | frozenset[str],
    scratch_of: ScratchOf = stated_scratch,
) -> Iterator[Event]:
    """Yield what is taken and given back, in order.

    Args:
        in_place: whether pointwise steps overwrite; a set of activations limits that to them.
    """
    return _Trace(graph, batch, in_place, scratch_of).events()


def live_peak(events: Sequence[Event]) -> int:
    """Return the most bytes that are held at once."""
    held = peak = 0
    for event in events:
        held += event.size if event.take else -event.size
        peak = max(peak, held)
    return peak


class _Trace:
    def __init__(self, graph: MemoryGraph, batch: int, in_place: bool | frozenset[str], scratch_of: ScratchOf) -> None:
        self._graph, self._batch, self._in_place, self._scratch_of = graph, batch, in_place, scratch_of
        self._home = {name: name for name in graph.inputs}
        """The buffer that holds a tensor: its own, or that of what it looks at or overwrites."""
        self._readers: dict[str, int] = {}
        self._given = set(graph.inputs)

    def events(self) -> Iterator[Event]:
        steps = self._graph.steps
        self._resolve(steps)
        for step in steps:
            for name in step.reads:
                self._readers[self._home[name]] = self._readers.get(self._home[name], 0) + 1
        kept = {self._home[name] for name in self._graph.outputs if name in self._home}
        for step in steps:
            own = [name for name in step.makes if self._home[name] == name]
            for name in own:
                yield self._event(True, name, kept)
            for group in self._scratch_of(self._graph, step, self._batch):
                scratch = [(f"scratch {at} of {step.name}", size) for at, size in enumerate(group)]
                yield from (Event(True, key, size, False) for key, size in scratch)
                yield from (Event(False, key, size, False) for key, size in reversed(scratch))
            for name in step.reads:
                home = self._home[name]
                self._readers[home] -= 1
                if not self._readers[home] and home not in kept and home not in self._given:
                    yield self._event(False, home, kept)
            for name in own:
                if name not in self._readers and name not in kept:
                    yield self._event(False, name, kept)  # nobody reads it

    def _event(self, take: bool, name: str, kept: set[str]) -> Event:
        return Event(take, name, self._graph.sizes.get(name, Size(0)).at(self._batch), name not in kept)

    def _resolve(self, steps: Sequence[Step]) -> None:
        """Find every tensor's buffer: views share, and pointwise steps overwrite what is read for the last time."""
        last: dict[str, int] = {}
        for at, step in enumerate(steps):
            for name in step.reads:
                last[self._home.setdefault(name, name)] = at
            for name in step.makes:
                self._home[name] = self._home[step.reads[0]] if step.kind == "view" and step.reads else name
        if self._in_place is False:
            return
        self._overwrite(steps)

    def _overwrite(self, steps: Sequence[Step]) -> None:
        uses: dict[str, int] = {}
        views = dict(self._home)
        for step in steps:
            for name in step.reads:
                uses[views[name]] = uses.get(views[name], 0) + 1
        outputs = {views[name] for name in self._graph.outputs if name in views}
        merged: dict[str, str] = {}
        for step in steps:
            for name in step.reads:
                uses[views[name]] -= 1
            if step.kind != "pointwise" or len(step.makes) != 1:
                continue
            made = step.makes[0]
            for name in step.reads:
                home = views[name]
                free = not uses[home] and home not in self._given and home not in outputs and made not in outputs
                if free and self._same_size(home, made):
                    merged[made] = merged.get(home, home)
                    break
        self._home = {name: merged.get(home, home) for name, home in views.items()}

    def _same_size(self, one: str, other: str) -> bool:
        sizes = self._graph.sizes
        if not isinstance(self._in_place, bool) and not {one, other} <= self._in_place:
            return False
        return one in sizes and other in sizes and sizes[one].at(self._batch) == sizes[other].at(self._batch)
