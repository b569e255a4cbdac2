"""What samples hand to the judges: the metric, and the quantile levels of the model's configuration."""

import numpy as np
import pytest

from tsexport.errors import UsageError
from tsexport.models.sources import identify
from tsexport.options import BuildOptions
from tsexport.pipeline import plan_build
from tsexport.quantize.evaluation import evaluate
from tsexport.stages import samples as samples_module
from tsexport.stages.data import open_calibration, open_evaluation, plan_data
from tsexport.stages.exporting import parity_batches
from tsexport.stages.samples import (
    FEWEST_GOLDEN,
    FEWEST_RANDOM_WINDOWS,
    FEWEST_WINDOWS,
    GOLDEN_SAMPLES,
    Samples,
    SamplesRecord,
    take_samples,
)
from tsexport.targets import parse_target
from tsexport.types import ModelSpec, TensorSpec


def samples(task, config):
    spec = ModelSpec(
        "some",
        "transformer",
        task,
        (TensorSpec("x", "float32", ("batch", 2)),),
        (TensorSpec("quantiles", "float32", ("batch", 2, 3)),),
        config=config,
    )
    record = SamplesRecord(spec, "digest", (), (), None, None, None, has_real=True)
    answers = {"quantiles": np.zeros((4, 2, 3), dtype=np.float32)}
    return Samples("key", record, {"x": np.ones((4, 2), dtype=np.float32)}, answers, np.ones((4, 2), dtype=np.float32))


class Answers:
    """A session that answers every window with one constant."""

    def __init__(self, value):
        self.value = value

    def run(self, feeds):
        return {"quantiles": np.full((len(feeds["x"]), 2, 3), self.value, dtype=np.float32)}


@pytest.mark.parametrize("levels", [(0.1, 0.5, 0.9), [0.1, 0.5, 0.9]])
def test_a_quantile_model_is_judged_by_the_levels_of_its_configuration(levels):
    evaluation = samples("quantiles", {"quantiles": levels}).evaluation_set(None)
    assert evaluation.metric == "pinball"
    assert evaluation.quantiles == (0.1, 0.5, 0.9)
    accuracy = evaluate(Answers(3.0), evaluation, artifact="a", runtime="r")
    # target 1: the source's 0 lies below it, loss q; 3 lies above it by 2, loss 2 (1 - q)
    assert accuracy.source_value == pytest.approx(np.mean(levels))
    assert accuracy.value == pytest.approx(2 * (1 - np.mean(levels)))


@pytest.mark.parametrize("config", [{}, {"quantiles": 3}, {"quantiles": "many"}, {"quantiles": ["low", "high"]}])
def test_a_configuration_without_levels_has_none(config):
    assert samples("forecast", config).evaluation_set(None).quantiles == ()


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        *(("nhits", {}), ("itransformer", {}), ("itransformer", {"time_marks": True}), ("tft", {})),
        *(("migt-tvdt", {}), ("migt-tvdt", {"n_variables": 25, "context_length": 78})),
    ],
)
def test_the_reference_series_feeds_every_input(model, settings, tmp_path):
    identity = identify(model, settings=settings)
    options = BuildOptions(model=model, target="cpu4-int8", output=tmp_path)
    plan = plan_data(options, parse_target("cpu4-int8"), identity)
    calibration = open_calibration(plan, identity, identity.inputs)
    evaluation = open_evaluation(plan, identity, identity.inputs, calibration)
    assert not set(calibration.ids) & set(evaluation.ids)
    batch = next(evaluation.dataset.batches(2))
    assert {name: array.shape for name, array in batch.feeds.items()} == {
        spec.name: spec.with_batch(2) for spec in identity.inputs
    }


def test_int8_of_a_model_with_static_inputs_asks_for_data(tmp_path):
    options = BuildOptions(model="tft", target="cpu4-int8", output=tmp_path)
    identity = identify("tft", settings={"static_channels": 2})
    with pytest.raises(UsageError, match="no reference series for tft"):
        plan_data(options, parse_target("cpu4-int8"), identity)


WIDE = """
import torch

SEEN = []


class Wide(torch.nn.Module):
    tsexport_inputs = {"x": ("batch", 30_000)}

    def forward(self, x):
        SEEN.append(x.shape[0])
        return x.mean(dim=1, keepdim=True)


def wide():
    return Wide()
"""


@pytest.mark.usefixtures("fresh_cache")
def test_a_source_of_large_inputs_answers_a_few_samples_at_once(context_of, tmp_path):
    """64 days of migt-tvdt at once took 6 GB."""
    (tmp_path / "wide.py").write_text(WIDE)
    context = context_of(f"{tmp_path / 'wide.py'}:wide", include_preprocessing=False)
    module = context.source.module
    assert module is not None
    seen = next(one for one in module.modules() if type(one).__name__ == "Wide").forward.__globals__["SEEN"]
    seen.clear()  # opening it probes a few batches
    found, _ = take_samples(context)
    assert seen == [1, *[2] * 32], "one to count its operations, the rest to answer"
    np.testing.assert_allclose(
        found.outputs[found.spec.outputs[0].name], found.feeds["x"].mean(axis=1)[:, None], atol=1e-6
    )


@pytest.fixture
def costly(monkeypatch):
    """Every budget of operations is so small that the fewest samples are left."""
    for name in ("EVALUATION_FLOPS", "GOLDEN_FLOPS"):
        monkeypatch.setattr(samples_module, name, 1.0)


def taken(model, target, folder, **settings):
    options = BuildOptions(model=model, target=target, output=folder, settings=settings)
    return take_samples(plan_build(options).context)[0]


@pytest.mark.usefixtures("fresh_cache", "costly")
def test_a_model_of_many_operations_is_judged_on_fewer_windows_spread_over_all(tmp_path):
    found = taken("linear", "cpu4-int8", tmp_path, context_length=24, horizon=8, channels=2)
    assert len(found.feeds["series"]) == len(found.target) == FEWEST_WINDOWS
    assert len(found.golden[0]["series"]) == FEWEST_GOLDEN
    assert found.record.flops > 0
    assert found.record.evaluation.windows == FEWEST_WINDOWS
    assert any(f"judged on {FEWEST_WINDOWS} of " in note for note in found.record.notes)
    numbers = [int(one) for one in found.record.evaluation.window_ids.partition(": ")[2].split(",")]
    assert len(numbers) == FEWEST_WINDOWS
    assert max(numbers) - min(numbers) > 10 * FEWEST_WINDOWS, "spread, not the first ones"


@pytest.mark.usefixtures("fresh_cache")
def test_a_small_model_is_judged_on_all_its_windows(tmp_path):
    found = taken("linear", "cpu4-int8", tmp_path, context_length=24, horizon=8, channels=2)
    assert len(found.feeds["series"]) == found.record.evaluation.windows > 700
    assert len(found.golden[0]["series"]) == GOLDEN_SAMPLES
    assert not found.record.is_costly
    assert not any("judged on" in note for note in found.record.notes)


@pytest.mark.parametrize(
    ("count", "flops", "judged"),
    [(1024, 0.0, 1024), (1024, 1.34e8, 1024), (64, 2.06e10, 24), (64, 6.5e10, 16), (78, 5.95e11, 4), (3, 5.95e11, 3)],
)
def test_windows_follow_the_cost_of_a_sample(count, flops, judged):
    rows = samples_module._spread(count, flops)
    assert len(set(rows)) == len(rows) == judged
    assert (rows[0], rows[-1]) == (0, count - 1)


@pytest.mark.usefixtures("fresh_cache", "costly")
def test_without_data_a_costly_model_answers_a_few_random_windows(tmp_path):
    small = {"context_length": 12, "horizon": 3, "width": 16, "static_channels": 2}
    found = taken("tft", "cpu4-fp32", tmp_path, **small)
    assert not found.record.has_real
    assert {len(array) for array in found.feeds.values()} == {FEWEST_RANDOM_WINDOWS}


@pytest.mark.parametrize(("flops", "batches"), [(0.0, (1, 3, 10)), (4.9e9, (1, 3, 10)), (5e9, (1, 2))])
def test_parity_of_a_costly_model_takes_smaller_batches(flops, batches):
    record = SamplesRecord(samples("forecast", {}).spec, "digest", (), (), None, None, None, True, flops)
    assert parity_batches(record) == batches
