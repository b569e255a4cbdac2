"""Run module rewrites in order, before the export, and keep each one only when it proves itself numerically.

As for graphs (`rewrites.proofs`): `requires` says whether a rewrite has anything to do, `call` does it, and the answers
on every probe must stay within REWRITE_TOLERANCE of those of the untouched module.
"""

import copy
from collections.abc import Collection, Sequence
from typing import Protocol

import torch
from torch import nn

from tsexport.exporters.rewrites.proofs import REWRITE_TOLERANCE, Applied, worst_difference
from tsexport.types import Array, Feeds


class ModuleRewrite(Protocol):
    """A rewrite of a torch module, for speed.

    `call` gets a copy whose structure it may change, but whose parameters and buffers are the original's: it makes new
    ones and leaves those alone.  It returns the module (another one where the outermost is replaced) and how many
    places it changed.  `torchscript` says whether it is tried in TorchScript, too, or in ONNX and OpenVINO alone;
    `required` that there is no ONNX without it, so that leaving it out is not tried there.
    """

    name: str
    torchscript: bool
    required: bool

    def requires(self, module: nn.Module) -> bool: ...

    def call(self, module: nn.Module, probes: Sequence[Feeds]) -> tuple[nn.Module, int]: ...


def copied(module: nn.Module) -> nn.Module:
    """Return a copy that shares the parameters and buffers."""
    shared = {id(value): value for value in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)


def run_plainly(module: nn.Module, feeds: Feeds) -> dict[str, Array]:
    """Return a module's answers by number."""
    with torch.no_grad():
        result = module(*(torch.from_numpy(array) for array in feeds.values()))
    outputs = result if isinstance(result, tuple) else (result,)
    return {f"output {index}": output.numpy() for index, output in enumerate(outputs)}


def rewrite_module(
    module: nn.Module, probes: Sequence[Feeds], rewrites: Sequence[ModuleRewrite], without: Collection[str] = ()
) -> tuple[nn.Module, tuple[Applied, ...]]:
    """Apply module rewrites in order; return the rewritten module and what became of each.  `module` is untouched.

    Args:
        module: in evaluation mode; takes the tensors of a probe in order.
        probes: feeds of at least two batch sizes.
        rewrites: applied in this order.
        without: names of those that are not applied.
    """
    due = [rewrite for rewrite in rewrites if rewrite.name not in without and rewrite.requires(module)]
    if not due:
        return module, ()
    expected = [run_plainly(module, feeds) for feeds in probes]
    applied: list[Applied] = []
    for rewrite in due:
        candidate, changes = rewrite.call(copied(module), probes)
        if not changes:
            continue
        try:
            answers = [run_plainly(candidate, feeds) for feeds in probes]
            largest, reason = worst_difference(expected, answers, REWRITE_TOLERANCE)
        except Exception as error:  # whatever the model's own code raises on what it now gets: it is taken back
            largest, reason = float("inf"), f"the module fails with it: {type(error).__name__}: {error}"
        applied.append(Applied(rewrite.name, changes, not reason, largest, reason))
        if not reason:
            module = candidate
    return module, tuple(applied)
