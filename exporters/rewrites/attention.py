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

from tsexport.exporters.rewrites.modules import alike_in_all_calls
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


def is_packed(part: nn.Module) -> bool:
    """Return whether a module is torch's own attention, batch first, with one packed projection and nothing added."""
    return (
        type(part) is nn.MultiheadAttention
        and part.batch_first
        and part._qkv_same_embed_dim
        and part.bias_k is None
        and not part.add_zero_attn
    )


def _lengths(query: Tensor, key: Tensor, *_: Any, **__: Any) -> tuple[int, int] | None:
    """Return the lengths of queries and keys of an attention's call."""
    return (int(query.shape[1]), int(key.shape[1])) if query.dim() == 3 and key.dim() == 3 else None


class SeparateProjections:
    """Replace the multi-head attentions of a module that the encoder rewrite left."""

    name = "separate-projections"
    torchscript = False  # torch's own packed attention is made for it
    required = False

    def _attentions(self, module: nn.Module) -> dict[str, nn.MultiheadAttention]:
        return {name: part for name, part in module.named_modules() if name and is_packed(part)}

    def requires(self, module: nn.Module) -> bool:
        return bool(self._attentions(module))

    def call(self, module: nn.Module, probes: Sequence[Feeds]) -> tuple[nn.Module, int]:
        attentions = self._attentions(module)
        lengths = alike_in_all_calls(module, attentions, probes[0], _lengths)
        for name, (steps, others) in lengths.items():
            module.set_submodule(name, PlainAttention(attentions[name], steps, others).eval())
        return module, len(lengths)
