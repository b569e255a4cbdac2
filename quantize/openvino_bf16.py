"""The fp32 graph, computed in bf16 by OpenVINO: an artifact of its own, since the precision is stated at load.

Layers that a model keeps in fp32 are marked in the IR.  OpenVINO's CPU plugin computes an operator in the precision of
the file where its `rt_info` says "DisablePrecisionConversion" with "dynamic:f16"; that is how its own transformations
protect one (the mark holds for bf16 too).  Marks are lost where an operator becomes another, as a MatMul with
constant weights does: it becomes a FullyConnected.  A convolution stays one, so such a MatMul of two dimensions is
written as a 1x1 convolution, which computes the same sums:

    y[b, j] = sum_i x[b, i] w[i, j]     =     Convolution(x[b, i, 1, 1], w'[j, i, 1, 1]),  w' the transposed w

For a target that is not this machine (preset "simulated") an ONNX graph goes beside the artifact that rounds to bf16 at
every operator (`runtimes.bf16_rounding`), and is judged in its place: OpenVINO's arithmetic depends on the CPU, and
where a CPU has no bf16 it computes in fp32.

What was computed in which precision can be read from the compiled model (`runtimePrecision`), which tests do on
machines with bf16.

Source: openvino, src/plugins/intel_cpu/src/graph.cpp (EnforceInferencePrecision) and
src/common/transformations/include/transformations/rt_info/disable_precision_conversion.hpp, version 2026.4.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import openvino
import openvino.opset13 as ops

from tsexport.errors import UnsupportedError
from tsexport.exporters.artifacts import describe
from tsexport.exporters.openvino import write_ir
from tsexport.quantize.islands import in_layer
from tsexport.quantize.sources import Order
from tsexport.runtimes.bf16_rounding import compute_in_bf16
from tsexport.runtimes.simulation import EXTERNAL_FROM_BYTES, stand_in_beside
from tsexport.types import Artifact

_MARKABLE = frozenset(("Convolution", "Add", "Multiply", "Subtract", "Divide"))
_MARKABLE_IN_ONNX = frozenset(("Conv", "Gemm", "MatMul", "Add", "Mul", "Sub", "Div"))
STANDS_IN = (
    "caveat: the accuracy in bf16 is that of a graph that rounds at every operator, not of OpenVINO's own kernels, "
    "which round less often where they fuse operators, and more often within a recurrent layer"
)


def build(order: Order, folder: Path) -> Artifact:
    """Write the artifact of a recipe of tool "openvino".

    Raises:
        UnsupportedError: it is to be simulated, and the model has no fp32 ONNX that could stand in for it.
    """
    simulated = order.recipe.preset == "simulated"
    model = openvino.Core().read_model(order.source.path)
    kept = keep_in_fp32(model, order.spec.fp32_layers, order.recipe.float_layers)
    names = ", ".join(operation.get_friendly_name() for operation in kept)  # writing renames those that are new
    files = write_ir(model, folder / f"{order.artifact_name}.xml", order.source, precise=kept)
    if simulated:
        _write_stand_in(order, folder)
    steps = [order.recipe.summary, *([f"in fp32 by name: {names}"] if kept else [])]
    steps += [STANDS_IN] if simulated else []
    return describe(
        files,
        "openvino",
        order.spec,
        (*order.source.provenance, *steps),
        name=order.artifact_name,
        precision=order.recipe.precision,
        runtimes=order.recipe.runtimes,
        options=(("INFERENCE_PRECISION_HINT", "bf16"),),
    )


def _write_stand_in(order: Order, folder: Path) -> None:
    if order.sources.onnx is None:
        raise UnsupportedError("bf16 is judged by an ONNX graph where the target is not here, and the model has none")
    model = onnx.load(order.sources.onnx.path)
    kept = {
        node.name
        for node in model.graph.node
        if (node.name in order.recipe.float_layers or in_layer(node.name, order.spec.fp32_layers))
        and node.op_type in _MARKABLE_IN_ONNX
    }
    rounded = compute_in_bf16(model, kept)
    path = stand_in_beside(folder / f"{order.artifact_name}.xml")
    large = rounded.ByteSize() > EXTERNAL_FROM_BYTES
    onnx.save(rounded, path, save_as_external_data=large, location=f"{path.name}.data" if large else None)


def keep_in_fp32(model: openvino.Model, layers: Collection[str], nodes: Collection[str]) -> tuple[openvino.Node, ...]:
    """Write what is to stay in fp32 so that marks on it hold; return the operators to be marked.

    Args:
        model: changed in place.
        layers: scopes of layers, as `islands.in_layer` takes them.
        nodes: names of more operators.
    """
    kept = []
    for operation in model.get_ordered_ops():
        name, kind = operation.get_friendly_name(), operation.get_type_name()
        if name not in nodes and not in_layer(name, layers):
            continue
        marked = _as_convolution(operation) if kind == "MatMul" else operation if kind in _MARKABLE else None
        if marked is not None:
            kept.append(marked)
    return tuple(kept)


def _as_convolution(product: openvino.Node) -> openvino.Node | None:
    """Replace a MatMul [rows, inputs] x constant [inputs, outputs] by a 1x1 convolution; None where it is another."""
    weight, attributes = product.input_value(1).get_node(), product.get_attributes()
    rank = product.input_value(0).get_partial_shape().rank
    if weight.get_type_name() != "Constant" or attributes["transpose_a"] or rank.is_dynamic or rank.get_length() != 2:
        return None
    matrix = np.asarray(weight.data)
    outputs_first = matrix if attributes["transpose_b"] else matrix.T
    name = product.get_friendly_name()
    ends = ops.constant(np.array([2, 3], dtype=np.int64), name=f"{name}_ends")
    kernel = ops.constant(np.ascontiguousarray(outputs_first)[:, :, None, None].copy(), name=f"{name}_kernel")
    spread = ops.unsqueeze(product.input_value(0), ends, name=f"{name}_in")
    convolution = ops.convolution(spread, kernel, [1, 1], [0, 0], [0, 0], [1, 1], name=f"{name}_in_fp32")
    result = ops.squeeze(convolution, ends, name=f"{name}_out")
    for reader in product.output(0).get_target_inputs():
        reader.replace_source_output(result.output(0))
    return convolution
