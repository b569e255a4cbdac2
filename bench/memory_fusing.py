"""What runtimes fuse, as far as memory sees it: a step that joins the one before it leaves no tensor between them.

    bias        Add of a constant after a product with a constant matrix: Gemm in ONNX Runtime, addmm in torch
    gelu        x / sqrt(2), Erf, + 1, * x, / 2: one step
    skip        Add before LayerNormalization: one step
    activation  after a product with its bias, or a convolution
    sum         Add of another activation after a convolution, which writes into that one

Sources: the graph transformers MatMulAddFusion, GeluFusion, SkipLayerNormFusion, GemmActivationFusion,
ConvActivationFusion and NchwcTransformer of https://github.com/microsoft/onnxruntime (onnxruntime/core/optimizer).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tsexport.bench.memory_plan import MemoryGraph, Step

_PRODUCTS = frozenset({"MatMul", "Gemm"})
SUMS = "ConvSum"
"""A convolution that writes its sum with another activation into that one, its first read."""
_ACTIVATIONS = {
    "Gemm": frozenset({"Relu", "Sigmoid", "Tanh", "Elu", "LeakyRelu", "Selu", "Softplus", "Softsign", "HardSigmoid"}),
    "Conv": frozenset({"Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSigmoid"}),
    SUMS: frozenset({"Relu", "Sigmoid", "Tanh"}),
}
_GELU_STEPS = frozenset({"Div", "Mul", "Erf", "Add"})


@dataclass(frozen=True)
class _Links:
    maker: Mapping[str, Step]
    readers: Mapping[str, tuple[Step, ...]]
    outputs: frozenset[str]

    @classmethod
    def of(cls, graph: MemoryGraph) -> "_Links":
        readers: dict[str, tuple[Step, ...]] = {}
        for step in graph.steps:
            for name in dict.fromkeys(step.reads):
                readers[name] = (*readers.get(name, ()), step)
        maker = {name: step for step in graph.steps for name in step.makes}
        return cls(maker, readers, frozenset(graph.outputs))

    def only_reader(self, step: Step) -> Step | None:
        """Return the one step that reads the one tensor of another, None where there are more or it is an output."""
        if len(step.makes) != 1 or step.makes[0] in self.outputs:
            return None
        found = self.readers.get(step.makes[0], ())
        return found[0] if len(found) == 1 else None


def fuse_bias(graph: MemoryGraph) -> MemoryGraph:
    """Return the graph where products add their bias themselves."""
    links = _Links.of(graph)

    def joins(step: Step) -> Step | None:
        reader = links.only_reader(step)
        if step.operator not in _PRODUCTS or not set(step.constants) & graph.matrices or reader is None:
            return None
        return reader if reader.operator == "Add" and len(reader.reads) == 1 else None

    return _joined(graph, joins)


def fuse_gelu(graph: MemoryGraph) -> MemoryGraph:
    """Return the graph where a GELU that is written out is one step."""
    links = _Links.of(graph)
    gone: set[str] = set()
    steps: dict[str, Step] = {}
    for step in graph.steps:
        if step.operator != "Erf":
            continue
        before = links.maker.get(step.reads[0])
        after = _chain(links, step)
        if before is None or before.operator not in _GELU_STEPS or len(after) < 3 or len(before.reads) != 1:
            continue
        gone |= {before.name, *(one.name for one in after[:-1])}
        steps[after[-1].name] = Step(after[-1].name, "Gelu", "step", before.reads, after[-1].makes)
    kept = tuple(steps.get(step.name, step) for step in graph.steps if step.name not in gone)
    return replace(graph, steps=kept)


def _chain(links: _Links, step: Step) -> list[Step]:
    """Return an Erf and the steps of a GELU after it: + 1, * x, / 2."""
    found = [step]
    while len(found) < 4:
        reader = links.only_reader(found[-1])
        if reader is None or reader.operator not in _GELU_STEPS:
            break
        found.append(reader)
    return found


def fuse_skip(graph: MemoryGraph) -> MemoryGraph:
    """Return the graph where a layer's normalization adds the residual itself."""
    links = _Links.of(graph)

    def joins(step: Step) -> Step | None:
        if step.operator != "Add" or len(step.reads) != 2 or step.makes[0] in links.outputs:
            return None
        readers = links.readers.get(step.makes[0], ())
        found = [one for one in readers if one.operator == "LayerNormalization"]
        return found[0] if len(found) == 1 == len(readers) else None

    return _joined(graph, joins)


def fuse_activation(graph: MemoryGraph) -> MemoryGraph:
    """Return the graph where products with a bias and convolutions compute the activation after them."""
    links = _Links.of(graph)

    def joins(step: Step) -> Step | None:
        reader = links.only_reader(step)
        fits = reader is not None and reader.operator in _ACTIVATIONS.get(step.operator, ())
        return reader if fits else None

    return _joined(graph, joins)


def fuse_sum(graph: MemoryGraph) -> MemoryGraph:
    """Return the graph where convolutions add another activation to theirs."""
    links = _Links.of(graph)

    def joins(step: Step) -> Step | None:
        reader = links.only_reader(step)
        fits = step.operator == "Conv" and reader is not None and reader.operator == "Add" and len(reader.reads) == 2
        return reader if fits else None

    return _joined(graph, joins)


def _fused(first: Step, then: Step) -> str:
    if first.operator in _PRODUCTS:
        return "Gemm"
    return SUMS if first.operator == "Conv" and then.operator == "Add" else first.operator


def _joined(graph: MemoryGraph, joins: Callable[[Step], Step | None]) -> MemoryGraph:
    """Return the graph where each step that joins another reads and makes what both did, without what is between."""
    into: dict[str, Step] = {}
    gone: set[str] = set()
    for step in graph.steps:
        other = joins(step)
        if other is not None and other.name not in into:
            into[other.name] = step
            gone.add(step.name)
    steps = []
    for step in graph.steps:
        if step.name in gone:
            continue
        first = into.get(step.name)
        if first is not None:
            reads = (*first.reads, *(name for name in step.reads if name not in first.makes))
            operator = step.operator if step.operator == "LayerNormalization" else _fused(first, step)
            reads = (*reads[len(first.reads) :], *first.reads) if operator == SUMS else reads
            constants = (*first.constants, *step.constants)
            step = Step(step.name, operator, "step", reads, step.makes, first.scratch, constants)
        steps.append(step)
    return replace(graph, steps=tuple(steps))
