"""A build again: to the same bytes, from the cache, by a selection, and by one that it must take or refuse."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import tsexport
from tsexport.bundles.bundle import open_bundle
from tsexport.errors import AccuracyError, UsageError

MEASURED = ("measurements/", "report.html")


CACHED_STAGES = [
    "model and data", "export ONNX", "export TorchScript", "export OpenVINO", "parity", "INT8 candidates", "accuracy",
]  # fmt: skip


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def digests(folder):
    """SHA-256 of every file whose bytes must repeat."""
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in files_of(folder)
        if not name.startswith(MEASURED)
    }


def repeated(small_build, built, **options):
    settings = {"width": 16, "layers": 1, "feed_forward": 32, "heads": 2}
    given = {"selection": built.selection, "batch": [1, 3], **options}
    return small_build("patchtst-cpu", "cpu4-int8", set=settings, **given)


def test_the_same_inputs_and_selection_give_the_same_bytes(built, nncf_bundle, small_build, tmp_path, monkeypatch):
    """In another folder, with an empty cache, in another process; with an INT8 artifact that NNCF calibrated."""
    monkeypatch.setenv("TSEXPORT_CACHE", str(tmp_path / "empty"))
    again = repeated(small_build, built, selection=nncf_bundle.path / "selection.json")
    assert {entry.precision for entry in again.manifest.artifacts} == {"fp32", "int8"}
    assert digests(again.path) == digests(nncf_bundle.path)


REPEAT = """
import sys
import tsexport
tsexport.build("patchtst-cpu", "cpu4-int8", output=sys.argv[1], selection=sys.argv[2], seconds=0.1, batch=[1, 3],
               set={"width": 16, "layers": 1, "feed_forward": 32, "heads": 2}, quiet=False)
print([name for name in ("torch", "onnx", "nncf", "openvino", "onnxruntime") if name in sys.modules])
"""


def test_a_repeated_build_reuses_every_stage_and_imports_nothing_heavy_for_it(built, tmp_path):
    """torch alone takes seconds to import; a build whose stages are cached must not pay for it."""
    done = subprocess.run(
        [sys.executable, "-c", REPEAT, str(tmp_path), str(built.selection)],
        env={**os.environ, "TSEXPORT_CACHE": str(built.cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
    lines = done.stderr.splitlines()
    steps = {re.sub(r"^\[[ \d/]+\] ([^:]+):.*", r"\1", line): line for line in lines if line.startswith("[")}
    assert list(steps) == [*CACHED_STAGES, "measure batch sizes", "profile the selected artifact", "pack"]
    for stage in CACHED_STAGES:
        assert ": reused" in steps[stage]
    assert "left" not in lines[-1]
    assert digests(tmp_path / built.path.name) == digests(built.path)


@pytest.mark.usefixtures("use_cache")
def test_a_budget_of_nothing_rejects_what_is_worse_and_selects_fp32(built, small_build):
    """Some candidates happen to be better than their source on the reference series; those stay in the race."""
    candidates = {(one.name, one.runtime): one for one in built.bundle.manifest.candidates}
    worse = {key for key, one in candidates.items() if one.accuracy is None or one.accuracy.degradation > 0}
    bundle = repeated(
        small_build, built, max_degradation=0.0, selection=None, races=True, formats=["onnx"], search_seconds=0
    )
    found = {(one.name, one.runtime): one for one in bundle.manifest.candidates}
    worse &= {key for key, one in found.items() if one.status != "failed"}
    assert worse
    for key in worse:
        assert found[key].status == "rejected"
        assert re.fullmatch(r"mse \+[\d.]+% against the source model, allowed is \+0.00%", found[key].reason)
    assert bundle.verify()


@pytest.mark.slow
@pytest.mark.usefixtures("use_cache")
def test_a_metric_by_which_every_candidate_is_worse_selects_fp32_and_says_why(small_build, built, tmp_path):
    """Held against its own answers the source has no error, so that every candidate is judged by its output error."""
    inputs = dict(np.load(built.path / "golden" / "inputs.npz"))
    generator = np.random.default_rng(3)
    (name,) = inputs
    windows = np.concatenate([inputs[name] + 0.01 * generator.standard_normal(inputs[name].shape) for _ in range(6)])
    np.savez(tmp_path / "windows.npz", **{name: windows.astype(np.float32)})
    bundle = repeated(
        small_build, built, max_output_error=0.0, selection=None, races=True, evaluation=tmp_path / "windows.npz",
        search_seconds=0,
    )  # fmt: skip
    others = [(one.name, one.status, one.reason) for one in bundle.manifest.candidates if one.status != "rejected"]
    assert not others
    assert bundle.manifest.selected.why == "no candidate held the accuracy budget: fp32 is selected"
    assert bundle.manifest.artifact(bundle.manifest.selected.artifact).precision == "fp32"
    assert len(json.loads(next((bundle.path / "measurements").glob("*.json")).read_text())["races"]) == 1


@pytest.mark.usefixtures("use_cache")
def test_runtime_limits_the_selection(small_build, built):
    bundle = repeated(small_build, built, selection=None, races=True, runtime="tract", batch=[1], formats=["onnx"])
    assert bundle.manifest.selected.runtime == "tract"
    assert bundle.manifest.selected.why == "no candidate within the accuracy budget runs on tract: fp32 is selected"
    assert "onnxruntime" in bundle.manifest.artifact("onnx-fp32").runtimes, "the bundle is made for all the same"


# --- selections that cannot be repeated ------------------------------------------------------------------------------


def edited(built, tmp_path, **changes):
    document = {**json.loads(built.selection.read_text()), **changes}
    path = tmp_path / "selection.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.usefixtures("use_cache")
def test_a_selection_of_what_is_not_made(small_build, built, tmp_path):
    path = edited(built, tmp_path, artifact="int8-of-another-cpu", runtime="onnxruntime")
    with pytest.raises(UsageError, match="selects int8-of-another-cpu on onnxruntime, which this build does not make"):
        repeated(small_build, built, selection=path)


@pytest.mark.usefixtures("use_cache")
def test_a_selection_that_misses_the_budget(small_build, built, tmp_path):
    worst = max(
        (one for one in built.bundle.manifest.candidates if one.accuracy), key=lambda one: one.accuracy.degradation
    )
    path = edited(built, tmp_path, artifact=worst.artifact, runtime=worst.runtime)
    with pytest.raises(AccuracyError, match=f"selects {worst.artifact} on {worst.runtime}, which is out: mse"):
        repeated(small_build, built, selection=path, max_degradation=0.0)


@pytest.mark.usefixtures("use_cache")
def test_a_selection_against_runtime(small_build, built):
    runtime = built.bundle.manifest.selected.runtime
    with pytest.raises(UsageError, match=f"selects {runtime}, and --runtime allows only tract"):
        repeated(small_build, built, runtime="tract")


def test_a_selection_that_is_not_there(small_build, built, tmp_path, use_cache):
    with pytest.raises(UsageError, match=r"--selection .*nothing.json cannot be read: No such file"):
        repeated(small_build, built, selection=tmp_path / "nothing.json")


# --- the selected INT8 candidate -------------------------------------------------------------------------------------


def int8_bundle(built, small_build, tmp_path, runtime, prefix, **options):
    good = [one for one in built.bundle.manifest.candidates if one.status in ("selected", "eligible")]
    chosen = next(one for one in good if one.runtime == runtime and one.name.startswith(prefix))
    path = edited(built, tmp_path, artifact=chosen.artifact, runtime=runtime, order=[])
    return chosen, repeated(small_build, built, selection=path, **options)


@pytest.fixture(scope="module")
def nncf_bundle(built, tmp_path_factory):
    """What NNCF calibrated, selected and packed, from the session's cache."""
    folder = tmp_path_factory.mktemp("nncf")

    def build(model, target, *, races=False, **options):
        return tsexport.build(model, target, output=folder / "dist", seconds=0.1, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSEXPORT_CACHE", str(built.cache))
        return int8_bundle(built, build, folder, "openvino", "nncf")[1]


def check_int8(bundle, chosen, tmp_path):
    """The selected candidate is packed, marked, and holds its golden bound, here and in another folder."""
    entry = bundle.manifest.artifact(chosen.artifact)
    assert (entry.precision, entry.runtimes) == ("int8", (chosen.runtime,))
    assert entry.batch_dependent == (chosen.recipe["activations"] == "dynamic")
    assert entry.golden_tolerance.max_relative_rms > 0
    (candidate,) = (one for one in bundle.manifest.candidates if one.status == "selected")
    assert (candidate.artifact, candidate.runtime) == (chosen.artifact, chosen.runtime)
    with tsexport.load(bundle, precision="int8") as session:
        assert session.outputs == entry.outputs
    copy = tmp_path / "copy"
    shutil.copytree(bundle.path, copy)
    assert open_bundle(copy).verify(), "a bundle does not depend on where it was built"


def test_a_selected_candidate_of_nncf(built, nncf_bundle, tmp_path):
    chosen = next(one for one in built.bundle.manifest.candidates if one.name.startswith("nncf"))
    check_int8(nncf_bundle, chosen, tmp_path)


@pytest.mark.usefixtures("use_cache")
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_selected_candidate_of_onnx_runtime(small_build, built, tmp_path, kind):
    chosen, bundle = int8_bundle(built, small_build, tmp_path, "onnxruntime", kind, formats=["onnx"], batch=[1])
    check_int8(bundle, chosen, tmp_path)
