"""Attention heads: where they lie in the weights of an attention, and how some of them are really removed.

    out = W_O [head_1 ... head_h],   head_i = softmax(Q_i K_i^T / sqrt(d)) V_i

A head is d rows of the maps to queries, keys and values, and d columns of W_O.  torch-pruning's graph does not see it:
reshapes carry the number of heads as a constant.  So an attention says itself where its heads are: it has an attribute
`head_layout` (a `tsexport.types.HeadLayout`) and a method `keep_heads(count)`, which adapts the sizes that it reshapes
by.  torch's own MultiheadAttention cannot be narrower inside than outside and is replaced by `SlimAttention`.

The scale 1 / sqrt(d) stays: heads go whole.
Source: Michel et al. 2019, "Are Sixteen Heads Really Better than One?".
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tsexport.types import HeadLayout


class SlimAttention(nn.Module):
    """Self-attention with fewer heads than its width holds: what is left of a MultiheadAttention.

    It stands where a TransformerEncoderLayer calls `self_attn`, and is called as that calls it; the attributes after
    the first line are those that the layer looks at to leave torch's fused kernel alone.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        width = attention.embed_dim
        self.batch_first, self.in_proj_bias, self._qkv_same_embed_dim = attention.batch_first, None, True
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.qkv = nn.Linear(width, 3 * width, bias=attention.in_proj_bias is not None)
        self.out_proj = nn.Linear(width, width, bias=attention.out_proj.bias is not None)
        with torch.no_grad():
            self.qkv.weight.copy_(attention.in_proj_weight)
            self.out_proj.weight.copy_(attention.out_proj.weight)
            if attention.in_proj_bias is not None:
                self.qkv.bias.copy_(attention.in_proj_bias)
            if attention.out_proj.bias is not None:
                self.out_proj.bias.copy_(attention.out_proj.bias)

    @property
    def head_layout(self) -> HeadLayout:
        return HeadLayout(self.num_heads, self.head_dim, (("qkv", 3),), "out_proj")

    def keep_heads(self, count: int) -> None:
        self.num_heads = count

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        tokens = query if self.batch_first else query.transpose(0, 1)  # [batch, steps, width]
        steps = tokens.shape[1]
        by_head = self.qkv(tokens).reshape(-1, steps, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        queries, keys, values = by_head.unbind(0)  # each [batch, heads, steps, head width]
        scores = queries @ keys.transpose(2, 3) * self.head_dim**-0.5
        if attn_mask is not None:
            scores = scores + attn_mask
        if key_padding_mask is not None:
            scores = scores + key_padding_mask[:, None, None]
        mixed = (torch.softmax(scores, dim=-1) @ values).transpose(1, 2)
        out = self.out_proj(mixed.reshape(-1, steps, self.num_heads * self.head_dim))
        return (out if self.batch_first else out.transpose(0, 1)), None


def replaceable(attention: nn.MultiheadAttention) -> str:
    """Return why a MultiheadAttention cannot be replaced, or ""."""
    if not attention._qkv_same_embed_dim:
        return "its keys or values are of another width than its queries"
    if attention.bias_k is not None or attention.add_zero_attn:
        return "it adds keys of its own (add_bias_kv, add_zero_attn)"
    return ""


def attentions(model: nn.Module) -> Iterator[tuple[str, HeadLayout | str]]:
    """Yield the name of every attention, and where its heads are, or why they cannot be removed."""
    for name, module in model.named_modules():
        layout = getattr(module, "head_layout", None)
        if isinstance(layout, HeadLayout):
            yield name, layout
        elif isinstance(module, nn.MultiheadAttention):
            parent, _, attribute = name.rpartition(".")
            inside = isinstance(model.get_submodule(parent), nn.TransformerEncoderLayer) and attribute == "self_attn"
            reason = replaceable(module)
            if not inside:
                reason = reason or "it may be called with other queries than keys, which its replacement does not take"
            yield name, reason or HeadLayout(module.num_heads, module.head_dim, (("qkv", 3),), "out_proj")


def slimmed(model: nn.Module, name: str) -> Any:
    """Return the attention of that name; a MultiheadAttention gives its place to a `SlimAttention`."""
    module = model.get_submodule(name)
    if isinstance(module, nn.MultiheadAttention):
        parent, _, attribute = name.rpartition(".")
        module = SlimAttention(module).train(module.training)
        setattr(model.get_submodule(parent), attribute, module)
    return module


def rows_of_heads(layout: HeadLayout, heads: Sequence[int], parts: int) -> list[int]:
    """Return the rows of a map that stand for heads: `parts` blocks of all heads, one behind the other."""
    width = layout.heads * layout.head_width
    return [
        part * width + head * layout.head_width + at
        for part in range(parts)
        for head in heads
        for at in range(layout.head_width)
    ]


def head_importance(module: Any, layout: HeadLayout) -> tuple[float, ...]:
    """Return the L2 norm of each head's weights: its rows of every map, its columns of the output's."""
    found = []
    output = module.get_submodule(layout.output).weight.detach().double()
    maps = [(module.get_submodule(name).weight.detach().double(), parts) for name, parts in layout.maps]
    for head in range(layout.heads):
        total = output[:, rows_of_heads(layout, [head], 1)].square().sum()
        for weight, parts in maps:
            total = total + weight[rows_of_heads(layout, [head], parts)].square().sum()
        found.append(float(total.sqrt()))
    return tuple(found)


def remove_heads(module: Any, layout: HeadLayout, removed: Sequence[int]) -> dict[str, list[int]]:
    """Remove heads from the weights, and tell the attention; return the rows that each of its maps lost."""
    stays = [head for head in range(layout.heads) if head not in removed]
    lost = {}
    for name, parts in layout.maps:
        linear = module.get_submodule(name)
        _keep_rows(linear, rows_of_heads(layout, stays, parts))
        lost[name] = rows_of_heads(layout, removed, parts)
    output = module.get_submodule(layout.output)
    columns = rows_of_heads(layout, stays, 1)
    output.weight = nn.Parameter(output.weight.detach()[:, columns].contiguous(), output.weight.requires_grad)
    output.in_features = len(columns)
    module.keep_heads(len(stays))
    return lost


def _keep_rows(linear: Any, rows: list[int]) -> None:
    linear.weight = nn.Parameter(linear.weight.detach()[rows].contiguous(), linear.weight.requires_grad)
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[rows].contiguous(), linear.bias.requires_grad)
    linear.out_features = len(rows)


def silence_heads(module: Any, layout: HeadLayout, silenced: Sequence[int]) -> None:
    """Set the output's columns of heads to zero: what is left answers as if they were removed."""
    with torch.no_grad():
        module.get_submodule(layout.output).weight[:, rows_of_heads(layout, silenced, 1)] = 0
