"""Quantile heads: whether quantiles stay in order, and what share of the labels they cover.

    crossed     share of neighbouring pairs q_i, q_(i+1), over windows and steps, with q_(i+1) < q_i
    new         share that crosses in the artifact and not in the source model
    coverage    share of labels at or below the quantile of a level; a well calibrated one covers its level

A metric averages over such things: quantiles that cross may cost less pinball loss than rounding does, and a user who
takes q_0.1 and q_0.9 for an interval gets an empty one.  Coverage is reported and not judged: the loss judges it.
"""

from dataclasses import dataclass

import numpy as np

from tsexport.types import Array

CROSSING_SHARE = 0.01
"""How many of the pairs may cross that do not in the source: int8 rounds levels that nearly coincide."""


@dataclass(frozen=True)
class Order:
    """Shares of crossed pairs, see the module."""

    crossed: float
    source_crossed: float
    new: float


def order_of_quantiles(artifact: Array, source: Array) -> Order:
    """Return which quantiles cross in outputs [..., levels], levels in ascending order, of which there are two or
    more."""
    ours, theirs = np.diff(artifact, axis=-1) < 0, np.diff(source, axis=-1) < 0
    return Order(float(ours.mean()), float(theirs.mean()), float((ours & ~theirs).mean()))


def coverage(quantiles: Array, target: Array) -> tuple[float, ...]:
    """Return the share of labels at or below each level, for outputs [..., levels] and labels [...] or [..., 1]."""
    labels = target if target.ndim == quantiles.ndim else target[..., None]
    below = labels <= quantiles
    return tuple(float(one) for one in below.reshape(-1, quantiles.shape[-1]).mean(axis=0))


def crossing_miss(order: Order) -> str:
    """Return why quantiles may not be used, or ""."""
    if order.new <= CROSSING_SHARE:
        return ""
    return (
        f"{order.new:.2%} of neighbouring quantiles cross that do not in the source model, allowed is "
        f"{CROSSING_SHARE:.0%}"
    )
