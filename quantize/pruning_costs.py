"""What a model costs: its weights, and the arithmetic of one sample."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def parameters_of(module: nn.Module) -> int:
    """Return the number of weights, buffers left out."""
    return sum(weight.numel() for weight in module.parameters())


def flops_of_layers(module: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, int]:
    """Return the floating-point operations of one call in every module below a model, by its name, as `flops_of`."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(*inputs)
    counts = counter.get_flop_counts()
    model = type(module).__name__
    return {name: sum(counts.get(f"{model}.{name}", {}).values()) for name, _ in module.named_modules() if name}


def flops_of(module: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Return the floating-point operations of one call: convolutions, products and attention as torch counts them,
    two for each multiplication with its addition.  What works element by element is not counted.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(*inputs)
    return int(counter.get_total_flops())
