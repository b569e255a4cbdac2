"""What samples hand to the judges: the metric, and the quantile levels of the model's configuration."""

import numpy as np
import pytest

from tsexport.data import plan_data
from tsexport.models.sources import identify
from tsexport.options import BuildOptions
from tsexport.quantize.evaluation import evaluate
from tsexport.samples import Samples, SamplesRecord
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
    ("model", "settings", "reference"),
    [
        ("itransformer", {}, True),
        ("nhits", {}, True),
        ("itransformer", {"time_marks": True}, False),
        ("tft", {}, False),
    ],
)
def test_the_reference_series_is_for_models_of_one_input(model, settings, reference, tmp_path):
    options = BuildOptions(model=model, target="cpu4-int8", output=tmp_path)
    plan = plan_data(options, parse_target("cpu4-int8"), identify(model, settings=settings))
    assert plan.reference is reference
    assert plan.is_empty is not reference
