"""K steps of a model that is fed with its own output, and how far an artifact is from the source model after them.

How an output becomes the next input follows from the tensors:

    state      the output has the input's shape                 next input = output
    window     output [batch, horizon, channels] of an input [batch, context, channels]
                                                                next input = the last `context` rows of input and output

Anything else has no next input: classes, quantiles, a single value, a model that takes a calendar beside its windows.

Both models start from the same windows and go their own way, so that errors build up as they will in use.  The error
of a step is the relative RMS error of the output over all windows, sqrt(mean((a - s)^2)) / sqrt(mean(s^2)).  K steps
ahead there are no labels, whatever the data has, so that the rule for data without labels holds: at step K the error
is at most `max_output_error`.
Limit: a chaotic model loses any two trajectories in the end; K beyond that says nothing about an artifact.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tsexport.calibration.metrics import OutputError
from tsexport.types import Array, Feeds, ModelSpec, rows_at_once

ROLLOUT_WINDOWS = 32
ROLLOUT_BATCH = 8
Kind = Literal["state", "window"]
Run = Callable[[Feeds], dict[str, Array]]


@dataclass(frozen=True)
class Feedback:
    """How the first output of a model becomes its next input."""

    kind: Kind
    input: str
    output: str

    def next(self, given: Array, answer: Array) -> Array:
        """Return the next input for an input and the model's answer to it, as float32."""
        if self.kind == "state":
            return answer
        return np.concatenate([given, answer], axis=1)[:, -given.shape[1] :]

    def __str__(self) -> str:
        if self.kind == "state":
            return f"{self.output} is the next {self.input}"
        return f"{self.output} is appended to {self.input}, whose oldest rows go"


@dataclass(frozen=True)
class NoFeedback:
    """Why a model's output cannot be its next input."""

    reason: str


def feedback_of(spec: ModelSpec) -> Feedback | NoFeedback:
    """Return how a model's output becomes its next input, or why it cannot."""
    if spec.component is not None:
        return NoFeedback(f"{spec.component} is a part of {spec.name}, which the other parts feed")
    if spec.task in ("classification", "quantiles"):
        what = "classes" if spec.task == "classification" else "quantiles"
        return NoFeedback(f"it answers {what}, and takes none")
    if len(spec.inputs) > 1:
        others = ", ".join(one.name for one in spec.inputs[1:])
        return NoFeedback(f"beside {spec.inputs[0].name} it takes {others}, which no output of its says")
    given, answer = spec.inputs[0], spec.outputs[0]
    preparation = spec.config.get("preprocessing")
    if preparation and preparation["scaling"] != "none" and not preparation["scales_back"]:
        return NoFeedback("it takes raw windows and answers scaled ones")
    if given.dtype != "float32" or answer.dtype != "float32":
        return NoFeedback(f"it takes {given} and answers {answer}")
    if given.shape == answer.shape:
        return Feedback("state", given.name, answer.name)
    if len(given.shape) == len(answer.shape) == 3 and given.shape[2] == answer.shape[2]:
        return Feedback("window", given.name, answer.name)
    return NoFeedback(f"{answer} does not continue {given}: the channels of one are not those of the other")


def roll(run: Run, feedback: Feedback, windows: Array, steps: int) -> Iterator[Array]:
    """Yield the output [windows, ...] of each step.

    Args:
        run: the model.
        feedback: how it goes on.
        windows: the inputs of the first step.
        steps: K, 1 or more.
    """
    given = windows
    rows = rows_at_once([windows[:1].shape], ROLLOUT_BATCH)
    for _ in range(steps):
        parts = [run({feedback.input: given[at : at + rows]})[feedback.output] for at in range(0, len(given), rows)]
        answer = np.concatenate(parts).astype(np.float32)
        yield answer
        given = feedback.next(given, answer)


def rollout_errors(run: Run, source: Run, feedback: Feedback, windows: Array, steps: int) -> tuple[float, ...]:
    """Return the relative RMS error of each step; infinite where an answer is not finite or the source's is 0.

    Both are kept one step at a time, so that memory does not grow with K.
    """
    errors = []
    theirs = roll(source, feedback, windows, steps)
    for ours, expected in zip(roll(run, feedback, windows, steps), theirs, strict=True):
        error = OutputError()
        error.update({feedback.output: ours}, {feedback.output: expected})
        errors.append(error.worst[1])
    return tuple(errors)


def rollout_miss(errors: tuple[float, ...], allowed: float) -> str:
    """Return why a rollout misses its budget, or "" where it holds it."""
    last = errors[-1]
    if math.isfinite(last) and last <= allowed:
        return ""
    return (
        f"after {len(errors)} steps fed with its own output it is {last:.2%} of the source's RMS away, "
        f"allowed is {allowed:.2%}"
    )
