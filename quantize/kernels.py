"""What an ONNX graph does on a GPU, kernel by kernel: multiply-accumulates by precision, and bytes.

Counted from shapes alone, with the batch fixed; nothing is run, and no weight is read.  Fused nodes are one kernel
(`quantize.fusing` has the rule).  For a kernel:

    macs            of its products (`quantize.operations` has the formulas), by the precision that they are computed
                    in: int8 where both operands come from a DequantizeLinear, else that of the operands
    bytes_read      every tensor from outside once, as it is stored: int8 before a DequantizeLinear; what Gather, Slice
                    and Split leave out is not read
    bytes_written   what another kernel reads, and the graph's outputs

Pointwise nodes and reductions count as bytes alone.  Integers of 64 bits are 32 bits wide in TensorRT.  The body of a
Loop, If or Scan counts as nothing and is named in `unknown`, as are nodes without shapes.
"""

import math
from pathlib import Path

import onnx
from onnx import TensorProto

from tsexport.errors import ExportError
from tsexport.exporters.onnx_external import INLINE_BYTES, open_model
from tsexport.quantize.fusing import RECURRENT, Fusion, Product, Wiring, fuse
from tsexport.quantize.operations import Shape, Tensor, macs_of
from tsexport.work import GraphWork, KernelWork

_PRECISIONS = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
_BITS = {
    TensorProto.FLOAT: 32, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16, TensorProto.DOUBLE: 32,
    TensorProto.INT64: 32, TensorProto.UINT64: 32, TensorProto.INT32: 32, TensorProto.UINT32: 32,
    TensorProto.INT16: 16, TensorProto.UINT16: 16, TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.BOOL: 8,
}  # fmt: skip
"""As TensorRT stores them: it has no 64-bit floating point, and narrows 64-bit integers."""
_PARTS = frozenset({"Gather", "Slice", "Split", "GatherND", "GatherElements"})
_CONTROL = frozenset({"Loop", "If", "Scan", "SequenceMap"})


def count_file(path: Path, batch: int, fusion: Fusion, *, floats: str | None = None) -> GraphWork:
    """Return what the graph of a file does for one call; see `count`.

    Raises:
        ExportError: its shapes contradict each other at this batch.
    """
    return count(open_model(path), batch, fusion, floats=floats)


def count(model: onnx.ModelProto, batch: int, fusion: Fusion, *, floats: str | None = None) -> GraphWork:
    """Return what a graph does for one call.

    Args:
        model: not changed; weights may lie in another file, and need not exist.
        batch: what the inputs' first symbolic dimension becomes, wherever it stands; another one stays unknown.
        fusion: which nodes are one kernel.
        floats: "fp16" where the engine computes fp32 tensors in fp16 (--fp16 of trtexec), None for as they are.

    Raises:
        ExportError: its shapes contradict each other at this batch.
    """
    graph = inferred_at(model, batch).graph
    counted = _Counted(graph, floats)
    return GraphWork(batch, counted.kernels(fusion), counted.least_bytes(), tuple(counted.unknown))


def inferred_at(model: onnx.ModelProto, batch: int | None) -> onnx.ModelProto:
    """Return a copy with every shape inferred, without the values of large weights; None leaves the batch a symbol.

    Raises:
        ExportError: its shapes contradict each other at this batch.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(_light(model))
    if batch is not None:
        _fix_batch(copy.graph, batch)
    for value in copy.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")
    del copy.graph.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(copy, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise ExportError(f"the graph's shapes contradict each other at batch {batch}: {error}") from error


def _fix_batch(graph: onnx.GraphProto, batch: int) -> None:
    open_dims = [dim for one in graph.input for dim in one.type.tensor_type.shape.dim if dim.dim_param]
    for dim in open_dims[1:]:
        if dim.dim_param == open_dims[0].dim_param:
            dim.dim_value = batch
    if open_dims:
        open_dims[0].dim_value = batch


def _light(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model without the values of its large weights, whose shapes alone are read."""
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL or math.prod(tensor.dims) * 8 > INLINE_BYTES:
            graph.initializer.append(
                TensorProto(
                    name=tensor.name,
                    data_type=tensor.data_type,
                    dims=tensor.dims,
                    data_location=TensorProto.EXTERNAL,
                    external_data=[onnx.StringStringEntryProto(key="location", value="left-out")],
                )
            )
        else:
            graph.initializer.append(tensor)
    return onnx.inliner.inline_local_functions(light) if light.functions else light


class _Counted:
    """A graph with inferred shapes, and what its nodes do."""

    def __init__(self, graph: onnx.GraphProto, floats: str | None) -> None:
        self.floats = floats
        self.types: dict[str, int] = {}
        self.shapes: dict[str, Shape] = {}
        for value in (*graph.value_info, *graph.input, *graph.output):
            tensor = value.type.tensor_type
            dims = tensor.shape.dim
            if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
                self.types[value.name] = tensor.elem_type
                self.shapes[value.name] = tuple(dim.dim_value for dim in dims)
        for one in graph.initializer:
            self.types[one.name], self.shapes[one.name] = one.data_type, tuple(one.dims)
        self.wiring = Wiring(graph)
        self.graph = graph
        self.unknown: list[str] = []

    def kernels(self, fusion: Fusion) -> tuple[KernelWork, ...]:
        products = {at: product for at in range(len(self.wiring.nodes)) if (product := self._product(at)) is not None}
        fused = fuse(self.wiring, fusion, products)
        return tuple(self._kernel(nodes) for nodes in fused)

    def least_bytes(self) -> int:
        """Return the bytes of every weight that is read, of the inputs and of the outputs, each once."""
        wiring = self.wiring
        read = {wiring.source(name) for at in self._computed() for name in wiring.nodes[at].input if name}
        weights = {self._stored(name) for name in read if wiring.is_known(name)}
        initializers = {one.name for one in self.graph.initializer}
        inputs = {one.name for one in self.graph.input} - initializers
        gathered = {
            self._stored(wiring.nodes[at].input[0]) for at in self._computed() if wiring.nodes[at].op_type in _PARTS
        }
        return sum(self._bytes(name) for name in (weights - gathered) | inputs | wiring.outputs)

    def _computed(self) -> list[int]:
        return [at for at in range(len(self.wiring.nodes)) if self.wiring.kind(at) != "none"]

    def _stored(self, name: str) -> str:
        """Return the tensor that holds what a name gives: behind a constant's Q/DQ pair the one of 8 bits."""
        return self.wiring.source(name)

    def _bytes(self, name: str) -> int:
        shape = self.shapes.get(name)
        if shape is None:
            return 0
        bits = _BITS.get(self.types[name], 32)
        if self.floats == "fp16" and self.types[name] == TensorProto.FLOAT:
            bits = 16
        return math.prod(shape) * bits // 8

    def _tensor(self, name: str) -> Tensor | None:
        shape = self.shapes.get(name)
        return None if shape is None else Tensor("float", shape)

    def _precision(self, node: onnx.NodeProto) -> str:
        """Return what a product is computed in: int8 where both operands were dequantized."""
        operands = [name for name in node.input[:2] if name]
        stored = [self.types.get(self._stored(name)) for name in operands]
        if node.op_type not in RECURRENT and all(one == TensorProto.INT8 for one in stored):
            return "int8"
        if node.op_type in ("MatMulInteger", "ConvInteger"):
            return "int8"
        floats = [_PRECISIONS.get(self.types.get(name, TensorProto.FLOAT), "fp32") for name in operands]
        found = "fp32" if "fp32" in floats or not floats else floats[0]
        return self.floats if found == "fp32" and self.floats is not None else found

    def _product(self, at: int) -> Product | None:
        node = self.wiring.nodes[at]
        left, out = self.shapes.get(node.input[0] if node.input else ""), self.shapes.get(node.output[0])
        if node.op_type != "MatMul" or at in self.wiring.folded or not left or not out or len(out) < 2:
            return None
        activations = not any(self.wiring.is_known(name) for name in node.input)
        return Product(self._precision(node), left[-1], out[-2], activations)

    def _kernel(self, places: list[int]) -> KernelWork:
        wiring = self.wiring
        macs: dict[str, int] = {}
        read: dict[str, int] = {}
        launches = 1
        made = {name for at in places for name in wiring.nodes[at].output}
        for at in places:
            node = wiring.nodes[at]
            if node.op_type in _CONTROL or not self._is_known(node):
                self.unknown.append(node.name or node.output[0])
            count = macs_of(node, [self._tensor(name) for name in node.input], self._tensor(node.output[0]))
            if count:
                precision = self._precision(node)
                macs[precision] = macs.get(precision, 0) + count
            if node.op_type in RECURRENT and node.input[0] in self.shapes:
                launches = max(launches, self.shapes[node.input[0]][0])
            for name, size in self._reads(node):
                stored = self._stored(name)
                if stored not in made:
                    key = wiring.parts.get(name, stored)
                    read[key] = max(read.get(key, 0), size)
        written = {name for at in places for name in wiring.nodes[at].output if self._leaves(name, set(places))}
        return KernelWork(
            name=wiring.nodes[places[0]].name or wiring.nodes[places[0]].output[0],
            operators=tuple(wiring.nodes[at].op_type for at in places),
            macs=macs,
            bytes_read=sum(read.values()),
            bytes_written=sum(map(self._bytes, sorted(written))),
            launches=launches,
        )

    def _is_known(self, node: onnx.NodeProto) -> bool:
        return all(name in self.shapes for name in (*node.input, *node.output) if name and self._matters(name))

    def _matters(self, name: str) -> bool:
        """Return whether a tensor is one that a kernel reads or writes; optional outputs that nobody reads are none."""
        return name in self.wiring.readers or name in self.wiring.outputs or name not in self.wiring.producer

    def _reads(self, node: onnx.NodeProto) -> list[tuple[str, int]]:
        given = sum(self._bytes(name) for name in node.output if name)
        found = []
        for place, name in enumerate(node.input):
            if not name:
                continue
            stored = self._stored(name)
            size = self._bytes(stored)
            if name in self.wiring.parts:
                size = size * math.prod(self.shapes.get(name, ())) // max(math.prod(self.shapes.get(stored, ())), 1)
            found.append((name, min(size, given) if node.op_type in _PARTS and not place else size))
        return found

    def _leaves(self, name: str, places: set[int]) -> bool:
        """Return whether a kernel must write a tensor: another reads it, through views too, or the graph gives it."""
        if name in self.wiring.outputs:
            return True
        for reader in self.wiring.readers.get(name, ()):
            if reader in places or reader in self.wiring.folded:
                continue
            node = self.wiring.nodes[reader]
            if self.wiring.kind(reader) != "none" or any(self._leaves(one, places) for one in node.output):
                return True
        return False
