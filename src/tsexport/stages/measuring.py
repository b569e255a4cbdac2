"""The measuring stages: fp32 artifacts against each other, candidates against the fastest of them, then every batch
size.

Nothing here is cached: a latency belongs to the moment it was taken.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from tsexport.bench.affinity import threads_text
from tsexport.bench.fingerprint import Machine
from tsexport.bench.measure import measure
from tsexport.bench.noise import NoiseWatch
from tsexport.bench.race import Contestant, RaceResult, race
from tsexport.bench.records import Balance
from tsexport.bench.tables import LatencyTables, latency_budgets
from tsexport.bench.verdicts import judge
from tsexport.errors import InconclusiveError, LatencyError, TsexportError, UnsupportedError
from tsexport.progress import Progress, Step
from tsexport.stages.context import Context
from tsexport.stages.samples import Samples
from tsexport.types import Artifact, Measurement, Verdict

RACE_SECONDS = 2.5
"""How long a race of several artifacts may take, in units of what one measurement may take (--seconds)."""
RACE_PATIENCE_SECONDS = 90.0
"""How long a race goes on for rounds enough to decide anything, where a model's calls take so long."""
THREADS_MARGIN = 1.05
Say = Callable[[str], None]


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
        return Contestant(self.artifact, self.runtime, threads, f"{self.label}, {threads_text(threads)}")


def race_placed(
    context: Context,
    samples: Samples,
    placed: Sequence[Placed],
    threads: Sequence[int],
    step: Step,
    say: Say,
    baseline: Placed | None = None,
    processes: int = 1,
    patient: bool = False,
) -> RaceResult:
    """Time artifacts side by side at batch 1, each in its own process; speeds are against the first.

    Every artifact runs once with each number of `threads`.  One whose process dies alone, too, is left out, and `say`
    is told; without `baseline`, where one is named, a race says nothing.  `patient` waits for rounds enough to decide.

    Raises:
        UnsupportedError: none is left, or the baseline is not, or they die only side by side.
    """
    try:
        return _race(context, samples, placed, threads, step, processes, patient)
    except TsexportError as error:
        why = error.message
    sound: list[Placed] = []
    for one in placed:
        try:
            _race(context, samples, [one], threads, step, 1, False, rounds=1)
        except TsexportError as error:
            say(f"{one.label} is left out of the race: {error.message}")
        else:
            sound.append(one)
    try:
        if not sound or len(sound) == len(placed) or (baseline is not None and baseline not in sound):
            raise InconclusiveError(why)
        return _race(context, samples, sound, threads, step, processes, patient)
    except TsexportError as error:
        raise UnsupportedError(
            f"this machine could not time the artifacts: {error.message}",
            next_step="see whether memory or a limit on time ends the processes, or allow fewer with --formats",
        ) from error


def _race(
    context: Context,
    samples: Samples,
    placed: Sequence[Placed],
    threads: Sequence[int],
    step: Step,
    processes: int,
    patient: bool,
    rounds: int | None = None,
) -> RaceResult:
    return race(
        [one.contestant(count) for one in placed for count in threads],
        samples.feeds,
        1,
        rounds=rounds,
        max_seconds=RACE_SECONDS * context.options.seconds * processes,
        patience_seconds=RACE_PATIENCE_SECONDS if patient else 0.0,
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
    context: Context,
    samples: Samples,
    placed: Sequence[Placed],
    threads: int,
    machine: Machine,
    step: Step,
    say: Say,
    at_every_batch: Collection[Placed] | None = None,
    watch: NoiseWatch | None = None,
) -> tuple[Measurement, ...]:
    """Measure artifacts one after another at every batch size, in fresh processes.

    A batch size at which a process dies (of memory, mostly) is left out, and `say` is told.

    Args:
        at_every_batch: those that are measured at every batch size, the others at the smallest alone; by default all.
        watch: looks at the machine meanwhile; the processes are bound to its CPUs.
    """
    done: list[Measurement] = []
    for one in placed:
        batches = context.options.batches
        if at_every_batch is not None and one not in at_every_batch:
            batches = (min(batches),)
        timed = partial(
            measure,
            one.artifact,
            one.runtime,
            feeds=samples.feeds,
            threads=threads,
            machine=machine,
            max_seconds=context.options.seconds,
            cpus=() if watch is None else watch.cpus,
            watch=watch,
            progress=step.say,
        )
        try:
            done += timed(batches=batches)
        except TsexportError:
            done += _one_by_one(timed, batches, say)
    return tuple(done)


def _one_by_one(timed: Callable[..., tuple[Measurement, ...]], batches: Sequence[int], say: Say) -> list[Measurement]:
    """Measure each batch size by itself, and tell which were not measured."""
    done: list[Measurement] = []
    for batch in batches:
        try:
            done += timed(batches=(batch,))
        except TsexportError as error:
            say(f"batch {batch} was not measured: {error.message}")
    return done


def worth_every_batch(
    samples: Samples, selected: Placed, fp32: Sequence[Placed], order: Sequence[tuple[str, str]]
) -> tuple[Placed, ...]:
    """Return what is measured at every batch size: of a costly model the selected artifact and the fastest fp32 one.

    A batch of 32 takes such a model as many times as long, and each artifact is called a few dozen times.

    Args:
        order: (artifact, runtime) by speed, fastest first.
    """
    if not samples.record.is_costly:
        return tuple(dict.fromkeys([selected, *fp32]))
    by_key = {one.key: one for one in fp32}
    fastest = [by_key[key] for key in order if key in by_key][:1]
    return tuple(dict.fromkeys([selected, *fastest]))


def measure_here(
    context: Context,
    samples: Samples,
    placed: Sequence[Placed],
    threads: int,
    machine: Machine,
    progress: Progress,
    say: Say,
    at_every_batch: Collection[Placed],
    watch: NoiseWatch,
) -> tuple[Measurement, ...]:
    """Measure artifacts as `measure_placed`, as a step of the build; nothing where the target is not this machine."""
    if not context.target.here:
        say(f"latency is not measured: this machine is no {context.target.device_name}")
        return ()
    with progress.step("measure batch sizes") as step:
        return measure_placed(context, samples, placed, threads, machine, step, say, at_every_batch, watch)


def balance_for(races: Sequence[RaceResult], threads: int) -> Balance | None:
    """Measure what this machine sustains, to hold races against; None where nothing was raced."""
    if not races:
        return None
    from tsexport.quantize.balance import measure_balance

    return measure_balance(threads)


def judge_all(
    samples: Samples, measurements: Sequence[Measurement], machine: Machine, tables: LatencyTables
) -> tuple[Verdict, ...]:
    """Judge every row of the model and its family."""
    spec = samples.spec
    budgets = latency_budgets(spec.name, spec.family, spec.component, tables=tables)
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
