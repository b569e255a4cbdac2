"""Build one INT8 (or bf16) candidate from the fp32 artifacts, by a recipe."""

from dataclasses import dataclass
from pathlib import Path

from tsexport.calibration.datasets import Dataset
from tsexport.errors import TsexportError
from tsexport.exporters.artifacts import describe
from tsexport.exporters.onnx_file import finish_onnx
from tsexport.exporters.openvino import OPTIONS, write_ir
from tsexport.quantize.recipes import Recipe
from tsexport.types import Artifact, ModelSpec

_PREAMBLES = ("Exception from", "Check '")


@dataclass(frozen=True)
class Built:
    """What became of a recipe: an artifact, or the reason why there is none."""

    recipe: Recipe
    artifact: Artifact | None
    reason: str = ""


@dataclass(frozen=True)
class Fp32Sources:
    """The fp32 artifacts that candidates are made from; None where the model has none in that format."""

    onnx: Artifact | None
    openvino: Artifact | None


def build_candidate(recipe: Recipe, sources: Fp32Sources, spec: ModelSpec, calibration: Dataset, folder: Path) -> Built:
    """Build a recipe's artifact in `folder`.

    A recipe that a library cannot carry out is no error of the build: it is returned with the reason.

    Args:
        recipe: what to do.
        sources: the fp32 artifacts.
        spec: the model's inputs and outputs.
        calibration: windows for static recipes, named as the inputs; streamed.
        folder: where the artifact's files go.
    """
    source = sources.onnx if recipe.format == "onnx" else sources.openvino
    if source is None:
        return Built(recipe, None, f"the model has no fp32 artifact in {recipe.format}")
    try:
        return Built(recipe, _BUILDERS[recipe.tool](recipe, source, spec, calibration, folder))
    except (OSError, MemoryError):
        raise  # a full disk says nothing about the recipe
    except Exception as error:
        # Quantizers raise whatever their internals meet; the candidate is listed with it, and the others go on.
        if isinstance(error, TsexportError):
            return Built(recipe, None, error.message)
        return Built(recipe, None, f"{recipe.tool} could not build it: {_telling_line(error)[:200]}")


def _telling_line(error: Exception) -> str:
    """Return the first line of an error that says why, leaving out where in OpenVINO's source it was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(_PREAMBLES)), type(error).__name__)


def _artifact_name(recipe: Recipe) -> str:
    return f"{recipe.precision}-{recipe.name}" if recipe.precision not in recipe.name else recipe.name


def _with_onnxruntime(
    recipe: Recipe, source: Artifact, spec: ModelSpec, calibration: Dataset, folder: Path
) -> Artifact:
    from dataclasses import replace
    from importlib.metadata import version

    from tsexport.quantize.onnxruntime_quantizer import quantize_onnx

    model = quantize_onnx(source.path, recipe, calibration)
    name = _artifact_name(recipe)
    done = f"onnxruntime {version('onnxruntime')} quantizer: {recipe.summary}"
    artifact = finish_onnx(
        model,
        spec,
        folder / f"{name}.onnx",
        (*source.provenance, done),
        name=name,
        precision=recipe.precision,
        domains=recipe.domains,
    )
    return replace(artifact, runtimes=recipe.runtimes, options=source.options)


def _with_nncf(recipe: Recipe, source: Artifact, spec: ModelSpec, calibration: Dataset, folder: Path) -> Artifact:
    from importlib.metadata import version

    from tsexport.quantize.nncf_quantizer import quantize_openvino

    name = _artifact_name(recipe)
    done = f"nncf {version('nncf')}: {recipe.summary}"
    model = quantize_openvino(source.path, recipe, calibration)
    files = write_ir(model, folder / f"{name}.xml", source)
    return describe(
        files,
        "openvino",
        spec,
        (*source.provenance, done),
        name=name,
        precision=recipe.precision,
        runtimes=recipe.runtimes,
        options=OPTIONS,
    )


def _with_openvino(recipe: Recipe, source: Artifact, spec: ModelSpec, calibration: Dataset, folder: Path) -> Artifact:
    """The fp32 graph, computed in bf16: an artifact of its own, since the precision is stated at load."""
    import openvino

    name = _artifact_name(recipe)
    files = write_ir(openvino.Core().read_model(source.path), folder / f"{name}.xml", source)
    return describe(
        files,
        "openvino",
        spec,
        (*source.provenance, recipe.summary),
        name=name,
        precision=recipe.precision,
        runtimes=recipe.runtimes,
        options=(("INFERENCE_PRECISION_HINT", "bf16"),),
    )


_BUILDERS = {"onnxruntime": _with_onnxruntime, "nncf": _with_nncf, "openvino": _with_openvino}
