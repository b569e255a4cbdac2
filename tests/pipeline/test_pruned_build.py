"""--prune, --max-prune-degradation and --rollout: whole builds, and every message of a wrong use."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tsexport.extras
from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.manifest import manifest_text, parse_manifest
from tsexport.errors import AccuracyError, ConfigurationError, MissingDependencyError, UsageError
from tsexport.options import BuildOptions, read_config
from tsexport.pipeline import build_bundle, bundle_name, plan_build
from tsexport.reports.writing import render_report
from tsexport.stages.pruning import require_degradation

FACTORY = Path(__file__).parent / "factories"
PARITY = 1e-4


def options(folder, model="inception-time", **given):
    settings = given.pop("settings", {"filters": 16, "blocks": 1, "kernels": (5, 3), "context_length": 20})
    base = BuildOptions(
        model, "cpu4-fp32", folder, settings=settings, formats=("onnx",), batches=(1,), threads=1, seconds=0.1
    )
    return replace(base, **given)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSEXPORT_CACHE", str(folder / "cache"))
        yield build_bundle(options(folder, prune=0.3))


def test_every_artifact_is_the_pruned_model(built):
    first = built
    record = first.manifest.pruning
    assert first.path.name == "inception-time-cpu4-fp32-prune30"
    assert record.channels.after < record.channels.before
    assert record.parameters.after == first.manifest.model.parameters < record.parameters.before
    assert record.flops.after < record.flops.before
    assert record.size_bytes.after == first.manifest.artifacts[0].size_bytes < record.size_bytes.before
    assert record.accuracy.output_error < record.unrefitted.output_error
    assert record.accuracy.degradation is not None
    assert record.removals
    assert all(one.after % 8 == 0 for one in record.removals)
    golden = np.load(first.path / "golden" / "outputs.npz")
    with np.load(first.path / "golden" / "inputs.npz") as inputs:
        import tsexport

        with tsexport.load(first.path) as session:
            answers = session.run(dict(inputs))
    np.testing.assert_allclose(answers["logits"], golden["logits"], atol=PARITY, rtol=0)
    first.verify()


def test_the_report_and_the_races_show_it(built):
    page = render_report([built])
    assert "<h3>Pruning</h3>" in page
    assert "was left:" in page
    races = [json.loads(path.read_text()) for path in (built.path / "measurements").glob("*.json")]
    assert "pruned-fp32" in json.dumps(races)
    assert parse_manifest(manifest_text(built.manifest)) == built.manifest


@pytest.mark.slow
def test_two_builds_make_the_same_model(built, tmp_path, monkeypatch):
    monkeypatch.setenv("TSEXPORT_CACHE", str(tmp_path / "cache"))  # another one: everything is computed again
    again = build_bundle(options(tmp_path, prune=0.3))
    assert built.manifest.pruning == again.manifest.pruning
    assert built.manifest.artifacts[0].sha256 == again.manifest.artifacts[0].sha256


def test_what_pruning_costs_is_judged_where_asked(built):
    record = built.manifest.pruning
    worse = replace(record, accuracy=replace(record.accuracy, degradation=0.2))
    unlabelled = replace(record, accuracy=replace(record.accuracy, degradation=None, output_error=0.3))
    require_degradation(None, worse)
    require_degradation(0.2, worse)
    for one, words in ((worse, "accuracy +20.00% against"), (unlabelled, "output error 30.00%")):
        with pytest.raises(AccuracyError, match="pruning costs more than --max-prune-degradation allows") as caught:
            require_degradation(0.1, one)
        assert words in caught.value.message
        assert caught.value.exit_code == 3
        assert "prune less than 0.3" in caught.value.next_step


SMALL_FORECASTER = {"context_length": 24, "horizon": 8, "channels": 3}


@pytest.fixture(scope="module")
def rollout_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("rollout") / "cache"


def test_rollout_of_a_forecaster(tmp_path, monkeypatch, rollout_cache):
    monkeypatch.setenv("TSEXPORT_CACHE", str(rollout_cache))
    bundle = build_bundle(options(tmp_path, "linear", settings=SMALL_FORECASTER, rollout=3))
    with open_bundle(bundle.path) as opened:
        (rollout, *_) = opened.manifest.rollouts
        assert rollout.steps == 3
        assert len(rollout.errors) == 3
        assert rollout.errors[-1] < PARITY
        assert "Errors that build up" in render_report([opened])


def test_errors_that_build_up_end_a_build(tmp_path, monkeypatch, rollout_cache):
    """Nothing is allowed: the rounding of three steps is more."""
    monkeypatch.setenv("TSEXPORT_CACHE", str(rollout_cache))
    given = options(tmp_path, "linear", settings=SMALL_FORECASTER, rollout=3, max_output_error=0.0)
    with pytest.raises(AccuracyError, match=r"no fp32 artifact stays with the source model: .* after 3 steps fed"):
        build_bundle(given)
    assert not list(tmp_path.glob("linear*"))


@pytest.mark.slow
def test_quantiles_of_every_artifact_are_held_against_the_source(tmp_path, monkeypatch):
    monkeypatch.setenv("TSEXPORT_CACHE", str(tmp_path / "cache"))
    small = {"context_length": 24, "horizon": 6, "width": 16, "heads": 2}
    bundle = build_bundle(options(tmp_path, "tft", settings=small))
    (record, *_) = bundle.manifest.quantiles
    assert record.levels == (0.1, 0.5, 0.9)
    assert record.new == 0.0
    assert record.crossed == record.source_crossed
    assert record.coverage == pytest.approx(record.source_coverage, abs=0.01)
    assert len(record.coverage) == 3
    assert "Quantiles 0.1, 0.5, 0.9" in render_report([bundle])


def test_messages_of_wrong_options(tmp_path):
    for fraction in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ConfigurationError, match=r"allowed are fractions between 0 and 1, for example 0\.3"):
            options(tmp_path, prune=fraction)
    with pytest.raises(ConfigurationError, match="max_prune_degradation is given and prune is not"):
        plan_build(options(tmp_path, max_prune_degradation=0.1))
    with pytest.raises(ConfigurationError, match="max_prune_degradation is -1"):
        options(tmp_path, prune=0.3, max_prune_degradation=-1)
    with pytest.raises(ConfigurationError, match="rollout is 0; allowed are whole numbers of steps from 1 on"):
        options(tmp_path, rollout=0)


def test_keys_of_the_file(tmp_path):
    path = tmp_path / "build.toml"
    path.write_text("[build]\nprune = 0.25\nmax-prune-degradation = 0.1\nrollout = 4\n")
    read = read_config(path)
    assert (read["prune"], read["max_prune_degradation"], read["rollout"]) == (0.25, 0.1, 4)
    path.write_text('[build]\nrollout = "many"\n')
    with pytest.raises(ConfigurationError, match="key rollout: 'many' is no int"):
        read_config(path)


def test_names_of_bundles():
    assert bundle_name("unet", "cpu4-int8", "host", prune=0.3) == "unet-cpu4-int8-prune30"
    assert bundle_name("unet", "cpu4-int8", "avx2", prune=0.125) == "unet-cpu4-int8-avx2-prune12.5"


def test_a_file_without_a_module(tmp_path, model_files):
    with pytest.raises(UsageError, match=r"removes channels of a torch module, and .* is a file of the kind onnx"):
        plan_build(options(tmp_path, str(model_files.fp32), settings={}, prune=0.3))


def test_no_data_to_refit_on(tmp_path):
    import torch

    weights = tmp_path / "own.pth"
    torch.save({}, weights)
    with pytest.raises(UsageError, match="refits layers on data like the model's own, and for inception-time none"):
        plan_build(options(tmp_path, checkpoint=weights, prune=0.3))


def test_torch_pruning_is_not_installed(tmp_path, monkeypatch):
    here = tsexport.extras._is_importable
    monkeypatch.setattr(tsexport.extras, "_is_importable", lambda name: name != "torch-pruning" and here(name))
    with pytest.raises(MissingDependencyError, match="--prune needs torch-pruning") as caught:
        plan_build(options(tmp_path, prune=0.3))
    assert caught.value.next_step == 'pip install "tsexport[quantize]"'


@pytest.mark.parametrize("model", ["linear", "dlinear", "lstm"])
def test_models_without_anything_to_remove(model, tmp_path, monkeypatch):
    monkeypatch.setenv("TSEXPORT_CACHE", str(tmp_path / "cache"))
    small = {"hidden": 16, "layers": 1} if model == "lstm" else {"context_length": 24, "horizon": 8, "channels": 3}
    with pytest.raises(UsageError, match=f"nothing of {model} can be removed for --prune 0.3: "):
        build_bundle(options(tmp_path, model, settings=small, prune=0.3))


def test_models_that_are_not_fed_with_their_output(tmp_path, monkeypatch):
    monkeypatch.setenv("TSEXPORT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UsageError, match="--rollout 3 feeds a model with its own output, and inception-time cannot be"):
        build_bundle(options(tmp_path, rollout=3))
