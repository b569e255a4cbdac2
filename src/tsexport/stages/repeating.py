"""What a build takes from the selection.json that it repeats, and what its own selection.json will hold.

A repeated selection builds the selected candidate alone.  Of the others, the manifest gives the records that the
selection.json holds, where they were judged with the same source, data and budget: so the same inputs and the same
selection give the same bytes, whether or not the build chose for itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tsexport.bundles.manifest import Selection
from tsexport.cache import digest_of
from tsexport.codec import from_plain, to_plain
from tsexport.quantize.recipe import Recipe, artifact_name
from tsexport.stages.choosing import accuracy_budget
from tsexport.stages.context import Context
from tsexport.stages.samples import Samples
from tsexport.stages.tried import Tried
from tsexport.types import Candidate

ELIGIBLE = "within the accuracy budget, and not the one that was selected"


def recipe_to_repeat(selection: Selection, recipes: Sequence[Recipe]) -> Recipe | None:
    """Return the recipe of the candidate that a selection.json selects, with its layers in floating point.

    That is the recipe that it holds, otherwise the one of `recipes`, or of the candidates recorded in it, whose
    artifact is called so; None where an fp32 artifact is selected, or an artifact that none makes.

    Raises:
        BundleError: a recipe in it is none.
    """
    selected = {**selection.recipe, "float_layers": selection.layers_left_in_float}
    held = [_read_recipe(selected, "recipe")] if selection.recipe else []
    for recipe in (*held, *recipes, *_recipes_tried(selection)):
        if artifact_name(recipe) == selection.artifact and selection.runtime in recipe.runtimes:
            return recipe
    return None


def recipes_of_tables(selection: Selection) -> tuple[Recipe, ...]:
    """Return the recipes whose calibration tables the bundle holds."""
    tried = {recipe.name: recipe for recipe in _recipes_tried(selection)}
    return tuple(tried[name] for name in selection.tables if name in tried)


def _recipes_tried(selection: Selection) -> tuple[Recipe, ...]:
    return tuple(_read_recipe(one.recipe, f"the recipe of {one.name}") for one in selection.tried)


def _read_recipe(record: Mapping[str, Any], which: str) -> Recipe:
    what = f"selection.json: {which}"
    again = "build again without --selection, or use the tsexport that wrote it"
    return from_plain(Recipe, to_plain(record), what=what, next_step=again, defaults=True)


def basis_of(context: Context, samples: Samples) -> str:
    """Return the digest of what the records of candidates rest on: source, data, budget, target and formats."""
    return digest_of(
        {
            "samples": samples.key,
            "budget": accuracy_budget(context, samples),
            "target": context.target,
            "formats": context.options.formats,
            "tables": context.calibration_tables,
        }
    )


def all_candidates(
    context: Context, samples: Samples, tried: Sequence[Tried], selected: tuple[str, str], why: str
) -> tuple[Candidate, ...]:
    """Return the manifest's records of the candidates; `selected` is an artifact and its runtime.

    A repeated selection builds the selected candidate alone; of the others it gives the records of the build that it
    repeats, where that was of the same source and data, under the same budget.
    """
    records = [_record(one, selected, why) for one in tried]
    selection = repeats(context, samples)
    if selection is None:
        return tuple(records)
    built = {(one.name, one.runtime): one for one in records}
    kept = [built.pop((one.name, one.runtime), _no_longer_selected(one)) for one in selection.tried]
    return (*kept, *built.values())


def _record(one: Tried, selected: tuple[str, str], why: str) -> Candidate:
    if one.out:
        return one.candidate(one.out, one.reason)
    more = f"; {one.reason}" if one.reason else ""
    if one.artifact is not None and (one.artifact.name, one.runtime) == selected:
        return one.candidate("selected", f"{why}{more}")
    return one.candidate("eligible", f"{ELIGIBLE}{more}")


def _no_longer_selected(one: Candidate) -> Candidate:
    return replace(one, status="eligible", reason=ELIGIBLE) if one.status == "selected" else one


def repeats(context: Context, samples: Samples) -> Selection | None:
    """Return the selection.json that is repeated, where its records hold for this build."""
    selection = context.selection
    return selection if selection is not None and selection.basis == basis_of(context, samples) else None
