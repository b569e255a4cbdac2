"""Scaling of series: by training statistics, or per window.

standard: (x - mean) / std, mean and population standard deviation of the training rows, per feature.
minmax-window: (x - min) / (max - min), extremes per window and feature; a zero range counts as 1, which gives 0.
"""

from dataclasses import dataclass

import numpy as np

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
    """Minimum and range per window and feature, [windows, 1, features] each."""

    minimum: Array
    span: Array

    def apply(self, values: Array) -> Array:
        """Scale [windows, steps, features]."""
        return (values - self.minimum) / self.span

    def invert(self, scaled: Array) -> Array:
        """Give back what `apply` scaled."""
        return scaled * self.span + self.minimum


def window_scale(windows: Array) -> WindowScale:
    """Take each window's extremes from [windows, steps, features]."""
    minimum = windows.min(axis=1, keepdims=True)
    span = windows.max(axis=1, keepdims=True) - minimum
    return WindowScale(minimum, np.where(span == 0, 1.0, span))
