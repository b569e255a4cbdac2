"""Module rewrite: a `torch.nn.TransformerEncoder` as plain matrix products.

A layer computes, for x [batch, steps, width] and heads of width d = width / heads,

    q, k, v = split(x W_qkv + b_qkv),   attention = softmax(q k^T / sqrt(d)) v

The replacement works on rows [batch * steps, width], so that every projection is one two-dimensional product; it
folds 1 / sqrt(d) into the q rows of W_qkv and b_qkv, and reshapes by constants, so that nothing but the batch is
computed from shapes.  torch's own layer exports some 150 nodes a layer, this one about 20.

Limits: batch first, called without masks, evaluation mode.  Anything else is left as it is.
Source of the layer: Vaswani et al. 2017; torch.nn.TransformerEncoderLayer for the order of operations.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tsexport.types import Feeds


class PlainSelfAttention(nn.Module):
    """Self-attention over rows [batch * steps, width], with the scale folded into the projection."""

    def __init__(self, attention: nn.MultiheadAttention, steps: int) -> None:
        super().__init__()
        width, heads = attention.embed_dim, attention.num_heads
        self.steps, self.heads, self.head_width, self.width = steps, heads, width // heads, width
        scale = self.head_width**-0.5
        bias = attention.in_proj_bias is not None
        self.in_proj = nn.Linear(width, 3 * width, bias=bias)
        scaled = torch.ones(3 * width)
        scaled[:width] = scale
        self.in_proj.weight = nn.Parameter(attention.in_proj_weight.detach() * scaled[:, None])
        if bias:
            self.in_proj.bias = nn.Parameter(attention.in_proj_bias.detach() * scaled)
        self.out_proj = nn.Linear(width, width, bias=attention.out_proj.bias is not None)
        self.out_proj.load_state_dict(attention.out_proj.state_dict())

    def forward(self, rows: Tensor) -> Tensor:
        projected = self.in_proj(rows).reshape(-1, self.steps, 3 * self.heads, self.head_width)
        q, k, v = projected.transpose(1, 2).split(self.heads, dim=1)  # each [batch, heads, steps, head_width]
        mixed = torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ v
        attended: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(-1, self.width))
        return attended


class PlainEncoderLayer(nn.Module):
    """One encoder layer over rows [batch * steps, width]; submodules keep torch's names."""

    def __init__(self, layer: nn.TransformerEncoderLayer, steps: int) -> None:
        super().__init__()
        self.self_attn = PlainSelfAttention(layer.self_attn, steps)
        self.linear1, self.linear2 = layer.linear1, layer.linear2
        self.norm1, self.norm2 = layer.norm1, layer.norm2
        self.activation = layer.activation
        self.norm_first = layer.norm_first
        self.apart = (-1, steps, layer.self_attn.embed_dim)
        self.together = (-1, layer.self_attn.embed_dim)

    def feed_forward(self, rows: Tensor) -> Tensor:
        fed: Tensor = self.linear2(self.activation(self.linear1(rows)))
        return fed

    def forward(self, rows: Tensor) -> Tensor:
        if self.norm_first:
            # Summed in three dimensions: of rows, OpenVINO 2026.4 takes this for its fused MLP, and its process ends.
            tokens = rows.reshape(self.apart) + self.self_attn(self.norm1(rows)).reshape(self.apart)
            fed = self.feed_forward(self.norm2(tokens.reshape(self.together)))
            summed: Tensor = (tokens + fed.reshape(self.apart)).reshape(self.together)
            return summed
        rows = self.norm1(rows + self.self_attn(rows))
        normed: Tensor = self.norm2(rows + self.feed_forward(rows))
        return normed


class PlainEncoder(nn.Module):
    """[batch, steps, width] -> the same, for a `torch.nn.TransformerEncoder` or a single layer of one."""

    def __init__(self, encoder: nn.TransformerEncoder | nn.TransformerEncoderLayer, steps: int) -> None:
        super().__init__()
        layers: list[Any] = list(encoder.layers) if isinstance(encoder, nn.TransformerEncoder) else [encoder]
        self.layers = nn.ModuleList(PlainEncoderLayer(layer, steps) for layer in layers)
        self.norm = encoder.norm if isinstance(encoder, nn.TransformerEncoder) else None
        self.steps, self.width = steps, layers[0].self_attn.embed_dim

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.width)
        for layer in self.layers:
            rows = layer(rows)
        if self.norm is not None:
            rows = self.norm(rows)
        return rows.reshape(-1, self.steps, self.width)


def _fits(layer: nn.Module) -> bool:
    attention = getattr(layer, "self_attn", None)
    return (
        type(layer) is nn.TransformerEncoderLayer
        and isinstance(attention, nn.MultiheadAttention)
        and attention.batch_first
        and attention._qkv_same_embed_dim
        and attention.bias_k is None
        and not attention.add_zero_attn
    )


def _encoders(module: nn.Module) -> dict[str, nn.Module]:
    """Return the outermost encoders by name, as far as their construction allows a replacement."""
    found: dict[str, nn.Module] = {}
    for name, part in module.named_modules():
        if any(not outer or name.startswith(outer + ".") for outer in found):
            continue
        whole = type(part) is nn.TransformerEncoder and all(_fits(layer) for layer in part.layers)
        if whole or _fits(part):
            found[name] = part
    return found


def _called_plainly(module: nn.Module, encoders: dict[str, nn.Module], tensors: Sequence[Tensor]) -> dict[str, int]:
    """Run once and return {encoder: steps} of those called with one tensor and no mask, always of one length."""
    steps: dict[str, set[int | None]] = {}
    handles = []

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # Masks may come as further arguments; `is_causal=None` and `is_causal=False` are no mask.
            masked = any(value is not None and value is not False for value in (*args[1:], *kwargs.values()))
            plain = len(args) >= 1 and args[0].dim() == 3 and not masked
            steps.setdefault(name, set()).add(int(args[0].shape[1]) if plain else None)

        return hook

    try:
        for name, part in encoders.items():
            handles.append(part.register_forward_pre_hook(watch(name), with_kwargs=True))
        with torch.no_grad():
            module(*tensors)
    finally:
        for handle in handles:
            handle.remove()
    plain = {name: next(iter(seen)) for name, seen in steps.items() if len(seen) == 1}
    return {name: length for name, length in plain.items() if length is not None}


class EncoderAsMatrixProducts:
    """Replace the plain transformer encoders of a module."""

    name = "encoder-as-matrix-products"
    torchscript = False  # torch's own fused encoder layer is faster there
    required = False

    def requires(self, module: nn.Module) -> bool:
        return bool(_encoders(module))

    def call(self, module: nn.Module, probes: Sequence[Feeds]) -> tuple[nn.Module, int]:
        tensors = [torch.from_numpy(array) for array in probes[0].values()]
        steps_of = _called_plainly(module, _encoders(module), tensors)
        for name, steps in steps_of.items():
            plain = PlainEncoder(module.get_submodule(name), steps).eval()  # type: ignore[arg-type]
            if name:
                module.set_submodule(name, plain)
            else:
                module = plain
        return module, len(steps_of)
