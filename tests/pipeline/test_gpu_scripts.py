"""GPU bundles in bf16: beside TensorRT's graph a TorchScript in bf16, judged here and never selected."""

from dataclasses import replace

import numpy as np
import pytest

import tsexport
from tsexport.bundles.golden import INPUTS, OUTPUTS, read_golden
from tsexport.bundles.verification import examine_bundle
from tsexport.models.definition import Narrowing, narrowing_of
from tsexport.models.registry import get_entry
from tsexport.runtimes.comparison import relative_rms
from tsexport.runtimes.simulation import simulate
from tsexport.stages import gpu_scripts

pytestmark = pytest.mark.slow  # each builds a bundle
SCRIPT = "torchscript-bf16"


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Return a function that builds a small patchtst for the H200 in bf16; the cache is this file's own."""
    folder = tmp_path_factory.mktemp("scripts")
    generator = np.random.default_rng(0)
    np.savez(folder / "series.npz", series=generator.standard_normal((200, 32, 2)).astype(np.float32))
    small = {"context_length": 32, "horizon": 8, "channels": 2, "width": 16, "layers": 1, "heads": 2}

    def build(**options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TSEXPORT_CACHE", str(folder / "cache"))
            return tsexport.build(
                "patchtst", "h200-bf16", set=small, calibration=folder / "series.npz", output=folder / "dist",
                batch=[1], force=True, **options,
            )  # fmt: skip

    return build


def test_it_ships_beside_what_is_selected(make):
    manifest = (bundle := make()).manifest
    entry = manifest.artifact(SCRIPT)
    assert (entry.format, entry.precision, entry.runtimes) == ("torchscript", "bf16", ("torch-cuda",))
    assert manifest.selected.artifact == "tensorrt-bf16"
    (candidate,) = (one for one in manifest.candidates if one.name == SCRIPT)
    assert candidate.status == "eligible"
    assert candidate.reason.endswith(gpu_scripts.SHIPPED)
    assert 1e-4 < candidate.accuracy.output_error <= manifest.budget.max_output_error  # bf16 has 8 bits
    assert candidate.accuracy in manifest.accuracy
    assert "the window's mean and deviation" in entry.provenance[0]
    feeds = read_golden(bundle.path, INPUTS, entry.inputs, manifest.golden.samples)
    expected = read_golden(bundle.path, OUTPUTS, entry.outputs, manifest.golden.samples)
    with simulate(bundle.artifact(SCRIPT), "torch-cuda", 1) as session:
        answers = session.run(feeds)
    for name, array in expected.items():
        assert 1e-4 < relative_rms(array, answers[name]) <= entry.golden_tolerance.max_relative_rms
    report = examine_bundle(bundle)
    assert {check.runtime for check in report.checks if check.artifact == SCRIPT} == {"torch-cuda"}


def test_one_that_misses_the_budget_is_listed_and_not_shipped(make, monkeypatch):
    budget = gpu_scripts.accuracy_budget
    monkeypatch.setattr(
        gpu_scripts, "accuracy_budget", lambda *given: replace(budget(*given), max_output_error=1e-9)
    )  # fmt: skip
    manifest = make().manifest
    (candidate,) = (one for one in manifest.candidates if one.name == SCRIPT)
    assert candidate.status == "rejected"
    assert candidate.reason.endswith("of the source's RMS, allowed is 0.00%")
    assert SCRIPT not in {one.name for one in manifest.artifacts}


def test_one_that_cannot_be_traced_says_why(make, monkeypatch):
    monkeypatch.setattr(gpu_scripts, "_narrowing", lambda samples: Narrowing(within=("nothing",)))
    manifest = make().manifest
    (candidate,) = (one for one in manifest.candidates if one.name == SCRIPT)
    assert candidate.status == "failed"
    assert "has no module 'nothing'" in candidate.reason
    assert SCRIPT not in {one.name for one in manifest.artifacts}


def test_without_torchscript_there_is_none(make):
    manifest = make(formats=("onnx",)).manifest
    assert {one.format for one in manifest.artifacts} == {"onnx"}
    assert SCRIPT not in {one.name for one in manifest.candidates}


@pytest.mark.parametrize("model", ["patchtst", "sfno-edge", "sfno-hybrid"])
def test_models_say_what_stays_in_fp32(model):
    narrowing = narrowing_of(get_entry(model).definition())
    assert narrowing.keep or narrowing.within
    assert "stay in fp32" in narrowing.reason
    assert narrowing_of(get_entry("dlinear").definition()) == Narrowing()
