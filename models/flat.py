"""Modules with one shape of call: tensors in by position, tensors out, their names and shapes found by running them.

Exporters want a module that takes tensors and returns a tensor or a tuple of tensors.  Others (dicts, named tuples,
nested ones) are wrapped, and their outputs named after the keys; nameless ones are "output", "output_1", ...
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tsexport.errors import UsageError
from tsexport.types import BATCH, Array, Feeds, TensorSpec, random_feeds

if TYPE_CHECKING:
    from torch import Tensor, nn

PROBE_BATCHES = (2, 3)
PROBE_SEED = 2017
REPEAT_RTOL, REPEAT_ATOL = 1e-3, 1e-4
"""Two runs on the same feeds must agree to this: wide enough for threads and JIT fusion, far below dropout's effect."""


@dataclass(frozen=True)
class Probe:
    """What running a module showed: its outputs, and its answers on fixed random feeds of batch 2."""

    module: "nn.Module"
    outputs: tuple[TensorSpec, ...]
    answers: tuple[Array, ...]


def probe(module: "nn.Module", inputs: tuple[TensorSpec, ...]) -> Probe:
    """Return `module`, wrapped if its outputs are not plain tensors, with its outputs' names, dtypes and shapes.

    Runs it on random feeds with batches of 2 and 3, the first twice.

    Raises:
        UsageError: it does not run on these inputs, its batch is fixed or not the first dimension of an output, it
            returns something else than tensors, or it answers differently each time.
    """
    import torch

    first, again, other = (_call(module, inputs, batch) for batch in (PROBE_BATCHES[0], *PROBE_BATCHES))
    named, repeated, larger = flatten(first), flatten(again), flatten(other)
    if not named or [name for name, _ in named] != [name for name, _ in larger]:
        raise UsageError("the model returns no tensors, or other ones for another batch size")
    for (name, value), (_, second) in zip(named, repeated, strict=True):
        if not torch.allclose(value, second, rtol=REPEAT_RTOL, atol=REPEAT_ATOL, equal_nan=True):
            raise UsageError(
                f"the model's {name} differs between two runs on the same input",
                next_step="Something in it is random: was it traced in training mode, with its dropout?",
            )
    outputs = tuple(
        output_spec(name, str(a.dtype).removeprefix("torch."), tuple(a.shape), tuple(b.shape))
        for (name, a), (_, b) in zip(named, larger, strict=True)
    )
    plain = isinstance(first, torch.Tensor) or (
        type(first) is tuple and all(isinstance(item, torch.Tensor) for item in first)
    )
    return Probe(module if plain else _wrap(module), outputs, tuple(value.numpy() for _, value in named))


def flatten(answer: object, name: str = "") -> list[tuple[str, "Tensor"]]:
    """Return the tensors of a possibly nested answer with unique names; None is left out.

    Raises:
        UsageError: something in it is neither a tensor nor a tuple, list or mapping.
    """
    found: list[tuple[str, Tensor]] = []
    for wished, value in _leaves(answer, name):
        taken = {known for known, _ in found}
        wished = wished or "output"
        unique = next(n for i in range(len(taken) + 1) if (n := f"{wished}_{i}" if i else wished) not in taken)
        found.append((unique, value))
    return found


def to_tensors(inputs: tuple[TensorSpec, ...], feeds: Feeds) -> tuple["Tensor", ...]:
    """Return feeds as tensors in the order of `inputs`; the arrays are copied."""
    import torch

    return tuple(torch.from_numpy(np.array(feeds[spec.name], dtype=spec.dtype)) for spec in inputs)


def _leaves(answer: object, name: str) -> list[tuple[str, "Tensor"]]:
    import torch

    if isinstance(answer, torch.Tensor):
        return [(name, answer)]
    if answer is None:
        return []
    if isinstance(answer, Mapping):
        return [leaf for key, value in answer.items() for leaf in _leaves(value, str(key))]
    if isinstance(answer, tuple | list):
        names = getattr(answer, "_fields", [name] * len(answer))
        return [leaf for key, value in zip(names, answer, strict=True) for leaf in _leaves(value, key)]
    raise UsageError(
        f"the model returns a {type(answer).__name__}, which is no tensor and holds none",
        next_step="Let forward return a tensor, or a tuple, named tuple or dict of tensors.",
    )


def _wrap(module: "nn.Module") -> "nn.Module":
    from torch import nn

    class Flat(nn.Module):
        """Calls the module and returns its tensors as a tuple."""

        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *inputs: "Tensor") -> tuple["Tensor", ...]:
            return tuple(value for _, value in flatten(self.model(*inputs)))

    return Flat().eval()


def _call(module: "nn.Module", inputs: tuple[TensorSpec, ...], batch: int) -> object:
    try:
        return _run(module, inputs, batch)
    except Exception as error:  # a user's module may raise anything
        lines = str(error).strip().splitlines() or [repr(error)]
        reason = f"{type(error).__name__}: {lines[-1][:200]}"
        works = next((size for size in (1, *PROBE_BATCHES) if size != batch and _runs(module, inputs, size)), None)
        if works:
            raise UsageError(
                f"the model runs with a batch of {works} and not with {batch}: its batch size is fixed ({reason})",
                next_step="Write shapes with -1 for the batch, or trace and export it with a dynamic first dimension.",
            ) from error
        raise UsageError(
            f"the model does not run on {', '.join(map(str, inputs))}: {reason}",
            next_step="Check the inputs' order, shapes and dtypes.",
        ) from error


def _run(module: "nn.Module", inputs: tuple[TensorSpec, ...], batch: int) -> object:
    import torch

    with torch.inference_mode():
        return module(*to_tensors(inputs, random_feeds(inputs, batch, PROBE_SEED)))


def _runs(module: "nn.Module", inputs: tuple[TensorSpec, ...], batch: int) -> bool:
    try:
        _run(module, inputs, batch)
    except Exception:
        return False
    return True


def output_spec(name: str, dtype: str, a: tuple[int, ...], b: tuple[int, ...]) -> TensorSpec:
    """Return the spec of an output whose shapes are `a` and `b` for the two probe batches.

    Raises:
        UsageError: the first dimension, and only that, does not follow the batch.
    """
    if a[:1] != PROBE_BATCHES[:1] or b[:1] != PROBE_BATCHES[1:] or a[1:] != b[1:]:
        raise UsageError(
            f"the model's {name} is {list(a)} for a batch of {PROBE_BATCHES[0]} and {list(b)} for {PROBE_BATCHES[1]}; "
            "the first dimension, and only that, must be the batch",
            next_step="Return only outputs of the form [batch, ...]; batch sizes must not be fixed inside.",
        )
    return TensorSpec(name, dtype, (BATCH, *a[1:]))
