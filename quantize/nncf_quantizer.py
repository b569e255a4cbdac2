"""INT8 by NNCF's post-training quantization, for OpenVINO.

NNCF is called without a model type: its transformer type was both slower and ten times less accurate on attention
models.
"""

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tsexport.calibration.datasets import Dataset, calibration_batch
from tsexport.exporters.artifacts import describe
from tsexport.exporters.openvino import OPTIONS, write_ir
from tsexport.exporters.preprocessing import BEFORE, BEHIND
from tsexport.quantize.onnxruntime_quantizer import NothingQuantizedError
from tsexport.quantize.recipes import Recipe
from tsexport.quantize.sources import Order
from tsexport.types import Array, Artifact


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep NNCF's progress bars off our output, and its telemetry from the network."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"  # the documented way to keep openvino-telemetry from sending anything
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


def quantize_openvino(source: Path, recipe: Recipe, calibration: Dataset) -> Any:
    """Return an fp32 IR file quantized by a recipe, as an `openvino.Model`.

    Args:
        source: the .xml of an fp32 IR.
        recipe: of tool "nncf".
        calibration: windows named as the model's inputs; NNCF reads it once for each statistic, in a stream.

    Raises:
        NothingQuantizedError: the model has no constant weights that NNCF quantizes.
    """
    with _quiet():
        import nncf
        import openvino

        nncf.set_log_level(logging.ERROR)
        model = openvino.Core().read_model(source)
        batches = _Batches(calibration)
        fix = nncf.OverflowFix.ENABLE if recipe.reduce_range else nncf.OverflowFix.DISABLE
        quantized = nncf.quantize(
            model,
            nncf.Dataset(batches),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(batches),
            fast_bias_correction=True,
            ignored_scope=nncf.IgnoredScope(names=[*_preparation(model), *recipe.float_layers]),
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
        )
    # NNCF also quantizes the operands of elementwise operators; those alone make no INT8 model.
    if not any(_is_integer_weight(operation) for operation in quantized.get_ops()):
        raise NothingQuantizedError("the model has no operator with constant weights")
    return quantized


def _preparation(model: Any) -> list[str]:
    """Return the names of operators that prepare windows or scale forecasts back: they see raw values of any size."""
    names = [operation.get_friendly_name() for operation in model.get_ordered_ops()]
    prepared = [name for name in names if name.startswith((f"/{BEFORE}/", f"/{BEHIND}/"))]
    if prepared:  # OpenVINO names the last operator after the output
        prepared.append(model.get_results()[0].input_value(0).get_node().get_friendly_name())
    return list(dict.fromkeys(prepared))


def _is_integer_weight(operation: Any) -> bool:
    return operation.get_type_name() == "Constant" and operation.get_element_type().to_string() in ("i8", "u8")


class _Batches:
    """Iterates over a dataset's batches from the start each time it is asked."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset, self._size = dataset, calibration_batch(dataset)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return (dict(batch.feeds) for batch in self._dataset.batches(self._size))

    def __len__(self) -> int:
        return -(-self._dataset.count // self._size)


def build(order: Order, folder: Path) -> Artifact:
    """Write the artifact of a recipe of tool "nncf"."""
    model = quantize_openvino(order.source.path, order.recipe, order.calibration)
    return describe(
        write_ir(model, folder / f"{order.artifact_name}.xml", order.source),
        "openvino",
        order.spec,
        (*order.source.provenance, f"nncf {version('nncf')}: {order.recipe.summary}"),
        name=order.artifact_name,
        precision=order.recipe.precision,
        runtimes=order.recipe.runtimes,
        options=OPTIONS,
    )
