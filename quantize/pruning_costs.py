"""What a model costs: its weights, and the arithmetic of one sample."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def parameters_of(module: nn.Module) -> int:
    """Return the number of weights, buffers left out."""
    return sum(weight.numel() for weight in module.parameters())


def flops_of(module: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Return the floating-point operations of one call: convolutions, products and attention as torch counts them,
    two for each multiplication with its addition.  What works element by element is not counted.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(*inputs)
    return int(counter.get_total_flops())
