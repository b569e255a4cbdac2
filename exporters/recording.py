"""Record what every submodule of a torch module took and gave in one call, in the order in which the calls ended."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from tsexport.exporters.tracing import evaluating, mha_fastpath
from tsexport.types import Array, Feeds, ModelSpec


@dataclass(frozen=True)
class LayerRecord:
    """One call of one submodule; `name` is dotted ("" for the whole model), `call` counts its calls from 0."""

    name: str
    kind: str
    call: int
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[Array, ...]

    @property
    def title(self) -> str:
        """How messages call it."""
        title = f"{self.name!r} ({self.kind})" if self.name else f"the model itself ({self.kind})"
        return f"{title}, call {self.call + 1}" if self.call else title


def record_layers(module: nn.Module, spec: ModelSpec, feeds: Feeds, *, fastpath: bool) -> tuple[LayerRecord, ...]:
    """Run `module` in eval mode and return its submodules' calls; a call ends before that of the module around it.

    Args:
        fastpath: whether `nn.TransformerEncoder` takes its fast path, which calls none of its submodules.
    """
    records: list[LayerRecord] = []
    tensors = [torch.from_numpy(np.array(feeds[tensor.name])) for tensor in spec.inputs]
    with evaluating(module), mha_fastpath(fastpath), _hooked(module, records):
        module(*tensors)
    return tuple(records)


@contextmanager
def _hooked(module: nn.Module, records: list[LayerRecord]) -> Iterator[None]:
    calls: dict[str, int] = {}
    taken: dict[str, list[tuple[torch.Tensor, ...]]] = {}
    handles: list[RemovableHandle] = []

    def watch(name: str, part: nn.Module) -> None:
        def before(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            # cloned: a later operation in place would change what was recorded
            taken.setdefault(name, []).append(tuple(t.clone() for t in flat_tensors((args, kwargs))))

        def after(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], answer: object) -> None:
            call = calls.get(name, 0)
            calls[name] = call + 1
            outputs = tuple(t.detach().clone().numpy() for t in flat_tensors(answer))
            records.append(LayerRecord(name, type(part).__name__, call, taken[name].pop(), outputs))

        handles.append(part.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(part.register_forward_hook(after, with_kwargs=True))

    for name, part in module.named_modules():
        watch(name, part)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def flat_tensors(value: object) -> tuple[torch.Tensor, ...]:
    """Return the tensors in a value of nested tuples, lists and dicts, in order."""
    if isinstance(value, torch.Tensor):
        return (value,)
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return tuple(tensor for item in value for tensor in flat_tensors(item))
    return ()
