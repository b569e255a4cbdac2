"""INT8 by ONNX Runtime's quantizer, from a clean fp32 graph.

Only products with constant weights are quantized: quantizing the products of two activations in attention gave an
error of 0.8 where it was tried.  The graph must hold no Identity and no Gemm (see `exporters.rewrites.cleaning`).

Static recipes take the ranges of activations from our calibration tables; where Q/DQ pairs stand is the quantizer's
choice.  The observer is the one with the least error in this comparison: relative RMS of the output on up to 1024
windows, 256 windows of calibration drawn by regime, reference checkpoints where there are any, S8 weights of full range
per channel, in ONNX Runtime 1.31 on AVX512-VNNI (errors do not depend on how busy a machine is):

    model            min-max   p99.9    p99.99   p99.999  mse      entropy
    patchtst-cpu     0.0117    0.0111   0.0119   0.0120   0.0116   0.0112
    inception-time   0.0142    0.0182   0.0145   0.0145   0.0145   0.0139
    unet             0.0222    0.0316   0.0191   0.0203   0.0187   0.0210
    tcn              0.0205    0.0373   0.0210   0.0205   0.0203   0.0208
    resnet1d         0.0279    0.0857   0.0324   0.0281   0.0308   0.0313
    itransformer     0.0135    0.0142   0.0123   0.0130   0.0124   0.0133
    nhits            0.0041    0.0044   0.0036   0.0039   0.0036   0.0039
    geometric mean   1.000     1.409    0.977    0.982    0.962    0.993   (of min-max)

Weights of 7 bits or per tensor give the same order: 0.971 and 0.965 for mse, 0.999 and 0.998 for entropy.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
    save_tensors_data,
)
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.shape_inference import quant_pre_process

from tsexport.calibration.datasets import Dataset
from tsexport.calibration.table import CalibrationTable, Observer, calibrate
from tsexport.quantize.onnx_candidate import write_candidate
from tsexport.quantize.recipe import Recipe
from tsexport.quantize.sources import Calibrate, NothingQuantizedError, Order
from tsexport.types import Artifact

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


def observed_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the activations that static quantization may put into 8 bits: what its operators take and give.

    Layers that stay in floating point are among them, so that one table serves every choice of layers.
    """
    constants = {initializer.name for initializer in model.graph.initializer}
    apart = set(_products_of_activations(model))
    names = [
        name
        for node in model.graph.node
        if node.op_type in STATIC_OPERATORS and node.name not in apart
        for name in (*node.input[:2], node.output[0])
        if name and name not in constants
    ]
    return tuple(dict.fromkeys(names))


def _static(model: onnx.ModelProto, recipe: Recipe, table: CalibrationTable, path: Path) -> None:
    """Quantize by the ranges of a table: the quantizer reads them in place of calibrating, and places Q/DQ itself."""
    ranges = {one.name: TensorData(lowest=np.float32(one.low), highest=np.float32(one.high)) for one in table.ranges}
    cache = path.with_name("ranges.json")
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, ranges), cache)
    quantize_static(
        model,
        path,
        None,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=STATIC_OPERATORS,
        # MatMulConstBOnly, which does this for dynamic quantization, has no effect where Q/DQ pairs are written.
        nodes_to_exclude=[*_products_of_activations(model), *recipe.float_layers],
        per_channel=recipe.per_channel,
        reduce_range=recipe.reduce_range,
        activation_type=QuantType.QInt8 if recipe.activation_type == "s8" else QuantType.QUInt8,
        weight_type=_weight_type(recipe),
        calibrate_method=CalibrationMethod.MinMax,
        calibration_cache_path=cache,
        extra_options={"ActivationSymmetric": table.observer.symmetric},
    )


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name the nodes that have no name: nodes are excluded by name."""
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}_unnamed"
    return model


def _products_of_activations(model: onnx.ModelProto) -> list[str]:
    """Return the names of the MatMuls that have no constant operand."""
    constants = {initializer.name for initializer in model.graph.initializer}
    return [n.name for n in model.graph.node if n.op_type == "MatMul" and not constants & {*n.input}]


def quantize_onnx(
    source: Path, recipe: Recipe, calibration: Dataset, calibrate: Calibrate = calibrate
) -> onnx.ModelProto:
    """Return an fp32 ONNX file quantized by a recipe.

    Args:
        source: a clean opset-17 graph.
        recipe: of tool "onnxruntime"; static ones take min-max ranges unless they name an observer.
        calibration: windows named as the graph's inputs; read in a stream, for static recipes.
        calibrate: takes the ranges of activations.

    Raises:
        NothingQuantizedError: the graph has no node that the recipe applies to.
        ValueError: the recipe names a layer that the graph does not have.
        DataError: the windows do not fit, or give NaN or infinity.
    """
    with tempfile.TemporaryDirectory(prefix="tsexport-quantize-") as folder, _quiet():
        prepared, path = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
        # Symbolic shape inference fails on transformer encoders; the graph is optimized already.
        quant_pre_process(source, prepared, skip_optimization=True, skip_symbolic_shape=True)
        if recipe.activations == "dynamic":
            _require_layers(onnx.load(prepared, load_external_data=False), recipe)
            _dynamic(prepared, recipe, path)
        else:
            model = _named(onnx.load(prepared))
            _require_layers(model, recipe)
            tensors = observed_tensors(model)
            if not tensors:
                raise _nothing(STATIC_OPERATORS)
            _static(model, recipe, calibrate(source, calibration, tensors, recipe.observer or Observer()), path)
        model = onnx.load(path)
    if not any(node.op_type in QUANTIZED_NODES for node in model.graph.node):
        raise _nothing(DYNAMIC_OPERATORS if recipe.activations == "dynamic" else STATIC_OPERATORS)
    return model


def _nothing(operators: list[str]) -> NothingQuantizedError:
    return NothingQuantizedError(f"the graph has no {' or '.join(operators)} with constant weights")


def _require_layers(model: onnx.ModelProto, recipe: Recipe) -> None:
    unknown = sorted({*recipe.float_layers} - {node.name for node in model.graph.node})
    if unknown:
        raise ValueError(f"float_layers names {unknown[0]!r}, and the graph has no such node")


def build(order: Order, folder: Path) -> Artifact:
    """Write the artifact of a recipe of tool "onnxruntime"."""
    recipe = order.recipe
    model = quantize_onnx(order.source.path, recipe, order.calibration, order.calibrate)
    done = f"onnxruntime {version('onnxruntime')} quantizer: {recipe.summary}"
    return write_candidate(order, model, folder, done)
