"""What a build selects: which fp32 artifacts may ship at all, the races, and the choice, or the choices of an earlier
build repeated."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tsexport.bench.race import RaceResult
from tsexport.compressing import AccuracyResult, Tried
from tsexport.context import Context
from tsexport.errors import AccuracyError, UsageError
from tsexport.manifest import Selection, parse_selection
from tsexport.measuring import Placed, Say, race_placed
from tsexport.progress import Progress
from tsexport.quantize.evaluation import budget_miss
from tsexport.quantize.selection import Choice, order_by_speed, select, select_fp32, undecided
from tsexport.samples import Samples
from tsexport.types import AccuracyBudget

FP32_ROUNDING = 1e-3
"""What rounding may do to the accuracy of an fp32 artifact whose every answer holds the parity tolerance."""


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
    held = tuple(one for one, miss in misses.items() if not miss)
    left_out = tuple(f"{one.label} is left out: {miss}" for one, miss in misses.items() if miss)
    if not held:
        raise AccuracyError(
            "no fp32 artifact holds the accuracy budget: " + "; ".join(left_out),
            next_step="see whether --atol and --rtol let too much through, or allow more with --max-degradation",
        )
    return held, left_out


def accuracy_budget(context: Context, samples: Samples) -> AccuracyBudget:
    options = context.options
    metric = samples.evaluation_set(options.metric).metric
    return AccuracyBudget(metric, options.max_degradation, options.max_output_error)


def _allowed(context: Context, placed: Placed) -> bool:
    return context.options.runtime in (None, placed.runtime)


def choose(
    context: Context, samples: Samples, fp32: tuple[Placed, ...], tried: tuple[Tried, ...], progress: Progress, say: Say
) -> tuple[Choice, tuple[tuple[str, str], ...], tuple[RaceResult, ...]]:
    """Race what may be selected; return the choice, the order of all artifacts by speed, and the races."""
    rivals = [one for one in fp32 if _allowed(context, one)]
    if not rivals:
        raise UsageError(
            f"no artifact runs on {context.options.runtime}, the only runtime that --runtime allows",
            next_step=f"leave --runtime out, or choose one of {', '.join(dict.fromkeys(p.runtime for p in fp32))}",
        )
    with progress.step("measure fp32 side by side") as step:
        first = race_placed(context, samples, rivals, step, say)
    order = order_by_speed(first)
    choice = select_fp32(first)
    rest = tuple(one.key for one in fp32 if one.key not in order)
    if context.target.precision != "int8":
        return choice, (*order, *rest), (first,)
    fastest = next(one for one in rivals if one.key == order[0])
    eligible = [Placed(one.artifact, one.runtime) for one in tried if one.artifact is not None and not one.out]
    eligible = [one for one in eligible if _allowed(context, one)]
    if not eligible:
        return replace(choice, why=why_none(tried, context.options.runtime)), (*order, *rest), (first,)
    with progress.step("measure INT8 against fp32") as step:
        second = race_placed(context, samples, [fastest, *eligible], step, say, baseline=fastest)
        races = [first, second]
        nearest = undecided(second, fastest.key)
        if nearest is not None:
            # Noise on the machine, not the candidate: the two are raced alone, for longer, in more processes.
            step.say(f"{nearest} again, alone")
            pair = [fastest, *(one for one in eligible if one.label == nearest)]
            second = race_placed(context, samples, pair, step, say, baseline=fastest, processes=2)
            races.append(second)
    choice = select(second, [fastest.artifact, *(e.artifact for e in eligible)], fastest.key, context.options.objective)
    chosen = (choice.artifact, choice.runtime)
    ranked = (chosen, *order) if chosen not in order else order
    return choice, (*ranked, *rest), tuple(races)


def why_none(tried: Sequence[Tried], runtime: str | None) -> str:
    """Return why there is no candidate to hold against fp32, `runtime` being the only one allowed."""
    if any(not one.out for one in tried):
        return f"no candidate within the accuracy budget runs on {runtime}: fp32 is selected"
    if all(one.out == "failed" for one in tried):
        return "no candidate could be built and run: fp32 is selected"
    return "no candidate held the accuracy budget: fp32 is selected"


def repeat(
    context: Context, fp32: tuple[Placed, ...], tried: tuple[Tried, ...]
) -> tuple[Choice, tuple[tuple[str, str], ...], tuple[RaceResult, ...]]:
    """Repeat the choices of a selection.json.

    Raises:
        UsageError: it cannot be read, or names an artifact that this build does not make.
        AccuracyError: what it selects misses the accuracy budget.
    """
    path = context.options.selection
    assert path is not None
    try:
        selection: Selection = parse_selection(path.read_bytes())
    except OSError as error:
        raise UsageError(f"--selection {path} cannot be read: {error.strerror}") from error
    if context.options.runtime not in (None, selection.runtime):
        raise UsageError(
            f"--selection {path.name} selects {selection.runtime}, and --runtime allows only {context.options.runtime}",
            next_step="leave one of the two out",
        )
    key = (selection.artifact, selection.runtime)
    out = next((one for one in tried if one.artifact and (one.artifact.name, one.runtime) == key and one.out), None)
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
    return choice, (*order, *rest), ()


def placed_by_key(fp32: tuple[Placed, ...], tried: tuple[Tried, ...]) -> dict[tuple[str, str], Placed]:
    candidates = [Placed(one.artifact, one.runtime) for one in tried if one.artifact is not None and not one.out]
    return {one.key: one for one in (*fp32, *candidates)}
