"""Scaling of series: by training statistics, or per window.

standard: (x - mean) / std, mean and population standard deviation of the training rows, per feature.
minmax-window: (x - min) / (max - min), extremes per window and feature; a zero range counts as 1, which gives 0.
revin: (x - mean) / sqrt(variance + 1e-5), population statistics per window and feature, without learned weights.
Source: Kim et al. 2022, "Reversible Instance Normalization for Accurate Time-Series Forecasting against Distribution
Shift".  Its constant is not in the series' units: it hides what varies by much less than 0.003.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from tsexport.preparation import REVIN_EPSILON, Scaling
from tsexport.types import Array


@dataclass(frozen=True)
class StandardScale:
    """Mean and standard deviation per feature, [features] each, in float64; no std is 0."""

    mean: Array
    std: Array

    def apply(self, values: Array) -> Array:
        """Scale [..., features]."""
        return (values - self.mean) / self.std

    def invert(self, scaled: Array) -> Array:
        """Give back what `apply` scaled."""
        return scaled * self.std + self.mean


@dataclass(frozen=True)
class WindowScale:
    """What is subtracted and what is divided by, per window and feature, [windows, 1, features] each."""

    offset: Array
    span: Array

    def apply(self, values: Array) -> Array:
        """Scale [windows, steps, features]."""
        return (values - self.offset) / self.span

    def invert(self, scaled: Array) -> Array:
        """Give back what `apply` scaled."""
        return scaled * self.span + self.offset


def window_scale(windows: Array) -> WindowScale:
    """Take each window's extremes from [windows, steps, features]."""
    minimum = windows.min(axis=1, keepdims=True)
    span = windows.max(axis=1, keepdims=True) - minimum
    return WindowScale(minimum, np.where(span == 0, 1.0, span))


def revin_scale(windows: Array) -> WindowScale:
    """Take each window's mean and deviation from [windows, steps, features]."""
    origin = windows[:, :1]  # shifted by it, a constant window has exactly no variance
    shifted = windows - origin
    mean = shifted.mean(axis=1, keepdims=True)
    variance = np.square(shifted - mean).mean(axis=1, keepdims=True)
    return WindowScale(origin + mean, np.sqrt(variance + REVIN_EPSILON))


PER_WINDOW: Mapping[Scaling, Callable[[Array], WindowScale]] = {"minmax-window": window_scale, "revin": revin_scale}
"""The scalings that take their numbers from the window itself."""
