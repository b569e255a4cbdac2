"""The attention of hrm-27m: over rows, in windows, with the scale in the projection.

    softmax(q k^T + mask) v,   q, k, v of heads of width d; the rows that project to q carry the factor 1 / sqrt(d)

Everything but the two products of activations works on rows [batch * steps, width], so that each projection is one
two-dimensional product.  Where the steps are no multiple of the window, those left over are a shorter window at the
end.  Source: Vaswani et al. 2017.
"""

from functools import cache
from typing import TYPE_CHECKING

from tsexport.types import HeadLayout

if TYPE_CHECKING:
    from torch import Tensor, nn

MASKED = -3e4
"""Added to the scores of what may not be seen: half precision holds it, and exp() of it is 0."""


@cache
def self_attention() -> "type[nn.Module]":
    """Return the class SelfAttention."""
    import torch
    from torch import nn

    class SelfAttention(nn.Module):
        """rows [batch * steps, width] -> the same; `mask` [span, span] is added to the scores of a window."""

        def __init__(self, width: int, heads: int, steps: int, span: int) -> None:
            super().__init__()
            self.width, self.heads, self.head_width = width, heads, width // heads
            self.steps, self.span, self.rest = steps, span, steps % span
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            with torch.no_grad():
                self.qkv.weight[:width] *= self.head_width**-0.5
                self.qkv.bias[:width] *= self.head_width**-0.5

        @property
        def head_layout(self) -> HeadLayout:
            return HeadLayout(self.heads, self.head_width, (("qkv", 3),), "out")

        def keep_heads(self, count: int) -> None:
            self.heads, self.width = count, count * self.head_width

        def split(self, projected: "Tensor", steps: int) -> "tuple[Tensor, ...]":
            """Return queries, keys and values, each [windows, heads, steps, head width]."""
            by_head = projected.reshape(-1, steps, 3 * self.heads, self.head_width).transpose(1, 2)
            return by_head.split(self.heads, dim=1)  # type: ignore[no-any-return,no-untyped-call]

        def attend(self, projected: "Tensor", steps: int, mask: "Tensor | None") -> "Tensor":
            """Return [windows, steps, heads, head width] for projections of windows of `steps`."""
            query, key, value = self.split(projected, steps)
            scores = query @ key.transpose(2, 3)
            if mask is not None:
                scores = scores + mask[:steps, :steps]
            return (torch.softmax(scores, dim=-1) @ value).transpose(1, 2)

        def forward(self, rows: "Tensor", mask: "Tensor | None" = None) -> "Tensor":
            projected = self.qkv(rows)
            if not self.rest:
                return self.out(self.attend(projected, self.span, mask).reshape(-1, self.width))  # type: ignore[no-any-return]
            whole = self.steps - self.rest
            by_day = projected.reshape(-1, self.steps, 3 * self.width)
            windows = self.attend(by_day[:, :whole], self.span, mask).reshape(-1, whole, self.width)
            last = self.attend(by_day[:, whole:], self.rest, mask).reshape(-1, self.rest, self.width)
            return self.out(torch.cat([windows, last], dim=1).reshape(-1, self.width))  # type: ignore[no-any-return]

    return SelfAttention


@cache
def cross_attention() -> "type[nn.Module]":
    """Return the class CrossAttention."""
    import torch
    from torch import nn

    class CrossAttention(nn.Module):
        """tokens [batch, steps, width] that ask a history [batch, days, history_width] -> tokens, added to."""

        def __init__(self, width: int, history_width: int, heads: int, days: int) -> None:
            super().__init__()
            self.width, self.history_width, self.days = width, history_width, days
            self.heads, self.head_width = heads, width // heads
            self.norm = nn.LayerNorm(width)
            self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
            self.key, self.value = nn.Linear(history_width, width), nn.Linear(history_width, width)
            with torch.no_grad():
                self.query.weight.mul_(self.head_width**-0.5)
                self.query.bias.mul_(self.head_width**-0.5)

        def by_head(self, rows: "Tensor", steps: int) -> "Tensor":
            return rows.reshape(-1, steps, self.heads, self.head_width).transpose(1, 2)

        def forward(self, tokens: "Tensor", history: "Tensor", steps: int) -> "Tensor":
            rows, days = tokens.reshape(-1, self.width), history.reshape(-1, self.history_width)
            query = self.by_head(self.query(self.norm(rows)), steps)
            key, value = self.by_head(self.key(days), self.days), self.by_head(self.value(days), self.days)
            mixed = torch.softmax(query @ key.transpose(2, 3), dim=-1) @ value
            attended: Tensor = self.out(mixed.transpose(1, 2).reshape(-1, self.width))
            return (rows + attended).reshape(-1, steps, self.width)

    return CrossAttention
