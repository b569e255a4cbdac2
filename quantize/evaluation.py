"""How much worse an artifact is than its source model, on windows that calibration did not see.

Activations that are quantized at run time share one range over the whole batch, so an artifact's accuracy depends on
the batch.  Such an artifact is evaluated at each batch size of EVALUATION_BATCHES over the same windows, and the worst
counts.  A model of large inputs is given fewer windows at once (see `rows_at_once`).

Where the source's metric is 0 (it answers every label exactly) there is no relative degradation, and the
output error is what is judged.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tsexport.calibration.metrics import OutputError, accumulate, degradation
from tsexport.types import Accuracy, AccuracyBudget, Array, Feeds, Session, rows_at_once

EVALUATION_BATCHES = (1, 32)
ANY_BATCH = (32,)


@dataclass(frozen=True)
class EvaluationSet:
    """Windows, what the source model answered to them, and the target of the first output where there are labels.

    `feeds[name]` and `outputs[name]` are [windows, ...]; `quantiles` are the levels of a quantile model.
    """

    feeds: Feeds
    outputs: Feeds
    target: Array | None
    metric: str
    quantiles: tuple[float, ...] = ()

    @property
    def windows(self) -> int:
        return len(next(iter(self.feeds.values())))

    def batches(self, batch: int) -> Iterator[tuple[Feeds, Feeds, Array | None]]:
        """Yield (feeds, the source's answers, target) of consecutive windows; the last batch may be smaller."""
        for start in range(0, self.windows, batch):
            part = slice(start, start + batch)
            yield (
                {name: array[part] for name, array in self.feeds.items()},
                {name: array[part] for name, array in self.outputs.items()},
                None if self.target is None else self.target[part],
            )


@dataclass(frozen=True)
class _Totals:
    output_error: float
    source_value: float | None
    value: float | None


def _evaluate_at(session: Session, evaluation: EvaluationSet, batch: int) -> _Totals:
    error = OutputError()
    first = next(iter(evaluation.outputs))
    source, artifact = (accumulate(evaluation.metric, quantiles=evaluation.quantiles) for _ in range(2))
    for feeds, expected, target in evaluation.batches(batch):
        actual = session.run(feeds)
        error.update(actual, expected)
        if target is not None:
            source.update(expected[first], target)
            artifact.update(actual[first], target)
    labelled = evaluation.target is not None
    return _Totals(
        output_error=error.worst[1],
        source_value=source.result() if labelled else None,
        value=artifact.result() if labelled else None,
    )


def evaluate(
    session: Session,
    evaluation: EvaluationSet,
    *,
    artifact: str,
    runtime: str,
    batches: Sequence[int] = EVALUATION_BATCHES,
) -> Accuracy:
    """Return the accuracy of a loaded artifact: the worst over the batch sizes.

    Raises:
        DataError: the target does not fit the output.
    """
    worst: Accuracy | None = None
    rows = rows_at_once((array[:1].shape for array in evaluation.feeds.values()), max(batches))
    for batch in dict.fromkeys(min(batch, rows) for batch in batches):
        totals = _evaluate_at(session, evaluation, batch)
        labelled = totals.source_value is not None and totals.value is not None
        one = Accuracy(
            artifact=artifact,
            runtime=runtime,
            windows=evaluation.windows,
            output_error=totals.output_error,
            metric=evaluation.metric if labelled else None,
            source_value=totals.source_value,
            value=totals.value,
            degradation=degradation(evaluation.metric, totals.source_value, totals.value)
            if totals.source_value and totals.value is not None  # nothing is relative to a source of 0
            else None,
        )
        worst = one if worst is None or _badness(one) > _badness(worst) else worst
    assert worst is not None
    return worst


def _badness(accuracy: Accuracy) -> float:
    return accuracy.output_error if accuracy.degradation is None else accuracy.degradation


def budget_miss(accuracy: Accuracy, budget: AccuracyBudget) -> str:
    """Return why an artifact misses the accuracy budget, or "" where it holds it.

    With labels the degradation of the metric is held to `max_degradation`, without labels the output error to
    `max_output_error`.
    """
    if accuracy.degradation is not None:
        if accuracy.degradation <= budget.max_degradation:
            return ""
        return (
            f"{accuracy.metric} {accuracy.degradation:+.2%} against the source model, "
            f"allowed is {budget.max_degradation:+.2%}"
        )
    if accuracy.output_error <= budget.max_output_error:
        return ""
    return f"output error {accuracy.output_error:.2%} of the source's RMS, allowed is {budget.max_output_error:.2%}"
