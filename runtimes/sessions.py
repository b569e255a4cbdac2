"""Sessions: the checks before inference that every runtime shares, and one compiled model per batch size.

Fixing the batch dimension at load makes graphs 1.3 to 1.5 times faster, because shapes fold to constants.  Feeds may
come in any batch, so `BatchSpecialised` compiles one model for each of the first batch sizes it meets and lets a
model with a dynamic batch serve the rest.
"""

import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from tsexport.errors import FeedError, UsageError, did_you_mean, reason_of
from tsexport.types import Array, Artifact, Closing, Feeds, TensorSpec

SPECIALISED_BATCHES = 4
"""How many distinct batch sizes get a model of their own; those that come later share a dynamic one."""
SPECIALISED_BYTES = 512 * 1024 * 1024
"""What those models may weigh together, counted as the artifact's size each: every one holds its own weights."""

Infer = Callable[[Mapping[str, Array]], Sequence[Array]]
"""Takes contiguous arrays under the artifact's input names, answers in the order of the artifact's outputs."""

_ARRAY = np.ndarray


def check_feeds(inputs: tuple[TensorSpec, ...], feeds: Feeds) -> tuple[dict[str, Array], int | None]:
    """Return the feeds as contiguous arrays in the order of `inputs`, and their batch (None where no input has one).

    Raises:
        FeedError: names, dtypes, ranks or dimensions that are not those of `inputs`, or a batch that is 0 or differs.
    """
    _check_names(inputs, feeds)
    arrays: dict[str, Array] = {}
    batches: dict[str, int] = {}
    for spec in inputs:
        array = feeds[spec.name]
        _check_array(spec, array)
        arrays[spec.name] = np.asarray(array, order="C")
        batches.update(
            (spec.name, size) for dim, size in zip(spec.shape, array.shape, strict=True) if dim_is_batch(dim)
        )
    if len(set(batches.values())) > 1:
        given = ", ".join(f"{name} {size}" for name, size in batches.items())
        raise FeedError(f"inputs disagree on the batch: {given}", next_step="give every input the same batch")
    return arrays, next(iter(batches.values()), None)


@dataclass(frozen=True)
class ExpectedFeeds:
    """The common case of `check_feeds`, decided beforehand: one dict of plain arrays that fit.

    `check_feeds` takes 15 us, more than a small model's whole call; this takes less than half a microsecond.
    `rows` are (name, dtype, shape after the leading dimension) where the leading dimension alone is the batch; there
    are none where an input has another form, and then nothing is accepted.
    """

    rows: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]

    @classmethod
    def of(cls, inputs: tuple[TensorSpec, ...]) -> Self:
        """Return what `inputs` expect."""
        rows = []
        for spec in inputs:
            rest = tuple(dim for dim in spec.shape[1:] if isinstance(dim, int))
            if not spec.shape or not dim_is_batch(spec.shape[0]) or len(rest) + 1 != len(spec.shape):
                return cls(())
            rows.append((spec.name, np.dtype(spec.dtype), rest))
        return cls(tuple(rows))

    def batch_of(self, feeds: Feeds) -> int:
        """Return the batch of feeds that can be used as they are; 0 where `check_feeds` has to look more closely."""
        if type(feeds) is not dict or len(feeds) != len(self.rows):
            return 0
        batch = 0
        for name, dtype, rest in self.rows:
            array = feeds.get(name)
            if type(array) is not _ARRAY or array.dtype != dtype or not array.flags.c_contiguous:
                return 0
            shape = array.shape
            if not shape or shape[1:] != rest or batch not in (0, shape[0]):
                return 0
            batch = shape[0]
        return batch


def dim_is_batch(dim: int | str) -> bool:
    """Return whether a dimension of a TensorSpec is the symbolic one."""
    return isinstance(dim, str)


def _check_names(inputs: tuple[TensorSpec, ...], feeds: Feeds) -> None:
    expected = "expected " + ", ".join(map(str, inputs))
    if not isinstance(feeds, Mapping):
        raise FeedError(f"feeds are a {type(feeds).__name__}; {expected}", next_step="give a dict of name: array")
    names = [spec.name for spec in inputs]
    for name in feeds:
        if name not in names:
            raise FeedError(f"unknown input {name!r}{did_you_mean(str(name), names)}; {expected}")
    missing = [name for name in names if name not in feeds]
    if missing:
        raise FeedError(f"missing input {', '.join(map(repr, missing))}; {expected}")


def _check_array(spec: TensorSpec, array: object) -> None:
    if not isinstance(array, np.ndarray):
        raise FeedError(
            f"input {spec.name!r} is a {type(array).__name__}; expected a numpy array {spec}",
            next_step=f"convert it with numpy.asarray(value, dtype={spec.dtype!r})",
        )
    if array.dtype != np.dtype(spec.dtype):
        raise FeedError(
            f"input {spec.name!r} is {array.dtype.name if array.dtype.isnative else array.dtype.str}; expected {spec}",
            next_step=f"convert it with .astype({spec.dtype!r})",
        )
    if array.ndim != len(spec.shape):
        raise FeedError(f"input {spec.name!r} has shape {array.shape} of rank {array.ndim}; expected {spec}")
    for axis, (dim, size) in enumerate(zip(spec.shape, array.shape, strict=True)):
        if size < 1 if dim_is_batch(dim) else size != dim:
            allowed = "at least 1" if dim_is_batch(dim) else str(dim)
            raise FeedError(
                f"input {spec.name!r} has shape {array.shape}; dimension {axis} must be {allowed}: expected {spec}"
            )


class ArtifactSession(Closing):
    """A loaded artifact: checks feeds, names outputs, and turns the runtime's failures into a UsageError.

    Implements `tsexport.types.Session`.  Returned arrays belong to the caller: no later run writes into them.
    `threads` is what the session really uses.  A session may be called from several threads.
    """

    runtime: ClassVar[str]
    failures: ClassVar[tuple[type[Exception], ...]]
    """What the runtime raises when it refuses a file or feeds; anything else is a bug and passes through."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        self.artifact = artifact
        self.threads = threads
        self._expected = ExpectedFeeds.of(artifact.inputs)
        self._closed = False
        self._output_names = tuple(spec.name for spec in artifact.outputs)
        self._only_output = self._output_names[0] if len(self._output_names) == 1 else None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The tensors that `run` takes."""
        return self.artifact.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The tensors that `run` returns, in this order."""
        return self.artifact.outputs

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Return the outputs by name for `{name: array}` of any batch from 1 on.

        Raises:
            FeedError: feeds that are not as `inputs` says.
            UsageError: the session is closed, or the runtime refused the artifact or these values.
        """
        if self._closed:
            raise UsageError(f"the session of {self.artifact.name} is closed", next_step="load the artifact again")
        arrays, batch = feeds, self._expected.batch_of(feeds) or None
        if batch is None:
            arrays, batch = check_feeds(self.inputs, feeds)
        try:
            outputs = self._infer_for(batch)(arrays)
        except self.failures as error:
            raise UsageError(
                f"{self.runtime} failed on {self.artifact.name} at batch {batch}: {self.reason(error)}"
            ) from error
        if self._only_output is not None:
            return {self._only_output: outputs[0]}
        return dict(zip(self._output_names, outputs, strict=True))

    def close(self) -> None:
        """Free the loaded model; a later `run` is an error.  Closing twice is not."""
        self._closed = True
        self._release()

    @abstractmethod
    def _infer_for(self, batch: int | None) -> Infer:
        """Return what runs a batch of this size."""

    @abstractmethod
    def _release(self) -> None:
        """Drop every reference to the loaded model."""

    def reason(self, error: Exception) -> str:
        """Return the line of a runtime's failure that says why."""
        return reason_of(error)

    def cannot_load(self, error: Exception) -> UsageError:
        """Return the error for a file that the runtime refuses."""
        return UsageError(
            f"{self.runtime} cannot load {self.artifact.path}: {self.reason(error)}",
            next_step="run `tsexport verify` on its bundle to see whether the file is damaged, or use another runtime",
        )

    def require_names(self, kind: str, expected: Sequence[TensorSpec], found: Sequence[str]) -> None:
        """Raise a UsageError unless every tensor of the artifact is in the file."""
        absent = [spec.name for spec in expected if spec.name not in found]
        if absent:
            raise UsageError(
                f"{self.artifact.path} has no {kind} {', '.join(map(repr, absent))}; its {kind}s are {', '.join(found)}"
            )

    def require_count(self, kind: str, expected: Sequence[TensorSpec], found: int) -> None:
        """Raise a UsageError unless the file has as many tensors of a kind as the artifact."""
        if found != len(expected):
            raise UsageError(
                f"{self.artifact.path} has {found} {kind}s, expected {len(expected)}: "
                f"{', '.join(spec.name for spec in expected)}"
            )


class BatchSpecialised(ArtifactSession):
    """A session with one compiled model for each of the first batch sizes it meets, and a dynamic one for the rest.

    The model for batch 1 (`first_batch`) is compiled at load, so that what cannot be loaded is known then; every other
    one when its batch is first met, which makes that one call slow.
    """

    first_batch = 1

    def __init__(self, artifact: Artifact, threads: int) -> None:
        super().__init__(artifact, threads)
        # At least batch 1, however large the model is.
        fitting = max(1, min(SPECIALISED_BATCHES, SPECIALISED_BYTES // max(1, artifact.size_bytes)))
        self._limit = fitting if self.specialises(artifact) else 0
        self._compiled: dict[int | None, Infer] = {}
        self._lock = threading.Lock()
        self._opened = _identities(artifact.files)
        has_batch = any(dim_is_batch(dim) for spec in artifact.inputs for dim in spec.shape)
        try:
            self._infer_for(self.first_batch if has_batch else None)
        except self.failures as error:
            raise self.cannot_load(error) from error

    def specialises(self, artifact: Artifact) -> bool:
        """Return whether a fixed batch makes this artifact faster here."""
        return True

    @abstractmethod
    def _compile(self, batch: int | None) -> Infer:
        """Return the model compiled for a fixed batch, or with a dynamic one for None."""

    def _infer_for(self, batch: int | None) -> Infer:
        # Once there is a dynamic model, no further batch size gets one of its own.
        infer = self._compiled.get(batch) or self._compiled.get(None)
        if infer is not None:
            return infer
        with self._lock:  # two threads that meet a batch together compile it once
            fixed = sum(key is not None for key in self._compiled)
            key = batch if batch in self._compiled or fixed < self._limit else None
            if key not in self._compiled:
                if self._compiled:
                    self._require_same_files()
                self._compiled[key] = self._compile(key)
            return self._compiled[key]

    def _require_same_files(self) -> None:
        """Refuse to compile another batch size from other files than the first: a bundle may be replaced meanwhile.

        Raises:
            UsageError: they are not the artifact's any more.
        """
        if _identities(self.artifact.files) != self._opened:
            raise UsageError(
                f"the files of {self.artifact.name} are not those that were loaded: they were changed, replaced or "
                "removed meanwhile",
                next_step="load it again",
            )

    def _release(self) -> None:
        self._compiled.clear()

    @property
    def specialised_batches(self) -> tuple[int, ...]:
        """The batch sizes that have a model of their own so far, in the order they were met."""
        return tuple(key for key in self._compiled if key is not None)


def _identities(files: Sequence[Path]) -> tuple[tuple[int, int, int, int], ...] | None:
    """Return what tells these files from others in their place; None where one cannot be looked at."""
    try:
        found = [path.stat() for path in files]
    except OSError:
        return None
    return tuple((one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns) for one in found)
