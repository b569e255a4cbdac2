"""Check a dataset against a model's inputs, in one streamed pass, before anything is built from it.

A feature is what the last axis counts ([batch, features], [batch, time, features]); from four axes on it is the second
one ([batch, channel, height, width]).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tsexport.calibration.datasets import Batch, Dataset, digest_of, read_range
from tsexport.calibration.statistics import RangeObserver, TensorStatistics
from tsexport.errors import DataError, did_you_mean
from tsexport.types import Array, TensorSpec

Purpose = Literal["calibration", "evaluation"]
MIN_CALIBRATION_SAMPLES = 32
"""Fewer samples rarely reach the extremes that activations take in use."""
MIN_EVALUATION_SAMPLES = 64
"""From as many samples on a p90 is given elsewhere too; below it a difference of a few per cent is noise."""
MIN_SAMPLES: Mapping[Purpose, int] = {"calibration": MIN_CALIBRATION_SAMPLES, "evaluation": MIN_EVALUATION_SAMPLES}
NAMED_FEATURES = 8
"""Constant features are listed up to this many."""
TARGET = "target"


@dataclass(frozen=True)
class Checked:
    """A dataset that fits: read `dataset` (converted where a note says so); `ranges` is what the inputs held."""

    dataset: Dataset
    notes: tuple[str, ...]
    ranges: tuple[TensorStatistics, ...]


class ConvertedDataset:
    """A dataset whose feeds are cast to the dtypes that a model expects."""

    def __init__(self, base: Dataset, dtypes: Mapping[str, str]) -> None:
        self.base = base
        self._dtypes = dict(dtypes)

    @property
    def names(self) -> tuple[str, ...]:
        return self.base.names

    @property
    def count(self) -> int:
        return self.base.count

    @property
    def has_target(self) -> bool:
        return self.base.has_target

    @property
    def digest(self) -> str:
        return digest_of({"base": self.base.digest, "dtypes": self._dtypes})

    def ids(self, indices: Iterable[int]) -> tuple[str, ...]:
        return self.base.ids(indices)

    def read(self, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
        # A value beyond the narrower type becomes infinite, and the check for infinities reports it.
        for batch in self.base.read(indices, batch_size):
            with np.errstate(over="ignore"):
                feeds = {name: array.astype(self._dtypes[name], copy=False) for name, array in batch.feeds.items()}
            yield Batch(feeds, batch.target, batch.ids)

    def batches(self, batch_size: int, *, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        return read_range(self, batch_size, start, stop)


def check_dataset(
    dataset: Dataset,
    inputs: Sequence[TensorSpec],
    purpose: Purpose,
    *,
    batch_size: int = 64,
    gaps_in: str | None = None,
) -> Checked:
    """Check names, dtypes, shapes, number of samples, finite values and constant features; read all samples once.

    A dtype is converted, with a note, where nothing is lost within the same kind, and from float64 to float32.
    A constant feature is an error for calibration (its range, and so its scale, would be 0), a note for evaluation.
    `gaps_in` names an input that may hold NaN, since the graph fills it; its ranges are those of what is there.

    Raises:
        DataError: the data does not fit the model, or cannot be used.
    """
    check_count(dataset, purpose)
    check_names(dataset, inputs)
    first = next(iter(dataset.batches(1)))
    for spec in inputs:
        check_shape(spec, first.feeds[spec.name])
    notes = tuple(note for spec in inputs if (note := check_dtype(spec, first.feeds[spec.name])))
    fitting = ConvertedDataset(dataset, {spec.name: spec.dtype for spec in inputs}) if notes else dataset
    finite, features, observer = FiniteCheck(), FeatureExtremes(), RangeObserver()
    for batch in fitting.batches(batch_size):
        feeds = {name: filled(array) if name == gaps_in else array for name, array in batch.feeds.items()}
        for name, array in feeds.items():
            finite.update(name, array, batch.ids)
            features.update(name, array)
        if batch.target is not None:
            finite.update(TARGET, batch.target, batch.ids)
        observer.update(feeds)
    finite.raise_for_findings()
    constant = features.describe_constant()
    if constant and purpose == "calibration":
        raise DataError(
            f"constant in all {dataset.count} calibration samples: {constant}. A constant feature has no range, so its "
            f"scale would be 0.",
            next_step="Calibrate with data in which every feature varies, or build the model without that feature.",
        )
    if constant:
        notes = (*notes, f"constant in all {dataset.count} evaluation samples: {constant}")
    return Checked(fitting, notes, observer.ranges)


def filled(array: Array) -> Array:
    """Return [..., features] with each NaN as the least that its feature holds elsewhere, or as 0: no range changes."""
    missing = np.isnan(array)
    least = np.where(missing, np.inf, array).min(axis=tuple(range(array.ndim - 1)), keepdims=True)
    return np.where(missing, np.where(np.isposinf(least), 0, least), array)


def check_count(dataset: Dataset, purpose: Purpose) -> None:
    if dataset.count < MIN_SAMPLES[purpose]:
        raise DataError(
            f"{purpose} got {dataset.count} samples and needs at least {MIN_SAMPLES[purpose]}.",
            next_step="Give more samples; for a series, a larger split or a smaller stride.",
        )


def check_names(dataset: Dataset, inputs: Sequence[TensorSpec]) -> None:
    expected = [spec.name for spec in inputs]
    missing = [name for name in expected if name not in dataset.names]
    extra = [name for name in dataset.names if name not in expected]
    if not missing and not extra:
        return
    parts = []
    if missing:
        parts.append(f"lacks the input{plural(missing)} {', '.join(map(repr, missing))}")
    if extra:
        hints = ", ".join(f"{name!r}{did_you_mean(name, missing or expected)}" for name in extra)
        parts.append(f"has array{plural(extra)} that the model does not take: {hints}")
    raise DataError(
        f"the data {' and '.join(parts)}; the model's inputs are {', '.join(map(str, inputs))}.",
        next_step="Name the arrays as the model's inputs; labels are named 'target'.",
    )


def check_shape(spec: TensorSpec, array: Array) -> None:
    expected, given = spec.shape[1:], array.shape[1:]
    same_rank = len(expected) == len(given)
    if not same_rank or any(e != g for e, g in zip(expected, given, strict=True) if isinstance(e, int)):
        raise DataError(
            f"input {spec.name!r} has samples of shape {list(given)}; the model takes {list(expected)} ({spec}).",
            next_step="Shape the arrays as [samples, ...]; for a series, set context_length and columns to match.",
        )


def check_dtype(spec: TensorSpec, array: Array) -> str:
    """Return a note where the dtype is converted, "" where it fits."""
    given, expected = array.dtype, np.dtype(spec.dtype)
    if given == expected:
        return ""
    lossless = given.kind == expected.kind and np.can_cast(given, expected, "safe")
    if lossless or (given, expected) == (np.dtype("float64"), np.dtype("float32")):
        return f"input {spec.name!r} was converted from {given} to {expected}"
    raise DataError(
        f"input {spec.name!r} has dtype {given}; the model takes {expected}.",
        next_step=f"Convert it: {spec.name}.astype({spec.dtype!r}).",
    )


def plural(names: Sequence[str]) -> str:
    return "s" if len(names) > 1 else ""


class FiniteCheck:
    """Counts NaN and infinite values per array and remembers where the first one was."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, int, str]] = {}  # name -> values, samples, the first one in words

    def update(self, name: str, array: Array, ids: tuple[str, ...]) -> None:
        if array.dtype.kind != "f":
            return
        bad = ~np.isfinite(array)
        if not bad.any():
            return
        samples = int(bad.reshape(len(bad), -1).any(axis=1).sum())
        at = [int(i) for i in np.argwhere(bad)[0]]
        first = f"{array[tuple(at)]} in sample {ids[at[0]]} at {at[1:]}"
        values_before, samples_before, first_before = self._found.get(name, (0, 0, first))
        self._found[name] = (values_before + int(bad.sum()), samples_before + samples, first_before)

    def raise_for_findings(self) -> None:
        if self._found:
            parts = [
                f"{'the target' if name == TARGET else f'input {name!r}'} has {values} NaN or infinite values in "
                f"{samples} samples; the first is {first}"
                for name, (values, samples, first) in self._found.items()
            ]
            raise DataError(
                f"{'; '.join(parts)}.", next_step="Leave those samples out, or fill the gaps before they are scaled."
            )


class FeatureExtremes:
    """Minimum and maximum per feature of floating-point inputs; integers and masks may well be constant."""

    def __init__(self) -> None:
        self._extremes: dict[str, tuple[Array, Array]] = {}

    def update(self, name: str, array: Array) -> None:
        if array.dtype.kind != "f" or not array.size:
            return
        feature_axis = 1 if array.ndim >= 4 else array.ndim - 1
        axes = tuple(axis for axis in range(array.ndim) if axis != feature_axis or array.ndim == 1)
        minimum, maximum = np.atleast_1d(array.min(axis=axes)), np.atleast_1d(array.max(axis=axes))
        if name in self._extremes:
            before = self._extremes[name]
            minimum, maximum = np.minimum(before[0], minimum), np.maximum(before[1], maximum)
        self._extremes[name] = minimum, maximum

    def describe_constant(self) -> str:
        """Name the constant features with their values, "" where there are none."""
        parts = []
        for name, (minimum, maximum) in self._extremes.items():
            flat = np.flatnonzero(minimum == maximum)
            named = ", ".join(f"{index} (always {minimum[index]:g})" for index in flat[:NAMED_FEATURES])
            more = f" and {len(flat) - NAMED_FEATURES} more" if len(flat) > NAMED_FEATURES else ""
            if len(flat):
                parts.append(f"input {name!r}, feature{'s' if len(flat) > 1 else ''} {named}{more}")
        return "; ".join(parts)
