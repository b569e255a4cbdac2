"""Module rewrite: a step of message passing on a fixed graph without scattering.

The first linear layer of the edge MLP is split by what it is applied to,

    W [e, x_s, y_r] = W_e e + (W_x x)_s + (W_y y)_r,

so that nodes are projected once each and then gathered, not gathered and projected for every edge; the node MLP's is
split likewise.  The sum over the edges into a receiver gathers each receiver's messages side by side, by constant
indices, and sums them.  Receivers of unlike degree go into buckets, each padded to its own largest degree, so that a
few with very many neighbours cost no padding of the others; padded places count as zero.  Only plain operators come out
of it (Gather, MatMul, ReduceSum), and nothing is computed from shapes: TensorRT and tract take it, and a scatter with a
sum is wrong in TensorRT up to 9.3.

Limits: `models.interaction.Interaction`, and a graph that is constant.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tsexport.exporters.rewrites.modules import alike_in_all_calls
from tsexport.models.interaction import interaction
from tsexport.types import Array, Feeds

BUCKET_ROWS = 8
"""What one bucket more costs, in rows of messages: a gather, a sum and its part of a concatenation."""


@dataclass(frozen=True)
class Bucket:
    """Receivers that are summed together: their numbers [n], the messages of each [n, degree] as numbers of edges, and
    which of those count [n, degree]: the others are padding."""

    receivers: Array
    messages: Array
    counts: Array

    @property
    def is_run(self) -> bool:
        """Whether the messages lie one after another, unpadded, so that they need not be gathered."""
        flat = self.messages.ravel()
        return bool(self.counts.all() and len(flat) and (flat == np.arange(flat[0], flat[0] + len(flat))).all())


def bucket_receivers(receivers: Array, count: int) -> tuple[Bucket, ...]:
    """Return `count` receivers in buckets that cost the least: padded rows, and BUCKET_ROWS for each bucket.

    Args:
        receivers: the receiver of each edge [edges], repeated ones and in any order.
        count: how many receivers there are, those without an edge included.
    """
    degrees = np.bincount(receivers, minlength=count)
    kinds, sizes = np.unique(degrees, return_counts=True)
    best = [(0, 0)]  # for the first kinds: the cost, and where the last bucket begins
    for end in range(1, len(kinds) + 1):
        costs = [
            (best[begin][0] + BUCKET_ROWS + int(sizes[begin:end].sum() * kinds[end - 1]), begin) for begin in range(end)
        ]
        best.append(min(costs))
    borders = [len(kinds)]
    while borders[-1]:
        borders.append(best[borders[-1]][1])
    edges = np.split(np.argsort(receivers, kind="stable"), np.cumsum(degrees)[:-1])
    return tuple(_bucket(np.flatnonzero(np.isin(degrees, kinds[a:b])), edges) for a, b in pairwise(reversed(borders)))


def _bucket(numbers: Array, edges: Sequence[Array]) -> Bucket:
    width = max(1, *(len(edges[number]) for number in numbers))
    messages = np.zeros((len(numbers), width), dtype=np.int64)
    counts = np.zeros((len(numbers), width), dtype=bool)
    for row, number in enumerate(numbers):
        messages[row, : len(edges[number])] = edges[number]
        counts[row, : len(edges[number])] = True
    return Bucket(numbers, messages, counts)


class SumByReceiver(nn.Module):
    """messages [batch, edges, width] -> their sums [batch, receivers, width]."""

    def __init__(self, receivers: Array, count: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.buckets = bucket_receivers(receivers, count)
        for number, bucket in enumerate(self.buckets):
            self._constant(f"messages_{number}", bucket.messages.ravel())
            self._constant(f"counts_{number}", bucket.counts[None, :, :, None].astype(np.float32))
        order = np.concatenate([bucket.receivers for bucket in self.buckets])
        self.in_order = bool((order == np.arange(count)).all())
        self._constant("place", np.argsort(order))

    def _constant(self, name: str, array: Array) -> None:
        self.register_buffer(name, torch.from_numpy(array), persistent=False)

    def forward(self, messages: Tensor) -> Tensor:
        sums = []
        for number, bucket in enumerate(self.buckets):
            shape = (-1, *bucket.messages.shape, self.width)
            if bucket.is_run:
                first = int(bucket.messages[0, 0])
                rows = messages[:, first : first + bucket.messages.size].reshape(shape)
            else:
                rows = messages.index_select(1, self.get_buffer(f"messages_{number}")).reshape(shape)
                if not bucket.counts.all():
                    rows = rows * self.get_buffer(f"counts_{number}")
            sums.append(rows.sum(dim=2))
        heard = torch.cat(sums, dim=1) if len(sums) > 1 else sums[0]
        return heard if self.in_order else heard.index_select(1, self.get_buffer("place"))


def _split(linear: nn.Linear, parts: int) -> nn.ModuleList:
    """Return the linear layers that give the layer's answer as a sum, one for each of equal parts of its input."""
    width = linear.in_features // parts
    layers = nn.ModuleList()
    for part in range(parts):
        layer = nn.Linear(width, linear.out_features, bias=part == 0)
        layer.weight = nn.Parameter(linear.weight.detach()[:, part * width : (part + 1) * width].contiguous())
        if part == 0:
            layer.bias = nn.Parameter(linear.bias.detach())
        layers.append(layer)
    return layers


class GatheredInteraction(nn.Module):
    """One step of message passing; takes and gives what `models.interaction.Interaction` does."""

    senders: Tensor
    receivers: Tensor

    def __init__(self, step: Any, targets: int) -> None:
        super().__init__()
        self.register_buffer("senders", step.senders, persistent=False)
        self.register_buffer("receivers", step.receivers, persistent=False)
        self.of_edge, self.of_sender, self.of_receiver = _split(step.edge_mlp[0], 3)
        self.of_target, self.of_heard = _split(step.node_mlp[0], 2)
        self.edge_rest, self.node_rest = step.edge_mlp[1:], step.node_mlp[1:]
        self.sum = SumByReceiver(step.receivers.numpy(), targets, step.width)

    def forward(self, source: Tensor, target: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        sent = self.of_sender(source).index_select(1, self.senders)
        seen = self.of_receiver(target).index_select(1, self.receivers)
        message = self.edge_rest(self.of_edge(edges) + seen + sent)
        heard = self.sum(message)
        return target + self.node_rest(self.of_target(target) + self.of_heard(heard)), edges + message


def _targets(source: Tensor, target: Tensor, edges: Tensor) -> int:
    """Return the number of receivers of a step's call."""
    return int(target.shape[1])


class GatherMessages:
    """Replace the steps of message passing of a module."""

    name = "gather-messages"
    torchscript = True
    required = False

    def _steps(self, module: nn.Module) -> dict[str, nn.Module]:
        return {name: part for name, part in module.named_modules() if name and type(part) is interaction()}

    def requires(self, module: nn.Module) -> bool:
        return bool(self._steps(module))

    def call(self, module: nn.Module, probes: Sequence[Feeds]) -> tuple[nn.Module, int]:
        steps = self._steps(module)
        targets = alike_in_all_calls(module, steps, probes[0], _targets)
        for name, count in targets.items():
            module.set_submodule(name, GatheredInteraction(steps[name], count).eval())
        return module, len(targets)
