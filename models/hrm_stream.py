"""One streaming step of hrm-27m: k new minutes, with the keys and values of those before them kept.

A day is read from its first minute on, k minutes a call:

    forecast [batch, k, targets], next_keys, next_values, next_position = step(
        minutes [batch, k, minute_features], scale and shift [batch, l_width] of the day (and its history
        [batch, days, h_width] where there is cross-attention), keys, values, position)

`keys` and `values` are [batch, layers * heads, span - 1, head width], the last minute's at the end; zeros begin a day.
`position` [batch] counts the minutes before the new ones, 0 at the beginning.  What a call returns as `next_...` is fed
to the next one.  The steps of a day together answer as the whole causal pass does: a query at minute m sees the minutes
from the first of its window (0 without l_window) to m.  A slot of the cache holds minute position - (span - 1) + slot;
those before the window, or before the day, are masked.  Rows of a batch may stand at different positions.

A position beyond minutes - k is no minute of the day, and an error of the runtime.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

from tsexport.models.hrm_attention import MASKED

if TYPE_CHECKING:
    from torch import Tensor, nn


@cache
def network() -> "type[nn.Module]":
    """Return the class StreamStep."""
    import torch
    from torch import nn

    class StreamStep(nn.Module):
        """The step of a whole model, whose weights it shares; shapes as the module says."""

        ahead: "Tensor"
        slots: "Tensor"
        window_starts: "Tensor"
        masked: "Tensor"

        def __init__(self, whole: Any) -> None:
            super().__init__()
            config = whole.config
            self.l_module, self.conditioning = whole.l_module, whole.conditioning
            self.new, self.past, self.width = config.stream_minutes, config.span - 1, config.l_width
            self.heads, self.crosses = config.l_heads, config.cross_attention
            minutes = torch.arange(config.minutes)
            self.register_buffer("ahead", minutes[: self.new], persistent=False)
            self.register_buffer("slots", torch.arange(-self.past, self.new), persistent=False)
            self.register_buffer("window_starts", minutes // config.span * config.span, persistent=False)
            self.register_buffer("masked", torch.tensor([0.0, MASKED]), persistent=False)

        def mask(self, position: "Tensor", minute: "Tensor") -> "Tensor":
            """Return what is added to scores [batch, heads, k, past + k]."""
            held = (position[:, None] + self.slots)[:, None]  # [batch, 1, past + k]
            seen = (held >= self.window_starts[minute][:, :, None]) & (held <= minute[:, :, None])
            return torch.where(seen, self.masked[0], self.masked[1])[:, None]

        def attend(
            self, attention: Any, rows: "Tensor", keys: "Tensor", values: "Tensor", mask: "Tensor"
        ) -> "tuple[Tensor, Tensor, Tensor]":
            """Return the attention's rows, and the keys and values of the new minutes."""
            query, key, value = attention.split(attention.qkv(rows), self.new)
            scores = query @ torch.cat([keys, key], dim=2).transpose(2, 3) + mask
            mixed = torch.softmax(scores, dim=-1) @ torch.cat([values, value], dim=2)
            return attention.out(mixed.transpose(1, 2).reshape(-1, self.width)), key, value

        def forward(self, minutes: "Tensor", scale: "Tensor", shift: "Tensor", *rest: "Tensor") -> "tuple[Tensor, ...]":
            history, (keys, values, position) = (rest[0], rest[1:]) if self.crosses else (None, rest)
            minute = position[:, None] + self.ahead  # [batch, k]
            mask = self.mask(position, minute)
            book = self.l_module
            tokens = book.embedding(minutes.reshape(-1, book.features)).reshape(-1, self.new, self.width)
            rows = (tokens + book.positions[minute]).reshape(-1, self.width)
            gain, shift = scale[:, None] + 1, shift[:, None]
            new_keys, new_values = [], []
            for index, layer in enumerate(book.layers):
                own = slice(index * self.heads, (index + 1) * self.heads)
                modulated = layer.modulated(rows, self.new, gain, shift)
                attended, key, value = self.attend(layer.attention, modulated, keys[:, own], values[:, own], mask)
                rows = layer.feed_forward(rows + attended)
                new_keys.append(key)
                new_values.append(value)
            tokens = book.norm(rows).reshape(-1, self.new, self.width)
            forecast, _ = self.conditioning.forecast(history, tokens, self.new)
            return (
                forecast,
                torch.cat([keys, torch.cat(new_keys, dim=1)], dim=2)[:, :, self.new :],
                torch.cat([values, torch.cat(new_values, dim=1)], dim=2)[:, :, self.new :],
                position + self.new,
            )

    return StreamStep


def stream_step(whole: Any) -> "nn.Module":
    """Return the step of a whole model in eval mode."""
    return network()(whole).eval()
