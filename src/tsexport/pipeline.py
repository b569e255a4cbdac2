"""The build path, from top to bottom.

Checkpoint -> source model and samples -> fp32 artifacts, fit to TensorRT where the target has it -> parity ->
candidates, the worst layers of those that miss the budget in floating point -> accuracy -> races -> selection ->
measurements -> verdicts -> bundle.  Data moves forward only; everything but measuring is cached by content.  Where the
target is not this machine, candidates are judged by exact simulation, and nothing is raced or measured.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from tsexport.bench.affinity import choose_cpus
from tsexport.bench.fingerprint import fingerprint
from tsexport.bench.noise import NoiseWatch
from tsexport.bench.records import MachineRecord
from tsexport.bundles.bundle import Bundle
from tsexport.bundles.loading import cores_here
from tsexport.bundles.staging import check_destination, check_folder, remove_leftovers
from tsexport.cache import Cache, default_root
from tsexport.errors import MissingDependencyError, ParityError, UsageError, did_you_mean
from tsexport.extras import require
from tsexport.models.sources import identify
from tsexport.options import DEFAULT_SECONDS, BuildOptions
from tsexport.progress import Progress
from tsexport.quantize.recipes import recipes_for
from tsexport.runtimes.registry import bundle_statuses
from tsexport.stages.buildup import buildups_of, hold_buildup, require_feedback
from tsexport.stages.choosing import accuracy_budget, choose, choose_unmeasured, hold_budget, placed_by_key, repeat
from tsexport.stages.compressing import accuracy_of
from tsexport.stages.context import Context
from tsexport.stages.data import plan_data
from tsexport.stages.exporting import Exported, Exports, check_on_runtime, export_format, formats_to_export, gather
from tsexport.stages.fitting import fit_to_device
from tsexport.stages.gpu_scripts import accuracies_of, try_scripts
from tsexport.stages.measuring import (
    Placed,
    balance_for,
    judge_all,
    measure_here,
    require_budgets,
    worth_every_batch,
)
from tsexport.stages.packing import Packed, pack
from tsexport.stages.planned import Plan
from tsexport.stages.profiling import PROFILE, profile_here
from tsexport.stages.projecting import project_selected, with_outlook
from tsexport.stages.pruning import compare_with_unpruned, prune_stage, pruned_source, require_prunable
from tsexport.stages.samples import Samples, take_samples
from tsexport.stages.searching import CANDIDATES, SEARCH, search
from tsexport.stages.tried import AccuracyResult, Tried
from tsexport.surroundings import surroundings_explained
from tsexport.targets import Target, caveats_of, formats_of, host_cpu, parse_target
from tsexport.turns import CacheInTurns, Turns
from tsexport.types import Accuracy, Format, Parity, RuntimeStatus

FIT = "fit to TensorRT"
STEPS = {
    "prune": 60.0,
    "model and data": 8.0,
    "export ONNX": 8.0,
    "export TorchScript": 3.0,
    "export OpenVINO": 1.0,
    FIT: 3.0,
    "parity": 4.0,
    "compare with the unpruned model": 15.0,
    CANDIDATES: 15.0,
    SEARCH: 5.0,
    "accuracy": 8.0,
    "measure fp32 side by side": 20.0,
    "measure INT8 against fp32": 20.0,
    "measure batch sizes": 25.0,
    PROFILE: 4.0,
    "pack": 2.0,
}
PRUNING_STEPS = frozenset({"prune", "compare with the unpruned model"})
INT8_STEPS = frozenset({CANDIDATES, SEARCH, "measure INT8 against fp32"})
EXPORT_STEPS: Mapping[Format, str] = {
    "onnx": "export ONNX",
    "torchscript": "export TorchScript",
    "openvino": "export OpenVINO",
}
RACES = frozenset({"measure fp32 side by side", "measure INT8 against fp32"})
CAVEAT = "caveat: "
"""How a step of an artifact's provenance begins that a reader of the bundle must know."""
MEASURING = RACES | {"measure batch sizes", PROFILE}
"""What is alone on the machine while it runs, as far as tsexport goes; see `tsexport.turns`."""


def bundle_name(model: str, target: str, device: str, component: str | None = None, prune: float | None = None) -> str:
    """Return `<model>[-<component>]-<target>[-<device>][-prune30]`."""
    pruned = f"prune{100 * prune:g}" if prune is not None else None
    parts = (model, component, target, device.replace("@", "-") if device != "host" else None, pruned)
    return "-".join(part for part in parts if part)


def plan_build(options: BuildOptions) -> Plan:
    """Check everything about a build that can be checked without opening the model.

    Raises:
        UsageError: unknown names, files that are not there, an existing bundle without --force.
        UnsupportedError: a device that is not this machine's.
        MissingDependencyError: the packages of the extra `build` are not all here.
    """
    require("build", "building a bundle")
    target = parse_target(options.target, options.device)
    options = replace(options, formats=formats_of(target, options.formats))
    identity = identify(
        options.model,
        checkpoint=options.checkpoint,
        settings=options.settings,
        seed=options.seed,
        component=options.component,
    )
    name = options.name or bundle_name(identity.name, options.target, options.device, options.component, options.prune)
    destination = options.output / name
    check_folder(options.output)
    check_destination(destination, options.force)
    threads = min(options.threads or target.cores, target.cores, cores_here())
    cpu = host_cpu()
    plan = plan_data(options, target, identity)
    require_prunable(options, identity, plan)
    statuses = bundle_statuses()
    here = tuple(status.name for status in statuses if status.available)
    if options.runtime is not None:
        _require_runtime(options.runtime, statuses)
    recipes = recipes_for(target, cpu)
    context = Context(
        options=options,
        target=target,
        cpu=cpu,
        identity=identity,
        plan=plan,
        cache=Cache(default_root()),
        threads=threads,
        prune=pruned_source if options.prune is not None else None,
    )
    _ = (
        context.selection,
        context.calibration_tables,
        context.tables,
    )  # read for their own checks, before minutes are spent
    return Plan(
        context=context,
        name=name,
        destination=destination,
        recipes=recipes,
        runtimes=here,
        missing=tuple(status.pip_command for status in statuses if not status.available),
        steps=_steps(options, bool(recipes), target),
    )


def _require_runtime(name: str, statuses: tuple[RuntimeStatus, ...]) -> None:
    status = next((status for status in statuses if status.name == name), None)
    if status is None:
        names = [one.name for one in statuses]
        raise UsageError(f"unknown runtime {name!r}{did_you_mean(name, names)}; runtimes are {', '.join(names)}")
    if not status.available:
        raise MissingDependencyError(
            f"--runtime {name} cannot be used here: {status.reason or 'it is not installed'}",
            next_step=status.pip_command,
        )


def _steps(options: BuildOptions, int8: bool, target: Target) -> tuple[tuple[str, float], ...]:
    """Return the steps of a build with their expected seconds.

    A repeated selection is not raced for, and nothing is measured for a target that is not this machine.
    """
    exported = formats_to_export(options.formats)
    left_out = {step for name, step in EXPORT_STEPS.items() if name not in exported}
    left_out |= PRUNING_STEPS if options.prune is None else frozenset()
    left_out |= (INT8_STEPS if not int8 else frozenset()) | (RACES | {SEARCH} if options.selection else frozenset())
    left_out |= frozenset() if target.here else MEASURING
    left_out |= frozenset() if target.tensorrt and "onnx" in exported else {FIT}
    return tuple(
        (step, expected * (options.seconds / DEFAULT_SECONDS if step in MEASURING else 1.0))
        for step, expected in STEPS.items()
        if step not in left_out
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
    root = plan.context.cache.root
    turns = Turns(root, say)
    cache = CacheInTurns(root, say, turns=turns)
    with surroundings_explained(), cache.in_use(), turns.working():
        return _run(replace(plan, context=replace(plan.context, cache=cache, turns=turns)), quiet, say)


def _run(plan: Plan, quiet: bool, say: Callable[[str], None]) -> Bundle:
    context = plan.context
    memory = context.cache.root / "times" / f"{plan.name}.json"
    around = partial(_turn, plan)
    progress = Progress(plan.steps, memory=memory, quiet=quiet, around=around, clock=context.turns.clock)
    if plan.destination.parent.is_dir():
        with contextlib.suppress(OSError):  # packing says what is wrong with the folder
            remove_leftovers(plan.destination.parent)
    if context.options.prune is not None:
        with progress.step("prune") as step:
            step.reused = prune_stage(context).reused
    samples = _samples(context, progress, say)
    require_feedback(context, samples)
    exports = _fit(context, samples, _export(context, samples, progress), progress)
    fp32, parity, refused = _check(context, samples, exports, plan.runtimes, progress)
    pruning, pruning_races = compare_with_unpruned(context, samples, exports, progress, say)
    tried = search(context, samples, exports, plan, progress)
    with progress.step("accuracy") as step:
        found = {one.key: accuracy_of(context, samples, one.artifact, one.runtime) for one in fp32}
        step.reused = all(reused for _, reused in found.values())
        judged = {key: result for key, (result, _) in found.items()}
        budget = accuracy_budget(context, samples)
        fp32, left_out = hold_budget(budget, fp32, judged)
        fp32, drifted = hold_buildup(context, samples, fp32)
        buildups = buildups_of(context, samples, fp32, tried)
        scripts = try_scripts(context, samples, exports)
    machine = fingerprint()
    if context.options.selection is not None:
        chosen = repeat(context, fp32, tried)
    elif not context.target.here:
        chosen = choose_unmeasured(context, fp32, tried, judged)
    else:
        chosen = choose(context, samples, fp32, tried, progress, say)
    selected = placed_by_key(fp32, tried)[(chosen.choice.artifact, chosen.choice.runtime)]
    say(f"selected {selected.contestant(chosen.threads).label}: {chosen.choice.why} ({chosen.choice.measured})")
    pairs = list(dict.fromkeys([selected, *fp32]))
    thorough = worth_every_batch(samples, selected, fp32, chosen.order)
    watch = NoiseWatch(choose_cpus(chosen.threads))
    measurements = measure_here(context, samples, pairs, chosen.threads, machine, progress, say, thorough, watch)
    noise = watch.record() if measurements else None
    profiled = profile_here(context, samples, selected, chosen.threads, machine, progress, say)
    tables = context.tables
    projected = project_selected(context.target, samples.spec, selected.artifact, context.options.batches, say, tables)
    verdicts = with_outlook(judge_all(samples, measurements, machine, tables), projected)
    require_budgets(verdicts)
    selected_accuracy = _accuracy_result(selected, tried, judged)
    packed = Packed(
        name=plan.name,
        exports=exports,
        fp32=fp32,
        selected=selected,
        why=chosen.choice.why,
        tried=(*tried, *scripts),
        order=chosen.order,
        threads=chosen.threads,
        parity=parity,
        accuracy=_accuracies(selected_accuracy, [*(judged[one.key] for one in fp32), *accuracies_of(scripts)]),
        selected_accuracy=selected_accuracy,
        budget=budget,
        caveats=(
            *samples.record.caveats,
            *caveats_of(context.target),
            *refused,
            *left_out,
            *drifted,
            *(step.removeprefix(CAVEAT) for step in selected.artifact.provenance if step.startswith(CAVEAT)),
            *(f"not compared, not installed: {one}" for one in plan.missing),
        ),
        notes=samples.record.notes,
        pruning=pruning,
        buildups=buildups,
        projected=projected,
        profiled=profiled,
    )

    def record() -> MachineRecord:
        seconds = tuple((step, round(spent, 3)) for step, spent in progress.seconds_so_far().items())
        with context.turns.measuring(f"{plan.name}: what this machine sustains"):
            balance = balance_for(chosen.races, chosen.threads)
        races = (*chosen.races, *pruning_races)
        levels = tables.service_level if measurements else ()
        return MachineRecord(machine, measurements, races, verdicts, seconds, balance, noise, service_levels=levels)

    context.cache.require_used()  # a candidate that failed for want of its file must not pass as one that cannot run
    with progress.step("pack"):
        bundle = pack(context, samples, packed, record)
    progress.remember()
    return bundle


def _turn(plan: Plan, step: str) -> contextlib.AbstractContextManager[None]:
    """Return the turn that a step runs in, where it is not the whole build's."""
    measures = step in MEASURING
    return plan.context.turns.measuring(f"{plan.name}: {step}") if measures else contextlib.nullcontext()


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
    results: dict[Format, Exported] = {}
    for name in formats_to_export(context.options.formats):
        with progress.step(EXPORT_STEPS[name]) as step:
            onnx = results["onnx"].for_openvino if name == "openvino" else None
            results[name] = export_format(context, samples, name, onnx)
            step.reused = results[name].reused
    return gather(context, results)


def _fit(context: Context, samples: Samples, exports: Exports, progress: Progress) -> Exports:
    """Return the exports with ONNX as the target's TensorRT takes it, where it has one."""
    if context.target.tensorrt is None or exports.of("onnx") is None:
        return exports
    with progress.step(FIT) as step:
        exports, step.reused = fit_to_device(context, samples, exports)
    return exports


def _check(
    context: Context, samples: Samples, exports: Exports, runtimes: tuple[str, ...], progress: Progress
) -> tuple[tuple[Placed, ...], tuple[Parity, ...], tuple[str, ...]]:
    placed: list[Placed] = []
    parity: list[Parity] = []
    refused: list[str] = []
    with progress.step("parity") as step:
        step.reused = True
        for artifact in exports.artifacts:
            for runtime in artifact.runtimes:
                if runtime not in runtimes:
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


def _accuracies(selected: AccuracyResult, fp32: Sequence[AccuracyResult]) -> tuple[Accuracy, ...]:
    """Return the accuracy of every artifact that the bundle holds, on its runtimes; that of the selected one first."""
    found = (one.accuracy for one in (selected, *fp32))
    return tuple(dict.fromkeys(one for one in found if one is not None))


def _accuracy_result(
    selected: Placed, tried: tuple[Tried, ...], judged: dict[tuple[str, str], AccuracyResult]
) -> AccuracyResult:
    for one in tried:
        if one.artifact is not None and (one.artifact.name, one.runtime) == selected.key:
            return AccuracyResult(one.accuracy, one.golden_error)
    return judged[selected.key]
