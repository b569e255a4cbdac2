"""What calibration and evaluation read: batches of named arrays, streamed, each sample with an id.

A dataset never holds all of its samples: `batches` and `read` go through the source once and keep one batch, so memory
does not grow with the number of samples.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from tsexport.errors import DataError
from tsexport.types import Array, rows_at_once

CALIBRATION_BATCH = 16
"""The most windows that a model is calibrated with at once; one of large inputs takes fewer (see `rows_at_once`)."""


@dataclass(frozen=True)
class Batch:
    """Consecutive samples: `feeds[name]` is [samples, ...], `target` [samples, ...] or None, `ids` one per sample."""

    feeds: Mapping[str, Array]
    target: Array | None
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)


class Dataset(Protocol):
    """Samples under the names of a model's inputs, with or without a target."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the inputs, in the order of the source."""
        ...

    @property
    def count(self) -> int:
        """Number of samples."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the content and of everything configured about it; the source is read in blocks."""
        ...

    @property
    def has_target(self) -> bool: ...

    def ids(self, indices: Iterable[int]) -> tuple[str, ...]:
        """Return the ids of samples without reading them."""
        ...

    def read(self, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
        """Yield the samples at strictly increasing `indices`, `batch_size` at a time; the last batch may be smaller."""
        ...

    def batches(self, batch_size: int, *, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Yield the samples from `start` up to `stop` (default: all), `batch_size` at a time."""
        ...


def read_range(dataset: Dataset, batch_size: int, start: int, stop: int | None) -> Iterator[Batch]:
    """Read the samples from `start` up to `stop`, cut off at the dataset's count: how every dataset makes `batches`."""
    if start < 0 or (stop is not None and stop < 0):
        raise ValueError(f"start and stop count from 0, got {start} and {stop}")
    end = dataset.count if stop is None else min(stop, dataset.count)
    return dataset.read(range(start, max(start, end)), batch_size)


def index_batches(indices: Sequence[int], batch_size: int, count: int) -> Iterator[Array]:
    """Cut strictly increasing sample indices into arrays of `batch_size`, without expanding a range."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    previous = -1
    for at in range(0, len(indices), batch_size):
        part = np.asarray(indices[at : at + batch_size], dtype=np.int64)
        if part[0] <= previous or (np.diff(part) <= 0).any() or part[-1] >= count:
            raise ValueError(f"indices must increase strictly and be below {count}")
        previous = int(part[-1])
        yield part


def calibration_batch(dataset: Dataset) -> int:
    """Return how many windows a quantizer is given at once: it keeps what every layer answers to them."""
    first = next(iter(dataset.batches(1)))
    return rows_at_once((array.shape for array in first.feeds.values()), CALIBRATION_BATCH)


class Subset:
    """Some samples of a dataset, in the dataset's order.  `indices` and `sample_ids` say which."""

    def __init__(self, base: Dataset, indices: Iterable[int]) -> None:
        self.base = base
        self.indices = tuple(sorted(set(indices)))
        if self.indices and not 0 <= self.indices[0] <= self.indices[-1] < base.count:
            raise ValueError(f"indices must lie in 0..{base.count - 1}")

    @property
    def names(self) -> tuple[str, ...]:
        return self.base.names

    @property
    def count(self) -> int:
        return len(self.indices)

    @property
    def has_target(self) -> bool:
        return self.base.has_target

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """Ids of all samples: what the manifest records."""
        return self.base.ids(self.indices)

    @cached_property
    def digest(self) -> str:
        return digest_of({"base": self.base.digest, "indices": self.indices})

    def ids(self, indices: Iterable[int]) -> tuple[str, ...]:
        return self.base.ids([self.indices[index] for index in indices])

    def read(self, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
        return self.base.read([self.indices[index] for index in indices], batch_size)

    def batches(self, batch_size: int, *, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        return read_range(self, batch_size, start, stop)


def draw(dataset: Dataset, count: int, seed: int, *, exclude: Iterable[int] = ()) -> Subset:
    """Draw `count` samples without replacement, reproducibly for a seed; the result is in the dataset's order.

    `exclude` are indices that must not be drawn: those that calibration saw, when evaluation reads the same file.

    Raises:
        DataError: fewer than `count` samples are there.
    """
    taken = sorted(set(exclude))
    free = dataset.count - len(taken)
    if count < 1:
        raise ValueError(f"count must be 1 or more, got {count}")
    if count > free:
        already = f", {len(taken)} of them already used" if taken else ""
        raise DataError(
            f"{count} samples were asked for and the data holds {dataset.count}{already}.",
            next_step="Give more data, or ask for fewer samples.",
        )
    drawn = np.array(sorted(random.Random(seed).sample(range(free), count)), dtype=np.int64)
    for index in taken:  # ascending: shift what lies at or behind each index that is left out
        drawn[drawn >= index] += 1
    return Subset(dataset, drawn.tolist())


def digest_of(record: object) -> str:
    """Return the SHA-256 (hex) of a record as canonical JSON; tuples count as lists."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
