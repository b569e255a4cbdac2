"""Structured pruning: channels, heads and feed-forward units that are really removed, and proof that they were.

Channels go in groups: those of a layer's outputs with everything that reads them or is added to them, as
torch-pruning's dependency graph says.  Of a group those go whose readers lose least on calibration windows
(`pruning_importance`), or, without such, those with the least L2 norm of the weights over the whole group.  Widths are
multiples of 8 (`pruning_widths`).  Heads are removed by `pruning_heads`.

torch-pruning is silent about what it does not see: it takes an operation that it does not know for one that keeps
channels in their places, cuts parameters that belong to no layer along a dimension that it guesses, and follows a
reshape by arithmetic.  So no group is believed.  Each is removed from a copy and then proven:

    f(without channels c) = f(with zeros in every weight that reads c)        within PROOF_TOLERANCE

The right side uses only which inputs of which layers go, and not the graph.  A group that does not run, that changes
an output's shape or that fails the proof is left, with the layer's name and the reason.  The proof is exact where
nothing mixes channels on the way; LayerNormalization does, and so do the statistics of InstanceNorm and GroupNorm, so
that groups with one of them (the width between a transformer's layers) are left.

Source: Fang et al. 2023, "DepGraph: Towards Any Structural Pruning"; Li et al. 2017, "Pruning Filters for Efficient
ConvNets", for the norm.
"""

import contextlib
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from tsexport.errors import reason_of
from tsexport.quantize.layer_order import order_of
from tsexport.quantize.pruning_allocation import Offer, allocate, offer_of
from tsexport.quantize.pruning_costs import flops_of_layers
from tsexport.quantize.pruning_groups import ROOTS, Group, Inputs, NotProven, check_group, graph_of, group_of
from tsexport.quantize.pruning_heads import attentions, head_importance, remove_heads, silence_heads, slimmed
from tsexport.quantize.pruning_importance import Reader, reader_of, removal_order
from tsexport.quantize.pruning_records import Left, Removal
from tsexport.quantize.pruning_widths import MULTIPLE, kept_heads, kept_width, least_important, segments
from tsexport.types import HeadLayout

PROOF_TOLERANCE = 1e-3
"""Relative RMS: fp32 sums in another order differ by 1e-6 or so, a channel in a wrong place by much more."""
KNOWN = (nn.MultiheadAttention, nn.Embedding, nn.LayerNorm)


@dataclass
class Pruned:
    """A pruned model, what was removed, and what was left.

    `kept[layer]` are the original outputs that a layer still has, in order; a layer without an entry has all of its.
    """

    module: nn.Module
    removals: list[Removal] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    kept: dict[str, list[int]] = field(default_factory=dict)

    def lose(self, layer: str, width: int, removed: Sequence[int]) -> None:
        """Note that a layer of `width` outputs lost some of them."""
        gone = set(removed)
        had = self.kept.get(layer, list(range(width)))
        self.kept[layer] = [one for at, one in enumerate(had) if at not in gone]


def outputs_of(module: nn.Module, inputs: Inputs) -> tuple[Tensor, ...]:
    """Return a model's outputs as a tuple, without a graph for gradients."""
    with torch.no_grad():
        answer = module(*inputs)
    return (answer,) if isinstance(answer, Tensor) else tuple(answer)


Grams = Mapping[str, Tensor]
"""What calibration says of the inputs of each linear layer (`pruning_importance.gram_matrices`)."""


def prune(module: nn.Module, inputs: Inputs, fraction: float, grams: Grams | None = None) -> Pruned:
    """Return a copy of a model without the fraction of its channels, heads and feed-forward units.

    All groups are removed and proven at once; only where that fails they are proven one after the other.

    Args:
        module: in eval mode; it is not changed.
        inputs: tensors [batch, ...] that it takes, two rows or more.
        fraction: between 0 and 1.
        grams: of the module on calibration windows; without them importance is that of the weights alone.
    """
    try:
        work = _remove_all(module, inputs, fraction, grams or {}, each=False)
        _prove(work, inputs)
    except NotProven:
        work = _remove_all(module, inputs, fraction, grams or {}, each=True)
    work.pruned.module.eval().requires_grad_(False)
    return work.pruned


@dataclass
class _Work:
    """A model that is being pruned, and the whole one with what was removed so far silenced.

    `read[layer]` are the original inputs that a layer still reads; a layer without an entry reads all of its.
    `scales[layer]` is what a BatchNorm behind it multiplies its outputs by.
    """

    pruned: Pruned
    silent: nn.Module
    read: dict[str, list[int]] = field(default_factory=dict)
    scales: dict[str, Tensor] = field(default_factory=dict)

    def silence(self, layer: str, removed: Sequence[int]) -> None:
        """Set the weights that read some inputs to zero, `removed` being counted in what the layer still reads."""
        whole: Any = self.silent.get_submodule(layer)
        transposed = isinstance(whole, nn.modules.conv._ConvTransposeNd)
        had = self.read.get(layer, list(range(whole.weight.shape[0 if transposed else 1])))
        gone = set(removed)
        channels = [had[at] for at in removed]
        self.read[layer] = [one for at, one in enumerate(had) if at not in gone]
        with torch.no_grad():
            if transposed:
                whole.weight[channels] = 0
            else:
                whole.weight[:, channels] = 0


def _remove_all(module: nn.Module, inputs: Inputs, fraction: float, grams: Grams, *, each: bool) -> _Work:
    work = _Work(Pruned(copy.deepcopy(module)), copy.deepcopy(module), scales=_scales(module, inputs) if grams else {})
    work = _prune_heads(work, inputs, fraction, each=each)
    return _prune_channels(work, inputs, fraction, grams, each=each)


def apply(module: nn.Module, inputs: Inputs, removals: Sequence[Removal]) -> Pruned:
    """Return a copy of a model from which the same is removed as before; the weights that stay are its own.

    Args:
        module, inputs: as those of `prune`.
        removals: of a `Pruned`, in order.
    """
    pruned = Pruned(copy.deepcopy(module))
    graph: Any = None
    for removal in removals:
        if removal.kind == "heads":
            _take_heads(pruned, removal)
        else:
            graph = graph or graph_of(pruned.module, inputs)
            _take_channels(pruned, graph, removal)
    pruned.module.eval().requires_grad_(False)
    return pruned


def _prune_heads(work: _Work, inputs: Inputs, fraction: float, *, each: bool) -> _Work:
    for name, layout in list(attentions(work.pruned.module)):
        if isinstance(layout, str):
            work.pruned.left.append(Left(name, layout))
            continue
        stays = kept_heads(layout.heads, layout.head_width, fraction)
        if stays == layout.heads:
            reason = f"{layout.heads} heads of {layout.head_width}: none can go without taking more than the fraction"
            work.pruned.left.append(Left(name, reason))
            continue
        before = copy.deepcopy(work) if each else work
        whole = slimmed(work.silent, name)
        removed = least_important(head_importance(whole, layout), range(layout.heads), layout.heads - stays)
        silence_heads(whole, layout, removed)
        try:
            removal = _take_heads(work.pruned, Removal(name, "heads", removed, layout.heads, stays))
            if each:
                _prove(work, inputs)
        except NotProven as reason:
            work = before
            work.pruned.left.append(Left(name, str(reason)))
        else:
            work.pruned.removals.append(removal)
    return work


def _take_heads(pruned: Pruned, removal: Removal) -> Removal:
    module = slimmed(pruned.module, removal.layer)
    layout: HeadLayout = module.head_layout
    widths = {name: module.get_submodule(name).out_features for name, _ in layout.maps}
    for name, rows in remove_heads(module, layout, removal.removed).items():
        pruned.lose(f"{removal.layer}.{name}", widths[name], rows)
    return replace(removal, readers=(f"{removal.layer}.{layout.output}",))


def _prune_channels(work: _Work, inputs: Inputs, fraction: float, grams: Grams, *, each: bool) -> _Work:
    """Remove channels group by group; with `each` a group that is not proven is put back."""
    graph = graph_of(work.pruned.module, inputs)
    names = {one: name for name, one in work.pruned.module.named_modules()}
    layers = [names[one] for one in graph.module2node if isinstance(one, ROOTS) and one in names]
    of_heads = _of_heads(work.pruned.module)
    flops = flops_of_layers(work.pruned.module, inputs) if grams else {}
    plan = _plan(graph, work, layers, of_heads, grams, fraction, flops)
    seen = set(of_heads)
    for layer in layers:
        if layer in seen:
            continue
        _, group = group_of(graph, work.pruned.module, layer)
        seen |= {layer, *group.outputs}
        try:
            check_group(group, of_heads)
            removed = _choose(graph, work, layer, group, grams, plan, fraction)
        except NotProven as reason:
            work.pruned.left.append(Left(layer, str(reason)))
            continue
        before = copy.deepcopy(work) if each else work
        try:
            wanted = Removal(layer, "channels", removed, group.count, group.count - len(removed))
            removal, inputs_gone = _take_channels(work.pruned, graph, wanted)
            for reader, channels in inputs_gone.items():
                work.silence(reader, channels)
            if each:
                _prove(work, inputs)
        except NotProven as reason:
            if not each:
                raise
            work = before
            work.pruned.left.append(Left(layer, str(reason)))
            graph = graph_of(work.pruned.module, inputs)
        else:
            work.pruned.removals.append(removal)
    work.pruned.left += _unseen(work.pruned.module, seen)
    return work


def _unseen(model: nn.Module, seen: set[str]) -> list[Left]:
    """Return what torch-pruning leaves without a word, with the reason."""
    found = []
    for name, one in model.named_modules():
        own = [key for key, weight in one.named_parameters(recurse=False) if weight.dim() > 1]
        if isinstance(one, nn.RNNBase):
            found.append(Left(name, "the units of a recurrent state feed back into themselves"))
        elif isinstance(one, ROOTS):
            if name not in seen:
                found.append(Left(name, "torch-pruning's graph does not reach it: it is not called as a layer"))
        elif own and not isinstance(one, KNOWN):
            reason = f"{type(one).__name__} holds {', '.join(own)} itself, and no rule says how to cut that"
            found.append(Left(name, reason))
    return found


def _scales(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    found = {}
    for layer, norm in order_of(model, inputs).norms.items():
        one: Any = model.get_submodule(norm)
        gain = one.weight if one.weight is not None else torch.ones_like(one.running_var)
        found[layer] = (gain / torch.sqrt(one.running_var + one.eps)).detach()
    return found


def _of_heads(model: nn.Module) -> dict[str, str]:
    """Return the maps of attentions whose rows are heads, with the attention's name."""
    return {
        f"{name}.{one}": name
        for name, layout in attentions(model)
        if isinstance(layout, HeadLayout)
        for one, _ in layout.maps
    }


def _readers(work: _Work, group: Group, grams: Grams) -> list[Reader]:
    """Return the readers of a group, none where calibration does not know them all."""
    if not all(name in grams for name in group.inputs):
        return []
    readers = []
    for name, channels in group.inputs.items():
        whole: Any = work.silent.get_submodule(name)
        had = work.read.get(name)
        original = channels if had is None else [had[at] for at in channels]
        readers.append(reader_of(whole, original, grams[name], group.read_places[name], work.scales.get(name)))
    return readers


def _plan(
    graph: Any,
    work: _Work,
    layers: list[str],
    of_heads: dict[str, str],
    grams: Grams,
    fraction: float,
    flops: Mapping[str, int],
) -> dict[str, tuple[int, ...]]:
    """Return how many channels of each segment every group gives, where calibration says what they are worth."""
    offers: dict[str, Offer] = {}
    seen = set(of_heads)
    for layer in layers if grams else []:
        if layer in seen:
            continue
        _, group = group_of(graph, work.pruned.module, layer)
        seen |= {layer, *group.outputs}
        with contextlib.suppress(NotProven):
            check_group(group, of_heads)
            readers = _readers(work, group, grams)
            if readers:
                carried = _carried(work.pruned.module, group, flops)
                offers[layer] = offer_of(readers, segments(group.count, group.places), fraction, carried)
    return allocate(offers, fraction)


def _carried(model: nn.Module, group: Group, flops: Mapping[str, int]) -> float:
    """Return the floating-point operations that one channel of a group carries, where it is made and where it is read.

    Args:
        flops: of each layer of the model, for any number of samples.
    """
    made = sum(
        flops[name] * len(channels) / _width(model.get_submodule(name)) for name, channels in group.outputs.items()
    )
    read = sum(
        flops[name] * len(channels) / _inputs(model.get_submodule(name)) for name, channels in group.inputs.items()
    )
    return (made + read) / group.count


def _choose(
    graph: Any,
    work: _Work,
    layer: str,
    group: Group,
    grams: Grams,
    plan: Mapping[str, tuple[int, ...]],
    fraction: float,
) -> tuple[int, ...]:
    """Return the channels of a group that go.

    Raises:
        NotProven: none can go.
    """
    parts = segments(group.count, group.places)
    gone = plan.get(layer, tuple(len(part) - kept_width(len(part), fraction) for part in parts))
    if layer in plan and not any(gone):
        raise NotProven("its readers would lose more than those of other layers do")
    if not any(gone):
        raise NotProven(f"{group.count} channels: no multiple of {MULTIPLE} below it is near enough to the fraction")
    readers = _readers(work, group, grams)
    if readers:
        return tuple(sorted(channel for channel, _ in removal_order(readers, parts, gone)))
    found, _ = group_of(graph, work.pruned.module, layer)
    scorer = torch_pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="sum", normalizer=None)
    importance = [float(one) for one in scorer(found)]
    removed = [one for part, count in zip(parts, gone, strict=True) for one in least_important(importance, part, count)]
    return tuple(sorted(removed))


def _take_channels(pruned: Pruned, graph: Any, removal: Removal) -> tuple[Removal, dict[str, list[int]]]:
    """Remove channels in place; return the removal with the layers it touched, and the inputs that each reader loses.

    Raises:
        NotProven: torch-pruning cannot cut one of the layers so.
    """
    found, group = group_of(graph, pruned.module, removal.layer, removal.removed)
    cut = {**group.outputs, **group.norms}
    widths = {name: _width(pruned.module.get_submodule(name)) for name in cut}
    try:
        found.prune()
    except Exception as error:  # whatever it raises about a layer that it cannot cut
        raise NotProven(f"torch-pruning cannot cut it: {reason_of(error)}") from error
    for name, channels in cut.items():
        pruned.lose(name, widths[name], channels)
    coupled = tuple(sorted(name for name in group.outputs if name != removal.layer))
    return replace(removal, coupled=coupled, readers=tuple(sorted(group.inputs))), group.inputs


def _width(layer: Any) -> int:
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return int(layer.num_features)
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _inputs(layer: Any) -> int:
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)


def _prove(work: _Work, inputs: Inputs) -> None:
    """Hold the pruned model against the whole one with the removed channels silenced.

    Raises:
        NotProven: it does not run, its outputs have other shapes, or it answers otherwise.
    """
    wanted = outputs_of(work.silent, inputs)
    try:
        actual = outputs_of(work.pruned.module, inputs)
    except Exception as error:  # of any operation of the model
        raise NotProven(f"the model does not run without some of them: {reason_of(error)}") from error
    for one, other in zip(wanted, actual, strict=True):
        if one.shape != other.shape:
            raise NotProven(f"an output would be {list(other.shape)} in place of {list(one.shape)}")
        apart = (other.double() - one.double()).square().mean().sqrt()
        if not apart <= PROOF_TOLERANCE * one.double().square().mean().sqrt():
            raise NotProven("without them the model answers otherwise than with them silenced: the graph is wrong here")
