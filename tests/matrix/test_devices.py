"""Every reference model for Jetson, T4 and A100: the device's check passes, and simulated numbers hold the budget.

Candidates are made by the recipes of each target, from the graph as the target's TensorRT takes it, as a build makes
them; the first that holds the budget is enough.  What cannot be made stands in `exceptions.DEVICE_EXCEPTIONS`, with
the node that forbids it.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx
import pytest
from cases import BY_NAME, CASES
from exceptions import DEVICE_EXCEPTIONS, EVERY, reason_against_device

from tsexport.bench.suites.device_bundle_records import TARGETS
from tsexport.calibration.arrays import ArrayDataset
from tsexport.exporters.conversion import probes
from tsexport.exporters.device_check import check_onnx
from tsexport.exporters.device_rewrites import rewrite_for_device
from tsexport.exporters.onnx_file import finish_onnx
from tsexport.options import BuildOptions
from tsexport.quantize.candidates import Built, build_candidate
from tsexport.quantize.recipe import Recipe
from tsexport.quantize.recipes import recipes_for
from tsexport.quantize.sources import Fp32Sources
from tsexport.runtimes.comparison import relative_rms
from tsexport.runtimes.simulation import simulate
from tsexport.targets import Target, host_cpu, parse_target
from tsexport.types import Artifact

BUDGET = BuildOptions.max_output_error
BUDGETS = {"int8": BUDGET, "bf16": BUDGET, "fp16": BUDGET / 10}
"""The largest relative RMS of the worst output; fp16, which rounds by 5e-4, is held to a tenth of the build's."""
QUICK = ("patchtst-cpu-small", "lstm-small", "tcn-small")
"""A transformer, a recurrent and a convolutional model."""


OLD_INT8 = ("jetson-int8", "xavier-nx@jetpack-5.1")
"""What an old version and a GPU before compute capability 8.0 lack together; for the quick cases alone."""


def rows():
    for case in CASES:
        for target, device in (*TARGETS, OLD_INT8) if case.name in QUICK else TARGETS:
            name = f"{case.name}-{target}" + ("" if device == "host" else f"-{device}")
            marks = [] if case.name in QUICK else [pytest.mark.slow]
            yield pytest.param(case.name, parse_target(target, device), marks=marks, id=name)


def refusals(artifact: Artifact, target: Target) -> list[str]:
    report = check_onnx(
        artifact.path,
        tensorrt=target.tensorrt,
        precision=artifact.precision,
        compute_capability=target.compute_capability,
    )
    return [f"{one.node}: {one.reason}" for one in report.errors]


@pytest.fixture(scope="module")
def fitted(exported) -> Callable[[str, str], Artifact]:
    """Return a function from a case and a TensorRT version to its graph as that version takes it."""

    @cache
    def fit(name: str, tensorrt: str) -> Artifact:
        one = exported(name)
        plain = one.artifact("onnx")
        spec = one.source.spec
        model, done = rewrite_for_device(onnx.load(plain.path), probes(spec, one.real), tensorrt)
        assert all(rewrite.kept for rewrite in done)
        if not done:
            return plain
        return finish_onnx(model, spec, one.folder / f"tensorrt-{tensorrt}.onnx", plain.provenance)

    return fit


@pytest.fixture(scope="module")
def candidate(exported) -> Callable[[str, Artifact, Recipe], tuple[Built, float]]:
    """Return a function from a case, its graph and a recipe to the candidate and its error in simulation."""
    made: dict[tuple[str, str, str], tuple[Built, float]] = {}

    def build(name: str, source: Artifact, recipe: Recipe) -> tuple[Built, float]:
        key = name, source.sha256, recipe.name
        if key not in made:
            one = exported(name)
            folder: Path = one.folder / f"{recipe.name}-{source.sha256[:8]}"
            folder.mkdir()
            windows = ArrayDataset((one.case.calibration or one.case.real)())
            built = build_candidate(recipe, Fp32Sources(source, None), one.source.spec, windows, folder)
            made[key] = built, error_of(one, built.artifact) if built.artifact is not None else float("inf")
        return made[key]

    return build


def error_of(one, artifact: Artifact) -> float:
    """Return the relative RMS of the worst output on real windows."""
    with simulate(artifact, "onnxruntime", 1) as session:
        found = session.run(one.real)
    expected = one.source.run(one.real)
    return max(relative_rms(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(("name", "target"), list(rows()))
def test_a_device_takes_a_model_within_the_budget(fitted, candidate, name, target):
    source = fitted(name, target.tensorrt)
    assert refusals(source, target) == []
    assert not any(node.op_type in ("DFT", "STFT") for node in onnx.load(source.path).graph.node)
    outcomes = {}
    for recipe in recipes_for(target, host_cpu()):
        built, error = candidate(name, source, recipe)
        if built.artifact is None:
            outcomes[recipe.name] = built.reason
            continue
        assert refusals(built.artifact, target) == []
        outcomes[recipe.name] = error
        if error <= BUDGETS[target.precision]:
            break
    held = any(not isinstance(one, str) and one <= BUDGETS[target.precision] for one in outcomes.values())
    reason = reason_against_device(target.name, name)
    assert held or reason, f"{name} for {target.name} on {target.device}, and no exception says why: {outcomes}"
    assert not (held and reason), f"{name} is listed as one that cannot work for {target.name}, and it does"


def test_exceptions_name_cases_and_targets():
    assert {one.case for one in DEVICE_EXCEPTIONS} <= {*BY_NAME, EVERY}
    assert {one.target for one in DEVICE_EXCEPTIONS} <= {target for target, _ in TARGETS}
