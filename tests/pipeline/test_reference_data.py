"""Builds without any data of the user's: the model's reference series calibrates and judges them."""

import pytest

GRID = {"latitudes": 16, "longitudes": 16, "widths": (8, 16)}


@pytest.fixture(autouse=True)
def cache_of_its_own(fresh_cache):
    return fresh_cache


def test_a_model_of_a_grid_is_calibrated_and_judged_on_the_reference_weather(small_build):
    manifest = small_build("unet", "cpu4-int8", set=GRID, formats=["onnx"]).manifest
    calibration, evaluation = manifest.provenance.calibration, manifest.provenance.evaluation
    assert calibration.source == evaluation.source == "the reference weather"
    assert (calibration.windows, evaluation.windows) == (256, 299)
    assert calibration.window_ids.startswith("train:")
    assert evaluation.window_ids == "test: 1700-1998"
    assert all(one.degradation is not None for one in manifest.accuracy), "it has a target"
    assert "untrained: accuracy means nothing" in manifest.model.caveats, "no checkpoint is of this size"


@pytest.mark.slow
@pytest.mark.parametrize(("model", "size"), [("inception-time", "small"), ("sfno-edge", "test")])
def test_a_small_model_is_judged_by_what_it_learned(small_build, model, size):
    manifest = small_build(model, "cpu4-int8", set={"size": size}, formats=["onnx", "openvino"]).manifest
    record = manifest.provenance.checkpoint
    assert (record.name, record.reference) == (f"{model}.safetensors", True)
    assert not any("untrained" in text for text in (*manifest.model.caveats, *manifest.notes))
    assert any(one.degradation is not None for one in manifest.accuracy)
