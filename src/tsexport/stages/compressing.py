"""The INT8 stages: build every candidate that suits the CPU, and judge the accuracy of every artifact on its
runtimes."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tsexport.cache import restore_artifact, store_artifact
from tsexport.errors import reason_of
from tsexport.runtimes.simulation import AS_WRITTEN
from tsexport.stages.buildup import check_buildup
from tsexport.stages.context import Context, portable
from tsexport.stages.exporting import Exports
from tsexport.stages.fitting import refusal_by_device
from tsexport.stages.samples import Samples
from tsexport.stages.tried import AccuracyResult, BuildResult, Tried
from tsexport.types import AccuracyBudget, Artifact

if TYPE_CHECKING:
    from tsexport.quantize.recipe import Recipe


def build_recipe(
    context: Context, samples: Samples, exports: Exports, recipe: "Recipe"
) -> tuple[Artifact | None, str, bool]:
    """Return a recipe's artifact (or None and the reason), and whether it came from the cache."""
    onnx, openvino = exports.to_quantize("onnx"), exports.to_quantize("openvino")
    source = exports.to_quantize(recipe.format)
    inputs = {
        "recipe": recipe,
        "source": source.sha256 if source else "",
        "samples": samples.key,
        "tables": context.calibration_tables,
    }

    def produce(folder: Path) -> BuildResult:
        from tsexport.calibration.arrays import ArrayDataset
        from tsexport.quantize.candidates import build_candidate
        from tsexport.quantize.sources import Fp32Sources
        from tsexport.stages.calibrating import cached_calibration

        calibration = context.calibration
        if calibration is None and recipe.activations != "none":
            return BuildResult(None, "there is no calibration data")
        windows = calibration.dataset if calibration is not None else ArrayDataset(samples.feeds)
        module = context.source.module
        sources = Fp32Sources(onnx, openvino, (lambda: module) if module is not None else None)
        ranges = cached_calibration(context)
        built = build_candidate(recipe, sources, samples.spec, windows, folder, ranges)
        stored = store_artifact(built.artifact, folder) if built.artifact else None
        return BuildResult(stored, portable(built.reason, context.cache))

    cached = context.cache.stage("candidate", inputs, BuildResult, produce)
    result = cached.result
    artifact = restore_artifact(result.artifact, cached.folder) if result.artifact else None
    if artifact is not None and context.target.instruction_set == "gpu" and artifact.precision == "int8":
        # No kernels of this CPU stand for TensorRT's: wherever ONNX Runtime runs it, it computes as it is written.
        artifact = replace(
            artifact, options=tuple({**dict(artifact.options), **dict(AS_WRITTEN["onnxruntime"])}.items())
        )
    return artifact, result.reason, cached.reused


def accuracy_of(
    context: Context, samples: Samples, artifact: Artifact, runtime: str, *, batch_dependent: bool = False
) -> tuple[AccuracyResult, bool]:
    """Return how accurate an artifact is on a runtime, and whether that came from the cache.

    Where an answer depends on the rest of the batch, several batch sizes are tried and the worst counts.  Where the
    target is not this machine, what is not fp32 is simulated exactly: the runtime's own kernels may answer otherwise.
    """
    simulated = context.simulates(artifact)
    inputs = {
        "artifact": artifact.sha256,
        "name": artifact.name,  # the record holds it: two recipes may give the same bytes
        "options": artifact.options,
        "runtime": runtime,
        "samples": samples.key,
        "metric": context.options.metric,
        "threads": context.threads,
        "batch_dependent": batch_dependent,
        "simulated": simulated,
    }

    def produce(folder: Path) -> AccuracyResult:
        from tsexport.calibration.metrics import OutputError
        from tsexport.quantize.evaluation import ANY_BATCH, EVALUATION_BATCHES, evaluate

        evaluation = samples.evaluation_set(context.options.metric)
        golden_inputs, golden_outputs = samples.golden
        error = OutputError()
        batches = EVALUATION_BATCHES if batch_dependent else ANY_BATCH
        try:
            with context.session(artifact, runtime) as session:
                accuracy = evaluate(session, evaluation, artifact=artifact.name, runtime=runtime, batches=batches)
                for row in range(len(next(iter(golden_inputs.values())))):
                    feeds = {name: array[row : row + 1] for name, array in golden_inputs.items()}
                    error.update(
                        session.run(feeds), {name: array[row : row + 1] for name, array in golden_outputs.items()}
                    )
        except (OSError, MemoryError):
            raise  # of the machine at this moment, and no answer to keep
        except Exception as failure:
            # A runtime that dies on a candidate does so in its own words; the candidate is listed with them.
            words = portable(reason_of(failure), context.cache)
            does = "simulate" if simulated else "run"
            return AccuracyResult(None, reason=f"{runtime} cannot {does} it: {words}")
        values = (accuracy.output_error, accuracy.degradation or 0.0, accuracy.value or 0.0, error.worst[1])
        if not all(math.isfinite(value) for value in values):
            return AccuracyResult(None, reason="its answers are not finite, or the source's are all zero")
        return AccuracyResult(accuracy, error.worst[1])

    cached = context.cache.stage("accuracy", inputs, AccuracyResult, produce)
    accuracy = cached.result.accuracy
    if accuracy is not None:  # another recipe may have made the same bytes under another name
        accuracy = replace(accuracy, artifact=artifact.name)
    return replace(cached.result, accuracy=accuracy), cached.reused


def try_recipe(
    context: Context,
    samples: Samples,
    recipe: "Recipe",
    artifact: Artifact | None,
    why: str,
    budget: AccuracyBudget,
    here: Sequence[str],
    wanted: Sequence[str],
) -> tuple[Tried, ...]:
    """Judge the accuracy of a built recipe on each wanted runtime that is here, unless the target refuses it."""
    from tsexport.quantize.evaluation import budget_miss

    tried = []
    refusal = refusal_by_device(context, artifact) if artifact is not None else ""
    for runtime in wanted:
        if artifact is None:
            tried.append(Tried(recipe, runtime, None, None, 0.0, "failed", why))
        elif refusal:
            tried.append(Tried(recipe, runtime, None, None, 0.0, "failed", refusal, refused=True))
        elif runtime not in here:
            tried.append(Tried(recipe, runtime, artifact, None, 0.0, "failed", f"{runtime} is not installed here"))
        else:
            dynamic = recipe.activations == "dynamic"
            result, _ = accuracy_of(context, samples, artifact, runtime, batch_dependent=dynamic)
            if result.accuracy is None:
                tried.append(Tried(recipe, runtime, artifact, None, 0.0, "failed", result.reason))
                continue
            miss = budget_miss(result.accuracy, budget) or check_buildup(context, samples, artifact, runtime).miss
            out: Literal["", "rejected"] = "rejected" if miss else ""
            tried.append(Tried(recipe, runtime, artifact, result.accuracy, result.golden_error, out, miss))
    return tuple(tried)
