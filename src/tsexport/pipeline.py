"""The build path, from top to bottom.

Checkpoint -> source model and samples -> fp32 artifacts -> parity -> INT8 candidates -> accuracy -> races ->
selection -> measurements -> verdicts -> bundle.  Data moves forward only; everything but measuring is cached by
content.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from tsexport.bench.fingerprint import fingerprint
from tsexport.bench.race import RaceResult
from tsexport.bench.records import MachineRecord
from tsexport.bundles import Bundle
from tsexport.cache import Cache, default_root
from tsexport.compressing import AccuracyResult, Tried, accuracy_of, build_recipe, try_recipe
from tsexport.context import Context
from tsexport.data import plan_data
from tsexport.errors import AccuracyError, ParityError, UsageError
from tsexport.exporting import Exports, check_on_runtime, export_format, gather
from tsexport.extras import require
from tsexport.loading import cores_here
from tsexport.manifest import Selection, parse_selection
from tsexport.measuring import Placed, fastest_threads, judge_all, measure_placed, race_placed, require_budgets
from tsexport.models.sources import identify
from tsexport.options import BuildOptions
from tsexport.packing import Packed, pack
from tsexport.progress import Progress, Step
from tsexport.quantize.recipes import Recipe, recipes_for
from tsexport.quantize.selection import Choice, order_by_speed, select, select_fp32, undecided
from tsexport.runtimes.registry import list_statuses
from tsexport.samples import Samples, take_samples
from tsexport.staging import remove_leftovers
from tsexport.targets import host_cpu, parse_target
from tsexport.types import AccuracyBudget, Parity

STEPS = {
    "model and data": 8.0,
    "export ONNX": 8.0,
    "export TorchScript": 3.0,
    "export OpenVINO": 1.0,
    "parity": 4.0,
    "INT8 candidates": 10.0,
    "accuracy": 8.0,
    "measure fp32 side by side": 20.0,
    "measure INT8 against fp32": 20.0,
    "measure batch sizes": 25.0,
    "pack": 2.0,
}
INT8_STEPS = frozenset({"INT8 candidates", "measure INT8 against fp32"})


@dataclass(frozen=True)
class Plan:
    """What a build is going to do, decided without importing torch: what --dry-run shows."""

    context: Context
    name: str
    destination: Path
    recipes: tuple[Recipe, ...]
    runtimes: tuple[str, ...]
    missing: tuple[str, ...]
    steps: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Chosen:
    """What was chosen by measuring: the artifact, the threads, the order of all artifacts by speed, and the races."""

    choice: Choice
    threads: int
    order: tuple[tuple[str, str], ...]
    races: tuple[RaceResult, ...]


def bundle_name(model: str, target: str, device: str) -> str:
    """Return `<model>-<target>[-<device>]`."""
    return "-".join([model, target, *([device.replace("@", "-")] if device != "host" else [])])


def plan_build(options: BuildOptions) -> Plan:
    """Check everything about a build that can be checked without opening the model.

    Raises:
        UsageError: unknown names, files that are not there, an existing bundle without --force.
        UnsupportedError: a device that is not this machine's.
        MissingDependencyError: the packages of the extra `build` are not all here.
    """
    require("build", "building a bundle")
    target = parse_target(options.target, options.device)
    identity = identify(options.model, checkpoint=options.checkpoint, settings=options.settings, seed=options.seed)
    name = options.name or bundle_name(identity.name, options.target, options.device)
    destination = options.output / name
    if destination.exists() and not options.force:
        raise UsageError(
            f"{destination} stands there already", next_step="give --force to replace it, or another --name or -o"
        )
    threads = min(options.threads or target.cores, target.cores, cores_here())
    cpu = host_cpu()
    plan = plan_data(options, target, identity)
    statuses = list_statuses()
    here = tuple(status.name for status in statuses if status.available)
    if options.runtime is not None and options.runtime not in {status.name for status in statuses}:
        names = ", ".join(status.name for status in statuses)
        raise UsageError(f"unknown runtime {options.runtime!r}; runtimes are {names}")
    int8 = target.precision == "int8"
    return Plan(
        context=Context(options, target, cpu, identity, plan, Cache(default_root()), threads),
        name=name,
        destination=destination,
        recipes=recipes_for(cpu) if int8 else (),
        runtimes=here,
        missing=tuple(status.pip_command for status in statuses if not status.available),
        steps=tuple((step, expected) for step, expected in STEPS.items() if int8 or step not in INT8_STEPS),
    )


def run_build(plan: Plan, *, quiet: bool = False, say: Callable[[str], None] = lambda line: None) -> Bundle:
    """Carry a plan out.

    Args:
        plan: from `plan_build`.
        quiet: show no progress on stderr.
        say: told what a person should know (which checkpoint, which data, what was selected).

    Raises:
        TsexportError: with the exit code of what went wrong; no new bundle is left then.
    """
    context = plan.context
    memory = context.cache.root / "times" / f"{plan.name}.json"
    progress = Progress(plan.steps, memory=memory, quiet=quiet)
    if plan.destination.parent.is_dir():
        remove_leftovers(plan.destination.parent)
    samples = _samples(context, progress, say)
    exports = _export(context, samples, progress)
    fp32, parity, refused = _check(context, samples, exports, plan, progress)
    tried = _candidates(context, samples, exports, plan, progress)
    with progress.step("accuracy") as step:
        judged = {one.key: accuracy_of(context, samples, one.artifact, one.runtime) for one in fp32}
        step.reused = all(reused for _, reused in judged.values())
        tried = _judge_candidates(context, samples, tried, plan)
    machine = fingerprint()
    if context.options.selection is not None:
        chosen = _repeat(context, fp32, tried)
    else:
        chosen = _choose(context, samples, fp32, tried, progress)
    selected = _placed(fp32, tried)[(chosen.choice.artifact, chosen.choice.runtime)]
    say(f"selected {selected.contestant(chosen.threads).label}: {chosen.choice.why} ({chosen.choice.measured})")
    with progress.step("measure batch sizes") as step:
        packed_pairs = list(dict.fromkeys([selected, *fp32]))
        measurements = measure_placed(context, samples, packed_pairs, chosen.threads, machine, step)
    verdicts = judge_all(samples, measurements, machine)
    require_budgets(verdicts)
    selected_accuracy = _accuracy_result(selected, tried, {key: result for key, (result, _) in judged.items()})
    packed = Packed(
        name=plan.name,
        exports=exports,
        fp32=fp32,
        selected=selected,
        why=chosen.choice.why,
        tried=tried,
        order=chosen.order,
        threads=chosen.threads,
        parity=parity,
        accuracy=tuple(result.accuracy for result, _ in judged.values() if result.accuracy),
        selected_accuracy=selected_accuracy,
        budget=_budget(context, samples),
        caveats=(*samples.record.caveats, *refused, *(f"not compared, not installed: {one}" for one in plan.missing)),
        notes=samples.record.notes,
    )
    with progress.step("pack"):
        record = MachineRecord(
            machine, measurements, chosen.races, verdicts, tuple((k, round(v, 3)) for k, v in progress.seconds.items())
        )
        bundle = pack(context, samples, packed, record)
    progress.remember()
    return bundle


def build_bundle(
    options: BuildOptions, *, quiet: bool = True, say: Callable[[str], None] = lambda line: None
) -> Bundle:
    """Build a bundle: `plan_build`, then `run_build`."""
    return run_build(plan_build(options), quiet=quiet, say=say)


def _samples(context: Context, progress: Progress, say: Callable[[str], None]) -> Samples:
    with progress.step("model and data") as step:
        samples, step.reused = take_samples(context)
    for note in (*samples.record.notes, *samples.spec.caveats, *samples.record.caveats):
        say(note)
    for what, data in (("calibration", samples.record.calibration), ("evaluation", samples.record.evaluation)):
        if data is not None:
            say(f"{what}: {data.windows} windows of {data.source}")
    return samples


def _export(context: Context, samples: Samples, progress: Progress) -> Exports:
    with progress.step("export ONNX") as step:
        onnx = export_format(context, samples, "onnx", None)
        step.reused = onnx[2]
    with progress.step("export TorchScript") as step:
        torchscript = export_format(context, samples, "torchscript", None)
        step.reused = torchscript[2]
    with progress.step("export OpenVINO") as step:
        openvino = export_format(context, samples, "openvino", onnx[1])
        step.reused = openvino[2]
    return gather(context, {"onnx": onnx, "torchscript": torchscript, "openvino": openvino})


def _check(
    context: Context, samples: Samples, exports: Exports, plan: Plan, progress: Progress
) -> tuple[tuple[Placed, ...], tuple[Parity, ...], tuple[str, ...]]:
    placed: list[Placed] = []
    parity: list[Parity] = []
    refused: list[str] = []
    with progress.step("parity") as step:
        step.reused = True
        for artifact in exports.artifacts:
            for runtime in artifact.runtimes:
                if runtime not in plan.runtimes:
                    continue
                step.say(f"{artifact.name} on {runtime}")
                result, reused = check_on_runtime(context, samples, artifact, runtime)
                step.reused &= reused
                if result.refused:
                    refused.append(f"{artifact.name} does not run on {runtime}: {result.refused}")
                    continue
                placed.append(Placed(artifact, runtime))
                parity += result.parity
    if not placed:
        raise ParityError(
            "no runtime here could run any artifact, so none could be compared: " + "; ".join(refused),
            next_step="see `tsexport runtimes` for what can be installed",
        )
    return tuple(placed), tuple(parity), tuple(refused)


def _candidates(
    context: Context, samples: Samples, exports: Exports, plan: Plan, progress: Progress
) -> tuple[Tried, ...]:
    """Build every recipe; accuracy is judged afterwards."""
    if not plan.recipes:
        return ()
    tried: list[Tried] = []
    with progress.step("INT8 candidates") as step:
        step.reused = True
        for index, recipe in enumerate(plan.recipes):
            step.say(recipe.name, index / len(plan.recipes))
            artifact, reason, reused = build_recipe(context, samples, exports, recipe)
            step.reused &= reused
            out: Literal["", "failed"] = "failed" if reason else ""
            tried += [Tried(recipe, runtime, artifact, None, 0.0, out, reason) for runtime in recipe.runtimes]
    return tuple(tried)


def _judge_candidates(context: Context, samples: Samples, tried: tuple[Tried, ...], plan: Plan) -> tuple[Tried, ...]:
    judge = partial(try_recipe, context, samples, budget=_budget(context, samples), here=plan.runtimes)
    built = {one.recipe.name: one for one in tried}
    return tuple(found for one in built.values() for found in judge(one.recipe, one.artifact, one.reason))


def _budget(context: Context, samples: Samples) -> AccuracyBudget:
    options = context.options
    metric = samples.evaluation_set(options.metric).metric
    return AccuracyBudget(metric, options.max_degradation, options.max_output_error)


def _allowed(context: Context, placed: Placed) -> bool:
    return context.options.runtime in (None, placed.runtime)


def _choose(
    context: Context, samples: Samples, fp32: tuple[Placed, ...], tried: tuple[Tried, ...], progress: Progress
) -> Chosen:
    """Race what may be selected, fp32 first; candidates run against the fastest of it, with its number of threads."""
    rivals = [one for one in fp32 if _allowed(context, one)]
    if not rivals:
        raise UsageError(
            f"no artifact runs on {context.options.runtime}, the only runtime that --runtime allows",
            next_step=f"leave --runtime out, or choose one of {', '.join(dict.fromkeys(p.runtime for p in fp32))}",
        )
    counts = (context.threads,) if context.options.threads else tuple(sorted({1, context.threads}))
    with progress.step("measure fp32 side by side") as step:
        first = race_placed(context, samples, rivals, counts, step)
    threads = fastest_threads(first)
    order = order_by_speed(first, threads)
    order = (*order, *(one.key for one in fp32 if one.key not in order))
    if context.target.precision != "int8":
        return Chosen(select_fp32(first), threads, order, (first,))
    fastest = next(one for one in rivals if one.key == order[0])
    eligible = [Placed(one.artifact, one.runtime) for one in tried if one.artifact is not None and not one.out]
    eligible = [one for one in eligible if _allowed(context, one)]
    with progress.step("measure INT8 against fp32") as step:
        races = _race_candidates(context, samples, fastest, eligible, threads, step)
    artifacts = [fastest.artifact, *(one.artifact for one in eligible)]
    choice = select(races[-1], artifacts, fastest.key, context.options.objective)
    key = (choice.artifact, choice.runtime)
    return Chosen(choice, threads, tuple(dict.fromkeys((key, *order))), (first, *races))


def _race_candidates(
    context: Context, samples: Samples, fastest: Placed, eligible: list[Placed], threads: int, step: Step
) -> tuple[RaceResult, ...]:
    """Race candidates against the fastest fp32 artifact; the nearest once more, alone, where noise hides who wins."""
    first = race_placed(context, samples, [fastest, *eligible], (threads,), step)
    nearest = undecided(first, fastest.key)
    if nearest is None:
        return (first,)
    again = [one for one in eligible if one.contestant(threads).label == nearest]
    step.say(f"{again[0].label} again, alone")
    return first, race_placed(context, samples, [fastest, *again], (threads,), step, processes=2)


def _repeat(context: Context, fp32: tuple[Placed, ...], tried: tuple[Tried, ...]) -> Chosen:
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
    key = (selection.artifact, selection.runtime)
    out = next((one for one in tried if one.artifact and (one.artifact.name, one.runtime) == key and one.out), None)
    if out is not None:
        raise AccuracyError(f"--selection {path.name} selects {key[0]} on {key[1]}, which is out: {out.reason}")
    placed = _placed(fp32, tried)
    if key not in placed:
        names = ", ".join(f"{artifact} on {runtime}" for artifact, runtime in placed)
        raise UsageError(
            f"--selection {path.name} selects {key[0]} on {key[1]}, which this build does not make; it makes {names}",
            next_step="build again without --selection",
        )
    order = tuple((one.artifact, one.runtime) for one in selection.order if (one.artifact, one.runtime) in placed)
    choice = Choice(*key, "repeated from a selection.json", "not measured against others in this build")
    return Chosen(choice, min(selection.threads, cores_here()), order, ())


def _placed(fp32: tuple[Placed, ...], tried: tuple[Tried, ...]) -> dict[tuple[str, str], Placed]:
    candidates = [Placed(one.artifact, one.runtime) for one in tried if one.artifact is not None and not one.out]
    return {one.key: one for one in (*fp32, *candidates)}


def _accuracy_result(
    selected: Placed, tried: tuple[Tried, ...], judged: dict[tuple[str, str], AccuracyResult]
) -> AccuracyResult:
    for one in tried:
        if one.artifact is not None and (one.artifact.name, one.runtime) == selected.key:
            return AccuracyResult(one.accuracy, one.golden_error)
    return judged[selected.key]
