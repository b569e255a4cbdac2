"""Why an artifact is not faster: what of it is computed in 8-bit integers, and what is lost on the way.

Counted in the graph that the runtime makes of the artifact for one sample, where fused operators are one:

- multiply-accumulates, and how many of them are of 8-bit integers;
- conversions: operators that only change how numbers are stored (quantize, dequantize, cast, reorder);
- bytes of constants, and of all that operators read and write otherwise.

In ONNX Runtime that is the optimized graph, run once (see `quantize.operations`).

In OpenVINO it is the compiled model.  The products of a fully connected layer, a product and a convolution follow from
the shapes there, [..., m, k] x [..., k, n] with

    k^2 = (m k) (k n) / (m n)        whichever of the two is transposed,

since names are lost where operators are fused.  Other operators (recurrent layers, a "Subgraph" that holds several
products) name the operators of the IR that they stand for, and their products are counted there.  What is in integers
is read from the operands, not from `runtimePrecision`, which is that of the weights where they are merely stored in
int8:

- both operands in 8 bits: integers;
- a fully connected layer of floating-point activations and 8-bit weights: OpenVINO may quantize the activations at run
  time, in groups, and shows nowhere whether it does.  Not known, but where the groups are switched off;
- a Subgraph: integers where all that it reads is in 8 bits, and what goes from one product to the next is quantized;
  floating point where nothing is; otherwise not known, as is what no operator of the compiled model stands for.

Source: openvino, src/plugins/intel_cpu/src/graph_dumper.cpp and src/nodes/fullyconnected.cpp, version 2026.4, and the
compiled models of patchtst-cpu by every recipe.
"""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import onnx
import onnxruntime

from tsexport.exporters.onnx_external import open_model
from tsexport.quantize.operations import CONVERSIONS, operations
from tsexport.runtimes.onnxruntime import session_options
from tsexport.types import Artifact, Feeds
from tsexport.work import Coverage

COVERED = ("onnxruntime", "openvino")
"""Runtimes that show what they make of a graph."""
_ITEMSIZE = {"f32": 4, "f16": 2, "bf16": 2, "i64": 8, "i32": 4, "u8": 1, "i8": 1, "boolean": 1}
_INTEGER = frozenset({"i8", "u8"})
_NO_WORK = frozenset({"Const", "Input", "Output"})
_OPENVINO_CONVERSIONS = frozenset({"Reorder", "Convert", "FakeQuantize"})
_RECURRENT = frozenset({"LSTMSequence", "GRUSequence", "RNNSequence"})
_BY_SHAPE = frozenset({"FullyConnected", "MatMul", "Convolution", "Deconvolution"})
_REWRITTEN = ("/DequantizationMultiply", "/DequantizationSubtract")
"""What OpenVINO's low-precision passes add to the name of an operator that they move a scale behind."""
GROUPS = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
_NOT_SHOWN = "OpenVINO does not show which products it computes in integers"

Arithmetic = Literal["integer", "float", "unknown"]


def cover(artifact: Artifact, runtime: str, feeds: Feeds) -> Coverage:
    """Return what an artifact computes on a runtime of COVERED for one sample.

    Args:
        artifact: as it would be loaded, with its options.
        feeds: one sample.
    """
    return _in_onnxruntime(artifact, feeds) if runtime == "onnxruntime" else _in_openvino(artifact)


def _in_onnxruntime(artifact: Artifact, feeds: Feeds) -> Coverage:
    batch = len(next(iter(feeds.values())))
    if len(artifact.files) > 1:
        # An optimized graph with its weights in it would be larger than a file may be.
        model = open_model(artifact.path)
    else:
        with tempfile.TemporaryDirectory(prefix="tsexport-optimized-") as folder:
            options = session_options(artifact, threads=1, batch=batch)
            options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
            onnxruntime.InferenceSession(str(artifact.path), options, providers=["CPUExecutionProvider"])
            model = onnx.load(options.optimized_model_filepath)
    done = operations(model, feeds, session_options(artifact, threads=1, batch=batch))
    return Coverage(
        macs=sum(one.macs for one in done),
        int8_macs=sum(one.int8_macs for one in done),
        operators=len(done),
        conversions=sum(one.operator in CONVERSIONS for one in done),
        weight_bytes=_constant_bytes(model),
        activation_bytes=sum(one.activation_bytes for one in done),
    )


def _constant_bytes(model: onnx.ModelProto) -> int:
    """Return the bytes of all initializers that an operator reads, each once."""
    used = {name for node in model.graph.node for name in node.input}
    sizes = {
        one.name: math.prod(one.dims) * onnx.helper.tensor_dtype_to_np_dtype(one.data_type).itemsize
        for one in model.graph.initializer
    }
    return sum(size for name, size in sizes.items() if name in used)


def _in_openvino(artifact: Artifact) -> Coverage:
    import openvino

    from tsexport.runtimes.openvino import properties

    core = openvino.Core()
    model = core.read_model(artifact.path)
    model.reshape({spec.name: list(spec.with_batch(1)) for spec in artifact.inputs})
    macs = {operation.get_friendly_name(): _openvino_macs(operation) for operation in model.get_ops()}
    total = sum(macs.values())
    kinds = {operation.get_friendly_name(): operation.get_type_name() for operation in model.get_ops()}
    compiled = core.compile_model(model, "CPU", properties(artifact, threads=1))
    grouped = str(compiled.get_property(GROUPS)) != "0"
    done = {"integer": 0, "float": 0, "unknown": 0}
    operators = conversions = weights = activations = 0
    for operation in compiled.get_runtime_model().get_ordered_ops():
        kind = _info(operation, "layerType")
        if kind == "Const":
            weights += _bytes(operation)
        if kind in _NO_WORK:
            continue
        names = _names(operation)
        sources = [value.get_node() for value in operation.input_values()]
        named = sum(
            macs.pop(name, 0) for name in dict.fromkeys(names)
        )  # each product once, where two operators name it
        work = _macs_by_shape(operation, kind) if kind in _BY_SHAPE else named
        quantized = any(kinds.get(name) == "FakeQuantize" for name in names)
        done[_arithmetic(operation, kind, sources, quantized, grouped)] += work
        operators += 1
        only_stored = not work and bool(names) and all(kinds.get(name) in _OPENVINO_CONVERSIONS for name in names)
        conversions += kind in _OPENVINO_CONVERSIONS or only_stored
        moved = (one for one in sources if _info(one, "layerType") != "Const")
        activations += _bytes(operation) + sum(map(_bytes, moved))
    # What no operator of the compiled model stands for was computed all the same, nobody knows how.
    unknown = done["unknown"] + max(total - sum(done.values()), 0)
    return Coverage(
        macs=max(total, sum(done.values())),
        int8_macs=done["integer"],
        operators=operators,
        conversions=conversions,
        weight_bytes=weights,
        activation_bytes=activations,
        unknown_macs=unknown,
        unknown=_NOT_SHOWN if unknown else "",
    )


def _names(operation: Any) -> list[str]:
    """Return the operators of the IR that an operator of the compiled model stands for."""
    names = [name for name in _info(operation, "originalLayersNames").split(",") if name]
    for suffix in _REWRITTEN:
        names += [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
    return names


def _macs_by_shape(operation: Any, kind: str) -> int:
    """Return the multiply-accumulates of an operator of the compiled model of a kind of _BY_SHAPE."""
    left, right, result = _shape(operation.input(0)), _shape(operation.input(1)), _shape(operation.output(0))
    if kind in ("FullyConnected", "MatMul"):
        # the two innermost dimensions of each; a vector is all of its own
        shared = math.prod(left[-2:]) * math.prod(right[-2:]) / max(math.prod(result[-2:]), 1)
        return math.prod(result) * round(math.sqrt(shared))
    kernel = right[1:] if len(right) == len(left) else right[2:]  # a grouped one is [groups, outputs, inputs, ...]
    return math.prod(result if kind == "Convolution" else left) * math.prod(kernel)


def _arithmetic(operation: Any, kind: str, sources: Sequence[Any], quantized: bool, grouped: bool) -> Arithmetic:
    """Return what an operator of the compiled model computes its products in.

    Args:
        quantized: it stands for a FakeQuantize too.
        grouped: OpenVINO may quantize activations at run time, in groups.
    """
    integers = [_info(one, "outputPrecisions").split(",")[0] in _INTEGER for one in sources]
    if kind in _BY_SHAPE:
        if all(integers[:2]):
            return "integer"
        return "unknown" if kind == "FullyConnected" and integers[1] and grouped else "float"
    if kind == "Subgraph":
        if not any(integers):
            return "unknown" if quantized else "float"
        return "integer" if all(integers) and quantized else "unknown"
    return "integer" if _info(operation, "runtimePrecision") in _INTEGER else "float"


def _info(operation: Any, key: str) -> str:
    info = operation.get_rt_info()
    value = info[key] if key in info else ""  # noqa: SIM401  # RTMap has no get
    return str(getattr(value, "value", value))


def _bytes(operation: Any) -> int:
    precision = _info(operation, "outputPrecisions").split(",")[0]
    shape = _shape(operation.output(0)) if operation.get_output_size() else []
    return math.prod(shape) * _ITEMSIZE.get(precision, 4)


def _shape(port: Any) -> list[int]:
    return [int(size) for size in port.get_shape()]


def _openvino_macs(operation: Any) -> int:
    """Return the multiply-accumulates of an operator of an IR with fixed shapes (see `quantize.operations`)."""
    kind = operation.get_type_name()
    if kind == "MatMul":
        shape = _shape(operation.input(0))
        summed = shape[-2 if operation.get_attributes()["transpose_a"] and len(shape) > 1 else -1]
        return math.prod(_shape(operation.output(0))) * summed
    if kind in ("Convolution", "GroupConvolution"):
        # a grouped kernel is [groups, outputs, inputs, ...]
        kernel = _shape(operation.input(1))[1 if kind == "Convolution" else 2 :]
        return math.prod(_shape(operation.output(0))) * math.prod(kernel)
    if kind in ("ConvolutionBackpropData", "GroupConvolutionBackpropData"):
        kernel = _shape(operation.input(1))[1 if kind == "ConvolutionBackpropData" else 2 :]
        return math.prod(_shape(operation.input(0))) * math.prod(kernel)
    if kind in _RECURRENT:
        batch, steps = _shape(operation.input(0))[:2]
        positions = (4, 5) if kind == "LSTMSequence" else (3, 4)
        return batch * steps * sum(math.prod(_shape(operation.input(one))) for one in positions)
    return 0
