"""INT8 by ONNX Runtime's quantizer, from a clean fp32 graph.

Only products with constant weights are quantized: quantizing the products of two activations in attention gave an
error of 0.8 where it was tried.  The graph must hold no Identity and no Gemm (see `exporters.rewrites.cleaning`).
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from tsexport.calibration.datasets import Dataset
from tsexport.exporters.onnx_file import finish_onnx
from tsexport.quantize.recipes import Recipe
from tsexport.quantize.sources import Order
from tsexport.types import Array, Artifact, rows_at_once

DYNAMIC_OPERATORS = ["MatMul", "LSTM"]
STATIC_OPERATORS = ["MatMul", "Conv"]
QUANTIZED_NODES = frozenset(
    {
        "MatMulInteger",
        "ConvInteger",
        "DynamicQuantizeLinear",
        "DynamicQuantizeLSTM",
        "QuantizeLinear",
        "DequantizeLinear",
    }
)
CALIBRATION_BATCH = 16
"""The most windows at once; a model of large inputs takes fewer (see `rows_at_once`)."""


class NothingQuantizedError(Exception):
    """The recipe found no node that it could quantize."""


def calibration_batch(dataset: Dataset) -> int:
    """Return how many windows a quantizer is given at once: it keeps what every layer answers to them."""
    first = next(iter(dataset.batches(1)))
    return rows_at_once((array.shape for array in first.feeds.values()), CALIBRATION_BATCH)


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime ships no types
    """Streams a dataset's batches, so that memory does not grow with the number of windows."""

    def __init__(self, dataset: Dataset) -> None:
        self._batches: Iterator[dict[str, Array]] = (
            dict(batch.feeds) for batch in dataset.batches(calibration_batch(dataset))
        )

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantizer's advice on the root logger (it recommends what has been done)."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _weight_type(recipe: Recipe) -> QuantType:
    return QuantType.QUInt8 if recipe.weights == "u8" else QuantType.QInt8


def _dynamic(source: Path, recipe: Recipe, path: Path) -> None:
    quantize_dynamic(
        source,
        path,
        op_types_to_quantize=DYNAMIC_OPERATORS,
        nodes_to_exclude=list(recipe.float_layers),
        per_channel=recipe.per_channel,
        reduce_range=recipe.reduce_range,
        weight_type=_weight_type(recipe),
        extra_options={"MatMulConstBOnly": True},
    )


def _static(source: Path, recipe: Recipe, calibration: Dataset, path: Path) -> None:
    model = onnx.load(source)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}_unnamed"  # nodes are excluded by name
    quantize_static(
        model,
        path,
        _Reader(calibration),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=STATIC_OPERATORS,
        # MatMulConstBOnly, which does this for dynamic quantization, has no effect where Q/DQ pairs are written.
        nodes_to_exclude=[*_products_of_activations(model), *recipe.float_layers],
        per_channel=recipe.per_channel,
        reduce_range=recipe.reduce_range,
        activation_type=QuantType.QUInt8,
        weight_type=_weight_type(recipe),
    )


def _products_of_activations(model: onnx.ModelProto) -> list[str]:
    """Return the names of the MatMuls that have no constant operand."""
    constants = {initializer.name for initializer in model.graph.initializer}
    return [n.name for n in model.graph.node if n.op_type == "MatMul" and not constants & {*n.input}]


def quantize_onnx(source: Path, recipe: Recipe, calibration: Dataset) -> onnx.ModelProto:
    """Return an fp32 ONNX file quantized by a recipe.

    Args:
        source: a clean opset-17 graph.
        recipe: of tool "onnxruntime".
        calibration: windows named as the graph's inputs; read once, in a stream, for static recipes.

    Raises:
        NothingQuantizedError: the graph has no node that the recipe applies to.
    """
    with tempfile.TemporaryDirectory(prefix="tsexport-quantize-") as folder, _quiet():
        prepared, path = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
        # Symbolic shape inference fails on transformer encoders; the graph is optimized already.
        quant_pre_process(source, prepared, skip_optimization=True, skip_symbolic_shape=True)
        if recipe.activations == "dynamic":
            _dynamic(prepared, recipe, path)
        else:
            _static(prepared, recipe, calibration, path)
        model = onnx.load(path)
    if not any(node.op_type in QUANTIZED_NODES for node in model.graph.node):
        operators = DYNAMIC_OPERATORS if recipe.activations == "dynamic" else STATIC_OPERATORS
        raise NothingQuantizedError(f"the graph has no {' or '.join(operators)} with constant weights")
    return model


def build(order: Order, folder: Path) -> Artifact:
    """Write the artifact of a recipe of tool "onnxruntime"."""
    recipe = order.recipe
    model = quantize_onnx(order.source.path, recipe, order.calibration)
    done = f"onnxruntime {version('onnxruntime')} quantizer: {recipe.summary}"
    artifact = finish_onnx(
        model,
        order.spec,
        folder / f"{order.artifact_name}.onnx",
        (*order.source.provenance, done),
        name=order.artifact_name,
        precision=recipe.precision,
        domains=recipe.domains,
    )
    return replace(artifact, runtimes=recipe.runtimes, options=order.source.options)
