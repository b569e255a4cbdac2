"""The candidates of a build: every recipe built and judged, and those that miss the accuracy budget tried again with
their worst layers left in floating point.

Everything that is done here is kept in the cache as soon as it is done: each layer's sensitivity, each candidate, each
accuracy.  A build that was interrupted goes on where it ended, since the search takes the same steps again.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tsexport.progress import Progress, Step
from tsexport.quantize.recipe import Recipe
from tsexport.quantize.search import Found, Layer, Trial, by_work, predict, rank, search_count, windows_for
from tsexport.stages.choosing import accuracy_budget
from tsexport.stages.compressing import build_recipe, try_recipe
from tsexport.stages.context import Context
from tsexport.stages.covering import with_coverage
from tsexport.stages.exporting import Exports
from tsexport.stages.fallbacks import FoundLayers, LayerError, Order
from tsexport.stages.fitting import require_one_accepted
from tsexport.stages.planned import Plan
from tsexport.stages.repeating import recipe_to_repeat, recipes_of_tables, repeats
from tsexport.stages.samples import Samples
from tsexport.stages.tried import Tried
from tsexport.types import AccuracyBudget, Artifact
from tsexport.wording import count_text

if TYPE_CHECKING:
    from tsexport.quantize.sensitivity import Probe

CANDIDATES, SEARCH = "INT8 candidates", "layers in floating point"
SENSITIVITY_SHARE = 0.4
"""How much of the time for the search may go into measuring layers; candidates of an order not fully measured count
for more than a full order without candidates."""
BY_NAME = frozenset({"onnxruntime", "fused-attention", "nncf", "tensorrt-qdq", "modelopt"})
"""Tools of INT8 that leave layers in floating point by name; Intel Neural Compressor and OpenVINO's dynamic INT8 do
not."""
TRIALS_EXPECTED = 4
"""Candidates that a search builds on average, for the estimate of the time left."""
SCREEN_WINDOWS = 128
SCREEN_FACTOR = 2.0
"""A candidate whose error on 128 windows is beyond twice the budget is not judged on all of them."""


def search(context: Context, samples: Samples, exports: Exports, plan: Plan, progress: Progress) -> tuple[Tried, ...]:
    """Return every candidate on each of its runtimes, judged; fallbacks stand behind the recipe they come from.

    Where a selection.json is repeated, the selected recipe alone is built, with the layers that it names.
    """
    if context.selection is not None:
        return _repeat(context, samples, exports, plan, progress)
    if not plan.recipes:
        return ()
    tried = _build_all(context, samples, exports, plan, progress)
    with progress.step(SEARCH) as step:
        tried = FloatSearch(context, samples, exports, plan, step).extend(tried)
        return with_coverage(context, samples, tried)


def _repeat(context: Context, samples: Samples, exports: Exports, plan: Plan, progress: Progress) -> tuple[Tried, ...]:
    selection = context.selection
    assert selection is not None
    if not plan.recipes:
        return ()
    with progress.step(CANDIDATES) as step:
        step.reused = True
        if repeats(context, samples) is not None:
            for one in recipes_of_tables(selection):  # the bundle holds their tables
                step.reused &= build_recipe(context, samples, exports, one)[2]
        recipe = recipe_to_repeat(selection, plan.recipes)
        if recipe is None:
            return ()
        found, reused = _try(context, samples, exports, recipe, plan.runtimes, (selection.runtime,))
        step.reused &= reused
        return with_coverage(context, samples, found)


def _build_all(
    context: Context, samples: Samples, exports: Exports, plan: Plan, progress: Progress
) -> tuple[Tried, ...]:
    tried: list[Tried] = []
    with progress.step(CANDIDATES) as step:
        step.reused = True
        for index, recipe in enumerate(plan.recipes):
            step.say(recipe.name, index / len(plan.recipes))
            found, reused = _try(context, samples, exports, recipe, plan.runtimes, recipe.runtimes)
            step.reused &= reused
            tried += found
    require_one_accepted(context, tried)
    return tuple(tried)


def _try(
    context: Context,
    samples: Samples,
    exports: Exports,
    recipe: Recipe,
    here: tuple[str, ...],
    wanted: tuple[str, ...],
) -> tuple[tuple[Tried, ...], bool]:
    """Build a recipe and judge it on the wanted runtimes; the second value says whether it was built already."""
    artifact, reason, reused = build_recipe(context, samples, exports, recipe)
    budget = accuracy_budget(context, samples)
    return try_recipe(context, samples, recipe, artifact, reason, budget, here, wanted), reused


@dataclass
class FloatSearch:
    """The search for the layers that stay in floating point, over all recipes that deserve it.

    Recipes are searched in the order of how little they miss the budget by: those need the fewest layers.
    """

    context: Context
    samples: Samples
    exports: Exports
    plan: Plan
    step: Step
    started: float = field(default_factory=lambda: time.monotonic())

    def extend(self, tried: tuple[Tried, ...]) -> tuple[Tried, ...]:
        """Return the candidates with what was found behind each; best-so-far where time ended it.

        One that missed the budget and is not searched says why.
        """
        missed = [one for one in tried if self._missed(one)]
        deserving = [one for one in missed if not _not_searched(one.recipe)]
        deserving.sort(key=lambda one: _error(one) or 0.0)
        if not self.context.options.search_seconds:
            return tried
        kinds = dict.fromkeys(one.recipe.per_channel for one in deserving)
        orders = {kind: self._order(kind, number / len(kinds)) for number, kind in enumerate(kinds, 1)}
        results: dict[tuple[str, str], tuple[Tried, ...]] = {
            (one.recipe.name, one.runtime): (replace(one, reason=f"{one.reason}; {why}"),)
            for one in missed
            if (why := _not_searched(one.recipe))
        }
        for index, one in enumerate(deserving):
            self.step.say(one.name, index / len(deserving))
            results[one.recipe.name, one.runtime] = self._search(
                one, orders[one.recipe.per_channel], len(deserving) - index - 1
            )
        return tuple(found for one in tried for found in results.get((one.recipe.name, one.runtime), (one,)))

    @cached_property
    def budget(self) -> AccuracyBudget:
        return accuracy_budget(self.context, self.samples)

    def _missed(self, one: Tried) -> bool:
        """Return whether a candidate missed the budget and nothing else."""
        from tsexport.quantize.evaluation import budget_miss

        judged = one.out == "rejected" and one.accuracy is not None and one.artifact is not None
        return judged and bool(one.accuracy and budget_miss(one.accuracy, self.budget))

    def _left_s(self) -> float:
        return max(0.0, self.context.options.search_seconds - (time.monotonic() - self.started))

    # --- the order of the layers

    @cached_property
    def _onnx(self) -> Artifact | None:
        return self.exports.clean or self.exports.of("onnx")

    @cached_property
    def _layers(self) -> tuple[Layer, ...]:
        """All layers of the fp32 graph; () where there is none in ONNX."""
        onnx = self._onnx
        if onnx is None:
            return ()

        def produce(folder: Path) -> FoundLayers:
            from tsexport.quantize.sensitivity import find_layers

            return FoundLayers(find_layers(onnx.path, {name: rows[:1] for name, rows in self.samples.feeds.items()}))

        inputs = {"source": onnx.sha256, "samples": self.samples.key}
        return self.context.cache.stage("layers", inputs, FoundLayers, produce).result.layers

    @cached_property
    def _probe(self) -> "Probe":
        """What measures layers; where all of them are cached it is never asked for."""
        from tsexport.quantize.sensitivity import Probe

        calibration = self.context.calibration
        assert self._onnx is not None
        assert calibration is not None, "a candidate that was judged has been calibrated"
        return Probe(self._onnx.path, calibration.dataset, windows_for(self._layers))

    def _order(self, per_channel: bool, part: float) -> Order:
        """Return the layers by sensitivity, to weights rounded per channel or per tensor.

        `part` is how much of the time for measuring may be spent when this ends.
        """
        measured: dict[str, float] = {}
        until = (1 - SENSITIVITY_SHARE * part) * self.context.options.search_seconds
        for index, layer in enumerate(by_work(self._layers)):
            spent = time.monotonic() - self.started
            if self._left_s() <= until:
                break
            if index:
                self.step.expect(min(self._left_s(), 2 * spent / index * (len(self._layers) - index)))
            self.step.say(f"sensitivity of {layer.name}", index / len(self._layers))
            measured[layer.name] = self._sensitivity(layer, per_channel)
        return Order(rank(self._layers, measured), measured)

    def _sensitivity(self, layer: Layer, per_channel: bool) -> float:
        inputs = {
            "source": self._onnx.sha256 if self._onnx else "",
            "samples": self.samples.key,
            "windows": windows_for(self._layers),
            "layer": layer.name,
            "per_channel": per_channel,
        }

        def produce(_: Path) -> LayerError:
            error = self._probe.error(layer.name, per_channel=per_channel)
            return LayerError(error if error < float("inf") else None)

        error = self.context.cache.stage("sensitivity", inputs, LayerError, produce).result.error
        return float("inf") if error is None else error

    # --- one recipe on one runtime

    def _search(self, plain: Tried, order: Order, waiting: int) -> tuple[Tried, ...]:
        mine = order.only(self._quantized_by(plain.recipe, order.layers))
        held: dict[int, Tried] = {}
        began, done = time.monotonic(), 0

        def attempt(number: int) -> Trial:
            nonlocal done
            self.step.say(f"{plain.recipe.name} with {number} of {len(mine.layers)} layers in floating point")
            one = self._judge(plain, _with_float_layers(plain.recipe, mine.layers[:number]))
            if not one.out:
                held[number] = one
            done += 1
            each = (time.monotonic() - began) / done
            self.step.expect(min(self._left_s(), each * TRIALS_EXPECTED * (waiting + 1)))
            return Trial(number, not one.out, _error(one))

        first = predict(mine.sensitivities(), self._allowed_ratio(plain))
        found = search_count(mine.layers, first, attempt, lambda: self._left_s() > 0)
        said = _outcome(found, mine)
        explained = replace(plain, reason=f"{plain.reason}; {said}")
        if found.best is None:
            return (explained,)
        best = held[found.best.count]
        return explained, replace(best, reason=f"{_figure(plain)} with no layer left in floating point; {said}")

    def _quantized_by(self, recipe: Recipe, layers: Sequence[Layer]) -> frozenset[str]:
        """Return the names of the layers that a recipe quantizes and that the graph it starts from has."""
        operators = _operators(recipe)
        mine = [one for one in layers if operators is None or one.operator in operators]
        source = self.exports.to_quantize(recipe.format)
        if recipe.format == "openvino" and source is not None:
            # The IR may be made from a graph with other rewrites; of a layer's operators the last has its tensor.
            known = _names_in_ir(source)
            mine = [one for one in mine if one.name in known or one.output in known]
        return frozenset(one.name for one in mine)

    def _judge(self, plain: Tried, recipe: Recipe) -> Tried:
        artifact, reason, _ = build_recipe(self.context, self.samples, self.exports, recipe)

        def judged(samples: Samples, budget: AccuracyBudget) -> Tried:
            here, wanted = self.plan.runtimes, (plain.runtime,)
            (one,) = try_recipe(self.context, samples, recipe, artifact, reason, budget, here, wanted)
            return one

        if artifact is not None and len(next(iter(self.samples.feeds.values()))) > 2 * SCREEN_WINDOWS:
            one = judged(_first_windows(self.samples), _times(self.budget, SCREEN_FACTOR))
            if one.out:
                return one
        return judged(self.samples, self.budget)

    def _allowed_ratio(self, plain: Tried) -> float:
        """Return the squared error that is allowed over that of the plain candidate."""
        assert plain.accuracy is not None
        if plain.accuracy.degradation is not None:  # a metric grows with the squared error
            return self.budget.max_degradation / plain.accuracy.degradation
        return (self.budget.max_output_error / plain.accuracy.output_error) ** 2


def _not_searched(recipe: Recipe) -> str:
    """Return why no layers are left in floating point for a recipe that misses the budget; "" where they are."""
    if recipe.precision != "int8":
        return f"no more layers were left in fp32: that is searched for INT8, not for {recipe.precision}"
    if recipe.tool not in BY_NAME:
        return f"no layers were left in floating point: its tool, {recipe.tool}, takes no names of layers"
    return ""


def _operators(recipe: Recipe) -> tuple[str, ...] | None:
    """Return the operators that a recipe's tool quantizes; None for all."""
    if recipe.tool not in ("onnxruntime", "fused-attention"):
        return None
    from tsexport.quantize.onnxruntime_quantizer import DYNAMIC_OPERATORS, STATIC_OPERATORS

    return tuple(DYNAMIC_OPERATORS if recipe.activations == "dynamic" else STATIC_OPERATORS)


def _names_in_ir(source: Artifact) -> frozenset[str]:
    """Return the names of operators and tensors in an OpenVINO IR."""
    from xml.etree import ElementTree

    root = ElementTree.parse(source.path).getroot()
    tensors = (name for port in root.iter("port") for name in port.get("names", "").split(","))
    return frozenset((*(layer.get("name", "") for layer in root.iter("layer")), *tensors))


def _with_float_layers(recipe: Recipe, layers: Sequence[Layer]) -> Recipe:
    count = count_text(len(layers), "layer")
    return replace(
        recipe,
        name=f"{recipe.name}-fp{len(layers)}",
        summary=f"{recipe.summary}; {count} left in floating point",
        float_layers=tuple(sorted(layer.name for layer in layers)),
    )


def _first_windows(samples: Samples) -> Samples:
    part = slice(0, SCREEN_WINDOWS)
    return replace(
        samples,
        key=f"{samples.key}, the first {SCREEN_WINDOWS}",
        feeds={name: rows[part] for name, rows in samples.feeds.items()},
        outputs={name: rows[part] for name, rows in samples.outputs.items()},
        target=None if samples.target is None else samples.target[part],
    )


def _times(budget: AccuracyBudget, factor: float) -> AccuracyBudget:
    return replace(
        budget,
        max_degradation=factor * budget.max_degradation,
        max_output_error=factor * budget.max_output_error,
    )


def _error(one: Tried) -> float | None:
    """Return what the budget judges: the degradation, or without labels the output error; None where it did not run."""
    if one.accuracy is None:
        return None
    return one.accuracy.output_error if one.accuracy.degradation is None else one.accuracy.degradation


def _figure(one: Tried) -> str:
    assert one.accuracy is not None
    if one.accuracy.degradation is None:
        return f"output error {one.accuracy.output_error:.2%}"
    return f"{one.accuracy.metric} {one.accuracy.degradation:+.2%}"


def _outcome(found: Found, order: Order) -> str:
    """Return what a search came to, in words; no time stands in a manifest."""
    layers, reached = len(order.layers), len(order.measured)
    if not layers:
        return "the graph has no layer that could stay in floating point"
    if not found.trials and found.ended == "time":
        return "the time for the search was up before a layer was left in floating point"
    if not found.trials:
        return "with its most sensitive layer in floating point less than a tenth of its work would be in integers"
    by = "" if reached == layers else f" ({reached} of {layers} layers measured, the others ordered by their work)"
    ended = {"time": "; then the time for the search was up", "trials": "; a search builds no more candidates"}
    rest = by + ended.get(found.ended, "")
    if found.best is not None:
        error = "" if found.best.error is None else f" give {found.best.error:.2%}"
        return f"{found.best.count} of {layers} layers left in floating point{error}{rest}"
    ran = [trial for trial in found.trials if trial.error is not None]
    if not ran:
        return f"no candidate with layers left in floating point could be built and run{rest}"
    nearest = min(ran, key=lambda trial: trial.error or 0.0)
    return f"{nearest.count} of {layers} layers left in floating point still give {nearest.error:.2%}{rest}"
