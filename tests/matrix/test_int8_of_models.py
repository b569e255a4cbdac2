"""`cpu4-int8` offers something for every registered model: a candidate of this CPU that builds, runs and holds."""

import numpy as np
import pytest
from cases import CASES
from exceptions import reason_against

from tsexport.errors import TsexportError
from tsexport.models.registry import list_entries
from tsexport.quantize.recipes import recipes_for
from tsexport.runtimes.comparison import relative_rms
from tsexport.runtimes.registry import load
from tsexport.targets import host_cpu, parse_target

MAX_ERROR = 0.05
"""Relative RMS of the worst output on real windows at batch 1: what a build allows a model without labels."""
FIRST_CASE = {case.model: case.name for case in reversed(CASES)}


def worst_error(one, artifact, runtime):
    """Return the largest error over the outputs, with windows answered one by one."""
    samples = len(next(iter(one.real.values())))
    answers = {name: [] for name in one.source.run({name: array[:1] for name, array in one.real.items()})}
    with load(artifact, runtime, threads=1) as session:
        for row in range(samples):
            found = session.run({name: array[row : row + 1] for name, array in one.real.items()})
            for name, values in answers.items():
                values.append(found[name][0])
    expected = one.source.run(one.real)
    return max(relative_rms(expected[name], np.stack(values)) for name, values in answers.items())


def attempts(one, quantized, name):
    """Yield (recipe on runtime, error, why not) of this CPU's INT8 recipes, one after the other."""
    for recipe in recipes_for(parse_target("cpu4-int8"), host_cpu()):
        if recipe.precision != "int8":
            continue
        built = quantized(name, recipe)
        if built.artifact is None:
            yield recipe.name, None, built.reason
            continue
        for runtime in built.artifact.runtimes:
            try:
                yield f"{recipe.name} on {runtime}", worst_error(one, built.artifact, runtime), ""
            except TsexportError as error:
                yield f"{recipe.name} on {runtime}", None, error.message


@pytest.mark.parametrize("model", [entry.name for entry in list_entries()])
def test_a_candidate_builds_runs_and_holds_the_error(exported, quantized, model):
    name = FIRST_CASE[model]
    one = exported(name)
    tried = []
    for what, error, why in attempts(one, quantized, name):
        tried.append(f"{what}: {why or f'error {error:.4f}'}")
        if error is not None and error <= MAX_ERROR:
            break
    else:
        reason = reason_against("int8", "any", name)
        assert reason, f"no candidate of {name}, and no exception says why: {tried}"
        return
    print(name, *tried, sep="\n  ")
    assert not reason_against("int8", "any", name), f"{name} is listed as one that cannot work: {tried[-1]}"
