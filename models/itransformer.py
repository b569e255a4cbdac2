"""itransformer: every channel's whole past is one token, and attention runs over the channels.

The series is normalised by its own mean and standard deviation over the window (`use_norm`), each channel's past is
mapped linearly to a token of `width` values, and post-norm encoder layers mix the tokens.  Each channel's token is
mapped linearly to its horizon, and the normalisation is undone.  There is no position: channels have no order.

Source: Liu et al. 2024, "iTransformer: Inverted Transformers Are Effective for Time Series Forecasting".  The names of
the weights are those of the authors' repository (thuml/iTransformer), so that its checkpoints load strictly.  The
defaults are its ETTh1 96 -> 96 script: width and feed-forward 256, 2 layers, with run.py's 8 heads, dropout 0.1, GELU.

With `time_marks` the model takes a second input: hour, weekday, day of month and day of year of every past step, each
scaled to -0.5..0.5.  They become four more tokens, whose forecasts are dropped.  They change no weight's shape: a
checkpoint fits with and without, but the authors train with them on every data set except PEMS and Solar.

With `classes` the model answers logits instead: GELU of all tokens, side by side, mapped linearly to the classes, as in
the authors' later repository (thuml/Time-Series-Library), whose classifier takes no time marks and does not normalise
(`use_norm=false`).  The named sizes are classifiers; `horizon` then counts for nothing.  Their steps, width, heads and
layers are published in the Model Infrastructure Requirements Guide; their feed-forward is as wide as the tokens.

The feed-forward's convolutions of length 1 are computed as matrix products, which they are.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from tsexport.errors import ConfigurationError
from tsexport.models.definition import Sizes, require_classes, require_divisible, require_positive
from tsexport.types import BATCH, HeadLayout, Task, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

NORM_EPSILON = 1e-5
TIME_MARKS = 4


@dataclass(frozen=True)
class Config:
    """Sizes in the authors' sense; `width` is d_model, `feed_forward` d_ff, `layers` e_layers.

    `classes` is 0 for a forecast.
    """

    SIZES: ClassVar[Sizes] = {
        "small": {"classes": 3, "context_length": 256, "width": 128, "heads": 4, "layers": 2, "feed_forward": 128},
        "medium": {"classes": 3, "context_length": 512, "width": 256, "heads": 8, "layers": 4, "feed_forward": 256},
        "large": {"classes": 3, "context_length": 512, "width": 512, "heads": 16, "layers": 8, "feed_forward": 512},
    }

    context_length: int = 96
    horizon: int = 96
    channels: int = 7
    layers: int = 2
    width: int = 256
    heads: int = 8
    feed_forward: int = 256
    dropout: float = 0.1
    use_norm: bool = True
    time_marks: bool = False
    classes: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "context_length", "horizon", "channels", "layers", "width", "heads", "feed_forward")
        require_divisible({"width": self.width, "heads": self.heads})
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        if self.classes:
            require_classes(self.classes)
        if self.classes and self.time_marks:
            raise ConfigurationError(
                f"time_marks is true and classes is {self.classes}: the authors' classifier takes no time marks",
                next_step="Set classes=0 for a forecast, or time_marks=false.",
            )

    @property
    def task(self) -> Task:
        return "classification" if self.classes else "forecast"

    @property
    def tokens(self) -> int:
        """Tokens that attend to each other: channels, then time marks."""
        return self.channels + TIME_MARKS * self.time_marks

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        series = TensorSpec("series", "float32", (BATCH, self.context_length, self.channels))
        marks = TensorSpec("time_marks", "float32", (BATCH, self.context_length, TIME_MARKS))
        return (series, marks) if self.time_marks else (series,)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        if self.classes:
            return (TensorSpec("logits", "float32", (BATCH, self.classes)),)
        return (TensorSpec("forecast", "float32", (BATCH, self.horizon, self.channels)),)


@cache
def network() -> "type[nn.Module]":
    """Return the class ITransformer (defined here so that reading a Config needs no torch)."""
    import torch
    from torch import nn

    class Embedding(nn.Module):
        """[batch, tokens, context_length] -> [batch, tokens, width]."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            self.value_embedding = nn.Linear(config.context_length, config.width)
            self.dropout = nn.Dropout(config.dropout)

        def forward(self, pasts: "Tensor") -> "Tensor":
            return self.dropout(self.value_embedding(pasts))  # type: ignore[no-any-return]

    class Attention(nn.Module):
        """Multi-head self-attention over tokens [batch, tokens, width]."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            width, self.tokens, self.head_width = config.width, config.tokens, config.width // config.heads
            self.keep_heads(config.heads)
            self.scale = self.head_width**-0.5
            self.query_projection = nn.Linear(width, width)
            self.key_projection = nn.Linear(width, width)
            self.value_projection = nn.Linear(width, width)
            self.out_projection = nn.Linear(width, width)
            self.dropout = nn.Dropout(config.dropout)

        @property
        def head_layout(self) -> HeadLayout:
            maps = (("query_projection", 1), ("key_projection", 1), ("value_projection", 1))
            return HeadLayout(self.split[2], self.head_width, maps, "out_projection")

        def keep_heads(self, count: int) -> None:
            self.split = (-1, self.tokens, count, self.head_width)
            self.joined = (-1, self.tokens, count * self.head_width)

        def forward(self, tokens: "Tensor") -> "Tensor":
            query = self.query_projection(tokens).reshape(self.split).permute(0, 2, 1, 3)
            key = self.key_projection(tokens).reshape(self.split).permute(0, 2, 3, 1)
            value = self.value_projection(tokens).reshape(self.split).permute(0, 2, 1, 3)
            weights = self.dropout(torch.softmax(query @ key * self.scale, dim=-1))  # [batch, heads, tokens, tokens]
            mixed = (weights @ value).permute(0, 2, 1, 3).reshape(self.joined)
            return self.out_projection(mixed)  # type: ignore[no-any-return]

    class Pointwise(nn.Conv1d):
        """[batch, tokens, inputs] -> [batch, tokens, outputs], by the weights of a convolution of length 1."""

        def forward(self, tokens: "Tensor") -> "Tensor":
            return nn.functional.linear(tokens, self.weight[:, :, 0], self.bias)

    class EncoderLayer(nn.Module):
        """Post-norm attention and feed-forward on tokens [batch, tokens, width]."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            width, inner = config.width, config.feed_forward
            self.attention = Attention(config)
            # The checkpoints store the two maps as convolutions of length 1: [out, in, 1].
            self.conv1, self.conv2 = Pointwise(width, inner, 1), Pointwise(inner, width, 1)
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.dropout = nn.Dropout(config.dropout)

        def forward(self, tokens: "Tensor") -> "Tensor":
            tokens = self.norm1(tokens + self.dropout(self.attention(tokens)))
            inner = self.dropout(nn.functional.gelu(self.conv1(tokens)))
            return self.norm2(tokens + self.dropout(self.conv2(inner)))  # type: ignore[no-any-return]

    class Encoder(nn.Module):
        def __init__(self, config: Config) -> None:
            super().__init__()
            self.attn_layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
            self.norm = nn.LayerNorm(config.width)

        def forward(self, tokens: "Tensor") -> "Tensor":
            for layer in self.attn_layers:
                tokens = layer(tokens)
            return self.norm(tokens)  # type: ignore[no-any-return]

    class ITransformer(nn.Module):
        """series [batch, context_length, channels], with `time_marks` also [batch, context_length, 4]
        -> forecast [batch, horizon, channels], or logits [batch, classes]."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            self.channels, self.use_norm = config.channels, config.use_norm
            self.values = config.channels * config.width
            self.enc_embedding = Embedding(config)
            self.encoder = Encoder(config)
            self.classifies = config.classes > 0
            if self.classifies:
                self.dropout = nn.Dropout(config.dropout)
                self.projection = nn.Linear(self.values, config.classes)
            else:
                self.projector = nn.Linear(config.width, config.horizon)

        def normalise(self, series: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
            """Return the series in units of its window, and mean and deviation [batch, 1, channels]."""
            mean = series.mean(dim=1, keepdim=True)
            centred = series - mean
            deviation = torch.sqrt((centred * centred).mean(dim=1, keepdim=True) + NORM_EPSILON)
            return centred / deviation, mean, deviation

        def logits(self, series: "Tensor") -> "Tensor":
            tokens = nn.functional.gelu(self.encoder(self.enc_embedding(series.transpose(1, 2))))
            return self.projection(self.dropout(tokens).reshape(-1, self.values))  # type: ignore[no-any-return]

        def forecast(self, series: "Tensor", marks: "Tensor | None") -> "Tensor":
            seen = series if marks is None else torch.cat([series, marks], dim=2)
            tokens: Tensor = self.encoder(self.enc_embedding(seen.transpose(1, 2)))
            future: Tensor = self.projector(tokens[:, : self.channels])  # [batch, channels, horizon]
            return future.transpose(1, 2)

        def forward(self, series: "Tensor", time_marks: "Tensor | None" = None) -> "Tensor":
            if self.classifies:
                return self.logits(self.normalise(series)[0] if self.use_norm else series)
            if not self.use_norm:
                return self.forecast(series, time_marks)
            normalised, mean, deviation = self.normalise(series)
            return self.forecast(normalised, time_marks) * deviation + mean

    return ITransformer


def build(config: Config) -> "nn.Module":
    """Return the model with freshly initialised weights, in training mode."""
    return network()(config)
