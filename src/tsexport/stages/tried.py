"""What became of a recipe: the records that the stages of candidates hand on."""

from dataclasses import asdict, dataclass
from typing import Literal

from tsexport.cache import StoredArtifact
from tsexport.quantize.recipe import Recipe
from tsexport.types import Accuracy, Artifact, Candidate
from tsexport.work import Coverage


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
    """One recipe on one runtime: what was built, how accurate it is, and why it is out of the race if it is.

    `refused` says that the target's TensorRT does not run it (see `fitting`).
    """

    recipe: Recipe
    runtime: str
    artifact: Artifact | None
    accuracy: Accuracy | None
    golden_error: float
    out: Literal["", "failed", "rejected"]
    reason: str
    coverage: Coverage | None = None
    refused: bool = False

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
            coverage=self.coverage,
        )
