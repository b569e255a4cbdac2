"""Which nodes of an ONNX graph TensorRT computes in one kernel: the fusion rule that projections assume.

What is computed once, when an engine is built, or on the host (constants, shapes) is no kernel.  Reshapes and
DequantizeLinear cost nothing: whoever reads them reads what is stored before them.  Nor does a Transpose, Split or
Slice that only products read, since they take strides.  Of the rest, in the order of the graph:

    product     MatMul, Gemm, Conv, ConvTranspose, Einsum, LSTM, GRU, RNN: begins a kernel
    pointwise   joins the last kernel that it reads from, if that is one of products, pointwise nodes or rows; so bias,
                activation, residual, Cast and QuantizeLinear are part of the product before them
    rows        softmax, normalizations, reductions: join a kernel of pointwise nodes and rows, and take pointwise nodes
                in, so a LayerNormalization that is written out is one kernel; before 8.6 each begins one of its own and
                takes nothing in
    other       moves, pooling, ...: a kernel each

From 8.6 on, attention (product, pointwise, softmax, pointwise, product) is one kernel where NVIDIA's conditions hold:
compute capability 7.5 or later, products in fp16 or bf16 with heads of 16 to 256 in steps of 8, or in int8 with heads
of 16, 32 or 64 and at most 512 tokens.

Sources: NVIDIA's fusion catalog (https://docs.nvidia.com/deeplearning/tensorrt/latest/performance/fusion-catalog.html)
and its issues 2981 (the conditions) and 3280 (8.6 is the first) at https://github.com/NVIDIA/TensorRT/issues.  TensorRT
decides by timing, so it may fuse more or less than this.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx

from tsexport.devices import version_key

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN"})
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "DequantizeLinear"})
STRIDED = frozenset({"Transpose", "Split", "Slice"})
POINTWISE = frozenset(
    {
        "Abs", "Add", "And", "BatchNormalization", "Cast", "Ceil", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp",
        "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Less",
        "LessOrEqual", "Log", "Max", "Mean", "Min", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "QuantizeLinear",
        "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum",
        "Tan", "Tanh", "Where", "Xor",
    }
)  # fmt: skip
SOFTMAX = frozenset({"Softmax", "LogSoftmax"})
ROWS = SOFTMAX | frozenset(
    {
        "LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization", "ReduceL1", "ReduceL2",
        "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
    }
)  # fmt: skip
_HOST = frozenset({"Shape", "Size"})
_FUSES_ROWS_FROM = "8.6"
_FUSES_ATTENTION_FROM = "8.6"
_ATTENTION_CAPABILITY = "7.5"
_HEADS = range(16, 257, 8)
_INT8_HEADS = frozenset({16, 32, 64})
_INT8_TOKENS = 512

Kind = Literal["none", "product", "pointwise", "rows", "other"]


@dataclass(frozen=True)
class Fusion:
    """What a TensorRT version fuses beyond pointwise nodes into products."""

    rows: bool
    attention: bool

    @classmethod
    def of(cls, tensorrt: str, compute_capability: str) -> "Fusion":
        """Return what a version fuses on a GPU; "10.3" and "8.7"."""
        version, capability = version_key(tensorrt), version_key(compute_capability)
        return cls(
            rows=version >= version_key(_FUSES_ROWS_FROM),
            attention=version >= version_key(_FUSES_ATTENTION_FROM)
            and capability >= version_key(_ATTENTION_CAPABILITY),
        )


@dataclass(frozen=True)
class Product:
    """A product as attention needs it: its precision, the axis that it sums over, its tokens, and whether both
    operands are activations."""

    precision: str
    summed: int
    tokens: int
    of_activations: bool


class Wiring:
    """Who makes and who reads each tensor of a graph, and which nodes are computed once or on the host."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.producer = {name: at for at, node in enumerate(self.nodes) for name in node.output if name}
        self.readers: dict[str, list[int]] = {}
        for at, node in enumerate(self.nodes):
            for name in node.input:
                if name:
                    self.readers.setdefault(name, []).append(at)
        self.outputs = {one.name for one in graph.output}
        self.constants = {one.name for one in graph.initializer} | {one.values.name for one in graph.sparse_initializer}
        self.folded = self._folded()
        self.parts: dict[str, str] = {}
        """For what a view of a part of a tensor gives, the name of the part."""
        self.sources = self._sources()

    def _folded(self) -> set[int]:
        """Return the nodes whose inputs are all constants or shapes; random ones and subgraphs stay."""
        folded: set[int] = set()
        for at, node in enumerate(self.nodes):
            known = all(not name or self.is_known(name, folded) for name in node.input)
            random = node.op_type.startswith("Random")
            body = any(one.type == onnx.AttributeProto.GRAPH for one in node.attribute)  # it may read anything
            if node.op_type in _HOST or (known and not random and not body):
                folded.add(at)
        return folded

    def is_known(self, name: str, folded: set[int] | None = None) -> bool:
        """Return whether a tensor is a constant or is computed from constants and shapes alone."""
        return name in self.constants or self.producer.get(name) in (self.folded if folded is None else folded)

    def _sources(self) -> dict[str, str]:
        """Return, for what a view gives, the stored tensor that is read instead."""
        sources: dict[str, str] = {}
        for at, node in enumerate(self.nodes):
            if node.op_type not in VIEWS and not (node.op_type in STRIDED and self._is_strided(at)):
                continue
            given = node.input[0]
            for name in node.output:
                sources[name] = sources.get(given, given)
                if node.op_type in ("Split", "Slice"):
                    self.parts[name] = name
                elif given in self.parts:
                    self.parts[name] = self.parts[given]
        return sources

    def source(self, name: str) -> str:
        """Return the stored tensor behind a name: through views, and through a weight's DequantizeLinear."""
        return self.sources.get(name, name)

    def _is_strided(self, at: int) -> bool:
        """Return whether only products read what a node gives, be it through views and QuantizeLinear."""
        found = [] if at in self.folded else list(self.consumers(at))
        return bool(found) and all(one is not None and self.nodes[one].op_type in ("MatMul", "Gemm") for one in found)

    def consumers(self, at: int) -> Iterator[int | None]:
        """Yield the nodes that read what a node gives, through views and QuantizeLinear; None for a graph's output."""
        for name in self.nodes[at].output:
            if name in self.outputs:
                yield None
            for reader in self.readers.get(name, ()):
                if self.nodes[reader].op_type in VIEWS | STRIDED | {"QuantizeLinear"}:
                    yield from self.consumers(reader)
                else:
                    yield reader

    def kind(self, at: int) -> Kind:
        """Return how the rule above names a node; "none" for what is no kernel."""
        node = self.nodes[at]
        if at in self.folded or (node.output and node.output[0] in self.sources):
            return "none"
        operator = node.op_type
        if operator in PRODUCTS:
            return "product"
        return "pointwise" if operator in POINTWISE else "rows" if operator in ROWS else "other"

    def makers(self, at: int) -> list[int]:
        """Return the nodes that make what a node reads, constants left out."""
        names = (self.source(name) for name in self.nodes[at].input if name and not self.is_known(name))
        return [self.producer[name] for name in names if name in self.producer]


def fuse(wiring: Wiring, fusion: Fusion, products: dict[int, Product]) -> list[list[int]]:
    """Return the kernels of a graph, each the places of its nodes in the graph, in order.

    Args:
        products: of every MatMul whose shapes are known.
    """
    attention = _attention(wiring, products) if fusion.attention else {}
    kernels: list[list[int]] = []
    kinds: list[Kind] = []
    kernel_of: dict[int, int] = {}
    for at in range(len(wiring.nodes)):
        kind = wiring.kind(at)
        if kind == "none":
            continue
        wanted = attention.get(at)
        home = kernel_of.get(wanted) if wanted is not None else _home(kind, wiring.makers(at), kernel_of, kinds, fusion)
        if home is None:
            home = len(kernels)
            kernels.append([])
            kinds.append(kind)
        kernels[home].append(at)
        kernel_of[at] = home
    return kernels


def _home(
    kind: Kind, makers: Sequence[int], kernel_of: dict[int, int], kinds: Sequence[Kind], fusion: Fusion
) -> int | None:
    """Return the kernel that a node joins: the last that it reads from, so that no kernel waits for a later one."""
    if kind not in ("pointwise", "rows") or not makers:
        return None
    last = max(kernel_of[one] for one in makers)
    takes = {"pointwise": {"product", "pointwise"}, "rows": set()}[kind] | (
        {"pointwise": {"rows"}, "rows": {"pointwise", "rows"}}[kind] if fusion.rows else set()
    )
    return last if kinds[last] in takes else None


def _attention(wiring: Wiring, products: dict[int, Product]) -> dict[int, int]:
    """Return, for the softmax and the second product of each fused attention, the node whose kernel it joins."""
    joins: dict[int, int] = {}
    for at, node in enumerate(wiring.nodes):
        if node.op_type not in SOFTMAX or at in wiring.folded:
            continue
        scores = _back(wiring, at, products)
        context = _ahead(wiring, at, products)
        if scores is None or context is None:
            continue
        if _is_fusible(products[scores], products[context]):
            joins[at], joins[context] = scores, at
    return joins


def _back(wiring: Wiring, at: int, products: dict[int, Product]) -> int | None:
    """Return the product of activations that a node reads through pointwise nodes."""
    for maker in wiring.makers(at):
        found: int | None = None
        if maker in products:
            found = maker if products[maker].of_activations else None
        elif wiring.kind(maker) == "pointwise":
            found = _back(wiring, maker, products)
        if found is not None:
            return found
    return None


def _ahead(wiring: Wiring, at: int, products: dict[int, Product]) -> int | None:
    """Return the product of activations that alone reads what a node gives, through pointwise nodes."""
    readers = list(wiring.consumers(at))
    if len(readers) != 1 or readers[0] is None:
        return None
    reader = readers[0]
    if reader in products:
        return reader if products[reader].of_activations else None
    return _ahead(wiring, reader, products) if wiring.kind(reader) == "pointwise" else None


def _is_fusible(scores: Product, context: Product) -> bool:
    if "int8" in (scores.precision, context.precision):
        both = scores.precision == context.precision
        return both and scores.summed in _INT8_HEADS and max(scores.tokens, context.summed) <= _INT8_TOKENS
    return scores.precision in ("fp16", "bf16") and scores.summed in _HEADS
