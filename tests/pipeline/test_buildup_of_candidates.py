"""Candidates that hold the budget and are out all the same: errors that build up, and quantiles that cross.

The targets are not this machine, so that nothing is timed.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tsexport.errors import AccuracyError
from tsexport.options import BuildOptions
from tsexport.pipeline import build_bundle, plan_build
from tsexport.quantize.quantiles import CROSSING_SHARE
from tsexport.stages.buildup import check_buildup
from tsexport.stages.samples import take_samples
from tsexport.types import Artifact

FACTORY = Path(__file__).parent / "factories" / "small.py"


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Return a function from a model, a target and options to the options of its build."""
    folder = tmp_path_factory.mktemp("buildup")
    draw = np.random.default_rng(0)
    np.savez(folder / "chaotic.npz", state=draw.uniform(-1, 1, (200, 24)).astype(np.float32))
    np.savez(folder / "close_quantiles.npz", bars=draw.standard_normal((200, 24)).astype(np.float32))

    def options(name, target, device, **given):
        return BuildOptions(
            f"{FACTORY}:{name}",
            target,
            folder,
            device=device,
            formats=("onnx",),
            calibration=folder / f"{name}.npz",
            force=True,
            **given,
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSEXPORT_CACHE", str(folder / "cache"))
        yield options


def test_a_candidate_whose_errors_build_up_is_rejected(make):
    """One step of each holds the budget; by the fourth the worst of them does not."""
    bundle = build_bundle(make("chaotic", "cpu4-int8", "arm64", rollout=4))
    last = {one.artifact: one.errors[-1] for one in bundle.manifest.rollouts if one.artifact.startswith("int8")}
    assert len(last) == 3
    assert {one.status for one in bundle.manifest.candidates} == {"selected", "eligible"}
    low, high = min(last.values()), max(last.values())
    again = build_bundle(make("chaotic", "cpu4-int8", "arm64", rollout=4, max_output_error=(low + high) / 2))
    out = {one.artifact: one for one in again.manifest.candidates if one.status == "rejected"}
    assert set(out) == {name for name, error in last.items() if error > (low + high) / 2}
    for name, one in out.items():
        assert one.accuracy.output_error < again.manifest.budget.max_output_error
        assert one.reason.startswith(f"after 4 steps fed with its own output it is {last[name]:.2%} of the source's")
    assert again.manifest.selected.artifact not in out


def test_all_of_them_rejected_is_exit_3(make):
    with pytest.raises(AccuracyError, match=r"static-s8s8: after 4 steps fed .*; dynamic-s8: after 4 steps") as caught:
        build_bundle(make("chaotic", "cpu4-int8", "arm64", rollout=4, max_output_error=0.0125))
    assert caught.value.exit_code == 3


def test_a_candidate_whose_quantiles_cross_is_rejected(make):
    given = make("close_quantiles", "cpu4-int8", "arm64", settings={"quantiles": (0.1, 0.5, 0.9)})
    manifest = build_bundle(given).manifest
    records = {one.artifact: one for one in manifest.quantiles}
    assert records["onnx-fp32"].new == 0.0
    out = [one for one in manifest.candidates if one.status == "rejected"]
    assert {one.artifact for one in out} == {name for name, one in records.items() if one.new > CROSSING_SHARE}
    assert "int8-static-s8s8" in {one.artifact for one in out}
    for one in out:
        assert one.reason == (
            f"{records[one.artifact].new:.2%} of neighbouring quantiles cross that do not in the source model, "
            "allowed is 1%"
        )


def test_what_no_runtime_here_computes_is_simulated_to_build_up(make):
    """ONNX Runtime has no kernels for bf16 on a CPU: loaded as it is, the artifact would end the build."""
    manifest = build_bundle(make("chaotic", "a100-bf16", "host", rollout=2)).manifest
    (selected,) = manifest.candidates
    assert selected.status == "selected"
    (rollout,) = (one for one in manifest.rollouts if one.artifact == "tensorrt-bf16")
    assert 1e-4 < rollout.errors[0] < rollout.errors[1] < 0.05


def test_an_artifact_that_a_runtime_dies_on_is_out_with_its_words(make, tmp_path):
    context = plan_build(make("chaotic", "cpu4-int8", "arm64", rollout=4)).context
    samples, _ = take_samples(context)
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no graph")
    broken = Artifact("int8-broken", path, "onnx", "int8", samples.spec.inputs, samples.spec.outputs, (path,), "0", 8)
    found = check_buildup(context, samples, replace(broken, runtimes=("onnxruntime",)), "onnxruntime")
    assert found.miss == found.failed
    assert found.miss.startswith("onnxruntime cannot compute what its errors build up to: ")
