"""INT8 for TensorRT by nvidia-modelopt, where it is installed, brought to opset 17 and held to the same rules as ours.

modelopt replaces parts of ONNX Runtime's quantizer in the process that imports it, so it works in one of its own
(`quantize.modelopt_process`).  It writes opset 19.  Bringing that to 17 is exact: what it writes of 18 and 19 are the
axes of reductions as an input (`exporters.onnx_lowering`), attributes of Q/DQ and Cast that only float8 reads, and
scales, which stay fp32.  A pair that it puts in front of a normalization is taken from there, and so is one in front of
a layer whose other operand has none.

It is no extra of this project: its own extra `onnx` pins onnx 1.21 and onnxruntime-gpu 1.24, which exclude the versions
used here.  Without that extra, PIP_COMMAND installs what its INT8 path needs beside them.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import TensorProto
from onnx_ir.passes import common

from tsexport.calibration.datasets import Dataset, calibration_batch
from tsexport.errors import ExportError, MissingDependencyError
from tsexport.exporters.onnx_external import open_model
from tsexport.exporters.onnx_lowering import lower_to_opset17
from tsexport.exporters.qdq_regions import (
    LAYERS,
    NORMALIZATIONS,
    SOFTMAX,
    before_pair,
    find_regions,
    has_dimension_of_one,
    has_every_kernel,
    is_operator,
)
from tsexport.exporters.qdq_rules import require_rules
from tsexport.npz import write_arrays
from tsexport.quantize.onnx_candidate import write_candidate
from tsexport.quantize.recipe import Recipe
from tsexport.quantize.sources import NothingQuantizedError, Order
from tsexport.types import Artifact

PIP_COMMAND = (
    'pip install "nvidia-modelopt~=0.47.0" lief onnx-graphsurgeon onnxslim "onnxconverter-common~=1.16" polygraphy'
)
PACKAGES = ("modelopt", "lief", "onnx_graphsurgeon", "onnxslim", "onnxconverter_common", "polygraphy")
"""What its INT8 path imports, beside what the extra `build` brings."""
METHODS = {"minmax": "max", "entropy": "entropy"}
"""modelopt's name of a calibration method, by that of an observer."""
TIMEOUT_SECONDS = 3600.0
_READS_FLOAT8_ONLY = {"QuantizeLinear": "saturate", "Cast": "saturate"}


def require_modelopt() -> None:
    """Check that nvidia-modelopt and what its INT8 path imports are here; nothing is imported.

    Raises:
        MissingDependencyError: names what is missing, and the pip command.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"nvidia-modelopt is not installed here ({', '.join(missing)} cannot be imported)", next_step=PIP_COMMAND
        )


def quantize_modelopt(source: Path, recipe: Recipe, calibration: Dataset) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return an fp32 ONNX file quantized by modelopt, in opset 17, and what was changed of its result.

    Args:
        source: a clean opset-17 graph.
        recipe: of tool "modelopt"; its observer's method is "minmax" or "entropy".
        calibration: windows named as the graph's inputs; written to files, a batch each.

    Raises:
        MissingDependencyError: modelopt is not installed.
        NothingQuantizedError: it found no node that it quantizes.
        ExportError: it failed, or wrote what opset 17 cannot say.
    """
    require_modelopt()
    method = METHODS[recipe.observer.method if recipe.observer is not None else "entropy"]
    with tempfile.TemporaryDirectory(prefix="tsexport-modelopt-") as name:
        folder = Path(name)
        named = _with_names(open_model(source))
        onnx.save(named, folder / "source.onnx")
        for number, batch in enumerate(calibration.batches(calibration_batch(calibration))):
            write_arrays(folder / f"batch-{number:06}.npz", dict(batch.feeds))
        order = {"method": method, "exclude": _excluded(named, recipe)}
        _run(folder, json.dumps(order))
        model = onnx.load(folder / "quantized.onnx")
    if not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise NothingQuantizedError("modelopt found no node that it quantizes")
    return model, bring_to_opset17(model)


def _run(folder: Path, order: str) -> None:
    command = (sys.executable, "-P", "-m", "tsexport.quantize.modelopt_process", str(folder))
    try:
        done = subprocess.run(command, input=order, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"nvidia-modelopt did not finish in {TIMEOUT_SECONDS:g} s") from error
    if done.returncode or not (folder / "quantized.onnx").is_file():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise ExportError(
            f"nvidia-modelopt ended with exit code {done.returncode}: {(lines or ['it says nothing'])[-1][:300]}"
        )


def _with_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every node a name: modelopt chooses nodes by name."""
    taken = {node.name for node in model.graph.node}
    for number, node in enumerate(model.graph.node):
        if not node.name:
            node.name = next(n for n in (f"node_{number}", f"unnamed_node_{number}") if n not in taken)
            taken.add(node.name)
    return model


def _excluded(model: onnx.ModelProto, recipe: Recipe) -> list[str]:
    """Return the names of the nodes that stay in floating point: named ones, vectors, and those without a kernel."""
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True)).graph
    found = set(recipe.float_layers)
    for node in graph:
        if is_operator(node, *LAYERS) and (
            has_dimension_of_one(node) or not (recipe.every_kernel or has_every_kernel(node))
        ):
            found.add(str(node.name))
    return sorted(found)


def bring_to_opset17(model: onnx.ModelProto) -> tuple[str, ...]:
    """Bring modelopt's opset 19 to 17 in place, by exact steps; return what was changed, a sentence each.

    Raises:
        ExportError: scales that are not fp32, or what opset 17 cannot say.
    """
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        dropped = _READS_FLOAT8_ONLY.get(node.op_type)
        kept = [attribute for attribute in node.attribute if attribute.name != dropped]
        del node.attribute[:]
        node.attribute.extend(kept)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            kind = types.get(node.input[1], TensorProto.FLOAT)
            if kind != TensorProto.FLOAT:
                raise ExportError(
                    f"{node.op_type} {node.name!r} has a scale of type {TensorProto.DataType.Name(kind)}; opset 17 "
                    f"takes FLOAT alone"
                )
    steps = lower_to_opset17(model)
    return (*steps, *_free_high_precision(model))


def _free_high_precision(model: onnx.ModelProto) -> tuple[str, ...]:
    """Let normalizations, softmax, attention's scores and layers with a pair in front of one operand alone read what
    stands before a pair; drop what nothing reads."""
    graph_model = ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))
    regions = find_regions(graph_model.graph)
    in_float = regions.scores | regions.normalizations
    freed = 0
    for node in graph_model.graph:
        read = [index for index, value in enumerate(node.inputs) if _from_pair(value)]
        half_quantized = is_operator(node, *LAYERS) and not {0, 1} <= {*read}
        if not (half_quantized or node in in_float or is_operator(node, *NORMALIZATIONS, *SOFTMAX)):
            continue
        for index in read:
            node.replace_input_with(index, before_pair(node.inputs[index]))
            freed += 1
    common.RemoveUnusedNodesPass()(graph_model)
    changed = ir.to_proto(graph_model)
    del changed.graph.value_info[:]
    model.CopyFrom(changed)
    return (f"pairs taken from in front of what stays in floating point ({freed})",) if freed else ()


def _from_pair(value: ir.Value | None) -> bool:
    return value is not None and is_operator(value.producer(), "DequantizeLinear")


def build(order: Order, folder: Path) -> Artifact:
    """Write the artifact of a recipe of tool "modelopt".

    Raises:
        MissingDependencyError: modelopt is not installed; the message has the pip command.
        ExportError: the result breaks a rule of TensorRT.
    """
    recipe = order.recipe
    model, steps = quantize_modelopt(order.source.path, recipe, order.calibration)
    require_rules(model, float_layers=recipe.float_layers, every_kernel=recipe.every_kernel)
    done = f"nvidia-modelopt {version('nvidia-modelopt')}: {recipe.summary}"
    return write_candidate(order, model, folder, done, *steps)
