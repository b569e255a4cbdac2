"""What an artifact's file is made of: how often each operator stands in it, and in which precision each layer computes.

Files are read, never run.  A layer is an operator that multiplies by weights or by another tensor.  Its precision is
read from the file:

- ONNX: an operator of integers, or one whose operands all come from DequantizeLinear, is int8; with some of them so,
  "int8 weights"; otherwise the type of its output.
- OpenVINO IR: the same with FakeQuantize and constants of 8 bits; where nothing is quantized, the precision that the
  artifact states for its arithmetic (bf16), or that of the output.
- TorchScript: the archive's source code names the operators; the precision is the artifact's.

An IR is XML; one with a document type is refused, since entities can make megabytes of a few bytes.
"""

import re
import xml.etree.ElementTree as ElementTree
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tsexport.bundles.manifest import ArtifactEntry
from tsexport.errors import BundleError
from tsexport.extras import require

if TYPE_CHECKING:
    import onnx

_LAYERS = frozenset(
    ["MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN", "Einsum", "Convolution", "GroupConvolution",
     "ConvolutionBackpropData", "GroupConvolutionBackpropData", "LSTMSequence", "GRUSequence", "RNNSequence",
     "LSTMCell", "GRUCell"]
)  # fmt: skip
_INTEGER_LAYERS = frozenset(
    ["MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "QGemm", "DynamicQuantizeMatMul",
     "MatMulIntegerToFloat", "DynamicQuantizeLSTM", "QAttention"]
)  # fmt: skip
_PASSED_THROUGH = frozenset(["Transpose", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Cast"])
_PASSED_THROUGH_IR = frozenset(["Transpose", "Reshape", "Unsqueeze", "Squeeze", "Convert", "Multiply", "Subtract"])
_EIGHT_BITS = frozenset(["i8", "u8"])
_ONNX_TYPES = {1: "fp32", 10: "fp16", 16: "bf16", 11: "fp64", 3: "int8", 2: "int8"}
"""Numbers of onnx.TensorProto.DataType."""
_IR_TYPES = {"FP32": "fp32", "FP16": "fp16", "BF16": "bf16", "FP64": "fp64"}
_PRECISION_HINT = "INFERENCE_PRECISION_HINT"
_CALL = re.compile(r"\btorch\.([a-z_0-9]+)\(")
_MAX_XML_BYTES, _MAX_CODE_BYTES = 256 * 2**20, 64 * 2**20
_QUANTIZED_NAME = "_quant"
"""What ONNX Runtime's quantizer adds to the name of an operator."""


@dataclass(frozen=True)
class GraphContent:
    """`operators` counts each kind; `layers` maps a layer's name to its precision, in the file's order."""

    operators: Mapping[str, int]
    layers: Mapping[str, str]


def read_graph(entry: ArtifactEntry, root: Path) -> GraphContent:
    """Return what an artifact of the bundle's folder `root` is made of.

    Raises:
        BundleError: the file is not of the format that the manifest says.
        MissingDependencyError: an ONNX file, and onnx is not installed.
    """
    path = root / entry.path
    if entry.format == "onnx":
        return _read_onnx(path)
    return _read_ir(path, entry) if entry.format == "openvino" else _read_torchscript(path)


def _read_onnx(path: Path) -> GraphContent:
    require("build", "reading an ONNX graph", only=("onnx",))
    import onnx
    import onnx.shape_inference
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path, load_external_data=False)
        types = _onnx_types(onnx.shape_inference.infer_shapes(model))
    except (DecodeError, onnx.shape_inference.InferenceError) as error:
        raise _no_graph(path, "ONNX file", error) from None
    nodes = list(_nodes(model.graph))
    producers = {name: node for node in nodes for name in node.output}
    layers = {
        (node.name or node.output[0]).removesuffix(_QUANTIZED_NAME): _onnx_precision(node, producers, types)
        for node in nodes
        if node.op_type in _LAYERS | _INTEGER_LAYERS
    }
    return GraphContent(_counted(node.op_type for node in nodes), layers)


def _nodes(graph: "onnx.GraphProto") -> Iterator["onnx.NodeProto"]:
    """Yield a graph's nodes and those of the graphs within them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _onnx_types(model: "onnx.ModelProto") -> dict[str, str]:
    graph = model.graph
    known = {info.name: info.type.tensor_type.elem_type for info in (*graph.value_info, *graph.input, *graph.output)}
    known |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: _ONNX_TYPES.get(number, "") for name, number in known.items()}


def _onnx_precision(node: "onnx.NodeProto", producers: Mapping[str, "onnx.NodeProto"], types: Mapping[str, str]) -> str:
    if node.op_type in _INTEGER_LAYERS:
        return "int8"
    operands = [name for name in node.input[:2] if name]
    dequantized = [_is_dequantized(name, producers) for name in operands]
    if any(dequantized):
        return "int8" if all(dequantized) else "int8 weights"
    return next((types[name] for name in (*node.output, *operands) if types.get(name)), "not known")


def _is_dequantized(name: str, producers: Mapping[str, "onnx.NodeProto"]) -> bool:
    node = producers.get(name)
    for _ in range(len(producers)):  # a graph has no cycles, but a file may say anything
        if node is None or node.op_type not in _PASSED_THROUGH:
            break
        node = producers.get(next(iter(node.input), ""))
    return node is not None and node.op_type == "DequantizeLinear"


def _read_ir(path: Path, entry: ArtifactEntry) -> GraphContent:
    content = path.read_bytes()
    if len(content) > _MAX_XML_BYTES or b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise _no_graph(path, "OpenVINO IR", "it is far too large, or has a document type")
    try:
        net = ElementTree.fromstring(content)
        layers = {layer.attrib["id"]: layer for layer in net.iterfind("./layers/layer")}
        kinds = {number: layer.attrib["type"] for number, layer in layers.items()}
        sources = {
            (edge.attrib["to-layer"], edge.attrib["to-port"]): layers[edge.attrib["from-layer"]]
            for edge in net.iterfind("./edges/edge")
        }
    except (ElementTree.ParseError, KeyError) as error:
        raise _no_graph(path, "OpenVINO IR", error) from None
    stated = dict(entry.options).get(_PRECISION_HINT)
    precisions = {
        layer.attrib.get("name", number): _ir_precision(layer, sources, stated)
        for number, layer in layers.items()
        if kinds[number] in _LAYERS
    }
    return GraphContent(_counted(kind for kind in kinds.values() if kind != "Const"), precisions)


_Sources = Mapping[tuple[str, str], ElementTree.Element]


def _ir_precision(layer: ElementTree.Element, sources: _Sources, stated: str | None) -> str:
    ports = [port.attrib.get("id", "") for port in layer.iterfind("./input/port")][:2]
    quantized = [_is_quantized(sources.get((layer.attrib["id"], port)), sources) for port in ports]
    if any(quantized):
        return "int8" if all(quantized) else "int8 weights"
    if stated == "bf16":
        return "bf16"
    port = layer.find("./output/port")
    return _IR_TYPES.get(port.attrib.get("precision", ""), "not known") if port is not None else "not known"


def _is_quantized(layer: ElementTree.Element | None, sources: _Sources) -> bool:
    """Return whether a value comes from FakeQuantize, or from a constant of 8 bits."""
    for _ in range(len(sources) + 1):  # a graph has no cycles, but a file may say anything
        if layer is None or layer.attrib["type"] == "FakeQuantize":
            return layer is not None
        if layer.attrib["type"] == "Const":
            data = layer.find("./data")
            return data is not None and data.attrib.get("element_type") in _EIGHT_BITS
        if layer.attrib["type"] not in _PASSED_THROUGH_IR:
            return False
        layer = sources.get((layer.attrib["id"], "0"))
    return False


def _read_torchscript(path: Path) -> GraphContent:
    try:
        with zipfile.ZipFile(path) as archive:
            code = [info for info in archive.infolist() if info.filename.endswith(".py")]
            if sum(info.file_size for info in code) > _MAX_CODE_BYTES:
                raise _no_graph(path, "TorchScript archive", "its code is far too large")
            calls = (call for info in code for call in _CALL.findall(archive.read(info).decode("utf-8", "replace")))
            return GraphContent(_counted(calls), {})
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise _no_graph(path, "TorchScript archive", error) from None


def _counted(kinds: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(kinds).items()))


def _no_graph(path: Path, what: str, reason: object) -> BundleError:
    return BundleError(f"{path.name} is no {what}: {reason}", next_step="build the bundle again")
