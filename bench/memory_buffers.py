"""Which buffer each tensor gets from ONNX Runtime's planner, and what its arena is then asked for.

    view        the buffer of what it looks at
    in place    activations (Relu, Sigmoid, ...) write into their input where nobody reads it later, convolutions into
                what they add; sums and products alone never do
    reused      a buffer of the same shape that nobody needs any more, the latest first: it is not given back in between
    new         else

Only shapes that are known when the model is loaded count as the same: where the batch is but a symbol, whatever was
reshaped by it is not.  Steps are computed from the last ones back, what was made last first.

Source: onnxruntime/core/framework/allocation_planner.cc and onnxruntime/core/graph/graph_viewer.cc of
https://github.com/microsoft/onnxruntime.
"""

from collections.abc import Iterator
from dataclasses import replace

from tsexport.bench.memory_fusing import SUMS
from tsexport.bench.memory_plan import Event, MemoryGraph, Size, Step

IN_PLACE = frozenset(
    {
        *("Relu", "Sigmoid", "Tanh", "Elu", "LeakyRelu", "Selu", "Softplus", "Softsign", "HardSigmoid"),
        *("ThresholdedRelu", "Clip", SUMS),
    }
)
_OUTSIDE = 1 << 30
"""Readers of what the caller holds: more than any graph has."""


def reordered(graph: MemoryGraph) -> MemoryGraph:
    """Return the graph with its steps in the order in which ONNX Runtime computes them."""
    steps = graph.steps
    maker = {name: at for at, step in enumerate(steps) for name in step.makes}
    makers = [sorted({maker[name] for name in step.reads if name in maker}) for step in steps]
    read = {one for found in makers for one in found}
    order: list[int] = []
    seen: set[int] = set()
    stack = [(at, False) for at in range(len(steps)) if at not in read]
    while stack:
        at, done = stack.pop()
        if done:
            order.append(at)
        elif at not in seen:
            seen.add(at)
            stack.append((at, True))
            stack += [(one, False) for one in makers[at] if one not in seen]
    return replace(graph, steps=tuple(steps[at] for at in order))


def buffer_events(graph: MemoryGraph, batch: int, *, fixed: bool) -> Iterator[Event]:
    """Yield what the arena is asked for and given back in one run, in order.

    Args:
        fixed: whether the batch was known when the model was loaded.
    """
    plan = _Plan(graph, batch, fixed)
    for at, step in enumerate(graph.steps):
        plan.place(at, step)
    return plan.events()


class _Plan:
    def __init__(self, graph: MemoryGraph, batch: int, fixed: bool) -> None:
        self._graph, self._batch = graph, batch
        self._known = graph.sizes.keys() if fixed else graph.symbolic
        self._buffer = {name: name for name in graph.inputs}
        self._readers = dict.fromkeys(graph.inputs, _OUTSIDE)
        self._reads: dict[str, int] = {}
        for step in graph.steps:
            for name in step.reads:
                self._reads[name] = self._reads.get(name, 0) + 1
        self._free: list[str] = []
        self._last: dict[str, int] = {}
        """For each buffer of the arena, the last step that touches it."""

    def place(self, at: int, step: Step) -> None:
        """Give every tensor that a step makes its buffer, and free what it read for the last time."""
        for name in step.makes:
            home = self._home(name, step)
            self._buffer[name] = home
            self._readers[home] = self._readers.get(home, 0) + self._reads.get(name, 0)
            if name in self._graph.outputs:
                self._readers[home] += _OUTSIDE
            if home not in self._graph.inputs:
                self._last[home] = at
        for name in step.reads:
            home = self._buffer[name]
            self._readers[home] -= 1
            if home in self._last:
                self._last[home] = at
                self._release(home)
        for name in step.makes:
            if name not in self._reads:
                self._release(self._buffer[name])

    def _release(self, home: str) -> None:
        if self._readers[home] == 0 and home not in self._graph.inputs:
            self._free.insert(0, home)

    def _home(self, name: str, step: Step) -> str:
        if step.kind == "view" and step.reads:
            return self._buffer[step.reads[0]]
        if name in self._graph.outputs:
            return name
        if step.operator in IN_PLACE and step.reads:
            home = self._buffer[step.reads[0]]
            if self._readers[home] == 1 and self._alike(step.reads[0], name):
                return home
        for at, free in enumerate(self._free):
            if self._alike(free, name):
                return self._free.pop(at)
        return name

    def _alike(self, one: str, other: str) -> bool:
        sizes = self._graph.sizes
        return one in self._known and other in self._known and sizes.get(one) == sizes.get(other)

    def events(self) -> Iterator[Event]:
        """Yield takes and gives, step by step."""
        ends: dict[int, list[str]] = {}
        for home, at in self._last.items():
            ends.setdefault(at, []).append(home)
        for at, step in enumerate(self._graph.steps):
            for name in step.makes:
                if self._buffer[name] == name:
                    yield self._event(True, name)
            scratch = step.scratch.at(self._batch)
            if scratch:
                yield Event(True, f"scratch of {step.name}", scratch, False)
                yield Event(False, f"scratch of {step.name}", scratch, False)
            yield from (self._event(False, home) for home in ends.get(at, ()) if self._readers[home] < _OUTSIDE // 2)

    def _event(self, take: bool, name: str) -> Event:
        planned = self._readers[name] < _OUTSIDE // 2
        return Event(take, name, self._graph.sizes.get(name, Size(0)).at(self._batch), planned)
