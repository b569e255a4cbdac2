"""The TorchScript of a GPU bundle in fp16 or bf16, so that the target's own precision can be run and timed by PyTorch.

What a GPU target selects is the ONNX graph that TensorRT takes.  Beside it stands the source module, cast as
`runtimes.cuda_precision` does, and traced.  It is judged like any candidate, in its own precision by torch's kernels of
this CPU; one that misses the accuracy budget is listed as rejected and not shipped.  It is never selected.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tsexport.cache import restore_artifact, store_artifact
from tsexport.errors import TsexportError, reason_of
from tsexport.quantize.recipe import Recipe
from tsexport.runtimes.registry import TORCH_CUDA
from tsexport.stages.choosing import accuracy_budget
from tsexport.stages.compressing import try_recipe
from tsexport.stages.context import Context, portable
from tsexport.stages.exporting import Exports
from tsexport.stages.samples import Samples
from tsexport.stages.tried import AccuracyResult, BuildResult, Tried
from tsexport.types import Artifact

if TYPE_CHECKING:
    from tsexport.models.definition import Narrowing

SHIPPED = "it ships for PyTorch on the GPU, beside what TensorRT takes"


def script_recipe(context: Context) -> Recipe | None:
    """Return how the target's TorchScript is made; None where it has none: no GPU, int8 or fp32, or not asked for."""
    precision = context.target.precision
    if context.target.instruction_set != "gpu" or precision not in ("fp16", "bf16"):
        return None
    if "torchscript" not in context.options.formats or context.source.module is None:
        return None
    return Recipe(
        name=f"torchscript-{precision}",
        tool="torch",
        activations="none",
        weights=precision,
        reduce_range=False,
        per_channel=False,
        format="torchscript",
        runtimes=(TORCH_CUDA,),
        summary=f"the module cast to {precision} and traced, for PyTorch on a GPU",
        precision=precision,
    )


def try_scripts(context: Context, samples: Samples, exports: Exports) -> tuple[Tried, ...]:
    """Return the target's TorchScript, built and judged, or why there is none; () where it is not to have one."""
    recipe, traced = script_recipe(context), exports.of("torchscript")
    if recipe is None or traced is None:
        return ()
    artifact, reason = _build(context, samples, recipe, traced)
    budget, runtimes = accuracy_budget(context, samples), recipe.runtimes
    (tried,) = try_recipe(context, samples, recipe, artifact, reason, budget, runtimes, runtimes)
    return (tried if tried.out else replace(tried, reason=SHIPPED),)


def shipped_scripts(tried: tuple[Tried, ...]) -> tuple[Tried, ...]:
    """Return those of a build's candidates that ship beside the selected artifact."""
    return tuple(one for one in tried if one.runtime == TORCH_CUDA and one.artifact is not None and not one.out)


def accuracies_of(tried: tuple[Tried, ...]) -> tuple[AccuracyResult, ...]:
    """Return the accuracy of those that ship."""
    return tuple(AccuracyResult(one.accuracy, one.golden_error) for one in shipped_scripts(tried))


def _build(context: Context, samples: Samples, recipe: Recipe, traced: Artifact) -> tuple[Artifact | None, str]:
    narrowing = _narrowing(samples)
    inputs = {"source": traced.sha256, "samples": samples.key, "recipe": recipe, "narrowing": narrowing}

    def produce(folder: Path) -> BuildResult:
        from tsexport.exporters.torchscript import export_torchscript
        from tsexport.runtimes.cuda_precision import narrowed_model

        module = context.source.module
        assert module is not None, "script_recipe asks for one"
        rows = {name: array[:2] for name, array in samples.feeds.items()}
        try:
            cast = narrowed_model(
                module, recipe.precision, keep=(*samples.spec.fp32_layers, *narrowing.keep), within=narrowing.within
            )
            artifact = export_torchscript(
                cast,
                samples.spec,
                rows,
                folder / f"{recipe.name}.pt",
                name=recipe.name,
                precision=recipe.precision,
                runtimes=recipe.runtimes,
            )
        except (TsexportError, RuntimeError) as error:  # torch lacks some kernels in fp16 or bf16
            return BuildResult(None, portable(reason_of(error), context.cache))
        told = f"cast to {recipe.precision}, with inputs and outputs in fp32"
        provenance = (f"{told}; {narrowing.reason}" if narrowing.reason else told, *artifact.provenance)
        return BuildResult(store_artifact(replace(artifact, provenance=provenance), folder))

    cached = context.cache.stage("gpu-script", inputs, BuildResult, produce)
    stored = cached.result.artifact
    return (restore_artifact(stored, cached.folder) if stored else None), cached.result.reason


def _narrowing(samples: Samples) -> "Narrowing":
    """Return what the model's file says of it; nothing for a model that is not registered."""
    from tsexport.models.definition import Narrowing, narrowing_of
    from tsexport.models.registry import get_entry, list_entries

    name = samples.spec.name
    if samples.spec.component is not None or name not in {entry.name for entry in list_entries()}:
        return Narrowing()
    return narrowing_of(get_entry(name).definition())
