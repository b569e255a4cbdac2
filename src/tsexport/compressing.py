"""The INT8 stages: build every candidate that suits the CPU, and judge the accuracy of every artifact on its
runtimes."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tsexport.buildup import check_buildup
from tsexport.cache import StoredArtifact, restore_artifact, store_artifact
from tsexport.context import Context, portable
from tsexport.exporting import Exports
from tsexport.samples import Samples
from tsexport.types import Accuracy, AccuracyBudget, Artifact, Candidate

if TYPE_CHECKING:
    from tsexport.quantize.recipes import Recipe


@dataclass(frozen=True)
class BuildResult:
    """One candidate's artifact in the cache, or the reason why there is none."""

    artifact: StoredArtifact | None
    reason: str = ""


@dataclass(frozen=True)
class AccuracyResult:
    """Accuracy of an artifact on a runtime, its error on the golden inputs, or why there is none."""

    accuracy: Accuracy | None
    golden_error: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Tried:
    """One recipe on one runtime: what was built, how accurate it is, and why it is out of the race if it is."""

    recipe: "Recipe"
    runtime: str
    artifact: Artifact | None
    accuracy: Accuracy | None
    golden_error: float
    out: Literal["", "failed", "rejected"]
    reason: str

    @property
    def name(self) -> str:
        several = len(self.recipe.runtimes) > 1
        return f"{self.recipe.name} on {self.runtime}" if several else self.recipe.name

    def candidate(self, status: Literal["selected", "eligible", "rejected", "failed"], reason: str) -> Candidate:
        """Return the manifest's record of it."""
        return Candidate(
            name=self.name,
            recipe=asdict(self.recipe),
            runtime=self.runtime,
            precision=self.recipe.precision,
            size_bytes=self.artifact.size_bytes if self.artifact else None,
            accuracy=self.accuracy,
            status=status,
            reason=reason,
            artifact=self.artifact.name if self.artifact else None,
        )


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
    }

    def produce(folder: Path) -> BuildResult:
        from tsexport.quantize.candidates import build_candidate
        from tsexport.quantize.sources import Fp32Sources

        calibration = context.calibration
        if calibration is None:
            return BuildResult(None, "there is no calibration data")
        module = context.source.module
        sources = Fp32Sources(onnx, openvino, (lambda: module) if module is not None else None)
        built = build_candidate(recipe, sources, samples.spec, calibration.dataset, folder)
        stored = store_artifact(built.artifact, folder) if built.artifact else None
        return BuildResult(stored, portable(built.reason, context.cache))

    cached = context.cache.stage("candidate", inputs, BuildResult, produce)
    result = cached.result
    artifact = restore_artifact(result.artifact, cached.folder) if result.artifact else None
    return artifact, result.reason, cached.reused


def accuracy_of(
    context: Context, samples: Samples, artifact: Artifact, runtime: str, *, batch_dependent: bool = False
) -> tuple[AccuracyResult, bool]:
    """Return how accurate an artifact is on a runtime, and whether that came from the cache.

    Where an answer depends on the rest of the batch, several batch sizes are tried and the worst counts.
    """
    inputs = {
        "artifact": artifact.sha256,
        "options": artifact.options,
        "runtime": runtime,
        "samples": samples.key,
        "metric": context.options.metric,
        "threads": context.threads,
        "batch_dependent": batch_dependent,
    }

    def produce(folder: Path) -> AccuracyResult:
        from tsexport.calibration.metrics import OutputError
        from tsexport.quantize.evaluation import ANY_BATCH, EVALUATION_BATCHES, evaluate
        from tsexport.runtimes.registry import load

        evaluation = samples.evaluation_set(context.options.metric)
        golden_inputs, golden_outputs = samples.golden
        error = OutputError()
        batches = EVALUATION_BATCHES if batch_dependent else ANY_BATCH
        try:
            with load(artifact, runtime, threads=context.threads) as session:
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
            words = portable((str(failure).splitlines() or [""])[0], context.cache)
            return AccuracyResult(None, reason=f"{runtime} cannot run it: {words[:200]}")
        values = (accuracy.output_error, accuracy.degradation or 0.0, accuracy.value or 0.0, error.worst[1])
        if not all(math.isfinite(value) for value in values):
            return AccuracyResult(None, reason="its answers are not finite, or the source's are all zero")
        return AccuracyResult(accuracy, error.worst[1])

    cached = context.cache.stage("accuracy", inputs, AccuracyResult, produce)
    return cached.result, cached.reused


def try_recipe(
    context: Context,
    samples: Samples,
    recipe: "Recipe",
    artifact: Artifact | None,
    why: str,
    budget: AccuracyBudget,
    here: Sequence[str],
) -> tuple[Tried, ...]:
    """Judge the accuracy of a built recipe on each of its runtimes that is here."""
    from tsexport.quantize.evaluation import budget_miss

    tried = []
    for runtime in recipe.runtimes:
        if artifact is None:
            tried.append(Tried(recipe, runtime, None, None, 0.0, "failed", why))
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
