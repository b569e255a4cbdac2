"""Module rewrite: `torch.nn.MultiheadAttention` as separate projections around scaled dot-product attention.

torch's own packs the projections of self-attention into one and unpacks them over a leading axis, which exports as some
20 nodes of transpositions and gathers that no later rewrite sees through.  Written with a linear layer each for q, k
and v, the scale folds into them and they become one product again (`FoldScale`, `FuseParallelLinears`); shapes are
constants, and a mask is turned into what is added to the scores by operators that all layers share.

Limits: batch first, no `kdim`, `vdim`, `add_bias_kv` or `add_zero_attn`, three-dimensional queries of one length, and
the weights of the attention unused (None is returned for them, and where a model needs them the proof fails).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tsexport.types import Feeds


class PlainAttention(nn.Module):
    """query [batch, steps, width], key and value [batch, others, width] -> ([batch, steps, width], None).

    `batch_first` and what follows it are what `nn.TransformerEncoderLayer` asks before it takes its fused path, which
    it must not take.
    """

    batch_first = True
    _qkv_same_embed_dim = False
    in_proj_bias = None

    def __init__(self, attention: nn.MultiheadAttention, steps: int, others: int) -> None:
        super().__init__()
        self.width, self.num_heads = attention.embed_dim, attention.num_heads
        self.head_width = self.width // self.num_heads
        self.steps, self.others = steps, others
        bias = attention.in_proj_bias is not None
        self.q, self.k, self.v = (nn.Linear(self.width, self.width, bias=bias) for _ in range(3))
        weights = attention.in_proj_weight.detach().chunk(3)
        for linear, weight in zip((self.q, self.k, self.v), weights, strict=True):
            linear.weight = nn.Parameter(weight.clone())
        if bias:
            for linear, part in zip((self.q, self.k, self.v), attention.in_proj_bias.detach().chunk(3), strict=True):
                linear.bias = nn.Parameter(part.clone())
        self.out_proj = attention.out_proj

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        q, k, v = (
            linear(x).reshape(-1, length, self.num_heads, self.head_width).transpose(1, 2)
            for linear, x, length in (
                (self.q, query, self.steps),
                (self.k, key, self.others),
                (self.v, value, self.others),
            )
        )
        added = None
        if attn_mask is not None:
            added = _as_addition(attn_mask, query)
            if attn_mask.dim() == 3:  # [batch * heads, steps, others]
                added = added.reshape(-1, self.num_heads, self.steps, self.others)
        if key_padding_mask is not None:
            padded = _as_addition(key_padding_mask, query)[:, None, None, :]
            added = padded if added is None else added + padded
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=added)
        return self.out_proj(mixed.transpose(1, 2).reshape(-1, self.steps, self.width)), None


def _as_addition(mask: Tensor, like: Tensor) -> Tensor:
    """Return what is added to the scores: a boolean mask of torch's attention is True where a place is left out."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros((), dtype=like.dtype).masked_fill(mask, float("-inf"))


def _fits(part: nn.Module) -> bool:
    return (
        type(part) is nn.MultiheadAttention
        and part.batch_first
        and part._qkv_same_embed_dim
        and part.bias_k is None
        and not part.add_zero_attn
    )


class SeparateProjections:
    """Replace the multi-head attentions of a module that the encoder rewrite left."""

    name = "separate-projections"
    torchscript = False  # torch's own packed attention is made for it
    required = False

    def _attentions(self, module: nn.Module) -> dict[str, nn.MultiheadAttention]:
        return {name: part for name, part in module.named_modules() if name and _fits(part)}

    def requires(self, module: nn.Module) -> bool:
        return bool(self._attentions(module))

    def call(self, module: nn.Module, probes: Sequence[Feeds]) -> tuple[nn.Module, int]:
        attentions = self._attentions(module)
        lengths = _lengths(module, attentions, [torch.from_numpy(array) for array in probes[0].values()])
        for name, (steps, others) in lengths.items():
            module.set_submodule(name, PlainAttention(attentions[name], steps, others).eval())
        return module, len(lengths)


def _lengths(
    module: nn.Module, attentions: dict[str, nn.MultiheadAttention], tensors: Sequence[Tensor]
) -> dict[str, tuple[int, int]]:
    """Run once and return the lengths of query and key of each attention that was always called with the same."""
    seen: dict[str, set[tuple[int, int] | None]] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            query, key = (*args, *(kwargs.get(one) for one in ("query", "key", "value")[len(args) :]))[:2]
            plain = query.dim() == 3 and key.dim() == 3
            seen.setdefault(name, set()).add((int(query.shape[1]), int(key.shape[1])) if plain else None)

        return hook

    handles = [part.register_forward_pre_hook(watch(name), with_kwargs=True) for name, part in attentions.items()]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it goes past the attention that is watched
    try:
        with torch.no_grad():
            module(*tensors)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()
    single = {name: next(iter(found)) for name, found in seen.items() if len(found) == 1}
    return {name: lengths for name, lengths in single.items() if lengths is not None}
