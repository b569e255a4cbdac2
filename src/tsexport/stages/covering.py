"""What artifacts compute in integers and what they convert on the way, counted once and cached."""

from dataclasses import dataclass, replace
from pathlib import Path

from tsexport.errors import reason_of
from tsexport.stages.context import Context, portable
from tsexport.stages.samples import Samples
from tsexport.stages.tried import Tried
from tsexport.types import Artifact
from tsexport.work import Coverage

SHOWN_BY = ("onnxruntime", "openvino")
"""Runtimes that show what they make of a graph; the list of `quantize.coverage`, which imports them."""


@dataclass(frozen=True)
class CoverageResult:
    """What was counted, or why nothing could be."""

    coverage: Coverage | None
    reason: str = ""


def coverage_of(context: Context, samples: Samples, artifact: Artifact, runtime: str) -> Coverage | None:
    """Return what an artifact computes on a runtime for one sample.

    None where the runtime does not show it, where it fails, or where the target is not this machine: the graph that
    another CPU or TensorRT makes is not the one that is made here.
    """
    if runtime not in SHOWN_BY or not context.target.here:
        return None
    inputs = {
        "artifact": artifact.sha256,
        "options": artifact.options,
        "runtime": runtime,
        "samples": samples.key,
    }

    def produce(_: Path) -> CoverageResult:
        from tsexport.quantize.coverage import cover

        try:
            return CoverageResult(cover(artifact, runtime, {name: rows[:1] for name, rows in samples.feeds.items()}))
        except (OSError, MemoryError):
            raise  # of the machine at this moment, and no answer to keep
        except Exception as error:
            # It explains an artifact and decides nothing: what a runtime raises on the way must not end a build.
            return CoverageResult(None, portable(reason_of(error), context.cache))

    return context.cache.stage("coverage", inputs, CoverageResult, produce).result.coverage


def with_coverage(context: Context, samples: Samples, tried: tuple[Tried, ...]) -> tuple[Tried, ...]:
    """Return the candidates, those that hold the budget with what they compute."""
    return tuple(
        one
        if one.out or one.artifact is None
        else replace(one, coverage=coverage_of(context, samples, one.artifact, one.runtime))
        for one in tried
    )
