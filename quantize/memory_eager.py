"""What torch takes and gives back while a module computes: recorded on tensors that have shapes and no values.

The module is called twice, at two batch sizes, on fake tensors, so that nothing is computed and no activation exists;
every storage that an operator makes is taken, and given back when nothing refers to it any more.  TorchScript computes
the same operators, and drops each tensor after its last use; Python drops a local variable only when its function
returns, so a module that keeps names of large tensors counts for a little more here.

Limits: operators that torch cannot compute without values, and modules that ask for values, have no record.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tsexport.bench.memory_plan import EagerEvent, Size
from tsexport.exporters.rewrites.modules import copied
from tsexport.exporters.rewrites.order import MODULE_REWRITES
from tsexport.exporters.tracing import evaluating, mha_fastpath
from tsexport.types import ModelSpec, random_feeds

BATCHES = (2, 3)
_SEED = 31
_OPAQUE = frozenset({"_transformer_encoder_layer_fwd", "_native_multi_head_attention"})
"""Whole layers in one operator, whose tensors within do not show."""


def record_eager(module: nn.Module, spec: ModelSpec) -> tuple[EagerEvent, ...]:
    """Return what torch takes and gives back in one call of a module, () where it has no record.

    Args:
        module: as it is exported; the rewrites for TorchScript are applied to a copy.
    """
    probes = tuple(random_feeds(spec.inputs, batch, _SEED) for batch in BATCHES)
    for rewrite in MODULE_REWRITES:
        if rewrite.torchscript and rewrite.requires(module):
            module = rewrite.call(copied(module), probes)[0]
    try:
        with evaluating(module), mha_fastpath(True):
            low, high = (_record(module, [feeds[one.name] for one in spec.inputs]) for feeds in probes)
    except Exception:  # whatever a module does that fake tensors cannot: then there is no record
        return ()
    if any(one.operator in _OPAQUE for one in low):
        return ()
    if [(one.take, one.key, one.operator) for one in low] != [(one.take, one.key, one.operator) for one in high]:
        return ()
    return tuple(
        EagerEvent(
            one.take,
            one.key,
            _line(one.size, other.size),
            one.operator,
            _line(one.reads, other.reads),
            one.weights,
        )
        for one, other in zip(low, high, strict=True)
    )


@dataclass(frozen=True)
class _Sized:
    take: bool
    key: str
    size: int
    operator: str
    reads: int = 0
    weights: tuple[int, ...] = ()


def _line(low: float, high: float) -> Size:
    slope = (high - low) / (BATCHES[1] - BATCHES[0])
    return Size(low - slope * BATCHES[0], slope)


def _record(module: nn.Module, arrays: Sequence[Any]) -> list[_Sized]:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    inputs = [mode.from_tensor(torch.from_numpy(array)) for array in arrays]
    own = [*module.parameters(), *module.buffers(), *inputs]
    recorder = _Recorder(own)
    with torch.no_grad(), mode, recorder:
        answer = module(*inputs)
    recorder.sweep()
    del answer
    return recorder.events


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, own: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[_Sized] = []
        self._own = {_reference(one) for one in own}
        self._live: dict[StorageWeakRef, _Sized] = {}
        self._parameters = {id(one) for one in own if isinstance(one, nn.Parameter)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.sweep()
        answer = func(*args, **(kwargs or {}))
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        weights = tuple(_bytes(one) for one in given if id(one) in self._parameters and one.dim() > 1)
        reads = sum(_bytes(one) for one in given if id(one) not in self._parameters)
        operator = func.overloadpacket.__name__
        if any(one.alias_info is not None for one in func._schema.returns):
            return answer  # a view, or what is written in place
        made = list(_tensors(answer))
        if operator == "max_pool2d_with_indices" and args[1][0] == 1:
            made = made[:1]  # pooling of series, which without gradients makes no indices
        for tensor in made:
            reference = _reference(tensor)
            if reference in self._live or reference in self._own:
                continue
            size = int(tensor.untyped_storage().nbytes())
            event = _Sized(True, f"t{len(self.events)}", size, operator, reads, weights)
            self._live[reference] = event
            self.events.append(event)
            weights = ()  # of the first answer alone
        return answer

    def sweep(self) -> None:
        """Give back the storages that nothing refers to any more."""
        expired = [one for one in self._live if one.expired()]  # type: ignore[no-untyped-call]
        for reference in expired:
            event = self._live.pop(reference)
            self.events.append(_Sized(False, event.key, event.size, event.operator))


def _reference(tensor: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _tensors(answer: Any) -> Iterator[torch.Tensor]:
    yield from (one for one in tree_leaves(answer) if isinstance(one, torch.Tensor))


def _bytes(tensor: torch.Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()
