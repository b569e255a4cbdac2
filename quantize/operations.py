"""What an ONNX graph computes, operator by operator, as ONNX Runtime runs it: shapes, types, multiply-accumulates.

Shapes come from one profiled run, not from shape inference: that knows nothing of the operators that ONNX Runtime fuses
(DynamicQuantizeMatMul, QLinearConv, FusedConv, ...), and a fused graph is what a CPU really computes.

Multiply-accumulates (MACs) by operator, with n(t) the number of elements of a tensor:

    MatMul and its fused or integer kin     n(output) * K, K the axis that is summed over
    Gemm and its kin                        n(output) * n(A) / rows of the output
    Conv and its kin                        n(output) * n(W) / output channels
    ConvTranspose                           n(input) * n(W) / input channels
    LSTM, GRU, RNN, DynamicQuantizeLSTM     steps * batch * (n(W) + n(R))
    Attention, QAttention                   n(input) / width * n(W) + 2 * batch * tokens^2 * width
    Einsum                                  the product of the sizes of all its indices

All other operators count as none: their time is the memory's.
"""

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from tsexport.exporters.onnx_external import create_session
from tsexport.types import Feeds

Shape = tuple[int, ...]

_PRODUCTS = {
    "MatMul": (0, 1),
    "FusedMatMul": (0, 1),
    "TransposeMatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (0, 1),
    "QLinearMatMul": (0, 3),
}
_GEMMS = {"Gemm": (0, 1), "FusedGemm": (0, 1), "QGemm": (0, 3)}
_CONVOLUTIONS = {
    "Conv": (0, 1),
    "FusedConv": (0, 1),
    "NhwcFusedConv": (0, 1),
    "ConvInteger": (0, 1),
    "QLinearConv": (0, 3),
}
_TRANSPOSED = {"ConvTranspose": (0, 1)}
_RECURRENT = {"LSTM": (0, 1), "GRU": (0, 1), "RNN": (0, 1), "DynamicQuantizeLSTM": (0, 1)}
_ATTENTIONS = {"Attention": (0, 1), "QAttention": (0, 1)}
OPERANDS: Mapping[str, tuple[int, int]] = {
    **_PRODUCTS, **_GEMMS, **_CONVOLUTIONS, **_TRANSPOSED, **_RECURRENT, **_ATTENTIONS
}  # fmt: skip
"""Positions of the activation and of the weight among an operator's inputs."""
CONVERSIONS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "ReorderInput", "ReorderOutput"}
)
"""Operators that change only how numbers are stored."""
_INTEGER = frozenset({"int8", "uint8"})
_ITEMSIZE = {"float": 4, "float16": 2, "bfloat16": 2, "double": 8, "int64": 8, "int32": 4, "uint8": 1, "int8": 1}


@dataclass(frozen=True)
class Tensor:
    """A tensor's element type, as ONNX Runtime writes it ("float", "uint8"), and its shape in the run."""

    dtype: str
    shape: Shape

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.count * _ITEMSIZE.get(self.dtype, 4)


@dataclass(frozen=True)
class Operation:
    """One operator of a graph in one run.

    `int8_macs` are those of 8-bit integers: none or all, but for QAttention, which projects in integers and attends in
    floating point.  `weight_bytes` are its constant operands', `activation_bytes` what it reads and writes otherwise.
    """

    name: str
    operator: str
    macs: int
    int8_macs: int
    weight_bytes: int
    activation_bytes: int


def operations(model: onnx.ModelProto, feeds: Feeds, options: onnxruntime.SessionOptions) -> tuple[Operation, ...]:
    """Return the operators of a graph as it stands, in order.

    Args:
        model: no optimization is applied to it; weights may lie in another file (see `exporters.onnx_external`).
        feeds: one call's inputs.
        options: of a session; profiling and the optimization level are set here.
    """
    kept = [node.name for node in model.graph.node]
    for index, node in enumerate(model.graph.node):
        node.name = f"op{index}"  # names need not be there, nor be unique
    try:
        outputs = _profiled(model, feeds, options)
    finally:
        for node, name in zip(model.graph.node, kept, strict=True):
            node.name = name
    tensors: dict[str, Tensor] = {}
    constants: dict[str, Tensor] = {}
    for initializer in model.graph.initializer:
        constants[initializer.name] = Tensor(_dtype(initializer.data_type), tuple(initializer.dims))
    for name, array in feeds.items():
        tensors[name] = Tensor(_dtype(onnx.helper.np_dtype_to_tensor_dtype(array.dtype)), array.shape)
    found = []
    for index, node in enumerate(model.graph.node):
        made = outputs.get(f"op{index}", ())
        tensors.update(zip([name for name in node.output if name], made, strict=False))
        found.append(_operation(node, kept[index], tensors, constants))
    return tuple(found)


def _profiled(
    model: onnx.ModelProto, feeds: Feeds, options: onnxruntime.SessionOptions
) -> dict[str, tuple[Tensor, ...]]:
    """Return the outputs of every node that ran, by its name."""
    with tempfile.TemporaryDirectory(prefix="tsexport-profile-") as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = create_session(model, options)
        session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text())
    outputs = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            shapes = event["args"].get("output_type_shape", [])
            outputs[event["name"].removesuffix("_kernel_time")] = tuple(
                Tensor(dtype, tuple(shape)) for one in shapes for dtype, shape in one.items()
            )
    return outputs


def _dtype(code: int) -> str:
    name: str = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code)).name
    return "float" if name == "float32" else "double" if name == "float64" else name


def _operation(
    node: onnx.NodeProto, name: str, tensors: Mapping[str, Tensor], constants: Mapping[str, Tensor]
) -> Operation:
    def tensor(name: str) -> Tensor | None:
        return constants.get(name) or tensors.get(name)

    inputs = [name for name in node.input if name]
    operands = OPERANDS.get(node.op_type)
    weight = tensor(node.input[operands[1]]) if operands and len(node.input) > operands[1] else None
    operand = [tensor(one) for one in node.input]
    macs = macs_of(node, operand, tensors.get(node.output[0]))
    in_float = _attended(operand[0]) if node.op_type in _ATTENTIONS else 0
    return Operation(
        name=name,
        operator=node.op_type,
        macs=macs,
        int8_macs=max(macs - in_float, 0) if weight is not None and weight.dtype in _INTEGER else 0,
        weight_bytes=sum(constants[one].size_bytes for one in inputs if one in constants),
        activation_bytes=sum(tensors[one].size_bytes for one in (*inputs, *node.output) if one in tensors),
    )


def macs_of(node: onnx.NodeProto, inputs: list[Tensor | None], output: Tensor | None) -> int:
    """Return the multiply-accumulates of a node by the table above, 0 where a shape that it takes is not known."""
    kind = node.op_type
    if kind == "Einsum":
        return _einsum(node, inputs)
    if kind not in OPERANDS or output is None:
        return 0
    activation, weight = (inputs[position] for position in OPERANDS[kind])
    if activation is None or weight is None or not activation.shape or not weight.shape:
        return 0
    if kind in _PRODUCTS:
        transposed = any(one.name == "transA" and one.i for one in node.attribute) and len(activation.shape) > 1
        return output.count * activation.shape[-2 if transposed else -1]
    if kind in _GEMMS:
        return output.count * activation.count // max(output.shape[0], 1)
    if kind in _CONVOLUTIONS:
        return output.count * math.prod(weight.shape[1:])
    if kind in _TRANSPOSED:
        return activation.count * math.prod(weight.shape[1:])
    if kind in _RECURRENT:
        recurrent = inputs[2]
        return math.prod(activation.shape[:2]) * (weight.count + (recurrent.count if recurrent else 0))
    batch, tokens, _ = activation.shape
    return batch * tokens * weight.count + _attended(activation)


def _attended(activation: Tensor | None) -> int:
    """Return the products of an attention that are not its projection: scores, and their mean of the values."""
    if activation is None or len(activation.shape) != 3:
        return 0
    batch, tokens, width = activation.shape
    return 2 * batch * tokens**2 * width


def _einsum(node: onnx.NodeProto, inputs: list[Tensor | None]) -> int:
    equation = next(one.s.decode() for one in node.attribute if one.name == "equation").replace(" ", "")
    sizes: dict[str, int] = {}
    for term, tensor in zip(equation.split("->")[0].split(","), inputs, strict=True):
        if tensor is None or "." in term:
            return 0
        sizes.update(zip(term, tensor.shape, strict=True))
    return math.prod(sizes.values()) if len(inputs) > 1 else 0
