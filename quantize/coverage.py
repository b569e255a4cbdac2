"""Why an artifact is not faster: what of it is computed in 8-bit integers, and what is lost on the way.

Counted in the graph that the runtime makes of the artifact for one sample, where fused operators are one:

- multiply-accumulates, and how many of them are of 8-bit integers;
- conversions: operators that only change how numbers are stored (quantize, dequantize, cast, reorder);
- bytes of constants, and of all that operators read and write otherwise.

In ONNX Runtime that is the optimized graph, run once (see `quantize.operations`).  In OpenVINO it is the compiled
model, whose operators name the operators of the IR that they stand for and the precision that they compute in; the
multiply-accumulates are counted in the IR.  An OpenVINO operator that holds several products (a "Subgraph") counts as
integers where one of its constants is.
"""

import math
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
        int8_macs=sum(one.macs for one in done if one.integer),
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
    kinds = {operation.get_friendly_name(): operation.get_type_name() for operation in model.get_ops()}
    compiled = core.compile_model(model, "CPU", properties(artifact, threads=1))
    total = integer = operators = conversions = weights = activations = 0
    for operation in compiled.get_runtime_model().get_ordered_ops():
        kind = _info(operation, "layerType")
        if kind == "Const":
            weights += _bytes(operation)
        if kind in _NO_WORK:
            continue
        names = [name for name in _info(operation, "originalLayersNames").split(",") if name]
        sources = [value.get_node() for value in operation.input_values()]
        work = sum(macs.pop(name, 0) for name in names)  # each product once, where two operators name it
        total += work
        integer += work if _is_integer(operation, sources, kind) else 0
        operators += 1
        only_stored = not work and bool(names) and all(kinds.get(name) in _OPENVINO_CONVERSIONS for name in names)
        conversions += kind in _OPENVINO_CONVERSIONS or only_stored
        moved = (one for one in sources if _info(one, "layerType") != "Const")
        activations += _bytes(operation) + sum(map(_bytes, moved))
    # What no operator of the compiled model names was computed all the same; nothing says that it was in integers.
    return Coverage(total + sum(macs.values()), integer, operators, conversions, weights, activations)


def _is_integer(operation: Any, sources: Iterable[Any], kind: str) -> bool:
    if _info(operation, "runtimePrecision") in _INTEGER:
        return True
    constants = (one for one in sources if kind == "Subgraph" and _info(one, "layerType") == "Const")
    return any(_info(one, "outputPrecisions") in _INTEGER for one in constants)


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
