"""An ONNX graph as memory sees it: activations with their sizes, views, scratch; nothing is run, no weight is read.

Shapes are inferred at two batch sizes, and every size is the straight line through both.  Constants, and what is
computed from constants and shapes alone, are no activations: runtimes fold them at load.

Scratch, bytes that a step needs only while it runs:

    LSTM, GRU       gates of all steps, T * batch * G * hidden * 4 for each direction, G = 4 and 3
    ConvTranspose   the columns before they are added up, n(weight) / inputs channels * positions of the input * 4
    Conv            nothing: convolutions are computed blocked, or in segments of a few hundred KB

Reorders: ONNX Runtime and OpenVINO compute 2-D convolutions with their channels in blocks (NCHWc), and copy a tensor
where it enters or leaves a chain of them.  `blocked` adds these copies as steps.
"""

import math
from dataclasses import replace

import onnx

from tsexport.bench.memory_forms import ModelGraphs
from tsexport.bench.memory_plan import Kind, MemoryGraph, Size, Step, Weights
from tsexport.quantize.fusing import POINTWISE, PRODUCTS, VIEWS, Wiring
from tsexport.quantize.kernels import inferred_at

BATCHES = (2, 3)
"""A batch of 1 is left out: what is broadcast over it looks like what is not."""
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_BLOCKED = frozenset({"Conv", "MaxPool", "AveragePool", "GlobalAveragePool"})
_STAYS_BLOCKED = frozenset({"Relu", "Sigmoid", "Tanh", "Clip", "BatchNormalization", "Add", "HardSigmoid", "Concat"})
_FLOAT_BYTES = 4

Shapes = dict[str, tuple[int, tuple[int, ...]]]
"""For every tensor whose shape is known, its element type's bytes and its shape."""


def memory_graph(model: onnx.ModelProto) -> MemoryGraph:
    """Return a graph as memory sees it.

    Args:
        model: not changed; weights may lie in another file, and need not exist.

    Raises:
        ExportError: its shapes contradict each other.
    """
    low, high = (inferred_at(model, batch) for batch in BATCHES)
    read = _Reader(low.graph, _shapes(low.graph), _shapes(high.graph), _fixes_batch(model)).graph()
    return replace(read, symbolic=_symbolic(inferred_at(model, None).graph))


def model_graphs(graph: MemoryGraph) -> ModelGraphs:
    """Return a graph in the forms that runtimes compute it in."""
    in_blocks = blocked(graph)
    return ModelGraphs(graph, in_blocks, fused_attention(graph), fused_attention(in_blocks))


def _fixes_batch(model: onnx.ModelProto) -> bool:
    return any(node.op_type in ("Shape", "Size") for node in model.graph.node)


def _shapes(graph: onnx.GraphProto) -> Shapes:
    found: Shapes = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        dims = tensor.shape.dim
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            found[value.name] = _width(tensor.elem_type), tuple(dim.dim_value for dim in dims)
    for one in graph.initializer:
        found[one.name] = _width(one.data_type), tuple(one.dims)
    return found


def _symbolic(graph: onnx.GraphProto) -> frozenset[str]:
    """Return the tensors whose shapes are numbers and the graph's own symbols."""
    own = {dim.dim_param for one in graph.input for dim in one.type.tensor_type.shape.dim if dim.dim_param}
    return frozenset(
        value.name
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.HasField("shape")
        and all(dim.HasField("dim_value") or dim.dim_param in own for dim in value.type.tensor_type.shape.dim)
    )


def _width(element_type: int) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(element_type).itemsize)


class _Reader:
    def __init__(self, graph: onnx.GraphProto, low: Shapes, high: Shapes, computes_shapes: bool) -> None:
        self._graph, self._low, self._high = graph, low, high
        self._computes_shapes = computes_shapes
        self._wiring = Wiring(graph)
        self._sizes: dict[str, Size] = {}
        self._constants: dict[str, int] = {}
        self._unknown: list[str] = []

    def graph(self) -> MemoryGraph:
        wiring = self._wiring
        inputs = [one.name for one in self._graph.input if one.name not in wiring.constants]
        for name in inputs:
            self._measure(name)
        steps = [self._step(at) for at in range(len(wiring.nodes)) if at not in wiring.folded]
        return MemoryGraph(
            steps=tuple(steps),
            sizes=self._sizes,
            inputs=tuple(inputs),
            outputs=tuple(one.name for one in self._graph.output),
            weights=self._weights(),
            computes_shapes=self._computes_shapes,
            unknown=tuple(self._unknown),
            constants=self._constants,
            matrices=frozenset(name for name in self._constants if len(self._low.get(name, (0, ()))[1]) == 2),
        )

    def _measure(self, name: str) -> None:
        if name not in self._low or name not in self._high:
            self._unknown.append(name)
            return
        self._sizes[name] = _line(*(width * math.prod(shape) for width, shape in (self._low[name], self._high[name])))

    def _step(self, at: int) -> Step:
        node = self._wiring.nodes[at]
        reads = tuple(name for name in node.input if name and not self._wiring.is_known(name))
        makes = tuple(name for name in node.output if name)
        for name in makes:
            self._measure(name)
        kind: Kind = (
            "view"
            if node.op_type in VIEWS and node.op_type != "DequantizeLinear" and reads
            else ("pointwise" if node.op_type in POINTWISE else "step")
        )
        constants = tuple(name for name in node.input if name and self._wiring.is_known(name))
        self._constants.update((name, self._constant_bytes(name)) for name in constants)
        return Step(node.name or makes[0], node.op_type, kind, reads, makes, self._scratch(node), constants)

    def _scratch(self, node: onnx.NodeProto) -> Size:
        values = [_scratch_bytes(node, shapes) for shapes in (self._low, self._high)]
        return _line(*values)

    def _weights(self) -> Weights:
        wiring = self._wiring
        read = {name for at, node in enumerate(wiring.nodes) for name in node.input if at not in wiring.folded}
        convolved = {
            wiring.source(name)
            for at, node in enumerate(wiring.nodes)
            if node.op_type in _CONVOLUTIONS and at not in wiring.folded
            for name in node.input[1:2]
        }
        multiplied = {
            name
            for at, node in enumerate(wiring.nodes)
            if node.op_type in PRODUCTS and at not in wiring.folded
            for name in node.input[:3]
        }
        sizes = {name: self._constant_bytes(name) for name in read if name and wiring.is_known(name)}
        inside = sum(size for name, size in sizes.items() if wiring.source(name) in convolved)
        matrices = sum(size for name, size in sizes.items() if name in multiplied and len(self._low[name][1]) > 1)
        return Weights(inside, sum(sizes.values()) - inside, matrices)

    def _constant_bytes(self, name: str) -> int:
        width, shape = self._low.get(name, (0, ()))
        return width * math.prod(shape)


def _line(low: float, high: float) -> Size:
    slope = (high - low) / (BATCHES[1] - BATCHES[0])
    return Size(low - slope * BATCHES[0], slope)


def _scratch_bytes(node: onnx.NodeProto, shapes: Shapes) -> int:
    if node.op_type in _GATES and node.input[0] in shapes and node.input[2] in shapes:
        steps, batch, _ = shapes[node.input[0]][1]
        directions, rows, _ = shapes[node.input[2]][1]
        return steps * batch * directions * rows * _FLOAT_BYTES
    if node.op_type == "ConvTranspose" and {node.input[0], node.input[1]} <= shapes.keys():
        given, weight = shapes[node.input[0]][1], shapes[node.input[1]][1]
        return math.prod(weight[1:]) * math.prod(given[2:]) * _FLOAT_BYTES  # one sample at a time
    return 0


def blocked(graph: MemoryGraph) -> MemoryGraph:
    """Return the graph with a copy wherever a tensor enters or leaves a chain of blocked convolutions."""
    form: dict[str, bool] = {}
    sizes = dict(graph.sizes)
    symbolic = set(graph.symbolic)
    steps: list[Step] = []
    for step in graph.steps:
        wants = _wants_blocked(step, form)
        reads = []
        for name in step.reads:
            if form.get(name, False) == wants or (wants and name in graph.inputs):
                reads.append(name)  # the first convolution reads few channels as they are
                continue
            copied = f"{name} {'blocked' if wants else 'plain'}"
            if copied not in sizes:
                sizes[copied] = sizes.get(name, Size(0))
                symbolic |= {copied} if name in symbolic else set()
                steps.append(Step(copied, "Reorder", "step", (name,), (copied,)))
                form[copied] = wants
            reads.append(copied)
        form.update(dict.fromkeys(step.makes, wants))
        steps.append(replace(step, reads=tuple(reads)))
    outputs = tuple(f"{name} plain" if form.get(name) else name for name in graph.outputs)
    steps += [
        Step(plain, "Reorder", "step", (name,), (plain,))
        for name, plain in zip(graph.outputs, outputs, strict=True)
        if plain != name and plain not in sizes
    ]
    sizes.update({plain: sizes[name] for name, plain in zip(graph.outputs, outputs, strict=True) if name in sizes})
    return replace(graph, steps=tuple(steps), sizes=sizes, outputs=outputs, symbolic=frozenset(symbolic))


def fused_attention(graph: MemoryGraph) -> MemoryGraph:
    """Return the graph where attention keeps no scores: what lies between its two products takes no bytes."""
    maker = {name: step for step in graph.steps for name in step.makes}
    readers: dict[str, list[Step]] = {}
    for step in graph.steps:
        for name in step.reads:
            readers.setdefault(name, []).append(step)
    sizes = dict(graph.sizes)
    for step in graph.steps:
        if step.operator != "Softmax":
            continue
        scores = _back_to_product(step, maker)
        context = _ahead_to_product(step, readers)
        if scores is not None and context is not None and all(len(readers[name]) == 1 for name in scores):
            sizes.update(dict.fromkeys((*scores, *context), Size(0)))
    return replace(graph, sizes=sizes)


def _back_to_product(step: Step, maker: dict[str, Step]) -> list[str] | None:
    """Return the tensors from a product to what a softmax reads, through views and pointwise steps."""
    for name in step.reads:
        before = maker.get(name)
        if before is None:
            continue
        if before.operator == "MatMul":
            return [name]
        found = _back_to_product(before, maker) if before.kind != "step" else None
        if found is not None:
            return [name, *found]
    return None


def _ahead_to_product(step: Step, readers: dict[str, list[Step]]) -> list[str] | None:
    """Return the tensors from a softmax to the one product that reads it, through views and pointwise steps."""
    found: list[str] = []
    while True:
        after = readers.get(step.makes[0], [])
        found.append(step.makes[0])
        if len(after) != 1 or len(after[0].makes) != 1:
            return None
        if after[0].operator == "MatMul":
            return found
        if after[0].kind == "step":
            return None
        step = after[0]


def _wants_blocked(step: Step, form: dict[str, bool]) -> bool:
    if step.operator in _BLOCKED:
        return step.operator == "Conv" or form.get(step.reads[0], False)
    return step.operator in _STAYS_BLOCKED and bool(step.reads) and all(form.get(name, False) for name in step.reads)
