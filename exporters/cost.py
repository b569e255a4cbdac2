"""How much arithmetic a sample takes: what a build does many times is done less often for a model of many operations.

Operations are counted as torch counts them (a multiplication and an addition are two; recurrent layers count as
nothing), never timed, so that the same model gets the same windows on every machine.
"""

from typing import TYPE_CHECKING

from tsexport.types import ModelSpec, random_feeds

if TYPE_CHECKING:
    from torch import nn

COSTLY_FLOPS = 5e9
"""From so many operations a sample on, what proves itself is proven on fewer samples: each proof runs them all."""
_SEED = 29


def flops_of(module: "nn.Module", spec: ModelSpec) -> float:
    """Return the floating-point operations of one sample."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from tsexport.exporters.tracing import mha_fastpath

    feeds = random_feeds(spec.inputs, 1, _SEED)
    with torch.no_grad(), mha_fastpath(False), FlopCounterMode(display=False) as counter:
        module(*map(torch.from_numpy, feeds.values()))
    return float(counter.get_total_flops())


def samples_within(flops: float, budget: float, *, fewest: int, most: int) -> int:
    """Return how many samples of `flops` operations each take `budget` operations, from `fewest` to `most`."""
    if flops * most <= budget:
        return most
    return max(fewest, min(most, int(budget / flops)))
