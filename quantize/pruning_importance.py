"""Which channels matter: what the layers that read them would lose, after the best that their other inputs can do.

From calibration activations.  For a layer that reads channels x with weights W, H = (X'X + r I)^-1 over the windows:

    cost of channel j     |W_j|^2 / H_jj              what the answer loses if j goes and the others make up for it
    others make up        W_k <- W_k - H_kj / H_jj W_j,   H <- H - H_.j H_j. / H_jj

which is the exact least-squares loss of taking one channel after the other, and is what the refit then achieves.  The
places in a convolution's kernel count as separate outputs that see the same channels.  Costs of several readers add up.
Source: Hassibi & Stork 1993, "Optimal Brain Surgeon", for whole channels.

From weights alone: the L2 norm over the group, which knows nothing of channels that say the same.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tsexport.quantize.pruning_widths import least_important

RIDGE = 1e-3
"""Of the mean of the diagonal: where windows hardly excite a channel, its weights count as they are."""
ROWS = 16384
"""Positions of each layer's input, over all windows; a Gram matrix of 512 channels is long steady by then."""
Inputs = tuple[Tensor, ...]
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class Reader:
    """A layer that reads a group's channels: the inverse Gram matrix of those, and the weights [channels, values] that
    read them.  `channels[i]` is which of the group's channels stands in row i."""

    channels: tuple[int, ...]
    inverse: Tensor
    weights: Tensor


def channels_last(layer: nn.Module) -> bool:
    """Whether a layer's input has its channels on the last axis: a Linear, or a convolution that is used as one."""
    if isinstance(layer, nn.Linear):
        return True
    return type(layer).forward not in tuple(one.forward for one in PLAIN)


PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def gram_matrices(module: nn.Module, windows: Iterable[Inputs], batches: int, seed: int) -> dict[str, Tensor]:
    """Return X'X / rows of the inputs of every linear layer of a model, [channels, channels] in float64.

    Args:
        module: in eval mode.
        windows: batches of input tensors.
        batches: how many they are.
        seed: of the positions that are drawn.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    generator = torch.Generator().manual_seed(seed)

    def add(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(layer: nn.Module, given: tuple[Any, ...]) -> None:
            inputs: Tensor = given[0]
            last = inputs if channels_last(layer) else inputs.transpose(1, inputs.dim() - 1)
            rows = last.reshape(-1, last.shape[-1])
            index = torch.randperm(len(rows), generator=generator)[: -(-ROWS // batches)]
            drawn = rows[index].double()
            total = drawn.T @ drawn
            sums[name] = sums[name] + total if name in sums else total
            counts[name] = counts.get(name, 0) + len(drawn)

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name, layer in module.named_modules():
            if isinstance(layer, LAYERS):
                stack.callback(layer.register_forward_pre_hook(add(name)).remove)
        for inputs in windows:
            module(*inputs)
    return {name: total / counts[name] for name, total in sums.items()}


def reader_of(
    layer: Any, inputs: Sequence[int], gram: Tensor, places: Sequence[int], scale: Tensor | None = None
) -> Reader:
    """Return a reader of a group.

    Args:
        layer: of the whole model; channels that are gone are silenced in it.
        inputs: the layer's inputs that belong to the group.
        gram: of all of its inputs.
        places: which of the group's channels they are.
        scale: of the layer's outputs, what a BatchNorm behind it multiplies them by.
    """
    own = gram[inputs][:, inputs]
    ridge = RIDGE * float(own.diagonal().mean()) + torch.finfo(torch.float32).tiny
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    weight = layer.weight.detach().double()
    weight = weight if transposed else weight.transpose(0, 1)  # [inputs, outputs, ...]
    if scale is not None:
        weight = weight * scale.double().reshape(1, -1, *[1] * (weight.dim() - 2))
    # In units of the layer's answers over all of its inputs: readers of one group then count alike.
    flat = weight.flatten(1)
    answers = float((flat * (gram @ flat)).sum())
    weight = weight / max(answers, torch.finfo(torch.float32).tiny) ** 0.5
    inverse = torch.linalg.inv(own + ridge * torch.eye(len(inputs), dtype=torch.float64))
    return Reader(tuple(places), inverse, weight[inputs].flatten(1).clone())


def removal_order(
    readers: Sequence[Reader], segments: Sequence[Sequence[int]], gone: Sequence[int]
) -> tuple[tuple[int, float], ...]:
    """Return the channels whose readers lose least, taken one after the other, each with what that costs.

    Args:
        readers: of the group; they are used up.
        segments: the group's channels in parts that shrink separately.
        gone: how many of each segment go.
    """
    rows = [{channel: row for row, channel in enumerate(reader.channels)} for reader in readers]
    part_of = {channel: part for part, channels in enumerate(segments) for channel in channels}
    left = list(gone)
    candidates = {channel for channel, part in part_of.items() if left[part]}
    removed: list[tuple[int, float]] = []
    while candidates:
        costs = _costs(readers, rows, candidates)
        channel = least_important(costs, sorted(candidates), 1)[0]
        for reader, row in zip(readers, rows, strict=True):
            if channel in row:
                _take(reader, row[channel])
        removed.append((channel, costs[channel]))
        left[part_of[channel]] -= 1
        candidates = {one for one in candidates if one != channel and left[part_of[one]]}
    return tuple(removed)


def _costs(readers: Sequence[Reader], rows: Sequence[Mapping[int, int]], candidates: set[int]) -> dict[int, float]:
    costs = dict.fromkeys(candidates, 0.0)
    for reader, row in zip(readers, rows, strict=True):
        own = (reader.weights.square().sum(dim=1) / reader.inverse.diagonal()).tolist()
        for channel in candidates & row.keys():
            costs[channel] += own[row[channel]]
    return costs


def _take(reader: Reader, row: int) -> None:
    """Take a channel from a reader: the others make up for it as far as they can."""
    share = reader.inverse[:, row] / reader.inverse[row, row]
    reader.weights.sub_(torch.outer(share, reader.weights[row]))
    reader.inverse.sub_(torch.outer(share, reader.inverse[row].clone()))
    reader.weights[row] = 0
    reader.inverse[row] = 0
    reader.inverse[:, row] = 0
    reader.inverse[row, row] = 1
