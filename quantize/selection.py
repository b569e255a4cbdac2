"""Which artifact a bundle selects, from what was measured side by side.

INT8 ships only where it wins: a candidate must hold the accuracy budget, and the whole interval of its speed-up over
the fastest fp32 artifact must lie above 1.  Of those the fastest is selected; with the objective "size" the smallest
of those that are no slower.  Otherwise fp32 is selected, and the reason says by how much the best candidate fell
short.

Where the target is not this machine, speed is not known, and the smallest error decides among the candidates that hold
the accuracy budget; with the objective "size" the smallest file, which needs no measuring.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tsexport.bench.race import RaceEntry, RaceResult
from tsexport.bench.statistics import Ratio
from tsexport.types import Accuracy, Artifact

Objective = Literal["latency", "size"]
UNDECIDED_FROM = 1.03
"""A candidate that is ahead by less than this is not raced again: nobody would ship INT8 for it."""
MOST_FINALISTS = 3
NOT_MEASURED = "latency not measured"


@dataclass(frozen=True)
class Choice:
    """The selected artifact on its runtime, and why.

    `why` stands in the manifest and holds no measured figure; `measured` says the same with figures, for the terminal.
    """

    artifact: str
    runtime: str
    why: str
    measured: str


def order_by_speed(result: RaceResult, threads: int) -> tuple[tuple[str, str], ...]:
    """Return (artifact, runtime) of all contestants that ran with this number of threads, fastest first."""
    ranked = sorted((e for e in result.entries if e.threads == threads), key=lambda entry: -entry.speedup.value)
    return tuple((entry.artifact, entry.runtime) for entry in ranked)


def _figures(entry: RaceEntry, baseline: str) -> str:
    ratio = entry.speedup
    interval = "too few rounds for an interval" if ratio.high is None else f"{ratio.low:.2f} to {ratio.high:.2f}"
    return f"{ratio.value:.2f} times the speed of {baseline} ({interval})"


def _may_be_no_slower(speedup: Ratio) -> bool:
    """Return whether the interval reaches 1: "no slower" is as much as an interval can say.

    Where there were too few rounds for an interval the ratio itself has to reach 1.
    """
    return (speedup.value if speedup.high is None else speedup.high) >= 1.0


def select_fp32(result: RaceResult, threads: int) -> Choice:
    """Return the fastest fp32 artifact of any runtime with this number of threads, for a target whose precision is
    fp32."""
    fastest = max((one for one in result.entries if one.threads == threads), key=lambda one: one.speedup.value)
    return Choice(
        fastest.artifact,
        fastest.runtime,
        "the fastest fp32 artifact of all runtimes, measured side by side",
        f"{fastest.summary.median_ms:.3f} ms median at batch {result.batch}",
    )


def finalists(result: RaceResult, baseline: tuple[str, str]) -> tuple[str, ...]:
    """Return the names of the candidates to be raced once more, alone, fastest first; () where the race settled it.

    It did where one candidate is ahead of the baseline and of all others beyond the noise, or none is worth it.
    Otherwise the fastest and those whose interval reaches its own go on, three at most: of many contestants each had
    little time, and a race of few is the sharper one.
    """
    rivals = [entry for entry in result.entries if (entry.artifact, entry.runtime) != baseline]
    rivals.sort(key=lambda entry: -entry.speedup.value)
    if not rivals or rivals[0].speedup.value < UNDECIDED_FROM:
        return ()
    best = rivals[0].speedup
    near = [one for one in rivals if one.speedup.high is None or one.speedup.high >= best.low][:MOST_FINALISTS]
    return () if len(near) == 1 and best.low > 1.0 else tuple(one.name for one in near)


def select(
    result: RaceResult, artifacts: Sequence[Artifact], baseline: tuple[str, str], objective: Objective = "latency"
) -> Choice:
    """Return what a quantized target selects.

    Args:
        result: the candidates that hold the accuracy budget, raced against the fastest fp32 artifact (its baseline).
        artifacts: the records of all contestants.
        baseline: (artifact, runtime) of the fastest fp32 artifact.
        objective: "latency", or "size" for the smallest that is no slower than fp32.
    """
    size = {artifact.name: artifact.size_bytes for artifact in artifacts}
    rivals = [entry for entry in result.entries if (entry.artifact, entry.runtime) != baseline]
    if objective == "size":
        good = [e for e in rivals if _may_be_no_slower(e.speedup) and size[e.artifact] < size[baseline[0]]]
        good.sort(key=lambda entry: (size[entry.artifact], -entry.speedup.value))
        won = "the smallest candidate within the accuracy budget that is no slower than the fastest fp32 artifact"
    else:
        good = sorted((e for e in rivals if e.speedup.low > 1.0), key=lambda entry: -entry.speedup.value)
        won = "the fastest candidate within the accuracy budget, faster than the fastest fp32 artifact"
    if good:
        best = good[0]
        return Choice(best.artifact, best.runtime, f"{won}, {result.baseline}", _figures(best, result.baseline))
    if not rivals:
        return Choice(*baseline, "no candidate held the accuracy budget: fp32 is selected", "nothing to compare")
    nearest = max(rivals, key=lambda entry: entry.speedup.value)
    lost = (
        "faster than fp32 beyond the measuring noise" if objective == "latency" else "smaller than fp32 and no slower"
    )
    return Choice(
        *baseline,
        f"no candidate within the accuracy budget was {lost}: fp32 is selected",
        f"the nearest, {nearest.name}, had {_figures(nearest, result.baseline)}",
    )


def select_unmeasured(
    accuracies: Sequence[Accuracy],
    precision: str,
    device: str,
    size_bytes: Mapping[str, int],
    objective: Objective = "latency",
) -> Choice | None:
    """Return what a target selects that is not this machine: the artifact of the smallest output error.

    Args:
        accuracies: of the artifacts in the target's own precision that hold the accuracy budget; the first of those
            with the same error wins.
        precision, device: the target's, for the reason.
        size_bytes: of each artifact, by name.
        objective: "size" for the smallest artifact, of several the one of the smallest error.

    Returns:
        None where there is no artifact.
    """
    if not accuracies:
        return None
    if objective == "size":
        best = min(accuracies, key=lambda one: (size_bytes[one.artifact], one.output_error))
        won, figure = "smallest", f"{size_bytes[best.artifact]} bytes"
    else:
        best = min(accuracies, key=lambda one: one.output_error)
        won, figure = "smallest error", f"output error {best.output_error:.3g}"
    return Choice(
        best.artifact,
        best.runtime,
        f"the {won} of the {precision} artifacts within the accuracy budget; {NOT_MEASURED}, since this is no {device}",
        f"{figure}, {NOT_MEASURED}",
    )
