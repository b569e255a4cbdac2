"""The models whose latencies are published, as ONNX graphs without weights: shapes are all that a projection reads.

ResNet (K. He et al., 2015; the bottleneck with its stride on the 3 x 3 convolution, as PyTorch and MLPerf have it) with
batch normalization folded, and BERT (J. Devlin et al., 2018) for question answering: embeddings, encoder, and two
logits a token.  In int8 every product's inputs go through Q/DQ pairs, and so do residuals, as MLPerf's ResNet and the
TensorRT demo's BERT have them.
"""

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

_RESNET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_BOTTLENECK_FROM = 50
_BERT = {"bert-base": (12, 768, 12), "bert-large": (24, 1024, 16)}
"""Layers, width, heads."""
ANCHOR_MODELS = (*(f"resnet{depth}" for depth in _RESNET_BLOCKS), *_BERT)
_VOCABULARY = 30522
_OPSET = 17
BATCH = "batch"


class _Graph:
    """An ONNX graph under construction; weights have shapes and no values."""

    def __init__(self, precision: str) -> None:
        self.quantized = precision == "int8"
        self.element = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.names = 0

    def name(self) -> str:
        self.names += 1
        return f"t{self.names}"

    def add(self, operator: str, inputs: Sequence[str], outputs: int = 1, **attributes: object) -> str:
        """Add a node and return its output; of several, names are the first with "_1", "_2" behind it."""
        out = self.name()
        names = [out, *(f"{out}_{number}" for number in range(1, outputs))]
        self.nodes.append(helper.make_node(operator, list(inputs), names, name=f"{operator}_{out}", **attributes))
        return out

    def weight(self, *shape: int, element: int | None = None) -> str:
        name = self.name()
        place = onnx.StringStringEntryProto(key="location", value="nowhere")
        self.weights.append(
            TensorProto(
                name=name, dims=shape, data_type=self.element if element is None else element,
                data_location=TensorProto.EXTERNAL, external_data=[place],
            )
        )  # fmt: skip
        return name

    def constant(self, values: Sequence[int] | float) -> str:
        name = self.name()
        whole = not isinstance(values, float)
        listed = list(values) if not isinstance(values, float) else [values]
        dims = [len(listed)] if whole else []
        self.weights.append(helper.make_tensor(name, TensorProto.INT64 if whole else self.element, dims, listed))
        return name

    def kernel(self, *shape: int) -> str:
        """Return a layer's weight: int8 behind a DequantizeLinear, or of the graph's type."""
        if not self.quantized:
            return self.weight(*shape)
        return self.add("DequantizeLinear", [self.weight(*shape, element=TensorProto.INT8), *self._scale()])

    def stored(self, value: str) -> str:
        """Return an activation behind a Q/DQ pair, or as it is."""
        if not self.quantized:
            return value
        pair = self._scale()
        return self.add("DequantizeLinear", [self.add("QuantizeLinear", [value, *pair]), *pair])

    def _scale(self) -> list[str]:
        scale, zero = self.name(), self.name()
        self.weights.append(helper.make_tensor(scale, TensorProto.FLOAT, [], [0.1]))
        self.weights.append(helper.make_tensor(zero, TensorProto.INT8, [], [0]))
        return [scale, zero]

    def model(
        self, name: str, inputs: dict[str, tuple[int, list[int]]], output: str, shape: list[int]
    ) -> onnx.ModelProto:
        """Return the model; a first axis, the batch, is added to every shape."""
        given = [helper.make_tensor_value_info(one, kind, [BATCH, *dims]) for one, (kind, dims) in inputs.items()]
        wanted = helper.make_tensor_value_info(output, self.element, [BATCH, *shape])
        graph = helper.make_graph(self.nodes, name, given, [wanted], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)


def anchor_model(name: str, precision: str, tokens: int = 0) -> onnx.ModelProto:
    """Return "resnet18" to "resnet152", "bert-base" or "bert-large" in fp32, fp16 or int8 with a symbolic batch.

    Args:
        tokens: the sequence length, of BERT alone.

    Raises:
        KeyError: no such model.
    """
    if name in _BERT:
        return _bert(name, precision, tokens)
    return _resnet(int(name.removeprefix("resnet")), precision)


def _resnet(depth: int, precision: str) -> onnx.ModelProto:
    graph = _Graph(precision)

    def convolution(value: str, inputs: int, outputs: int, size: int, stride: int = 1) -> str:
        weights = [graph.kernel(outputs, inputs, size, size), graph.weight(outputs)]
        return graph.add("Conv", [value, *weights], pads=[size // 2] * 4, strides=[stride] * 2)

    value = graph.stored("image")
    value = graph.stored(graph.add("Relu", [convolution(value, 3, 64, 7, 2)]))
    value = graph.add("MaxPool", [value], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    value, channels = graph.stored(value), 64
    bottleneck = depth >= _BOTTLENECK_FROM
    for stage, blocks in enumerate(_RESNET_BLOCKS[depth]):
        width = 64 << stage
        outputs = 4 * width if bottleneck else width
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            shortcut = value
            if stride > 1 or channels != outputs:
                shortcut = graph.stored(convolution(value, channels, outputs, 1, stride))
            if bottleneck:
                value = graph.stored(graph.add("Relu", [convolution(value, channels, width, 1)]))
                value = graph.stored(graph.add("Relu", [convolution(value, width, width, 3, stride)]))
                value = convolution(value, width, outputs, 1)
            else:
                value = graph.stored(graph.add("Relu", [convolution(value, channels, width, 3, stride)]))
                value = convolution(value, width, outputs, 3)
            value = graph.stored(graph.add("Relu", [graph.add("Add", [value, shortcut])]))
            channels = outputs
    value = graph.stored(graph.add("Flatten", [graph.add("GlobalAveragePool", [value])]))
    value = graph.add("Add", [graph.add("MatMul", [value, graph.kernel(channels, 1000)]), graph.weight(1000)])
    return graph.model(f"resnet{depth}", {"image": (graph.element, [3, 224, 224])}, value, [1000])


def _bert(name: str, precision: str, tokens: int) -> onnx.ModelProto:
    layers, width, heads = _BERT[name]
    graph = _Graph(precision)
    split = graph.constant([0, tokens, heads, 3 * width // heads])
    merged = graph.constant([0, tokens, width])
    scale = graph.constant((width // heads) ** -0.5)

    def linear(value: str, inputs: int, outputs: int) -> str:
        product = graph.add("MatMul", [value, graph.kernel(inputs, outputs)])
        return graph.add("Add", [product, graph.weight(outputs)])

    def normalized(value: str) -> str:
        return graph.stored(graph.add("LayerNormalization", [value, graph.weight(width), graph.weight(width)], axis=-1))

    words = graph.add("Gather", [graph.weight(_VOCABULARY, width), "token_ids"])
    kinds = graph.add("Gather", [graph.weight(2, width), "segment_ids"])
    value = normalized(graph.add("Add", [graph.add("Add", [words, kinds]), graph.weight(1, tokens, width)]))
    for _ in range(layers):
        mixed = graph.add("Reshape", [graph.stored(linear(value, width, 3 * width)), split])
        mixed = graph.add("Transpose", [mixed], perm=[0, 2, 1, 3])
        query = graph.add("Split", [mixed], outputs=3, axis=-1)
        key = graph.add("Transpose", [f"{query}_1"], perm=[0, 1, 3, 2])
        scores = graph.add("Mul", [graph.add("MatMul", [query, key]), scale])
        weights = graph.stored(graph.add("Softmax", [scores], axis=-1))
        context = graph.add("Transpose", [graph.add("MatMul", [weights, f"{query}_2"])], perm=[0, 2, 1, 3])
        context = graph.stored(graph.add("Reshape", [context, merged]))
        value = normalized(graph.add("Add", [linear(context, width, width), value]))
        inner = linear(value, width, 4 * width)
        erf = graph.add("Erf", [graph.add("Mul", [inner, graph.constant(2**-0.5)])])
        gelu = graph.add("Mul", [inner, graph.add("Add", [erf, graph.constant(1.0)])])
        inner = graph.stored(graph.add("Mul", [gelu, graph.constant(0.5)]))
        value = normalized(graph.add("Add", [linear(inner, 4 * width, width), value]))
    value = linear(value, width, 2)
    ids = (TensorProto.INT32, [tokens])
    return graph.model(f"{name}-{tokens}", {"token_ids": ids, "segment_ids": ids}, value, [tokens, 2])
