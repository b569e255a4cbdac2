"""Accuracy against plain numpy, and the worst of several batch sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.quantize.evaluation import ANY_BATCH, EVALUATION_BATCHES, EvaluationSet, budget_miss, evaluate
from tsexport.types import Accuracy, AccuracyBudget, TensorSpec


class Scaled:
    """A session that answers 2 x + 1, off by `relative` times its answer, and by `per_row` for every row beside it."""

    inputs = (TensorSpec("x", "float32", ("batch", 3)),)
    outputs = (TensorSpec("y", "float32", ("batch", 3)), TensorSpec("z", "float32", ("batch",)))

    def __init__(self, relative=0.0, per_row=0.0):
        self.relative, self.per_row = relative, per_row
        self.batches = []

    def run(self, feeds):
        self.batches.append(len(feeds["x"]))
        y = answer(feeds["x"])["y"] * (1 + self.relative + self.per_row * (len(feeds["x"]) - 1))
        return {"y": y.astype(np.float32), "z": answer(feeds["x"])["z"]}

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def answer(x):
    return {"y": (2 * x + 1).astype(np.float32), "z": x.sum(axis=1)}


def evaluation_set(windows=37, *, labelled=True, metric="mse", seed=0):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((windows, 3)).astype(np.float32)
    outputs = answer(x)
    target = (outputs["y"] + generator.normal(0, 0.3, outputs["y"].shape)).astype(np.float32) if labelled else None
    return EvaluationSet({"x": x}, outputs, target, metric)


def judge(session, evaluation, batches=EVALUATION_BATCHES):
    return evaluate(session, evaluation, artifact="a", runtime="r", batches=batches)


@pytest.mark.parametrize(
    ("metric", "by_numpy"),
    [("mse", lambda a, t: np.mean((a - t) ** 2)), ("mae", lambda a, t: np.mean(np.abs(a - t)))],
)
def test_metric_and_degradation_by_numpy(metric, by_numpy):
    evaluation = evaluation_set(metric=metric)
    found = judge(Scaled(relative=0.05), evaluation)
    source = by_numpy(evaluation.outputs["y"].astype("f8"), evaluation.target)
    value = by_numpy((evaluation.outputs["y"] * np.float32(1.05)).astype("f8"), evaluation.target)
    assert (found.artifact, found.runtime, found.windows, found.metric) == ("a", "r", 37, metric)
    assert found.source_value == pytest.approx(source, rel=1e-6)
    assert found.value == pytest.approx(value, rel=1e-6)
    assert found.degradation == pytest.approx(value / source - 1, rel=1e-5)
    assert found.degradation > 0


def test_a_metric_that_falls_when_worse():
    """Accuracy: the degradation is positive where it falls."""
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]], np.float32)
    outputs, target = {"y": scores}, np.array([0, 1, 0, 1])

    class Flips(Scaled):
        def run(self, feeds):
            y = scores[feeds["x"][:, 0].astype(int)].copy()
            y[feeds["x"][:, 0] == 3] = [1.0, 0.0]
            return {"y": y}

    evaluation = EvaluationSet({"x": np.arange(4, dtype=np.float32)[:, None]}, outputs, target, "accuracy")
    found = judge(Flips(), evaluation)
    assert (found.source_value, found.value) == (1.0, 0.75)
    assert found.degradation == pytest.approx(0.25)


def test_output_error_is_that_of_the_worst_output():
    found = judge(Scaled(relative=0.02), evaluation_set(labelled=False))
    assert found.output_error == pytest.approx(0.02, rel=1e-3)  # z is exact
    assert (found.metric, found.source_value, found.value, found.degradation) == (None, None, None, None)


@pytest.mark.parametrize("labelled", [True, False])
def test_the_worst_batch_size_counts(labelled):
    evaluation = evaluation_set(64, labelled=labelled)
    session = Scaled(per_row=0.01)
    found = judge(session, evaluation)
    alone, together = (judge(Scaled(per_row=0.01), evaluation, (batch,)) for batch in EVALUATION_BATCHES)
    assert alone.output_error == 0
    assert together.output_error == pytest.approx(0.31, rel=1e-3)
    assert found == together
    assert found == judge(Scaled(per_row=0.01), evaluation, EVALUATION_BATCHES[::-1])
    assert session.batches == [1] * 64 + [32] * 2


def test_one_batch_size_where_the_answer_does_not_depend_on_it():
    session = Scaled()
    judge(session, evaluation_set(70), ANY_BATCH)
    assert session.batches == [32, 32, 6]


def test_windows_of_a_large_input_are_judged_a_few_at_once():
    x = np.zeros((5, 30_000), dtype=np.float32)  # two of them are what may be there at once
    session = Scaled()
    judge(session, EvaluationSet({"x": x}, answer(x), None, "mse"))
    assert session.batches == [1] * 5 + [2, 2, 1]


@given(windows=st.integers(1, 50), batch=st.integers(1, 60), relative=st.floats(-0.5, 0.5))
@settings(max_examples=30, deadline=None)
def test_batches_add_up_to_the_whole(windows, batch, relative):
    evaluation = evaluation_set(windows, seed=windows)
    split, whole = (judge(Scaled(relative), evaluation, (size,)) for size in (batch, windows))
    assert split.value == pytest.approx(whole.value, rel=1e-9)
    assert split.output_error == pytest.approx(whole.output_error, rel=1e-9)


BUDGET = AccuracyBudget("mse", max_degradation=0.05, max_output_error=0.02)


@pytest.mark.parametrize(
    ("degradation", "output_error", "message"),
    [
        (0.05, 0.9, ""),  # with labels the output error does not count
        (-0.1, 0.9, ""),
        (0.051, 0.0, "mse +5.10% against the source model, allowed is +5.00%"),
        (None, 0.02, ""),
        (None, 0.031, "output error 3.10% of the source's RMS, allowed is 2.00%"),
        (float("nan"), 0.0, "mse +nan% against the source model, allowed is +5.00%"),
        (None, float("inf"), "output error inf% of the source's RMS, allowed is 2.00%"),
    ],
)
def test_the_accuracy_budget(degradation, output_error, message):
    accuracy = Accuracy("a", "r", 8, output_error, "mse" if degradation is not None else None, degradation=degradation)
    assert budget_miss(accuracy, BUDGET) == message
