"""In which order a model calls its layers, and which BatchNorm reads which layer's answer, as one call shows it."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

NORMS = (nn.modules.batchnorm._BatchNorm,)
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass
class Order:
    """What one call showed: layers in order, how often each is called, and which BatchNorm reads which."""

    layers: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)


def order_of(module: nn.Module, inputs: tuple[Tensor, ...]) -> Order:
    """Return the linear layers and BatchNorms of a model in the order in which they are called first."""
    order = Order()
    made_by: dict[int, tuple[str, Any]] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(layer: nn.Module, given: tuple[Any, ...], answer: Any) -> None:
            if isinstance(layer, NORMS) and id(given[0]) in made_by:
                order.norms[made_by[id(given[0])][0]] = name
            if name not in order.calls:
                order.layers.append(name)
            order.calls[name] = order.calls.get(name, 0) + 1
            made_by[id(answer)] = (name, answer)  # kept alive, so that no other tensor gets its id

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name, layer in module.named_modules():
            if isinstance(layer, LAYERS + NORMS):
                stack.callback(layer.register_forward_hook(note(name)).remove)
        module(*inputs)
    norms = {maker: norm for maker, norm in order.norms.items() if order.calls[maker] == order.calls[norm] == 1}
    return Order(order.layers, order.calls, norms)
