"""Task metrics and output error, summed up over batches in float64, so that no prediction has to be kept.

mse, mae: mean of (output - target)^2, of |output - target|, over all values.
accuracy: share of samples whose largest score is the target's class; a sample with a NaN among its scores is wrong.
log_loss: mean of -log p(class).  Scores are probabilities where every row of the whole data set is non-negative and
    sums to 1 within `PROBABILITY_SUM_TOLERANCE`, else logits, of which the softmax is taken.  Probabilities are clipped
    from below at `SMALLEST_PROBABILITY`.
pinball: mean of max(q e, (q - 1) e), e = target - quantile, over all values and levels q (Koenker and Bassett 1978).
output error: sqrt(mean((artifact - source)^2)) / sqrt(mean(source^2)) of each output; the worst one counts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tsexport.errors import ConfigurationError, DataError, did_you_mean
from tsexport.types import Array, Task

PROBABILITY_SUM_TOLERANCE = 1e-3
"""How far a row of probabilities may be from summing to 1: half precision and int8 round that much."""
SMALLEST_PROBABILITY = 1e-15
"""A probability of 0 for the true class counts as this one, so that one sample cannot make the mean infinite."""


class MetricAccumulator(Protocol):
    """One metric over batches; `result` is NaN before the first batch."""

    def update(self, output: Array, target: Array) -> None: ...

    def result(self) -> float: ...


@dataclass(frozen=True)
class Metric:
    """A metric that can be asked for by name; `needs_quantiles` says that levels must be given."""

    name: str
    higher_is_better: bool
    needs_quantiles: bool
    make: Callable[[tuple[float, ...]], MetricAccumulator]


class MeanError:
    """Mean of `error(output - target)` over all values."""

    def __init__(self, error: Callable[[Array], Array]) -> None:
        self._error = error
        self._sum = 0.0
        self._values = 0

    def update(self, output: Array, target: Array) -> None:
        """Add a batch; the target has the output's shape, or lacks its last axis of size 1."""
        expected = output.shape
        if target.shape == expected[:-1] and expected[-1:] == (1,):
            target = target[..., None]
        if target.shape != expected:
            raise DataError(
                f"the target has shape {list(target.shape)} and the output {list(expected)}.",
                next_step="Give one target per output value; for a series, check horizon, target_columns and target.",
            )
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite stays so in the mean
            self._sum += float(self._error(output.astype(np.float64) - target.astype(np.float64)).sum())
        self._values += output.size

    def result(self) -> float:
        return self._sum / self._values if self._values else math.nan


class Accuracy:
    """Share of samples whose class is right; scores [samples, classes]."""

    def __init__(self) -> None:
        self._right = 0
        self._samples = 0

    def update(self, output: Array, target: Array) -> None:
        """Add a batch; the target holds class numbers [samples] or [samples, 1], or one score per class."""
        classes = class_numbers(output, target)
        known = ~np.isnan(output).any(axis=1)
        self._right += int(((output.argmax(axis=1) == classes) & known).sum())
        self._samples += len(output)

    def result(self) -> float:
        return self._right / self._samples if self._samples else math.nan


class LogLoss:
    """Mean negative log-likelihood; scores [samples, classes], read as the module's docstring says."""

    def __init__(self) -> None:
        self._as_logits = 0.0
        self._as_probabilities = 0.0
        self._probabilities = True
        self._samples = 0

    def update(self, output: Array, target: Array) -> None:
        """Add a batch; the target as for accuracy."""
        classes = class_numbers(output, target)
        scores = output.astype(np.float64)
        with np.errstate(invalid="ignore"):  # what is not finite stays so in the mean
            self._add(scores, classes)

    def _add(self, scores: Array, classes: Array) -> None:
        sums = scores.sum(axis=1)
        self._probabilities &= bool((scores >= 0).all() and (np.abs(sums - 1) <= PROBABILITY_SUM_TOLERANCE).all())
        chosen = np.take_along_axis(scores, classes[:, None], axis=1)[:, 0]
        largest = scores.max(axis=1)
        self._as_logits += float((np.log(np.exp(scores - largest[:, None]).sum(axis=1)) + largest - chosen).sum())
        # Logits also come through here; what they give is not used.
        self._as_probabilities -= float(np.log(np.maximum(chosen, SMALLEST_PROBABILITY)).sum())
        self._samples += len(scores)

    def result(self) -> float:
        if not self._samples:
            return math.nan
        return (self._as_probabilities if self._probabilities else self._as_logits) / self._samples


class Pinball:
    """Mean pinball loss; output [samples, ..., levels], target [samples, ...] or with a last axis of size 1."""

    def __init__(self, quantiles: tuple[float, ...]) -> None:
        self._levels = np.array(quantiles, dtype=np.float64)
        self._sum = 0.0
        self._values = 0

    def update(self, output: Array, target: Array) -> None:
        if output.shape[-1:] != self._levels.shape:
            raise DataError(
                f"the output has shape {list(output.shape)}; its last axis must hold the "
                f"{len(self._levels)} quantile levels that were given.",
                next_step="Give the model's quantile levels in the order of its output.",
            )
        if target.shape == output.shape[:-1]:
            target = target[..., None]
        if target.shape != (*output.shape[:-1], 1):
            raise DataError(
                f"the target has shape {list(target.shape)}; for quantiles {list(output.shape)} it must be "
                f"{list(output.shape[:-1])}.",
                next_step="Give one target value per forecast value, without an axis for the quantiles.",
            )
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite stays so in the mean
            error = target.astype(np.float64) - output.astype(np.float64)
            self._sum += float(np.maximum(self._levels * error, (self._levels - 1) * error).sum())
        self._values += error.size

    def result(self) -> float:
        return self._sum / self._values if self._values else math.nan


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("mse", False, False, lambda _: MeanError(np.square)),
        Metric("mae", False, False, lambda _: MeanError(np.abs)),
        Metric("accuracy", True, False, lambda _: Accuracy()),
        Metric("log_loss", False, False, lambda _: LogLoss()),
        Metric("pinball", False, True, Pinball),
    )
}
DEFAULT_METRICS: Mapping[Task, str] = {
    "forecast": "mse",
    "classification": "accuracy",
    "quantiles": "pinball",
    "unknown": "mse",
}


def default_metric(task: Task) -> str:
    """Return the metric for a task: mse, accuracy for classifiers, pinball for quantiles."""
    return DEFAULT_METRICS[task]


def find_metric(name: str) -> Metric:
    """Look a metric up.

    Raises:
        ConfigurationError: there is none of that name.
    """
    if name not in METRICS:
        raise ConfigurationError(
            f"there is no metric {name!r}{did_you_mean(name, METRICS)}; allowed are {', '.join(METRICS)}.",
            next_step="Give --metric one of these.",
        )
    return METRICS[name]


def accumulate(name: str, *, quantiles: Sequence[float] = ()) -> MetricAccumulator:
    """Return a fresh accumulator; pinball needs the levels of the model's quantiles, in the order of its output.

    Raises:
        ConfigurationError: an unknown metric, or levels that are missing or not between 0 and 1.
    """
    metric = find_metric(name)
    if metric.needs_quantiles and (not quantiles or not all(0 < level < 1 for level in quantiles)):
        raise ConfigurationError(
            f"the metric {name!r} needs the levels of the model's quantiles, each between 0 and 1, and got "
            f"{list(quantiles)}.",
            next_step="Set `quantiles` in the model's configuration, or choose another --metric.",
        )
    return metric.make(tuple(quantiles))


def degradation(name: str, source: float, artifact: float) -> float:
    """Return how much worse the artifact is than its source, relative to the source; negative where it is better.

    (artifact - source) / source for errors, (source - artifact) / source for accuracy.  Equal values give 0 even where
    the source is 0; otherwise a source of 0 gives plus or minus infinity.  A value that is not
    finite is infinitely worse.
    """
    if not (math.isfinite(source) and math.isfinite(artifact)):
        return math.inf
    worse = source - artifact if find_metric(name).higher_is_better else artifact - source
    if worse == 0:
        return 0.0
    return worse / source if source else math.copysign(math.inf, worse)


class OutputError:
    """Relative RMS error of each output against the source model, streamed."""

    def __init__(self) -> None:
        self._squares: dict[str, tuple[float, float]] = {}  # name -> sums of (artifact - source)^2 and of source^2

    def update(self, artifact: Mapping[str, Array], source: Mapping[str, Array]) -> None:
        """Add what both answered to the same feeds; the same names and shapes."""
        if set(artifact) != set(source):
            raise DataError(
                f"the artifact answers {', '.join(sorted(artifact))} and the source model {', '.join(sorted(source))}."
            )
        for name, expected in source.items():
            actual = artifact[name]
            if actual.shape != expected.shape:
                raise DataError(
                    f"output {name!r} of the artifact has shape {list(actual.shape)} and of the source model "
                    f"{list(expected.shape)}."
                )
            reference = expected.astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):  # an infinite answer gives an infinite error below
                error = float(np.square(actual.astype(np.float64) - reference).sum())
                size = float(np.square(reference).sum())
            before = self._squares.get(name, (0.0, 0.0))
            self._squares[name] = before[0] + error, before[1] + size

    @property
    def relative_rms(self) -> dict[str, float]:
        """Error by output; infinite where an answer was not finite, or where only the source is 0 throughout."""
        return {name: relative(*squares) for name, squares in self._squares.items()}

    @property
    def worst(self) -> tuple[str, float]:
        """Name and error of the worst output.

        Raises:
            DataError: nothing was compared.
        """
        if not self._squares:
            raise DataError("no outputs were compared, so there is no output error.")
        return max(self.relative_rms.items(), key=lambda item: item[1])


def relative(error_squares: float, source_squares: float) -> float:
    if not (math.isfinite(error_squares) and math.isfinite(source_squares)):
        return math.inf
    if error_squares == 0:
        return 0.0
    return math.sqrt(error_squares / source_squares) if source_squares else math.inf


def class_numbers(output: Array, target: Array) -> Array:
    """Return the target's classes [samples] for scores [samples, classes]."""
    if output.ndim != 2 or output.shape[1] < 2:
        raise DataError(
            f"the output has shape {list(output.shape)}; a classifier answers one score per class, [samples, classes] "
            f"with two classes or more.",
            next_step="Choose --metric mse or mae for a model that predicts values.",
        )
    if target.shape == output.shape:
        return np.asarray(target.argmax(axis=1))
    flat = target[:, 0] if target.ndim == 2 and target.shape[1] == 1 else target
    if flat.shape != (len(output),):
        raise DataError(
            f"the target has shape {list(target.shape)}; for scores {list(output.shape)} it must be one class number "
            f"per sample, or one score per class.",
            next_step="Give the target as [samples] of class numbers, counted from 0.",
        )
    with np.errstate(invalid="ignore"):  # NaN becomes some integer, which then differs
        classes = flat.astype(np.int64)
    if (classes != flat).any() or (classes < 0).any() or (classes >= output.shape[1]).any():
        wrong = flat[(classes != flat) | (classes < 0) | (classes >= output.shape[1])][0]
        raise DataError(
            f"the target holds the class {wrong}; allowed are whole numbers from 0 to {output.shape[1] - 1}.",
            next_step="Number the classes from 0 in the order of the model's output.",
        )
    return np.asarray(classes)
