"""How much each layer of an fp32 graph costs in accuracy when it alone is quantized.

One layer at a time gets the numbers of static INT8: its constant weights are rounded to symmetric S8, with one scale
for each output channel or one for the tensor, as the recipe has it, and its activation passes a QuantizeLinear and a
DequantizeLinear of U8 with the range that it had on the calibration windows (0 always lies in it).  The graph is
computed in floating point: ONNX Runtime is told to fuse no Q/DQ pair, so the answer is the same on a CPU whose 16-bit
sums saturate.  The sensitivity is the relative RMS error of the worst output against the same graph without it.

What this does not see: errors of several layers that add up or cancel (the search verifies each candidate as a whole),
and the hidden state of a recurrent layer, whose input and weights alone are quantized here.

Source: one-at-a-time sensitivity, as in H. Wu et al., "Integer quantization for deep learning inference", 2020, 3.3.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tsexport.calibration.datasets import Dataset
from tsexport.calibration.metrics import OutputError
from tsexport.exporters.onnx_external import create_session, open_model
from tsexport.quantize.operations import operations
from tsexport.quantize.search import Layer
from tsexport.types import Array, Feeds, rows_at_once

ROWS = 16
_S8, _U8 = 127, 255
_WEIGHTS: Mapping[str, tuple[int, ...]] = {
    "MatMul": (1,),
    "Gemm": (1,),
    "Conv": (1,),
    "ConvTranspose": (1,),
    "LSTM": (1, 2),
    "GRU": (1, 2),
}
"""Positions of the weights among an operator's inputs; the activation is input 0."""


def find_layers(source: Path, feeds: Feeds) -> tuple[Layer, ...]:
    """Return the quantizable nodes of a clean fp32 graph, in its order; one run counts their work.

    A node without a name of its own cannot be named in a recipe, and is left out.

    Args:
        source: an .onnx file.
        feeds: one window.
    """
    model = open_model(source)
    constants = {one.name for one in model.graph.initializer}
    names = Counter(node.name for node in model.graph.node)
    layers = (node for node in model.graph.node if names[node.name] == 1 and node.name and _weights(node, constants))
    outputs = {node.name: node.output[0] for node in layers}
    done = operations(model, feeds, _options())
    return tuple(Layer(one.name, one.operator, outputs[one.name], one.macs) for one in done if one.name in outputs)


class Probe:
    """A graph with the answers and ranges that one layer's quantization is held against.

    It holds the graph, and for a few windows the inputs and outputs; inner activations stay inside ONNX Runtime.
    """

    def __init__(self, source: Path, calibration: Dataset, windows: int) -> None:
        self._model = open_model(source)
        self._nodes = {node.name: index for index, node in enumerate(self._model.graph.node) if node.name}
        self._constants = {one.name: one for one in self._model.graph.initializer}
        count = min(windows, calibration.count)
        chosen = np.unique(np.linspace(0, calibration.count - 1, count).round().astype(int)).tolist()
        first = next(iter(calibration.read(chosen[:1], 1)))
        rows = rows_at_once((array.shape for array in first.feeds.values()), ROWS)
        self._feeds = [dict(batch.feeds) for batch in calibration.read(chosen, rows)]
        session = _session(self._model)
        self._outputs = [_run(session, feeds) for feeds in self._feeds]
        self._ranges = self._measure_ranges()

    def error(self, layer: str, *, per_channel: bool) -> float:
        """Return the relative RMS error of the worst output where this layer alone is quantized; may be infinite."""
        with self._quantized(layer, per_channel) as model:
            session = _session(model)
        error = OutputError()
        for feeds, expected in zip(self._feeds, self._outputs, strict=True):
            error.update(_run(session, feeds), expected)
        return error.worst[1]

    def _measure_ranges(self) -> dict[str, tuple[float, float]]:
        """Return (lowest, highest) over the windows of every activation that enters a layer."""
        graph = self._model.graph
        wanted = sorted({node.input[0] for node in graph.node if node.name and _weights(node, self._constants)})
        copy = onnx.ModelProto()
        copy.CopyFrom(self._model)
        del copy.graph.output[:]
        for index, name in enumerate(wanted):
            for kind in ("Min", "Max"):
                made = f"tsexport.{kind}.{index}"
                copy.graph.node.append(helper.make_node(f"Reduce{kind}", [name], [made], keepdims=0))
                copy.graph.output.append(helper.make_tensor_value_info(made, TensorProto.FLOAT, []))
        session = _session(copy)
        rows = [np.array(session.run(None, dict(feeds))).reshape(-1, 2) for feeds in self._feeds]
        lowest, highest = np.min([row[:, 0] for row in rows], axis=0), np.max([row[:, 1] for row in rows], axis=0)
        return {name: (float(low), float(high)) for name, low, high in zip(wanted, lowest, highest, strict=True)}

    @contextmanager
    def _quantized(self, layer: str, per_channel: bool) -> Iterator[onnx.ModelProto]:
        """Quantize one layer of the graph in place, and put it back."""
        graph = self._model.graph
        index = self._nodes[layer]
        node = graph.node[index]
        inputs, nodes, initializers = list(node.input), len(graph.node), len(graph.initializer)
        kept = onnx.NodeProto()
        kept.CopyFrom(node)
        try:
            activation = inputs[0]
            scale, zero_point = _affine(*self._ranges[activation])
            graph.initializer.append(numpy_helper.from_array(np.float32(scale), "tsexport.scale"))
            graph.initializer.append(numpy_helper.from_array(np.uint8(zero_point), "tsexport.zero"))
            parts = ["tsexport.scale", "tsexport.zero"]
            node.input[0] = "tsexport.rounded"
            for position in _WEIGHTS[node.op_type]:
                name = f"tsexport.weight.{position}"
                axis = channel_axis(node) if per_channel else None
                weight = round_weights(self._value(inputs[position]), axis)
                graph.initializer.append(numpy_helper.from_array(weight, name))
                node.input[position] = name
            # ONNX wants nodes sorted: the pair goes before the node that reads it.
            graph.node.insert(index, helper.make_node("QuantizeLinear", [activation, *parts], ["tsexport.integer"]))
            pair = helper.make_node("DequantizeLinear", ["tsexport.integer", *parts], ["tsexport.rounded"])
            graph.node.insert(index + 1, pair)
            yield self._model
        finally:
            del graph.node[index : index + len(graph.node) - nodes]
            graph.node[index].CopyFrom(kept)
            del graph.initializer[initializers:]

    def _value(self, name: str) -> Array:
        tensor = self._constants[name]
        if tensor.data_location != TensorProto.EXTERNAL:
            value: Array = numpy_helper.to_array(tensor)
            return value
        copy = TensorProto()
        copy.CopyFrom(tensor)
        onnx.external_data_helper.load_external_data_for_tensor(copy, "/")  # the location is absolute
        copy.ClearField("external_data")
        copy.data_location = TensorProto.DEFAULT
        value = numpy_helper.to_array(copy)
        return value


def channel_axis(node: onnx.NodeProto) -> int:
    """Return the axis of the output channels in a layer's weights."""
    if node.op_type == "Gemm":
        return 0 if any(one.name == "transB" and one.i for one in node.attribute) else 1
    return {"MatMul": -1, "Conv": 0, "ConvTranspose": 1, "LSTM": 1, "GRU": 1}[node.op_type]


def round_weights(weight: Array, axis: int | None) -> Array:
    """Return weights as symmetric S8 would hold them, with one scale for each slice along `axis` (None: for all).

    A vector is one channel.
    """
    whole = axis is None or weight.ndim == 1
    others = tuple(one for one in range(weight.ndim) if whole or one != (axis or 0) % weight.ndim)
    largest = np.abs(weight).max(axis=others, keepdims=True).astype(np.float64)  # a 127th may be too small for fp32
    scale = np.where(largest > 0, largest / _S8, 1.0)
    rounded: Array = (np.clip(np.rint(weight / scale), -_S8, _S8) * scale).astype(np.float32)
    return rounded


def _affine(low: float, high: float) -> tuple[float, int]:
    """Return scale and zero point of U8 for a range, widened to hold 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    if not np.isfinite(low) or not np.isfinite(high) or high == low:
        return 1.0, 0
    scale = (high - low) / _U8
    return scale, int(np.clip(round(-low / scale), 0, _U8))


def _weights(node: onnx.NodeProto, constants: Collection[str]) -> bool:
    """Return whether a node is a layer: an operator whose weights are all constant, and whose first operand is not."""
    positions = _WEIGHTS.get(node.op_type, ())
    named = [node.input[position] for position in positions if len(node.input) > position]
    if not positions or len(named) < len(positions) or node.input[0] in constants:
        return False
    return all(one in constants for one in named)


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return create_session(model, _options())


def _run(session: onnxruntime.InferenceSession, feeds: Feeds) -> dict[str, Array]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))
