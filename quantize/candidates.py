"""Build one INT8 (or bf16) candidate from the fp32 artifacts, by a recipe.

A tool is a module with a function `build(order, folder) -> Artifact` and a row of `TOOLS`.  The calibration tables that
it took stand beside its artifact, as `<artifact>.calibration.json`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from tsexport.calibration.datasets import Dataset
from tsexport.calibration.table import CalibrationTable, Observer, calibrate
from tsexport.calibration.table_files import tables_text
from tsexport.errors import CalibrationTableError, MissingDependencyError, TsexportError, reason_of
from tsexport.quantize.recipe import Recipe
from tsexport.quantize.sources import Calibrate, Fp32Sources, Order
from tsexport.types import Artifact, ModelSpec

TOOLS = {
    "onnxruntime": "tsexport.quantize.onnxruntime_quantizer",
    "fused-attention": "tsexport.quantize.fused_attention",
    "inc": "tsexport.quantize.inc_quantizer",
    "nncf": "tsexport.quantize.nncf_quantizer",
    "openvino": "tsexport.quantize.openvino_bf16",
    "fp16": "tsexport.quantize.fp16",
    "bf16": "tsexport.quantize.bf16",
    "tensorrt-qdq": "tsexport.quantize.tensorrt_qdq",
    "modelopt": "tsexport.quantize.modelopt_quantizer",
    "openvino-dynamic": "tsexport.quantize.openvino_dynamic",
}
"""Where each tool's `build` is; imported when a recipe of it is built."""


@dataclass(frozen=True)
class Built:
    """What became of a recipe: an artifact, or the reason why there is none."""

    recipe: Recipe
    artifact: Artifact | None
    reason: str = ""


def tables_beside(artifact: Path) -> Path:
    """Return where the calibration tables of an artifact stand; there is no such file where none was taken."""
    return artifact.with_name(f"{artifact.stem}.calibration.json")


def build_candidate(
    recipe: Recipe,
    sources: Fp32Sources,
    spec: ModelSpec,
    calibration: Dataset,
    folder: Path,
    calibrate: Calibrate = calibrate,
) -> Built:
    """Build a recipe's artifact in `folder`.

    A recipe that a library cannot carry out is no error of the build: it is returned with the reason.

    Args:
        recipe: what to do.
        sources: the fp32 artifacts.
        spec: the model's inputs and outputs.
        calibration: windows for static recipes, named as the inputs; streamed.
        folder: where the artifact's files go.
        calibrate: takes the ranges of tensors.

    Raises:
        CalibrationTableError: the build was given a calibration table that does not match this recipe.
    """
    source = sources.in_format(recipe.format)
    if source is None:
        return Built(recipe, None, f"the model has no fp32 artifact in {recipe.format}")
    tables: list[CalibrationTable] = []

    def keep(model: Path, dataset: Dataset, tensors: Sequence[str], observer: Observer) -> CalibrationTable:
        tables.append(calibrate(model, dataset, tensors, observer))
        return tables[-1]

    # Outside: where our own module cannot be imported, that is a bug or a changed installation, and no recipe's fault.
    build: Callable[[Order, Path], Artifact] = import_module(TOOLS[recipe.tool]).build
    try:
        artifact = build(Order(recipe, source, sources, spec, calibration, keep), folder)
        if tables:
            tables_beside(artifact.path).write_text(tables_text(tables), encoding="utf-8")
        return Built(recipe, artifact)
    except (OSError, MemoryError, CalibrationTableError):
        raise  # a full disk, or a table of another model, says nothing about the recipe
    except Exception as error:
        # Quantizers raise whatever their internals meet; the candidate is listed with it, and the others go on.
        if isinstance(error, MissingDependencyError):
            return Built(recipe, None, f"{error.message}; {error.next_step}")
        if isinstance(error, TsexportError):
            return Built(recipe, None, error.message)
        return Built(recipe, None, f"{recipe.tool} could not build it: {reason_of(error)}")
