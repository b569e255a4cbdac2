"""Which layers of a recipe stay in floating point, so that its error holds the budget: as few as will do.

Layers fall back in a fixed order, the most sensitive first (see `quantize.sensitivity`), so that a candidate is named
by how many of them are left.  The first count that is tried is predicted: errors of single layers add up as squares
where they are independent, so that the square of the error that k layers leave is the plain candidate's times

    sum of s_i^2 over the layers that stay quantized  /  sum of s_i^2 over all layers

From there the count doubles until a candidate holds the budget, and is bisected between the largest that missed and the
smallest that held.  Every candidate is built and judged as a whole; the prediction decides nothing but the order.  The
best so far is the smallest count that held: it is kept whatever comes after, and nothing else is ever returned.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

WINDOWS = 16
"""The most windows that sensitivity is measured on; a model of many operations gets fewer (see `windows_for`)."""
FEWEST_WINDOWS = 2
WORK = 2e12
"""Multiply-accumulates that measuring all layers may take: minutes on one core."""
MOST_TRIALS = 8
"""Candidates that one search builds at most; bisecting 100 layers takes 7."""
LEAST_INTEGER = 0.1
"""A candidate with less than this share of the work in integers is not built: it could win nothing."""
WORTH = 0.02
"""A smaller count is not looked for where it would bring less than this share of the work back to integers."""


@dataclass(frozen=True)
class Layer:
    """A node with constant weights, which INT8 recipes quantize.

    `output` is its first output's name, by which OpenVINO knows a node that makes an output of the graph.  `macs` are
    its multiply-accumulates for one window.
    """

    name: str
    operator: str
    output: str
    macs: int


def windows_for(layers: Sequence[Layer]) -> int:
    """Return how many windows the layers are measured on: 16, and fewer, down to 2, for a model of much work.

    It follows the number of operations, never a clock: an interrupted measurement goes on with the same windows.
    """
    work = sum(layer.macs for layer in layers) * len(layers)
    return int(min(WINDOWS, max(FEWEST_WINDOWS, WORK // max(work, 1))))


def by_work(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Return the layers in the order in which they are measured: the fewest operations first.

    Leaving a small layer in floating point costs little speed, so that is what a search wants to know about first.
    """
    return tuple(sorted(layers, key=lambda layer: layer.macs))


def rank(layers: Sequence[Layer], measured: Mapping[str, float]) -> tuple[Layer, ...]:
    """Return the layers in the order in which they fall back to floating point, the worst first.

    Measured ones come first, by sensitivity; then those that time did not reach, the fewest operations first.  Layers
    of equal sensitivity: the fewest operations first, then in the graph's order.
    """
    reached = [layer for layer in layers if layer.name in measured]
    rest = [layer for layer in layers if layer.name not in measured]
    reached.sort(key=lambda layer: (-measured[layer.name], layer.macs))
    return (*reached, *by_work(rest))


def predict(sensitivities: Sequence[float], ratio: float) -> int:
    """Return the smallest count of layers, worst first, that leaves at most `ratio` of the squared error, at least 1.

    Args:
        sensitivities: of all layers in their order; an infinite one counts as more than all others.
        ratio: the allowed squared error over the plain candidate's.
    """
    finite = [one for one in sensitivities if one < float("inf")]
    infinite = len(sensitivities) - len(finite)
    total = sum(one**2 for one in finite)
    left, count = total, infinite
    for one in finite:
        if left <= ratio * total:
            break
        left -= one**2
        count += 1
    return max(count, 1)


@dataclass(frozen=True)
class Trial:
    """One candidate: how many layers were left, whether it held the budget, and its error, None where there is none."""

    count: int
    held: bool
    error: float | None


@dataclass(frozen=True)
class Found:
    """What a search came to.

    `best` is the trial with the fewest layers left that held the budget, or None.  `ended` says why it stopped:
    "settled" (fewer layers do not do, or bring nothing), "exhausted" (with more layers left, less than LEAST_INTEGER of
    the work would be in integers), "time" or "trials" (no more were allowed).
    """

    best: Trial | None
    trials: tuple[Trial, ...]
    ended: Literal["settled", "exhausted", "time", "trials"]


def search_count(
    layers: Sequence[Layer],
    first: int,
    attempt: Callable[[int], Trial],
    may_go_on: Callable[[], bool],
    *,
    most_trials: int = MOST_TRIALS,
) -> Found:
    """Return the candidate with the fewest layers left in floating point that holds the budget, as far as was looked.

    Args:
        layers: in the order in which they fall back; the plain candidate, with none left, misses the budget.
        first: the count that is tried first.
        attempt: builds and judges the candidate with so many layers left.
        may_go_on: False once time is up; asked before each attempt.
        most_trials: attempts at most.
    """
    missed, held, most = 0, None, most_layers(layers)
    trials: list[Trial] = []
    best: Trial | None = None
    following = min(max(first, 1), most)
    ended: Literal["settled", "exhausted", "time", "trials"] = "exhausted" if most < 1 else "settled"
    while most >= 1:
        if len(trials) >= most_trials or not may_go_on():
            ended = "trials" if len(trials) >= most_trials else "time"
            break
        trial = attempt(following)
        trials.append(trial)
        if trial.held:
            best, held = trial, trial.count
        else:
            missed = max(missed, trial.count)
        if held is None:
            if missed >= most:
                ended = "exhausted"
                break
            following = min(2 * missed, most)
        elif held - missed <= 1 or _share(layers, missed + 1, held) < WORTH:
            break
        else:
            following = (missed + held) // 2
    return Found(best, tuple(trials), ended)


def most_layers(layers: Sequence[Layer]) -> int:
    """Return the largest count that leaves enough of the work in integers; 0 where not even one layer may be left."""
    counts = range(1, len(layers))  # with no layer in integers it is no INT8 candidate
    return max((count for count in counts if _share(layers, count, len(layers)) >= LEAST_INTEGER), default=0)


def _share(layers: Sequence[Layer], start: int, stop: int) -> float:
    """Return the share of all work that the layers from `start` up to `stop` do."""
    total = sum(layer.macs for layer in layers)
    return sum(layer.macs for layer in layers[start:stop]) / total if total else 1.0
