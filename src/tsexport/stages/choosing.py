"""What a build selects: which fp32 artifacts may ship at all, the races, and the choice, or the choices of an earlier
build repeated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tsexport.bench.race import RaceResult
from tsexport.bundles.loading import cores_here
from tsexport.errors import AccuracyError, UsageError
from tsexport.progress import Progress, Step
from tsexport.quantize.evaluation import budget_miss
from tsexport.quantize.recipe import artifact_name
from tsexport.quantize.selection import (
    MOST_FINALISTS,
    Choice,
    finalists,
    order_by_speed,
    select,
    select_fp32,
    select_unmeasured,
)
from tsexport.stages.context import Context
from tsexport.stages.holding import keep_held
from tsexport.stages.measuring import Placed, Say, fastest_threads, race_placed
from tsexport.stages.samples import Samples
from tsexport.stages.tried import AccuracyResult, Tried
from tsexport.types import AccuracyBudget

FP32_ROUNDING = 1e-3
"""What rounding may do to the accuracy of an fp32 artifact whose every answer holds the parity tolerance."""


@dataclass(frozen=True)
class Chosen:
    """What was chosen by measuring: the artifact, the threads, the order of all artifacts by speed, and the races."""

    choice: Choice
    threads: int
    order: tuple[tuple[str, str], ...]
    races: tuple[RaceResult, ...]


def hold_budget(
    budget: AccuracyBudget, fp32: tuple[Placed, ...], judged: Mapping[tuple[str, str], AccuracyResult]
) -> tuple[tuple[Placed, ...], tuple[str, ...]]:
    """Return the fp32 artifacts that hold the accuracy budget, and why the others are left out.

    Raises:
        AccuracyError: none holds it.
    """
    allowed = replace(
        budget,
        max_degradation=budget.max_degradation + FP32_ROUNDING,
        max_output_error=budget.max_output_error + FP32_ROUNDING,
    )
    misses = {
        one: result.reason if result.accuracy is None else budget_miss(result.accuracy, allowed)
        for one in fp32
        for result in (judged[one.key],)
    }
    return keep_held(
        misses,
        "no fp32 artifact holds the accuracy budget",
        "see whether --atol and --rtol let too much through, or allow more with --max-degradation",
    )


def accuracy_budget(context: Context, samples: Samples) -> AccuracyBudget:
    options = context.options
    metric = samples.evaluation_set(options.metric).metric
    return AccuracyBudget(metric, options.max_degradation, options.max_output_error)


def _allowed(context: Context, placed: Placed) -> bool:
    return context.options.runtime in (None, placed.runtime)


def _rivals(context: Context, fp32: tuple[Placed, ...]) -> list[Placed]:
    rivals = [one for one in fp32 if _allowed(context, one)]
    if not rivals:
        raise UsageError(
            f"no artifact runs on {context.options.runtime}, the only runtime that --runtime allows",
            next_step=f"leave --runtime out, or choose one of {', '.join(dict.fromkeys(p.runtime for p in fp32))}",
        )
    return rivals


def choose_unmeasured(
    context: Context,
    fp32: tuple[Placed, ...],
    tried: tuple[Tried, ...],
    judged: Mapping[tuple[str, str], AccuracyResult],
) -> Chosen:
    """Choose for a target that is not this machine: no race, the smallest error in the target's own precision, or the
    smallest artifact with --objective size.

    Args:
        fp32: the artifacts that hold the accuracy budget, `judged` their accuracy by artifact and runtime.
        tried: the candidates, judged by simulation.

    Raises:
        AccuracyError: no candidate of the target's precision holds the accuracy budget; names each one's reason.
        UsageError: nothing runs on the only runtime that --runtime allows.
    """
    target, rivals = context.target, _rivals(context, fp32)
    if target.precision == "fp32":
        # TensorRT takes ONNX; each artifact stands for itself on the runtime that is best for it.
        wanted = [one for one in rivals if target.tensorrt is None or one.artifact.format == "onnx"] or rivals
        firsts = {one.artifact.name: one for one in reversed(wanted)}
        accuracies = [judged[one.key].accuracy for one in reversed(firsts.values())]
    else:
        accuracies = [one.accuracy for one in tried if _may_ship(context, one)]
    found = [one for one in accuracies if one is not None]
    sizes = {name: placed.artifact.size_bytes for (name, _), placed in placed_by_key(fp32, tried).items()}
    choice = select_unmeasured(found, target.precision, target.device_name, sizes, context.options.objective)
    if choice is None:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in tried if one.out) or "there is none"
        raise AccuracyError(
            f"no {target.precision} candidate for {target.name} holds the accuracy budget: {reasons}",
            next_step="allow more with --max-degradation or --max-output-error, or build for another precision",
        )
    key = (choice.artifact, choice.runtime)
    return Chosen(choice, context.threads, tuple(dict.fromkeys((key, *(one.key for one in fp32)))), ())


def _may_ship(context: Context, one: Tried) -> bool:
    """Return whether a candidate holds the budget, in the target's own precision, on a runtime that is allowed."""
    own = one.recipe.precision == context.target.precision
    return own and not one.out and one.artifact is not None and context.options.runtime in (None, one.runtime)


def choose(
    context: Context, samples: Samples, fp32: tuple[Placed, ...], tried: tuple[Tried, ...], progress: Progress, say: Say
) -> Chosen:
    """Race what may be selected, fp32 first; candidates run against the fastest of it, with its number of threads.

    For a target that is this machine; `choose_unmeasured` is for the others.

    Raises:
        UsageError: nothing runs on the only runtime that --runtime allows.
        UnsupportedError: this machine could not time the artifacts.
    """
    rivals = _rivals(context, fp32)
    counts = (context.threads,) if context.options.threads else tuple(sorted({1, context.threads}))
    with progress.step("measure fp32 side by side") as step:
        first = race_placed(context, samples, rivals, counts, step, say)
    threads = fastest_threads(first)
    order = order_by_speed(first, threads)
    order = (*order, *(one.key for one in fp32 if one.key not in order))
    choice = select_fp32(first, threads)
    if context.target.precision == "fp32":
        return Chosen(choice, threads, order, (first,))
    fastest = next(one for one in rivals if one.key == order[0])
    eligible = [Placed(one.artifact, one.runtime) for one in tried if one.artifact is not None and not one.out]
    eligible = [one for one in eligible if _allowed(context, one)]
    if not eligible:
        return Chosen(replace(choice, why=why_none(tried, context.options.runtime)), threads, order, (first,))
    with progress.step("measure INT8 against fp32") as step:
        races = _race_candidates(context, samples, fastest, eligible, threads, step, say)
    artifacts = [fastest.artifact, *(one.artifact for one in eligible)]
    choice = select(races[-1], artifacts, fastest.key, context.options.objective)
    key = (choice.artifact, choice.runtime)
    return Chosen(choice, threads, tuple(dict.fromkeys((key, *order))), (first, *races))


def _race_candidates(
    context: Context, samples: Samples, fastest: Placed, eligible: list[Placed], threads: int, step: Step, say: Say
) -> tuple[RaceResult, ...]:
    """Race candidates against the fastest fp32 artifact; the best once more, alone, where noise hides who wins.

    A race of all is not prolonged for slow calls, since it may be settled after few rounds; that of the few best is.
    """
    # For size any that is no slower may win, not the fastest alone.
    by_latency = context.options.objective == "latency"
    many = by_latency and len(eligible) > MOST_FINALISTS
    first = race_placed(context, samples, [fastest, *eligible], (threads,), step, say, fastest, patient=not many)
    names = finalists(first, fastest.key) if by_latency else ()
    if not names:
        return (first,)
    again = [one for one in eligible if one.contestant(threads).label in names]
    step.say(f"{', '.join(one.label for one in again)} again, alone")
    last = race_placed(context, samples, [fastest, *again], (threads,), step, say, fastest, processes=2, patient=True)
    return first, last


def why_none(tried: Sequence[Tried], runtime: str | None) -> str:
    """Return why there is no candidate to hold against fp32, `runtime` being the only one allowed."""
    if any(not one.out for one in tried):
        return f"no candidate within the accuracy budget runs on {runtime}: fp32 is selected"
    if all(one.out == "failed" for one in tried):
        return "no candidate could be built and run: fp32 is selected"
    return "no candidate held the accuracy budget: fp32 is selected"


def repeat(context: Context, fp32: tuple[Placed, ...], tried: tuple[Tried, ...]) -> Chosen:
    """Repeat the choices of a selection.json.

    Raises:
        UsageError: it cannot be read, or names an artifact that this build does not make.
        AccuracyError: what it selects misses the accuracy budget.
    """
    path = context.options.selection
    selection = context.selection
    assert path is not None
    assert selection is not None
    if context.options.runtime not in (None, selection.runtime):
        raise UsageError(
            f"--selection {path.name} selects {selection.runtime}, and --runtime allows only {context.options.runtime}",
            next_step="leave one of the two out",
        )
    key = (selection.artifact, selection.runtime)
    out = next((one for one in tried if (artifact_name(one.recipe), one.runtime) == key and one.out), None)
    if out is not None:
        raise AccuracyError(f"--selection {path.name} selects {key[0]} on {key[1]}, which is out: {out.reason}")
    placed = placed_by_key(fp32, tried)
    if key not in placed:
        names = ", ".join(f"{artifact} on {runtime}" for artifact, runtime in placed)
        raise UsageError(
            f"--selection {path.name} selects {key[0]} on {key[1]}, which this build does not make; it makes {names}",
            next_step="build again without --selection",
        )
    order = tuple((one.artifact, one.runtime) for one in selection.order if (one.artifact, one.runtime) in placed)
    rest = tuple(one.key for one in fp32 if one.key not in order)
    choice = Choice(*key, selection.why, "repeated from a selection.json, not measured against others here")
    threads = context.options.threads or min(selection.threads, cores_here())
    return Chosen(choice, threads, (*order, *rest), ())


def placed_by_key(fp32: tuple[Placed, ...], tried: tuple[Tried, ...]) -> dict[tuple[str, str], Placed]:
    candidates = [Placed(one.artifact, one.runtime) for one in tried if one.artifact is not None and not one.out]
    return {one.key: one for one in (*fp32, *candidates)}
