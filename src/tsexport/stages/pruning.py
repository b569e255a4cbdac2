"""--prune: the stage that removes channels and refits what is left, and what that cost.

The pruned torch module takes the place of the source model, as a preparation does: every artifact, the golden outputs
and all comparisons are those of the pruned model.  What it cost against the whole model is reported, and judged only
where --max-prune-degradation is given.

The cache keeps what was removed and the weights that are left, never a module: the same is removed from the model
again, and the weights are put in.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tsexport.cache import Cached
from tsexport.errors import AccuracyError, ConfigurationError, TsexportError, UsageError
from tsexport.npz import read_arrays, write_arrays
from tsexport.options import BuildOptions
from tsexport.quantize.pruning_records import Change, Left, PruningRecord, Refitted, Removal
from tsexport.stages.context import Context
from tsexport.types import Accuracy, AccuracyBudget, Array, Artifact, Closing, Feeds, TensorSpec
from tsexport.wording import change_text

if TYPE_CHECKING:
    from torch import nn

    from tsexport.bench.race import Progress as Told
    from tsexport.bench.race import RaceResult
    from tsexport.models.sources import OpenedSource, SourceIdentity
    from tsexport.progress import Progress
    from tsexport.quantize.pruning_groups import Inputs
    from tsexport.stages.data import DataPlan
    from tsexport.stages.exporting import Exports
    from tsexport.stages.samples import Samples

OPTION = "--prune"
WINDOWS = 256
WINDOW_VALUES = 2**21
"""Windows that layers are refitted on: at most so many, and at most so many values of input in all, at least 16."""
FEWEST_WINDOWS = 16
BATCH = 8
BATCH_OF_ANSWERS = 32


@dataclass(frozen=True)
class PruningResult:
    """What was removed from a model, layer by layer, and what it came to; the weights lie beside it."""

    removals: tuple[Removal, ...]
    left: tuple[Left, ...]
    refits: tuple[Refitted, ...]
    parameters: Change
    flops: Change


@dataclass(frozen=True)
class CostResult:
    """Accuracy of the pruned model against the whole one, with the refit and without."""

    accuracy: Accuracy
    unrefitted: Accuracy


def require_prunable(options: BuildOptions, identity: "SourceIdentity", plan: "DataPlan") -> None:
    """Raise where a model that is to be pruned cannot be, as far as that shows before it is opened.

    Raises:
        ConfigurationError: a budget for pruning without pruning.
        UsageError: a file without a torch module, or no data to refit layers on.
        MissingDependencyError: torch-pruning is not installed.
    """
    from tsexport.extras import require

    if options.prune is None:
        if options.max_prune_degradation is None:
            return
        raise ConfigurationError(
            "max_prune_degradation is given and prune is not: it judges what pruning costs",
            next_step="add --prune, for example --prune 0.3, or leave --max-prune-degradation out",
        )
    if identity.kind not in ("registered", "factory"):
        raise UsageError(
            f"{OPTION} removes channels of a torch module, and {identity.model} is a file of the kind {identity.kind}, "
            "in which widths are constants",
            next_step="name the torch model that it was made of, as a registered name or module:factory",
        )
    require("quantize", OPTION, only=("torch-pruning",))
    if plan.calibration is None and not plan.reference:
        raise UsageError(
            f"{OPTION} refits layers on data like the model's own, and for {identity.model} none was given",
            next_step="give --calibration FILE: .npz of arrays named as the inputs, or csv or parquet with [series]",
        )


def prune_stage(context: Context) -> "Cached[PruningResult]":
    """Return what pruning removed, and the folder with the weights; from the cache where it is known.

    Raises:
        UsageError: nothing of the model can be removed.
    """
    inputs = {
        "source": context.source_digest,
        "inputs": context.declared_inputs,
        "fraction": context.options.prune,
        "data": context.plan.digest,
        "calibrates": context.calibrates,
        "seed": context.options.seed,
    }
    return context.cache.stage("pruning", inputs, PruningResult, lambda folder: _prune(context, folder))


def _prune(context: Context, folder: Path) -> PruningResult:
    from tsexport.quantize.pruning import prune
    from tsexport.quantize.pruning_costs import flops_of, parameters_of
    from tsexport.quantize.pruning_importance import gram_matrices
    from tsexport.quantize.refit import refit

    fraction, seed = context.options.prune, context.options.seed
    whole = context.unpruned.module
    assert fraction is not None
    assert whole is not None  # `require_prunable` saw to it
    batches = sum(1 for _ in _windows(context))
    first = _example(context)
    grams = gram_matrices(whole, _windows(context), batches, seed)
    pruned = prune(whole, first, fraction, grams)
    if not pruned.removals:
        reasons = "; ".join(f"{one.layer}: {one.reason}" for one in pruned.left)
        raise UsageError(
            f"nothing of {context.built} can be removed for {OPTION} {fraction:g}: {reasons or 'it has no layers'}",
            next_step=f"leave {OPTION} out",
        )
    refits = refit(whole, pruned, lambda: _windows(context), batches, seed)
    one = tuple(tensor[:1] for tensor in first)
    write_arrays(folder / "weights.npz", {name: value.numpy() for name, value in pruned.module.state_dict().items()})
    return PruningResult(
        tuple(pruned.removals),
        tuple(pruned.left),
        refits,
        Change(parameters_of(whole), parameters_of(pruned.module)),
        Change(flops_of(whole, one), flops_of(pruned.module, one)),
    )


def _windows(context: Context) -> "Iterator[Inputs]":
    """Yield batches of calibration windows as tensors, the same ones each time."""
    from tsexport.models.flat import to_tensors

    calibration = context.calibration
    assert calibration is not None  # `require_prunable` saw to it
    specs = context.unpruned.spec.inputs
    values = sum(math.prod(spec.with_batch(1)) for spec in specs)
    count = min(WINDOWS, max(FEWEST_WINDOWS, WINDOW_VALUES // values))
    for batch in calibration.dataset.batches(BATCH, stop=count):
        yield tuple(to_tensors(specs, batch.feeds))


def _example(context: Context) -> "Inputs":
    return tuple(tensor[:2] for tensor in next(iter(_windows(context))))


def pruned_source(context: Context) -> "OpenedSource":
    """Return the pruned model as the source model, behind its preparation where there is one."""
    return _source_with(context, refitted=True)


def _source_with(context: Context, *, refitted: bool) -> "OpenedSource":
    import torch

    from tsexport.models.sources import with_module
    from tsexport.quantize.pruning import apply

    stage = prune_stage(context)
    whole = context.unpruned.module
    assert whole is not None
    module = apply(whole, _example(context), stage.result.removals).module
    if refitted:
        weights = read_arrays(stage.folder / "weights.npz")
        module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    inner: nn.Module = module.get_submodule("model") if context.plan.raw else module
    source = with_module(context.opened, inner, context.source_digest, (_note(context, stage.result),))
    prepared = context.prepared(source)
    config = {**prepared.spec.config, "prune": context.options.prune}
    return replace(prepared, spec=replace(prepared.spec, config=config), digest=context.source_digest)


def _note(context: Context, result: PruningResult) -> str:
    share = result.parameters.share_removed
    return (
        f"pruned: {context.options.prune:g} of the channels of {len(result.removals)} groups of layers, "
        f"{share:.1%} of the weights; every artifact and the golden outputs are the pruned model's"
    )


def measure_cost(context: Context, samples: "Samples", sizes: Change) -> PruningRecord:
    """Return the record of what was pruned, with its accuracy on the windows that artifacts are judged on.

    Raises:
        AccuracyError: pruning cost more than --max-prune-degradation allows.
    """
    stage = prune_stage(context)
    inputs = {"samples": samples.key, "pruning": stage.folder.name, "metric": context.options.metric}
    cost = context.cache.stage("pruning-cost", inputs, CostResult, lambda folder: _cost(context, samples)).result
    result, fraction = stage.result, context.options.prune
    assert fraction is not None
    record = PruningRecord(
        fraction=fraction,
        channels=_sum_of(result.removals, "channels"),
        heads=_sum_of(result.removals, "heads"),
        parameters=result.parameters,
        flops=result.flops,
        size_bytes=sizes,
        accuracy=cost.accuracy,
        unrefitted=cost.unrefitted,
        removals=result.removals,
        left=result.left,
        refits=result.refits,
    )
    require_degradation(context.options.max_prune_degradation, record)
    return record


def _sum_of(removals: tuple[Removal, ...], kind: str) -> Change:
    own = [one for one in removals if one.kind == kind]
    return Change(sum(one.before for one in own), sum(one.after for one in own))


def require_degradation(allowed: float | None, record: PruningRecord) -> None:
    """Raise where pruning cost more than was allowed: of the metric where there are labels, else as output error.

    Raises:
        AccuracyError: says by how much.
    """
    from tsexport.quantize.evaluation import budget_miss

    if allowed is None:
        return
    miss = budget_miss(record.accuracy, AccuracyBudget(record.accuracy.metric or "", allowed, allowed))
    if miss:
        raise AccuracyError(
            f"pruning costs more than --max-prune-degradation allows: {miss}",
            next_step=f"prune less than {record.fraction:g}, train the pruned model further, or allow more",
        )


def _cost(context: Context, samples: "Samples") -> CostResult:
    from tsexport.quantize.evaluation import ANY_BATCH, evaluate
    from tsexport.stages.samples import answers_of

    evaluation = samples.evaluation_set(context.options.metric)
    evaluation = replace(evaluation, outputs=answers_of(context.unpruned.run, samples.feeds, BATCH_OF_ANSWERS))
    pruned, unrefitted = (
        evaluate(_AsSession(source), evaluation, artifact=name, runtime="torch", batches=ANY_BATCH)
        for source, name in ((context.source, "pruned"), (_source_with(context, refitted=False), "pruned, no refit"))
    )
    return CostResult(pruned, unrefitted)


@dataclass(frozen=True)
class _AsSession(Closing):
    """A source model where a session is wanted: torch holds nothing that has to be closed."""

    source: "OpenedSource"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.source.spec.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.source.spec.outputs

    def run(self, feeds: Feeds) -> dict[str, Array]:
        return self.source.run(feeds)

    def close(self) -> None:
        pass


def unpruned_onnx(context: Context) -> Artifact | None:
    """Return the whole model's fp32 ONNX, which size and speed are compared with; None where it cannot be made."""
    from tsexport.stages.exporting import export_format
    from tsexport.stages.samples import take_samples

    options = replace(context.options, prune=None, max_prune_degradation=None, rollout=None, formats=("onnx",))
    whole = replace(context, options=options, prune=None)
    samples, _ = take_samples(whole)
    return export_format(whole, samples, "onnx", None).artifact


def race_against_unpruned(
    context: Context, samples: "Samples", whole: Artifact, pruned: Artifact, progress: "Told"
) -> "RaceResult":
    """Time the pruned fp32 ONNX against the whole model's, on one thread each, interleaved."""
    from tsexport.bench.race import Contestant, race
    from tsexport.stages.measuring import RACE_SECONDS

    contestants = [
        Contestant(replace(one, name=name), "onnxruntime", 1, f"{name} on onnxruntime, 1 thread")
        for one, name in ((whole, "unpruned-fp32"), (pruned, "pruned-fp32"))
    ]
    seconds = RACE_SECONDS * context.options.seconds
    return race(contestants, samples.feeds, 1, max_seconds=seconds, seed=context.options.seed, progress=progress)


def cost_text(record: PruningRecord) -> str:
    """Return what pruning did and cost, on one line."""
    parts = [
        f"{name} {one.before} -> {one.after} ({-one.share_removed:+.1%})"
        for name, one in (
            ("channels", record.channels),
            ("heads", record.heads),
            ("parameters", record.parameters),
            ("FLOPs", record.flops),
            ("ONNX bytes", record.size_bytes),
        )
        if one.before and one.share_removed is not None
    ]
    accuracy = record.accuracy
    if accuracy.degradation is not None:
        parts.append(f"{accuracy.metric} {change_text(accuracy.degradation)}")
    parts.append(f"output error {accuracy.output_error:.2%}, {record.unrefitted.output_error:.2%} before the refit")
    return "pruned: " + ", ".join(parts)


def compare_with_unpruned(
    context: Context, samples: "Samples", exports: "Exports", progress: "Progress", say: Callable[[str], None]
) -> "tuple[PruningRecord | None, tuple[RaceResult, ...]]":
    """Return what pruning did and cost, and the race of the fp32 ONNX files with it and without."""
    if context.options.prune is None:
        return None, ()
    with progress.step("compare with the unpruned model") as step:
        ours = exports.of("onnx")
        whole = unpruned_onnx(context) if ours is not None else None
        sizes = Change(whole.size_bytes if whole else None, ours.size_bytes if ours else None)
        record = measure_cost(context, samples, sizes)
        say(cost_text(record))
        if ours is None or whole is None or context.options.selection is not None or not context.target.here:
            return record, ()
        try:
            with context.turns.measuring(f"{context.built}: pruned and whole"):
                return record, (race_against_unpruned(context, samples, whole, ours, step.say),)
        except TsexportError as error:
            say(f"the pruned model was not timed against the whole one: {error.message}")
            return record, ()
