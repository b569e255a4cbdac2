"""patchtst: the PatchTST of the paper, with its public checkpoints' layout.

Each channel is forecast on its own with shared weights: the series is normalised by its own mean and standard deviation
over the window (RevIN without affine), padded at the end by `stride` copies of its last value, cut into overlapping
patches, embedded with a learned position, and passed through post-norm encoder layers with BatchNorm and GELU, whose
attention scores are added to those of the layer before ("residual attention").  All tokens together are mapped linearly
to the horizon, and the normalisation is undone.

With `classes` the model answers logits instead: the last patch's tokens of all channels, side by side, are mapped
linearly to the classes, as the authors' classification head does; `horizon` then counts for nothing.  The named sizes
are classifiers.

Source: Nie et al. 2023, "A Time Series is Worth 64 Words", supervised variant; the defaults are those of the public
ETTh1 336 -> 96 checkpoint.  Dropout is 0.3 while training, as in that checkpoint's script.  The named sizes are those
published in the Model Infrastructure Requirements Guide (steps, width, heads, layers); their feed-forward is twice the
width, as in the paper.

Patches are cut without `unfold`, which does not export at opset 17: where a patch is two strides long, the series is
reshaped to [.., stride] and each piece joined to the next; other patches are gathered with constant indices.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from tsexport.errors import ConfigurationError
from tsexport.models.definition import Narrowing, Sizes, require_classes, require_divisible, require_positive
from tsexport.types import BATCH, Task, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

REVIN_EPSILON = 1e-5


@dataclass(frozen=True)
class Config:
    """Sizes in the paper's sense; `width` is d_model, `feed_forward` d_ff.  `classes` is 0 for a forecast."""

    SIZES: ClassVar[Sizes] = {
        "small": {"classes": 3, "context_length": 256, "width": 128, "heads": 4, "layers": 2, "feed_forward": 256},
        "medium": {"classes": 3, "context_length": 512, "width": 256, "heads": 8, "layers": 4, "feed_forward": 512},
        "large": {"classes": 3, "context_length": 512, "width": 512, "heads": 16, "layers": 8, "feed_forward": 1024},
    }

    context_length: int = 336
    horizon: int = 96
    channels: int = 7
    patch_length: int = 16
    stride: int = 8
    layers: int = 3
    width: int = 16
    heads: int = 4
    feed_forward: int = 128
    dropout: float = 0.3
    classes: int = 0

    def __post_init__(self) -> None:
        require_positive(
            self,
            *("context_length", "horizon", "channels", "patch_length", "stride"),
            *("layers", "width", "heads", "feed_forward"),
        )
        require_divisible({"width": self.width, "heads": self.heads})
        if self.classes:
            require_classes(self.classes)
        if self.patch_length > self.context_length:
            raise ConfigurationError(
                f"patch_length is {self.patch_length}, longer than context_length {self.context_length}",
                next_step="Choose patch_length at most context_length.",
            )
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"dropout is {self.dropout}; it must be at least 0 and below 1")

    @property
    def task(self) -> Task:
        return "classification" if self.classes else "forecast"

    @property
    def patches(self) -> int:
        """Patches of the series after padding its end by one stride."""
        return (self.context_length - self.patch_length) // self.stride + 2

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("series", "float32", (BATCH, self.context_length, self.channels)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        if self.classes:
            return (TensorSpec("logits", "float32", (BATCH, self.classes)),)
        return (TensorSpec("forecast", "float32", (BATCH, self.horizon, self.channels)),)


@cache
def network() -> "type[nn.Module]":
    """Return the class PatchTST (defined here so that reading a Config needs no torch)."""
    import torch
    from torch import nn

    class Scale(nn.Module):
        """Holds 1 / sqrt(width of a head): the checkpoints store it as a tensor."""

        def __init__(self, head_width: int) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(head_width**-0.5), requires_grad=False)

    class SelfAttention(nn.Module):
        """Multi-head self-attention; its scores [rows, heads, patches, patches] add to those of the layer before."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            width = config.width
            self.split = (-1, config.patches, config.heads, width // config.heads)
            self.joined = (-1, config.patches, width)
            self.W_Q, self.W_K, self.W_V = (nn.Linear(width, width) for _ in range(3))
            self.sdp_attn = Scale(width // config.heads)
            self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(config.dropout))

        def forward(self, tokens: "Tensor", previous: "Tensor | None") -> "tuple[Tensor, Tensor]":
            query = self.W_Q(tokens).reshape(self.split).permute(0, 2, 1, 3)  # [rows, heads, patches, head width]
            key = self.W_K(tokens).reshape(self.split).permute(0, 2, 3, 1)  # [rows, heads, head width, patches]
            value = self.W_V(tokens).reshape(self.split).permute(0, 2, 1, 3)
            scores = query @ key * self.sdp_attn.scale
            if previous is not None:
                scores = scores + previous
            mixed = torch.softmax(scores, dim=-1) @ value
            return self.to_out(mixed.permute(0, 2, 1, 3).reshape(self.joined)), scores

    class Transpose(nn.Module):
        """[rows, patches, width] <-> [rows, width, patches], where BatchNorm1d wants its channels."""

        def forward(self, tokens: "Tensor") -> "Tensor":
            return tokens.transpose(1, 2)

    class EncoderLayer(nn.Module):
        """Post-norm attention and feed-forward on tokens [rows, patches, width]."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            width, inner = config.width, config.feed_forward
            self.self_attn = SelfAttention(config)
            self.norm_attn = nn.Sequential(Transpose(), nn.BatchNorm1d(width), Transpose())
            self.ff = nn.Sequential(
                nn.Linear(width, inner), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(inner, width)
            )
            self.norm_ffn = nn.Sequential(Transpose(), nn.BatchNorm1d(width), Transpose())
            self.dropout = nn.Dropout(config.dropout)

        def forward(self, tokens: "Tensor", previous: "Tensor | None") -> "tuple[Tensor, Tensor]":
            attended, scores = self.self_attn(tokens, previous)
            tokens = self.norm_attn(tokens + self.dropout(attended))
            return self.norm_ffn(tokens + self.dropout(self.ff(tokens))), scores

    class Encoder(nn.Module):
        def __init__(self, config: Config) -> None:
            super().__init__()
            self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))

        def forward(self, tokens: "Tensor") -> "Tensor":
            scores = None
            for layer in self.layers:
                tokens, scores = layer(tokens, scores)
            return tokens

    class Patches(nn.Module):
        """[rows, context_length] -> [rows, patches, patch_length], the end padded by one stride of the last value."""

        indices: "Tensor"

        def __init__(self, config: Config) -> None:
            super().__init__()
            self.stride, self.length, self.patches = config.stride, config.patch_length, config.patches
            starts = torch.arange(config.patches)[:, None] * config.stride
            indices = (starts + torch.arange(config.patch_length)).clamp(max=config.context_length - 1)
            self.register_buffer("indices", indices.flatten(), persistent=False)

        def forward(self, series: "Tensor") -> "Tensor":
            if self.length != 2 * self.stride:  # Clamped indices repeat the last value: that is the padding.
                return series.index_select(1, self.indices).reshape(-1, self.patches, self.length)
            padded = torch.cat([series, series[:, -1:].expand(-1, self.stride)], dim=1)
            pieces = padded[:, : (self.patches + 1) * self.stride].reshape(-1, self.patches + 1, self.stride)
            return torch.cat([pieces[:, :-1], pieces[:, 1:]], dim=2)

    class Backbone(nn.Module):
        """Patches [rows, patches, patch_length] -> tokens [rows, patches, width]."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            self.W_pos = nn.Parameter(torch.empty(config.patches, config.width).uniform_(-0.02, 0.02))
            self.W_P = nn.Linear(config.patch_length, config.width)
            self.dropout = nn.Dropout(config.dropout)
            self.encoder = Encoder(config)

        def forward(self, patches: "Tensor") -> "Tensor":
            return self.encoder(self.dropout(self.W_P(patches) + self.W_pos))  # type: ignore[no-any-return]

    class Head(nn.Module):
        """Tokens [rows, patches, width] -> [rows, horizon]; the checkpoints flatten width first, then patches."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            self.values = config.width * config.patches
            self.linear = nn.Linear(self.values, config.horizon)

        def forward(self, tokens: "Tensor") -> "Tensor":
            return self.linear(tokens.transpose(1, 2).reshape(-1, self.values))  # type: ignore[no-any-return]

    class ClassHead(nn.Module):
        """Tokens [batch * channels, patches, width] -> [batch, classes]; only the last patch is looked at."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            self.values = config.channels * config.width
            self.dropout = nn.Dropout(config.dropout)
            self.linear = nn.Linear(self.values, config.classes)

        def forward(self, tokens: "Tensor") -> "Tensor":
            return self.linear(self.dropout(tokens[:, -1].reshape(-1, self.values)))  # type: ignore[no-any-return]

    class PatchTST(nn.Module):
        """series [batch, context_length, channels] -> forecast [batch, horizon, channels], with `classes` logits
        [batch, classes]."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            self.context_length, self.channels, self.horizon = config.context_length, config.channels, config.horizon
            self.patches = Patches(config)
            self.backbone = Backbone(config)
            self.classifies = config.classes > 0
            self.head = ClassHead(config) if self.classifies else Head(config)

        def forward(self, series: "Tensor") -> "Tensor":
            mean = series.mean(dim=1, keepdim=True)  # [batch, 1, channels]
            centred = series - mean
            deviation = torch.sqrt((centred * centred).mean(dim=1, keepdim=True) + REVIN_EPSILON)
            rows = (centred / deviation).transpose(1, 2).reshape(-1, self.context_length)  # [batch * channels, time]
            answer: Tensor = self.head(self.backbone(self.patches(rows)))  # [batch * channels, horizon], or logits
            if self.classifies:
                return answer
            return answer.reshape(-1, self.channels, self.horizon).transpose(1, 2) * deviation + mean

    return PatchTST


def build(config: Config) -> "nn.Module":
    """Return the model with freshly initialised weights, in training mode."""
    return network()(config)


NARROWING = Narrowing(
    within=("backbone", "head"),
    reason="the window's mean and deviation, and what they are applied to, stay in fp32",
)
