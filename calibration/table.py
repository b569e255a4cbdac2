"""Calibration tables: the range of every observed tensor, with what it was taken from.

A table is made by `calibrate`, kept as a file (see `calibration.table_files`), and re-used only where the model, the
data and the observer are those it was made with.  This module is light: records alone; what runs the model is imported
when `calibrate` is called.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tsexport.calibration.datasets import Dataset
from tsexport.errors import ConfigurationError, DataError, did_you_mean

Method = Literal["minmax", "entropy", "percentile", "mse"]


@dataclass(frozen=True)
class Observer:
    """How a tensor's range is taken from what was seen of it.

    method: "minmax" (all that was seen), "entropy" (the least Kullback-Leibler divergence of what 8 bits keep),
        "percentile" (a share of what was seen) or "mse" (the least mean squared error of 8 bits).
    percentile: of the values that stay within the range, for "percentile" alone: above 50 and up to 100.
    symmetric: the range is (-amax, amax), for S8 with zero point 0; otherwise low and high are taken apart, for U8.
    axis: None for one range a tensor; else one for each index along this axis, counted from 1 (0 is the batch).

    Raises:
        ConfigurationError: an unknown method, or values that cannot be used.
    """

    method: Method = "minmax"
    percentile: float | None = None
    symmetric: bool = False
    axis: int | None = None

    def __post_init__(self) -> None:
        methods = get_args(Method)
        if self.method not in methods:
            raise ConfigurationError(
                f"the observer {self.method!r} is unknown{did_you_mean(str(self.method), methods)}; allowed are "
                f"{', '.join(methods)}"
            )
        if (self.percentile is not None) != (self.method == "percentile"):
            raise ConfigurationError(
                f"the observer {self.method!r} has percentile {self.percentile}; a percentile belongs to the method "
                f"'percentile', and to it alone"
            )
        if self.percentile is not None and not 50 < self.percentile <= 100:
            raise ConfigurationError(f"percentile is {self.percentile}; allowed is above 50 and up to 100")
        if self.axis is not None and self.axis < 1:
            raise ConfigurationError(f"the observer's axis is {self.axis}; allowed is 1 or more, since 0 is the batch")

    def __str__(self) -> str:
        parts = (
            self.method if self.percentile is None else f"percentile {self.percentile:g}",
            "symmetric" if self.symmetric else "affine",
            "per tensor" if self.axis is None else f"per channel on axis {self.axis}",
        )
        return ", ".join(parts)


@dataclass(frozen=True)
class TensorRange:
    """The range of one tensor, low <= high.

    Per channel, `channel_lows` and `channel_highs` have one entry for each index along the observer's axis, and `low`
    and `high` are their extremes; otherwise both are ().
    """

    name: str
    low: float
    high: float
    channel_lows: tuple[float, ...] = ()
    channel_highs: tuple[float, ...] = ()

    @property
    def amax(self) -> float:
        """The larger magnitude of both ends: a symmetric scale is amax / 127."""
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True)
class CalibrationTable:
    """Ranges by tensor, in the order they were asked for, and what they belong to.

    model_sha256: of the ONNX file that was run: the fp32 graph, with every rewrite, that candidates are made from.
    data_sha256: the dataset's digest: its content, its configuration and which windows were drawn.
    window_ids: of the windows that were read.
    tool: what took the ranges, with versions.
    """

    model_sha256: str
    data_sha256: str
    window_ids: tuple[str, ...]
    observer: Observer
    tool: str
    ranges: tuple[TensorRange, ...]

    @property
    def tensors(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.ranges)

    def range_of(self, tensor: str) -> TensorRange:
        """Return a tensor's range.

        Raises:
            DataError: the table has none.
        """
        found = next((one for one in self.ranges if one.name == tensor), None)
        if found is None:
            raise DataError(
                f"the calibration table has no range of the tensor {tensor!r}{did_you_mean(tensor, self.tensors)}",
                next_step="calibrate again with that tensor among those observed",
            )
        return found


def calibrate(model: Path, dataset: Dataset, tensors: Sequence[str], observer: Observer) -> CalibrationTable:
    """Run an ONNX model on every window of a dataset, and return the ranges of some of its tensors.

    Memory is bounded by the model: windows are streamed, and of each tensor only its statistics are kept.

    Args:
        model: an ONNX file; its inputs are named as the dataset's.
        dataset: the windows.
        tensors: floating-point inputs, outputs or intermediate tensors of the graph, without repeats.
        observer: how a range is taken.

    Raises:
        DataError: a tensor that the graph does not compute or that holds no floating-point numbers, NaN or infinity
            (the tensor is named), no windows, or an axis that a tensor does not have.
    """
    from tsexport.calibration.activations import observe, table_of

    return table_of(observe(model, dataset, tensors, observer.axis), model, dataset, observer)
