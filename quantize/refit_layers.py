"""Layers as linear maps of rows, which is how least squares sees them.

    Linear            a row is one input vector
    convolution       a row is what one output position sees: channels x kernel, zeros beyond the edge
    transposed        of windows that do not overlap (kernel = stride): a row is one input position, and it gives one
                      value for each output channel and place in the kernel

Only the rows that are asked for are gathered, so that memory does not grow with the kernel times the grid.
Limits: one group, zeros as padding, one or two dimensions; `form_of` says what does not fit.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Layer = Any
"""nn.Linear, nn.Conv1d, nn.Conv2d or a transposed one: their sizes are attributes that mypy does not know."""


class Form(Protocol):
    """How a layer's tensors are read as rows.  Indices count rows over the whole batch."""

    def count(self, layer: Layer, inputs: Tensor, outputs: Tensor) -> int:
        """Return how many rows a call has."""
        ...

    def rows(self, layer: Layer, inputs: Tensor, outputs: Tensor, index: Tensor) -> Tensor:
        """Return the rows [index, values] of the inputs."""
        ...

    def answers(self, layer: Layer, outputs: Tensor, index: Tensor, kept: list[int] | None) -> Tensor:
        """Return what the layer answered for the rows, [index, values]; only the channels `kept`, all for None."""
        ...

    def weight(self, layer: Layer) -> Tensor:
        """Return the weight as [row values, answer values]."""
        ...

    def set_weight(self, layer: Layer, weight: Tensor) -> None: ...

    def spread(self, layer: Layer, bias: Tensor) -> Tensor:
        """Return a bias [channels] for every answer value."""
        ...

    def gather(self, layer: Layer, intercept: Tensor) -> Tensor:
        """Return a bias [channels] from the intercept of every answer value."""
        ...


class _Linear:
    def count(self, layer: Layer, inputs: Tensor, outputs: Tensor) -> int:
        return inputs.numel() // inputs.shape[-1]

    def rows(self, layer: Layer, inputs: Tensor, outputs: Tensor, index: Tensor) -> Tensor:
        return inputs.reshape(-1, inputs.shape[-1])[index]

    def answers(self, layer: Layer, outputs: Tensor, index: Tensor, kept: list[int] | None) -> Tensor:
        found = outputs.reshape(-1, outputs.shape[-1])[index]
        return found if kept is None else found[:, kept]

    def weight(self, layer: Layer) -> Tensor:
        return layer.weight.flatten(1).T  # type: ignore[no-any-return]

    def set_weight(self, layer: Layer, weight: Tensor) -> None:
        layer.weight.copy_(weight.T.reshape(layer.weight.shape))

    def spread(self, layer: Layer, bias: Tensor) -> Tensor:
        return bias

    def gather(self, layer: Layer, intercept: Tensor) -> Tensor:
        return intercept


class _Convolution(_Linear):
    def count(self, layer: Layer, inputs: Tensor, outputs: Tensor) -> int:
        return outputs.shape[0] * outputs[0, 0].numel()

    def rows(self, layer: Layer, inputs: Tensor, outputs: Tensor, index: Tensor) -> Tensor:
        padding = layer.padding
        if isinstance(padding, str):
            total = [
                d * (k - 1) if padding == "same" else 0 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
            ]
            sides = [(one // 2, one - one // 2) for one in total]
        else:
            sides = [(one, one) for one in padding]
        padded = nn.functional.pad(inputs, [side for pair in reversed(sides) for side in pair])
        samples, places = _split(index, outputs)
        steps = [place * stride for place, stride in zip(places, layer.stride, strict=True)]
        taps = list(product(*(range(size) for size in layer.kernel_size)))
        seen = []
        for tap in taps:
            at = [step + k * d for step, k, d in zip(steps, tap, layer.dilation, strict=True)]
            seen.append(_gathered(padded, samples, at))  # [index, channels]
        return torch.stack(seen, dim=2).flatten(1)

    def answers(self, layer: Layer, outputs: Tensor, index: Tensor, kept: list[int] | None) -> Tensor:
        samples, places = _split(index, outputs)
        found = _gathered(outputs, samples, places)
        return found if kept is None else found[:, kept]


class _Transposed(_Linear):
    def count(self, layer: Layer, inputs: Tensor, outputs: Tensor) -> int:
        return inputs.shape[0] * inputs[0, 0].numel()

    def rows(self, layer: Layer, inputs: Tensor, outputs: Tensor, index: Tensor) -> Tensor:
        samples, places = _split(index, inputs)
        return _gathered(inputs, samples, places)

    def answers(self, layer: Layer, outputs: Tensor, index: Tensor, kept: list[int] | None) -> Tensor:
        sizes = [size // stride for size, stride in zip(outputs.shape[2:], layer.stride, strict=True)]
        samples, places = _split_sizes(index, sizes)
        seen = []
        for tap in product(*(range(size) for size in layer.kernel_size)):
            at = [place * stride + k for place, stride, k in zip(places, layer.stride, tap, strict=True)]
            seen.append(_gathered(outputs, samples, at))
        found = torch.stack(seen, dim=2)  # [index, channels, kernel]
        return (found if kept is None else found[:, kept]).flatten(1)

    def weight(self, layer: Layer) -> Tensor:
        return layer.weight.flatten(1)  # type: ignore[no-any-return]

    def set_weight(self, layer: Layer, weight: Tensor) -> None:
        layer.weight.copy_(weight.reshape(layer.weight.shape))

    def spread(self, layer: Layer, bias: Tensor) -> Tensor:
        return bias.repeat_interleave(layer.weight[0, 0].numel())

    def gather(self, layer: Layer, intercept: Tensor) -> Tensor:
        return intercept.reshape(-1, layer.weight[0, 0].numel()).mean(dim=1)


@dataclass(frozen=True)
class Unfit:
    """Why a layer is not refitted."""

    reason: str


def form_of(layer: nn.Module) -> Form | Unfit:
    """Return how a layer is read as rows, or why it cannot be."""
    if isinstance(layer, nn.Linear):
        return _Linear()
    if isinstance(layer, nn.modules.conv._ConvNd):
        one: Layer = layer
        if one.groups > 1:
            return Unfit("a convolution in groups")
        if one.padding_mode != "zeros":
            return Unfit(f"a convolution that pads with {one.padding_mode}")
        if len(one.kernel_size) > 2:
            return Unfit("a convolution in three dimensions")
        if type(one).forward not in _FORWARDS:
            # A subclass that reads its weight as a map of the last axis, which is what a kernel of length 1 is.
            return _Linear() if set(one.kernel_size) == {1} else Unfit("a convolution with a forward of its own")
        if not isinstance(layer, nn.modules.conv._ConvTransposeNd):
            return _Convolution()
        plain = not any(one.padding) and not any(one.output_padding) and set(one.dilation) == {1}
        return _Transposed() if plain and one.kernel_size == one.stride else Unfit("transposed, of overlapping windows")
    return Unfit("no linear map")


_FORWARDS = (nn.Conv1d.forward, nn.Conv2d.forward, nn.ConvTranspose1d.forward, nn.ConvTranspose2d.forward)


def _gathered(values: Tensor, samples: Tensor, places: list[Tensor]) -> Tensor:
    """Return [index, channels] of values [batch, channels, ...]."""
    return values.movedim(1, -1)[(samples, *places)]


def _split(index: Tensor, like: Tensor) -> tuple[Tensor, list[Tensor]]:
    return _split_sizes(index, list(like.shape[2:]))


def _split_sizes(index: Tensor, sizes: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Return sample and place along each axis of row numbers that run over [batch, *sizes]."""
    places: list[Tensor] = []
    for size in reversed(sizes):
        places.insert(0, index % size)
        index = index // size
    return index, places
