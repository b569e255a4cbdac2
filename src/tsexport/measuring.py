"""The measuring stages: fp32 artifacts against each other, candidates against the fastest of them, then every batch
size.

Nothing here is cached: a latency belongs to the moment it was taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tsexport.bench.fingerprint import Machine
from tsexport.bench.measure import measure
from tsexport.bench.race import Contestant, RaceResult, race
from tsexport.bench.tables import latency_budgets
from tsexport.bench.verdicts import judge
from tsexport.context import Context
from tsexport.errors import LatencyError
from tsexport.progress import Step
from tsexport.samples import Samples
from tsexport.types import Artifact, Measurement, Verdict

RACE_SECONDS = 20.0
MEASURE_SECONDS = 4.0
THREADS_MARGIN = 1.05


@dataclass(frozen=True)
class Placed:
    """An artifact on a runtime."""

    artifact: Artifact
    runtime: str

    @property
    def key(self) -> tuple[str, str]:
        return self.artifact.name, self.runtime

    @property
    def label(self) -> str:
        return f"{self.artifact.name} on {self.runtime}"

    def contestant(self, threads: int) -> Contestant:
        """Return it as a contestant of a race, with its number of threads in the name."""
        count = f"{threads} thread{'s' if threads > 1 else ''}"
        return Contestant(self.artifact, self.runtime, threads, f"{self.label}, {count}")


def race_placed(
    context: Context,
    samples: Samples,
    placed: Sequence[Placed],
    threads: Sequence[int],
    step: Step,
    processes: int = 1,
) -> RaceResult:
    """Time artifacts side by side at batch 1, each in its own process; the first is the baseline.

    Args:
        threads: every artifact runs once with each of these numbers of threads.
        processes: how often the race is repeated with fresh processes.
    """
    return race(
        [one.contestant(count) for one in placed for count in threads],
        samples.feeds,
        1,
        max_seconds=RACE_SECONDS * processes,
        processes=processes,
        seed=context.options.seed,
        progress=step.say,
    )


def fastest_threads(result: RaceResult) -> int:
    """Return the number of threads to use: the fewest within THREADS_MARGIN of the fastest contestant.

    Small models are often as fast on one thread, and the other cores are then left to others.
    """
    fastest = result.fastest.speedup.value
    return min(one.threads for one in result.entries if one.speedup.value * THREADS_MARGIN >= fastest)


def measure_placed(
    context: Context, samples: Samples, placed: Sequence[Placed], threads: int, machine: Machine, step: Step
) -> tuple[Measurement, ...]:
    """Measure artifacts one after another at every batch size, in fresh processes."""
    fixed = samples.spec.inputs[0].shape[0]
    batches = (fixed,) if isinstance(fixed, int) else context.options.batches
    done: list[Measurement] = []
    for one in placed:
        done += measure(
            one.artifact,
            one.runtime,
            feeds=samples.feeds,
            threads=threads,
            machine=machine,
            batches=batches,
            max_seconds=MEASURE_SECONDS,
            progress=step.say,
        )
    return tuple(done)


def judge_all(samples: Samples, measurements: Sequence[Measurement], machine: Machine) -> tuple[Verdict, ...]:
    """Judge every published row of the model and its family."""
    budgets = latency_budgets(samples.spec.name, samples.spec.family)
    return judge(budgets, measurements, machine=machine)


def require_budgets(verdicts: Sequence[Verdict]) -> None:
    """Raise where a published row is missed on the machine that it names.

    Raises:
        LatencyError: names every missed row.
    """
    missed = [verdict for verdict in verdicts if verdict.status == "missed"]
    if missed:
        raise LatencyError(
            "latency budgets missed: " + "; ".join(verdict.reason for verdict in missed),
            next_step="measure on a quiet machine, or choose a smaller model or another precision",
        )
