import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tsexport.calibration.metrics import METRICS, OutputError, accumulate, default_metric, degradation, find_metric
from tsexport.errors import ConfigurationError, DataError

SUMS = 1e-9  # relative: float64 sums in another order
FLOATS = st.floats(-1e3, 1e3, width=32)
POSITIVE = st.floats(1e-3, 1e3)
ERRORS = [name for name, metric in METRICS.items() if not metric.higher_is_better]


def in_pieces(metric, output, target, cuts=(), **options):
    accumulator = accumulate(metric, **options)
    for o, t in zip(np.split(output, cuts), np.split(target, cuts), strict=True):
        accumulator.update(o, t)
    return accumulator.result()


@given(hnp.arrays(np.float32, (2, 12, 4, 3), elements=FLOATS), st.lists(st.integers(0, 12), max_size=4).map(sorted))
def test_mse_and_mae_are_numpys(pair, cuts):
    output, target = pair
    difference = output.astype(np.float64) - target
    assert in_pieces("mse", output, target, cuts) == pytest.approx((difference**2).mean(), rel=SUMS, abs=1e-12)
    assert in_pieces("mae", output, target, cuts) == pytest.approx(np.abs(difference).mean(), rel=SUMS, abs=1e-12)


@given(st.integers(1, 30), st.integers(2, 5), st.integers(0, 99), st.lists(st.integers(0, 30), max_size=3).map(sorted))
def test_accuracy_and_log_loss_are_numpys(count, classes, seed, cuts):
    generator = np.random.default_rng(seed)
    logits = 3 * generator.standard_normal((count, classes))
    target = generator.integers(0, classes, count)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -np.log(probabilities[np.arange(count), target]).mean()
    assert in_pieces("log_loss", logits, target, cuts) == pytest.approx(expected, rel=1e-9)
    assert in_pieces("log_loss", probabilities, target, cuts) == pytest.approx(expected, rel=1e-9)
    right = (logits.argmax(axis=1) == target).mean()
    for form in (target, target[:, None], target.astype(np.float32), np.eye(classes)[target]):
        assert in_pieces("accuracy", logits, form, cuts) == right
        assert in_pieces("log_loss", logits, form, cuts) == pytest.approx(expected, rel=1e-9)


def test_one_row_that_is_no_probability_makes_all_rows_logits():
    scores = np.array([[0.5, 0.5], [0.25, 0.75], [2.0, -1.0]])
    target = np.array([0, 1, 0])
    expected = -np.log(np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True))[np.arange(3), target].mean()
    assert in_pieces("log_loss", scores, target, [1, 2]) == pytest.approx(expected, rel=1e-12)


def test_log_loss_survives_extremes():
    assert in_pieces("log_loss", np.array([[1e4, -1e4]]), np.array([1])) == pytest.approx(2e4)
    assert in_pieces("log_loss", np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(-math.log(1e-15))


def test_scores_that_are_nan_are_wrong():
    scores = np.array([[np.nan, 0.0], [1.0, 0.0]])
    assert in_pieces("accuracy", scores, np.array([0, 0])) == 0.5
    assert math.isnan(in_pieces("log_loss", scores, np.array([0, 0])))
    assert math.isnan(in_pieces("mse", np.array([[np.inf - np.inf]]), np.array([[1.0]])))


LEVELS = (0.1, 0.5, 0.9)


@given(
    hnp.arrays(np.float64, (10, 4, 3), elements=FLOATS),
    hnp.arrays(np.float64, (10, 4), elements=FLOATS),
    st.lists(st.integers(0, 10), max_size=3).map(sorted),
)
def test_pinball_is_its_definition(output, target, cuts):
    losses = [
        level * (t - o) if t >= o else (1 - level) * (o - t)
        for i, level in enumerate(LEVELS)
        for o, t in zip(output[..., i].ravel(), target.ravel(), strict=True)
    ]
    for form in (target, target[..., None]):
        got = in_pieces("pinball", output, form, cuts, quantiles=LEVELS)
        assert got == pytest.approx(np.mean(losses), rel=SUMS, abs=1e-12)


def test_the_median_pinball_is_half_the_mae():
    generator = np.random.default_rng(0)
    output, target = generator.standard_normal((50, 4)), generator.standard_normal((50, 4))
    half = in_pieces("mae", output, target) / 2
    assert in_pieces("pinball", output[..., None], target, quantiles=[0.5]) == pytest.approx(half)


def test_a_target_may_lack_an_axis_of_one():
    assert in_pieces("mse", np.ones((4, 1)), np.zeros(4)) == 1


@pytest.mark.parametrize("name", METRICS)
def test_nothing_seen_is_nan(name):
    assert math.isnan(accumulate(name, quantiles=LEVELS).result())


def refuses(message, error=DataError):
    return pytest.raises(error, match=re.escape(message))


def test_targets_that_do_not_fit():
    with refuses("the target has shape [4, 2] and the output [4, 3].") as error:
        accumulate("mse").update(np.zeros((4, 3)), np.zeros((4, 2)))
    assert "horizon, target_columns" in error.value.next_step
    with refuses("the output has shape [4, 1]; a classifier answers one score per class"):
        accumulate("accuracy").update(np.zeros((4, 1)), np.zeros(4))
    with refuses("the target has shape [4, 2]; for scores [4, 3] it must be one class number per sample"):
        accumulate("accuracy").update(np.zeros((4, 3)), np.zeros((4, 2)))
    for wrong in (3, -1, 0.5):
        with refuses(f"the target holds the class {float(wrong)}; allowed are whole numbers from 0 to 2."):
            accumulate("log_loss").update(np.zeros((2, 3)), np.array([0.0, wrong]))
    with refuses("the output has shape [4, 2]; its last axis must hold the 3 quantile levels"):
        accumulate("pinball", quantiles=LEVELS).update(np.zeros((4, 2)), np.zeros(4))
    with refuses("the target has shape [4, 3]; for quantiles [4, 3] it must be [4]."):
        accumulate("pinball", quantiles=LEVELS).update(np.zeros((4, 3)), np.zeros((4, 3)))


def test_unknown_metrics_and_missing_levels():
    with refuses("there is no metric 'logloss' (did you mean 'log_loss'?); allowed are mse, mae,", ConfigurationError):
        find_metric("logloss")
    for levels in ((), (0.0, 0.5), (0.5, 1.0)):
        with refuses("needs the levels of the model's quantiles, each between 0 and 1, and got", ConfigurationError):
            accumulate("pinball", quantiles=levels)


def test_default_metrics():
    tasks = ("forecast", "classification", "quantiles", "unknown")
    assert [default_metric(task) for task in tasks] == ["mse", "accuracy", "pinball", "mse"]


@given(st.sampled_from(ERRORS), POSITIVE, POSITIVE)
def test_a_larger_error_is_worse(name, source, artifact):
    assert degradation(name, source, artifact) == pytest.approx((artifact - source) / source)
    assert (degradation(name, source, artifact) > 0) == (artifact > source)


@given(POSITIVE, POSITIVE)
def test_a_larger_accuracy_is_better(source, artifact):
    assert degradation("accuracy", source, artifact) == pytest.approx((source - artifact) / source)
    assert (degradation("accuracy", source, artifact) > 0) == (artifact < source)


def test_degradation_at_the_edges():
    assert degradation("mse", 0.0, 0.0) == 0
    assert degradation("mse", 0.0, 0.1) == math.inf
    assert degradation("accuracy", 0.0, 0.1) == -math.inf
    assert degradation("mse", 1.0, math.nan) == degradation("mse", math.nan, 1.0) == math.inf
    assert degradation("accuracy", 0.5, math.inf) == math.inf


@given(hnp.arrays(np.float32, (2, 9, 4), elements=FLOATS), st.lists(st.integers(0, 9), max_size=3).map(sorted))
def test_output_error_is_numpys(pair, cuts):
    artifact, source = pair[0].astype(np.float64), pair[1].astype(np.float64)
    error = OutputError()
    for a, s in zip(np.split(pair[0], cuts), np.split(pair[1], cuts), strict=True):
        error.update({"y": a}, {"y": s})
    size = np.sqrt((source**2).mean())
    rms = np.sqrt(((artifact - source) ** 2).mean())
    expected = rms / size if size else (0.0 if rms == 0 else math.inf)
    assert error.relative_rms["y"] == pytest.approx(expected, rel=1e-9)


def test_the_worst_output_counts():
    error = OutputError()
    source = {"small": np.full(4, 0.1), "large": np.full(4, 100.0)}
    error.update({"small": np.full(4, 0.11), "large": np.full(4, 101.0)}, source)
    assert error.worst == ("small", pytest.approx(0.1))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_is_infinitely_wrong(bad):
    error = OutputError()
    error.update({"y": np.array([1.0, bad])}, {"y": np.ones(2)})
    error.update({"y": np.ones(2)}, {"y": np.ones(2)})
    assert error.worst == ("y", math.inf)


def test_a_source_of_zero():
    error = OutputError()
    error.update({"same": np.zeros(2), "other": np.ones(2)}, {"same": np.zeros(2), "other": np.zeros(2)})
    assert error.relative_rms == {"same": 0.0, "other": math.inf}


def test_outputs_that_do_not_match():
    with refuses("the artifact answers y and the source model y, z."):
        OutputError().update({"y": np.ones(2)}, {"y": np.ones(2), "z": np.ones(2)})
    with refuses("output 'y' of the artifact has shape [2, 1] and of the source model [2]."):
        OutputError().update({"y": np.ones((2, 1))}, {"y": np.ones(2)})
    with refuses("no outputs were compared"):
        _ = OutputError().worst
