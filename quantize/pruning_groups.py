"""torch-pruning's groups, by the names of layers, and why some of them cannot be removed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch_pruning
from torch import Tensor, nn

MIXING = (nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
ROOTS = (nn.modules.conv._ConvNd, nn.Linear)
Inputs = tuple[Tensor, ...]


class NotProven(Exception):
    """A removal that must not stay; the message is the reason."""


@dataclass
class Group:
    """One of torch-pruning's groups, by names: the outputs and inputs of each layer that belong to it, and which of the
    root's channels the outputs are (`places`).  `obstacles` say why it cannot be removed."""

    count: int
    outputs: dict[str, list[int]] = field(default_factory=dict)
    inputs: dict[str, list[int]] = field(default_factory=dict)
    places: dict[str, list[int]] = field(default_factory=dict)
    read_places: dict[str, list[int]] = field(default_factory=dict)
    norms: dict[str, list[int]] = field(default_factory=dict)
    obstacles: list[str] = field(default_factory=list)


def graph_of(module: nn.Module, inputs: Inputs) -> Any:
    """Return torch-pruning's dependency graph; gradients of the weights are switched on for it."""
    module.eval().requires_grad_(True)
    return torch_pruning.DependencyGraph().build_dependency(module, example_inputs=inputs, verbose=False)


def group_of(graph: Any, module: nn.Module, layer: str, removed: Sequence[int] | None = None) -> tuple[Any, Group]:
    """Return torch-pruning's group of a layer's outputs, of all of them or of some, and the same by names."""
    names = {one: name for name, one in module.named_modules()}
    root = module.get_submodule(layer)
    pruner = graph.get_pruner_of_module(root)
    count = int(pruner.get_out_channels(root))
    channels = list(range(count)) if removed is None else list(removed)
    found = graph.get_pruning_group(root, pruner.prune_out_channels, channels)
    group = Group(count)
    for item in found.items:
        target = item.dep.target.module
        if isinstance(target, nn.Parameter):
            group.obstacles.append("a parameter that belongs to no layer would have to be cut with it")
            continue
        name = names.get(target)
        if name is None:
            continue
        if isinstance(target, MIXING):
            group.obstacles.append(f"{name} normalises over its channels: without some of them all are others")
        elif isinstance(target, nn.RNNBase | nn.MultiheadAttention):
            group.obstacles.append(f"{name} ({type(target).__name__}) would have to be cut with it")
        elif isinstance(target, nn.modules.conv._ConvNd) and 1 < target.groups < target.out_channels:
            group.obstacles.append(f"{name} is a grouped convolution")
        if isinstance(target, nn.modules.batchnorm._BatchNorm):
            group.norms[name] = list(item.idxs)
        if not isinstance(target, ROOTS):
            continue
        if graph.is_out_channel_pruning_fn(item.dep.handler):
            group.outputs[name], group.places[name] = list(item.idxs), list(item.root_idxs)
        else:
            group.inputs[name], group.read_places[name] = list(item.idxs), list(item.root_idxs)
    return found, group


def check_group(group: Group, of_heads: Mapping[str, str]) -> None:
    """Raise NotProven where a group cannot go at all."""
    if group.obstacles:
        raise NotProven(group.obstacles[0])
    attention = next((of_heads[name] for name in group.outputs if name in of_heads), None)
    if attention is not None:
        raise NotProven(f"its channels are the heads of {attention}, which go whole or not at all")
    if not group.inputs:
        raise NotProven(
            "no layer reads its channels: they are the model's outputs, or what reads them is not called as a layer"
        )
