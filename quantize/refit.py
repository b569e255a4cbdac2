"""Recovery without training: after pruning each layer is solved anew for what the whole model's layer answered.

In forward order, for every linear layer (`refit_layers`) that sees other inputs than it did in the whole model, with X
the rows that the pruned model really gives it (layers before it are refitted already), a column of ones beside them,
and Y what the whole model's layer answered before its activation, on the same windows and positions:

    W = W_0 + (X'X + r I)^-1 X'(Y - X W_0),     r = RIDGE * trace(X'X) / columns

W_0 are the weights that pruning left.  X'X and X'(Y - X W_0) are summed window by window in float64, so that memory is
that of one batch of activations and of columns^2 numbers, whatever the number of windows.  ROWS_A_COLUMN rows for each
column are drawn, by the seed.  The ridge pulls towards W_0, so that directions in which the windows say nothing keep
their weights, and a fit never has a larger residual on its rows than W_0 had.

A layer without a bias that a BatchNorm follows gives the constant to the BatchNorm's mean.  Of the BatchNorm's
statistics nothing else is made anew: its input is fitted to what the whole model gives it, and scaling what the fit
leaves of its variance up to the old one would enlarge the error, from 1 - R^2 of the variance to 2 - 2 R.  A BatchNorm
whose input no refitted layer gives is estimated anew: mean and variance move by what they differ between the models.

Source: He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", for the reconstruction.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tsexport.quantize.layer_order import NORMS, order_of
from tsexport.quantize.pruning import Pruned
from tsexport.quantize.pruning_groups import Inputs
from tsexport.quantize.pruning_heads import slimmed
from tsexport.quantize.pruning_records import Refitted
from tsexport.quantize.refit_layers import Form, Layer, Unfit, form_of

RIDGE = 1e-6
"""Of the mean of the diagonal: kernels see neighbouring points, whose differences are small beside their level."""
ROWS_A_COLUMN = 8
FEWEST_ROWS = 4096
Windows = Callable[[], Iterable[Inputs]]
"""Called for each layer: yields batches of the windows, the same ones each time."""


class _Reached(Exception):
    """Ends a forward pass: what comes behind the layer is not needed."""


def refit(whole: nn.Module, pruned: Pruned, windows: Windows, batches: int, seed: int) -> tuple[Refitted, ...]:
    """Refit a pruned model in place; return what each layer gained.

    Args:
        whole: the model it was pruned from, in eval mode.
        pruned: from `pruning.prune`.
        windows: yields batches of input tensors, calibration's.
        batches: how many batches that are.
        seed: of the positions that are drawn.
    """
    done: list[Refitted] = []
    whole = _comparable(whole, pruned)
    order = order_of(pruned.module, next(iter(windows())))
    with torch.no_grad():
        for number, name in enumerate(order.layers):
            job = _Job(whole, pruned, name, order.calls[name], windows, batches, seed + number)
            layer: Layer = pruned.module.get_submodule(name)
            if isinstance(layer, NORMS):
                if name not in order.norms.values():
                    _move_statistics(job)
                continue
            form = form_of(layer)
            if isinstance(form, Unfit):
                done.append(Refitted(name, 0.0, 0.0, form.reason))
                continue
            norm = order.norms.get(name)
            found = _fit(job, layer, form, pruned.module.get_submodule(norm) if norm else None)
            if found is not None:
                done.append(found)
    return tuple(done)


def _comparable(whole: nn.Module, pruned: Pruned) -> nn.Module:
    """Return the whole model with the same layers as the pruned one: attentions that were replaced are so in both."""
    with_heads = [one.layer for one in pruned.removals if one.kind == "heads"]
    if not any(isinstance(whole.get_submodule(name), nn.MultiheadAttention) for name in with_heads):
        return whole
    whole = copy.deepcopy(whole)
    for name in with_heads:
        slimmed(whole, name)
    return whole.requires_grad_(False)


@dataclass(frozen=True)
class _Job:
    """One layer, with all that is needed to see what it is given and what its original answers."""

    whole: nn.Module
    pruned: Pruned
    name: str
    calls: int
    windows: Windows
    batches: int
    seed: int

    def seen(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield (whole input, whole output, pruned input, pruned output) of each call on each batch."""
        for inputs in self.windows():
            ours = _calls(self.pruned.module, self.name, self.calls, inputs)
            theirs = _calls(self.whole, self.name, self.calls, inputs)
            for (whole_in, whole_out), (pruned_in, pruned_out) in zip(theirs, ours, strict=True):
                yield whole_in, whole_out, pruned_in, pruned_out


def _calls(module: nn.Module, name: str, calls: int, inputs: Inputs) -> list[tuple[Tensor, Tensor]]:
    found: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> None:
        found.append((given[0], answer))
        if len(found) == calls:
            raise _Reached

    handle = module.get_submodule(name).register_forward_hook(keep)
    try:
        module(*inputs)
    except _Reached:
        pass
    finally:
        handle.remove()
    return found


@dataclass
class _Sums:
    """The normal equations of one layer in float64: of rows x, with a one behind them, and what is missing to y."""

    gram: Tensor
    moment: Tensor
    squares: float = 0.0
    residual: float = 0.0
    rows: int = 0


def _fit(job: _Job, layer: Layer, form: Form, norm: Any) -> Refitted | None:
    """Refit one layer; None where it sees the same as in the whole model."""
    weight = form.weight(layer).double()
    bias = form.spread(layer, layer.bias.double()) if layer.bias is not None else weight.new_zeros(weight.shape[1])
    sums = _sums(job, layer, form, weight, bias)
    if sums is None or not sums.squares:
        return None
    columns = weight.shape[0]
    constant = layer.bias is not None or norm is not None
    used = columns + 1 if constant else columns
    gram, moment = sums.gram[:used, :used], sums.moment[:used]
    ridge = RIDGE * float(gram.diagonal().sum()) / used
    step = torch.linalg.solve(gram + ridge * torch.eye(used, dtype=torch.float64), moment)
    if constant and form.gather(layer, step[columns]).numel() < weight.shape[1]:
        # One bias for several answers: it is their mean, and the weights are solved for beside it.
        shared = form.spread(layer, form.gather(layer, step[columns]))
        rest = moment[:columns] - gram[:columns, columns:] * shared
        step = torch.cat(
            [torch.linalg.solve(gram[:columns, :columns] + ridge * torch.eye(columns), rest), shared[None]]
        )
    gained = 2 * float((step * moment).sum()) - float((step * (gram @ step)).sum())
    form.set_weight(layer, (weight + step[:columns]).to(layer.weight.dtype))
    if layer.bias is not None:
        layer.bias.copy_(form.gather(layer, bias + step[columns]).to(layer.bias.dtype))
    elif norm is not None:
        norm.running_mean.sub_(step[columns].to(norm.running_mean.dtype))
    before = math.sqrt(sums.residual / sums.squares)
    return Refitted(job.name, before, math.sqrt(max(sums.residual - gained, 0.0) / sums.squares))


def _sums(job: _Job, layer: Layer, form: Form, weight: Tensor, bias: Tensor) -> _Sums | None:
    """Return the normal equations, None where nothing is missing."""
    columns, values = weight.shape
    kept = job.pruned.kept.get(job.name)
    wanted = max(FEWEST_ROWS, ROWS_A_COLUMN * columns)
    a_call = -(-wanted // (job.batches * job.calls))
    generator = torch.Generator().manual_seed(job.seed)
    sums = _Sums(torch.zeros(columns + 1, columns + 1, dtype=torch.float64), torch.zeros(columns + 1, values).double())
    for _, whole_out, given, answered in job.seen():
        count = form.count(layer, given, answered)
        index = torch.randperm(count, generator=generator)[:a_call].sort().values
        rows = form.rows(layer, given, answered, index).double()
        wanted_values = form.answers(layer, whole_out, index, kept).double()
        missing = wanted_values - rows @ weight - bias
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        sums.gram += rows.T @ rows
        sums.moment += rows.T @ missing
        sums.squares += float(wanted_values.square().sum())
        sums.residual += float(missing.square().sum())
        sums.rows += len(rows)
    # fp32 against itself: what only rounding changed is left alone
    return sums if sums.residual > 1e-12 * sums.squares else None


def _move_statistics(job: _Job) -> None:
    """Move a BatchNorm's mean and variance by what its inputs differ by between the two models."""
    norm: Any = job.pruned.module.get_submodule(job.name)
    kept = job.pruned.kept.get(job.name)
    totals, count = torch.zeros(4, norm.num_features, dtype=torch.float64), 0
    for given, _, ours, _ in job.seen():
        theirs = given if kept is None else given[:, kept]
        for at, one in ((0, theirs), (2, ours)):
            values = one.double().transpose(0, 1).flatten(1)
            totals[at] += values.sum(dim=1)
            totals[at + 1] += values.square().sum(dim=1)
        count += ours.numel() // ours.shape[1]
    mean, square, our_mean, our_square = totals / count
    variance, our_variance = square - mean**2, our_square - our_mean**2
    norm.running_mean += (our_mean - mean).to(norm.running_mean.dtype)
    norm.running_var *= ((our_variance + norm.eps) / (variance + norm.eps)).to(norm.running_var.dtype)
