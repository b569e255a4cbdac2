"""hrm-27m: a trading day's minutes read under the state of the days before (the "dual book" H/L transformer).

H, the daily book, reads the tokens of the days before; L, the intraday book, reads the day's minutes under H's state:

    history = H(daily + state)                              [batch, days, h_width]; no state in the first segment
    state   = mean of history over days                     [batch, h_width]
    scale, shift = FiLM(state)                              [batch, l_width] each, shared by all layers of L
    tokens  = L(minutes, scale, shift)                      [batch, minutes, l_width]
    tokens += cross(tokens, history)                        only with cross_attention
    state  += feedback(mean of tokens over minutes)         what H hears of the day

`forecast` is a linear map of each token, `q` (the values of halting and of going on) one of the last state.  ACT runs a
fixed number of `segments`, since halting on data cannot be traced: each one repeats the lines above, and H reads the
daily tokens again, with the state of the segment before added to each.  Both modules are pre-norm; L's normalised
tokens are multiplied by 1 + scale and shifted before each attention.

Sizes are published, shapes are not; those here are this project's.  The published 27.3 M parameters (109 MB) are the
sum of H (3.5 M) and L (23.8 M) alone, without FiLM and heads ("under 1 M"): this model has 27.5 M in H and L and 28.1 M
in all.  A feed-forward of H's own width, and SwiGLU of 4 times L's, are what those counts fit.  L's head width is 68,
no multiple of 8: a GPU's fp16 and bf16 kernels pad it to 72 or 128.  The document keeps FiLM and the Q-head in fp32
where the rest is bf16 (`FP32_LAYERS`).

`causal` lets a minute see those before it only, and serves streaming (component `stream-step`, `models.hrm_stream`).
More segments than one are then refused: each reads a summary of the whole day.  H is never causal, its days are all
known.  `l_window` cuts L's attention into windows of that many minutes from the first one on; the last may be shorter.

Source: the HRM-27M documents the project was created from; SwiGLU: Shazeer 2020; FiLM: Perez et al. 2018.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from tsexport.errors import ConfigurationError
from tsexport.models.definition import Component, Tensors, require_divisible, require_dropout, require_positive
from tsexport.models.hrm_attention import MASKED, cross_attention, self_attention
from tsexport.models.hrm_stream import stream_step
from tsexport.types import BATCH, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Sizes; the defaults are the published ones.  `stream_minutes` are the new minutes of one streaming step."""

    days: int = 64
    daily_features: int = 16
    minutes: int = 390
    minute_features: int = 16
    targets: int = 3
    h_width: int = 384
    h_layers: int = 4
    h_heads: int = 6
    h_feed_forward: int = 384
    l_width: int = 544
    l_layers: int = 5
    l_heads: int = 8
    l_feed_forward: int = 2176
    dropout: float = 0.1
    cross_attention: bool = False
    causal: bool = False
    segments: int = 1
    l_window: int = 0
    stream_minutes: int = 1

    def __post_init__(self) -> None:
        require_positive(self, "days", "daily_features", "minutes", "minute_features", "targets")
        require_positive(self, "h_width", "h_layers", "h_heads", "h_feed_forward")
        require_positive(self, "l_width", "l_layers", "l_heads", "l_feed_forward", "segments", "stream_minutes")
        require_divisible({"h_width": self.h_width, "h_heads": self.h_heads})
        require_divisible({"l_width": self.l_width, "l_heads": self.l_heads})
        require_divisible({"minutes": self.minutes, "stream_minutes": self.stream_minutes})
        require_dropout(self.dropout)
        if self.l_window and not 2 <= self.l_window <= self.minutes:
            raise ConfigurationError(
                f"l_window is {self.l_window}; it must be 0 for the whole day, or from 2 to minutes {self.minutes}",
                next_step="Write for example --set l_window=60.",
            )
        if self.causal and self.segments > 1:
            raise ConfigurationError(
                f"causal is true and segments is {self.segments}: every segment but the first reads a summary of the "
                "whole day, which a causal pass must not see",
                next_step="Set segments=1, or causal=false.",
            )

    @property
    def span(self) -> int:
        """Minutes that attend to each other: a window's, or the day's."""
        return self.l_window or self.minutes

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.daily, self.minute_bars)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (_floats("forecast", self.minutes, self.targets), _floats("q", 2))

    @property
    def daily(self) -> TensorSpec:
        return _floats("daily", self.days, self.daily_features)

    @property
    def minute_bars(self) -> TensorSpec:
        return _floats("minutes", self.minutes, self.minute_features)

    @property
    def history(self) -> TensorSpec:
        return _floats("history", self.days, self.h_width)

    @property
    def tokens(self) -> TensorSpec:
        return _floats("tokens", self.minutes, self.l_width)

    @property
    def state(self) -> tuple[TensorSpec, ...]:
        """H's state, which only further segments take."""
        return (_floats("state", self.h_width),) if self.segments > 1 else ()

    @property
    def modulation(self) -> tuple[TensorSpec, ...]:
        return (_floats("scale", self.l_width), _floats("shift", self.l_width))


def _floats(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, "float32", (BATCH, *shape))


@cache
def network() -> "type[nn.Module]":
    """Return the class HRM (defined here so that reading a Config needs no torch)."""
    import torch
    from torch import nn

    Attention = self_attention()

    class HLayer(nn.Module):
        """[batch, days, h_width] -> the same.

        Residuals are summed in this shape, and not as rows: as rows OpenVINO 2026.4 takes the feed-forward of one day
        for its fused MLP and crashes while it compiles.
        """

        def __init__(self, config: Config) -> None:
            super().__init__()
            width, inner = config.h_width, config.h_feed_forward
            self.shape, self.width = (-1, config.days, width), width
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attention = Attention(width, config.h_heads, config.days, config.days)
            self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
            self.dropout = nn.Dropout(config.dropout)

        def forward(self, tokens: "Tensor") -> "Tensor":
            attended = self.attention(self.norm1(tokens).reshape(-1, self.width))
            tokens = tokens + self.dropout(attended.reshape(self.shape))
            hidden = nn.functional.gelu(self.linear1(self.norm2(tokens).reshape(-1, self.width)))
            return tokens + self.dropout(self.linear2(hidden).reshape(self.shape))  # type: ignore[no-any-return]

    class HModule(nn.Module):
        """daily [batch, days, daily_features], state [batch, h_width] -> history [batch, days, h_width]."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            self.days, self.features, self.width = config.days, config.daily_features, config.h_width
            self.embedding = nn.Linear(self.features, self.width)
            self.positions = nn.Parameter(0.02 * torch.randn(self.days, self.width))
            self.layers = nn.ModuleList(HLayer(config) for _ in range(config.h_layers))
            self.norm = nn.LayerNorm(self.width)

        def forward(self, daily: "Tensor", state: "Tensor | None" = None) -> "Tensor":
            rows = self.embedding(daily.reshape(-1, self.features))
            tokens = rows.reshape(-1, self.days, self.width) + self.positions
            if state is not None:
                tokens = tokens + state[:, None]
            for layer in self.layers:
                tokens = layer(tokens)
            return self.norm(tokens)  # type: ignore[no-any-return]

    class LLayer(nn.Module):
        """Rows [batch * minutes, l_width] -> the same; gain and shift are [batch, 1, l_width]."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            width, inner = config.l_width, config.l_feed_forward
            self.width, self.steps = width, config.minutes
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attention = Attention(width, config.l_heads, config.minutes, config.span)
            self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
            self.down = nn.Linear(inner, width, bias=False)
            self.dropout = nn.Dropout(config.dropout)

        def modulated(self, rows: "Tensor", steps: int, gain: "Tensor", shift: "Tensor") -> "Tensor":
            normed = self.norm1(rows).reshape(-1, steps, self.width)
            return (normed * gain + shift).reshape(-1, self.width)  # type: ignore[no-any-return]

        def feed_forward(self, rows: "Tensor") -> "Tensor":
            normed = self.norm2(rows)
            fed = self.down(nn.functional.silu(self.gate(normed)) * self.up(normed))
            return rows + self.dropout(fed)  # type: ignore[no-any-return]

        def forward(self, rows: "Tensor", gain: "Tensor", shift: "Tensor", mask: "Tensor | None") -> "Tensor":
            modulated = self.modulated(rows, self.steps, gain, shift)
            return self.feed_forward(rows + self.dropout(self.attention(modulated, mask)))

    class LModule(nn.Module):
        """minutes [batch, minutes, minute_features], scale and shift [batch, l_width]
        -> tokens [batch, minutes, l_width]."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            self.minutes, self.features, self.width = config.minutes, config.minute_features, config.l_width
            self.embedding = nn.Linear(self.features, self.width)
            self.positions = nn.Parameter(0.02 * torch.randn(self.minutes, self.width))
            self.layers = nn.ModuleList(LLayer(config) for _ in range(config.l_layers))
            self.norm = nn.LayerNorm(self.width)
            later = torch.full((config.span, config.span), MASKED).triu(1) if config.causal else None
            self.register_buffer("mask", later, persistent=False)

        def forward(self, minutes: "Tensor", scale: "Tensor", shift: "Tensor") -> "Tensor":
            rows = self.embedding(minutes.reshape(-1, self.features))
            rows = (rows.reshape(-1, self.minutes, self.width) + self.positions).reshape(-1, self.width)
            gain, shift = scale[:, None] + 1, shift[:, None]
            for layer in self.layers:
                rows = layer(rows, gain, shift, self.mask)
            return self.norm(rows).reshape(-1, self.minutes, self.width)  # type: ignore[no-any-return]

    class Conditioning(nn.Module):
        """history [batch, days, h_width], tokens [batch, minutes, l_width]
        -> forecast, q, scale, shift, and with more than one segment state: the shapes are `Config`'s."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            self.minutes, self.l_width, self.segments = config.minutes, config.l_width, config.segments
            self.film = nn.Linear(config.h_width, 2 * config.l_width)
            self.cross = _cross_attention(config) if config.cross_attention else None
            self.feedback = nn.Linear(config.l_width, config.h_width)
            self.forecast_head = nn.Linear(config.l_width, config.targets)
            self.q_head = nn.Linear(config.h_width, 2)

        def modulation(self, history: "Tensor") -> "tuple[Tensor, ...]":
            return self.film(history.mean(dim=1)).split(self.l_width, dim=1)  # type: ignore[no-any-return]

        def forecast(self, history: "Tensor | None", tokens: "Tensor", steps: int) -> "tuple[Tensor, Tensor]":
            """Return the forecast and the tokens that it was made from."""
            if self.cross is not None:
                tokens = self.cross(tokens, history, steps)
            return self.forecast_head(tokens), tokens

        def answers(self, history: "Tensor", tokens: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
            forecast, tokens = self.forecast(history, tokens, self.minutes)
            state = history.mean(dim=1) + self.feedback(tokens.mean(dim=1))
            return forecast, self.q_head(state), state

        def forward(self, history: "Tensor", tokens: "Tensor") -> "tuple[Tensor, ...]":
            forecast, q, state = self.answers(history, tokens)
            scale, shift = self.modulation(history)
            return (forecast, q, scale, shift, state) if self.segments > 1 else (forecast, q, scale, shift)

    class HRM(nn.Module):
        """daily [batch, days, daily_features], minutes [batch, minutes, minute_features]
        -> forecast [batch, minutes, targets], q [batch, 2] (halt, go on)."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            self.config = config
            self.h_module, self.l_module = HModule(config), LModule(config)
            self.conditioning = Conditioning(config)

        def forward(self, daily: "Tensor", minutes: "Tensor") -> "tuple[Tensor, Tensor]":
            state = None
            for _ in range(self.config.segments):
                history = self.h_module(daily, state)
                tokens = self.l_module(minutes, *self.conditioning.modulation(history))
                forecast, q, state = self.conditioning.answers(history, tokens)
            return forecast, q

    return HRM


def _cross_attention(config: Config) -> "nn.Module":
    return cross_attention()(config.l_width, config.h_width, config.l_heads, config.days)


def build(config: Config) -> "nn.Module":
    """Return the model with freshly initialised weights, in training mode."""
    return network()(config)


def _h_module(config: Config) -> Tensors:
    return Tensors((config.daily, *config.state), (config.history,))


def _l_module(config: Config) -> Tensors:
    return Tensors((config.minute_bars, *config.modulation), (config.tokens,))


def _conditioning(config: Config) -> Tensors:
    return Tensors((config.history, config.tokens), (*config.outputs, *config.modulation, *config.state))


def _stream_step(config: Config) -> Tensors:
    if not config.causal:
        raise ConfigurationError(
            "stream-step keeps keys and values of minutes that see none after them, and causal is false",
            next_step="Add --set causal=true.",
        )
    new, past, head_width = config.stream_minutes, config.span - 1, config.l_width // config.l_heads
    caches = [(name, config.l_layers * config.l_heads, past, head_width) for name in ("keys", "values")]
    position = ("position", "int64", (BATCH,))
    history = (config.history,) if config.cross_attention else ()
    return Tensors(
        inputs=(
            _floats("minutes", new, config.minute_features),
            *config.modulation,
            *history,
            *(_floats(*cache) for cache in caches),
            TensorSpec(*position),
        ),
        outputs=(
            _floats("forecast", new, config.targets),
            *(_floats(f"next_{name}", *shape) for name, *shape in caches),
            TensorSpec(f"next_{position[0]}", *position[1:]),
        ),
    )


COMPONENTS = (
    Component("h-module", "the days before, as a history", _h_module, lambda whole: whole.h_module),
    Component("l-module", "the day's minutes, as tokens", _l_module, lambda whole: whole.l_module),
    Component("conditioning-heads", "FiLM, forecast and Q-head", _conditioning, lambda whole: whole.conditioning),
    Component("stream-step", "the next minutes, with cached keys and values", _stream_step, stream_step),
)

FP32_LAYERS = ("film", "q_head")
