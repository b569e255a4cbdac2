"""The network of sfno-hybrid and sfno-edge: the next hour's weather on a regional grid, by a spectral U-Net.

    level l    fields [batch, widths[l], latitudes / 4^l, longitudes / 4^l]; a patch convolution of stride 4 leads down
    block      x <- x + GELU(spectral(norm(x)) + W norm(x)),   x <- x + W2 GELU(W1 norm(x))      (1x1 convolutions)
    bottom     a transformer over the points of the coarsest level.  Each layer is self-attention, cross-level attention
               and a feed-forward network, each on the normed tokens and added to them.  Cross-level attention looks at
               the finer levels, averaged over the points that lie in one of the coarsest level's, and projected
    decoder    up by a transposed convolution of stride 4, joined to the field of the same grid on the way down, a 3x3
               convolution; at the finest level another one to half its width
    heads      1x1 convolutions: one for the two winds (momentum), one for the other channels; their answer is the
               change from this hour to the next, so field = state + change

Channels in order: temperature, dew point, U wind, V wind, sea-level pressure, precipitation, solar radiation, thermal
radiation, cloud cover, Z500, T850, RH700, W500; each standardised.  One step is one hour; forecasts of up to 168 hours
feed the field back as the state.

**The transform is not spherical**: the grid is a flat patch, and the 2-D FFT takes it for periodic (see
`tsexport.models.spectral`).  A spherical harmonic transform needs the whole globe.

Source: the SFNO-Hybrid document, whose published code cannot run; the spectral layer is that of Li et al. 2021, the
transformer that of Vaswani et al. 2017 with its norms first.  What is other than published, since it was at fault:

- norms are BatchNorm over channels (free of the grid's size, and an affine map in an export) and LayerNorm over the
  width of a token, not LayerNorm over a fixed [channels, 256, 256] at every level;
- the number of modes reaches every block, and is at most half the points of a level: at 16x16, 32 do not exist;
- patch convolutions have stride 4, as in the diagram, and as many levels lead up as down, so 256x256 comes out as such;
- the output is one tensor, not a tuple with an empty dict;
- no complex slice is assigned to: the spectrum is put together;
- latitude frequencies are signed, and spectral weights separable: dense ones come to 7,985,230,093 parameters;
- the diagram's cross-level attention and momentum head are there;
- physics residuals belong to training: published ones were part of the model, and differentiated over the batch.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from tsexport.errors import ConfigurationError
from tsexport.models.definition import Narrowing, require_divisible, require_positive
from tsexport.types import BATCH, HeadLayout, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

PATCH = 4
"""From one level to the next, in each direction."""
EXPANSION = 4
"""Of the two 1x1 convolutions of a spectral block."""
FIRST_WIND, WINDS = 2, 2
"""U wind and V wind among the channels."""


@dataclass(frozen=True)
class Config:
    """Sizes; `widths` are the channels of the levels, finest first, and the last one is the transformer's width.

    `modes` are the frequencies kept along longitude, and of each sign along latitude; a level keeps at most half its
    points.  `blocks` are the spectral blocks of a level, `layers`, `heads` and `feed_forward` the transformer's.
    """

    channels: int = 13
    latitudes: int = 256
    longitudes: int = 256
    widths: tuple[int, ...] = (256, 512, 1024)
    modes: int = 32
    blocks: int = 2
    layers: int = 12
    heads: int = 8
    feed_forward: int = 4096

    def __post_init__(self) -> None:
        names = ("channels", "latitudes", "longitudes", "widths", "modes", "blocks", "layers", "heads", "feed_forward")
        require_positive(self, *names)
        if self.channels <= FIRST_WIND + WINDS:
            raise ConfigurationError(
                f"channels is {self.channels}; it must be {FIRST_WIND + WINDS + 1} or more, since the momentum head "
                f"answers channels {FIRST_WIND} and {FIRST_WIND + 1}, the winds, and another head the rest"
            )
        if len(self.widths) < 2:
            raise ConfigurationError(
                f"widths is {self.widths}; it must hold two levels or more",
                next_step="Write for example --set widths=16,32.",
            )
        require_divisible({"the last of widths": self.widths[-1], "heads": self.heads})
        require_divisible({"the first of widths": self.widths[0], "the decoder's last step": 2})
        parts = PATCH ** (len(self.widths) - 1)
        for name in ("latitudes", "longitudes"):
            size = getattr(self, name)
            if size % parts or size < 2 * parts:
                raise ConfigurationError(
                    f"{name} is {size}; {len(self.widths)} levels divide it by {PATCH} {len(self.widths) - 1} times, "
                    "and two points must be left",
                    next_step=f"Choose a multiple of {parts}, at least {2 * parts}, or fewer widths.",
                )

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """(latitudes, longitudes) of the levels, finest first."""
        return tuple(
            (self.latitudes // PATCH**level, self.longitudes // PATCH**level) for level in range(len(self.widths))
        )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("state", "float32", (BATCH, self.channels, self.latitudes, self.longitudes)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("field", "float32", (BATCH, self.channels, self.latitudes, self.longitudes)),)


@cache
def network() -> "type[nn.Module]":
    """Return the class SFNO (defined here so that reading a Config needs no torch)."""
    import torch
    from torch import nn

    from tsexport.models.spectral import SpectralConv

    class SpectralBlock(nn.Module):
        """[batch, width, latitudes, longitudes] -> the same."""

        def __init__(self, width: int, grid: tuple[int, int], modes: int) -> None:
            super().__init__()
            self.norm, self.mlp_norm = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
            self.spectral = SpectralConv(width, *grid, modes)
            self.local = nn.Conv2d(width, width, 1)
            hidden = EXPANSION * width
            self.mlp = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.GELU(), nn.Conv2d(hidden, width, 1))

        def forward(self, field: "Tensor") -> "Tensor":
            normed = self.norm(field)
            field = field + nn.functional.gelu(self.spectral(normed) + self.local(normed))
            return field + self.mlp(self.mlp_norm(field))  # type: ignore[no-any-return]

    class Attention(nn.Module):
        """Tokens [batch, steps, width] look at memory [batch, remembered, width], or at themselves."""

        def __init__(self, width: int, heads: int, steps: int, remembered: int | None = None) -> None:
            super().__init__()
            self.width, self.heads, self.head_width, self.steps = width, heads, width // heads, steps
            self.remembered = steps if remembered is None else remembered
            self.scale = self.head_width**-0.5
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
            self.output = nn.Linear(width, width)

        @property
        def head_layout(self) -> HeadLayout:
            return HeadLayout(self.heads, self.head_width, (("query", 1), ("key", 1), ("value", 1)), "output")

        def keep_heads(self, count: int) -> None:
            self.heads, self.width = count, count * self.head_width

        def split(self, tokens: "Tensor", steps: int) -> "Tensor":
            return tokens.reshape(-1, steps, self.heads, self.head_width).transpose(1, 2)

        def forward(self, tokens: "Tensor", memory: "Tensor") -> "Tensor":
            query = self.split(self.query(tokens) * self.scale, self.steps)
            key = self.split(self.key(memory), self.remembered)
            value = self.split(self.value(memory), self.remembered)
            mixed = torch.softmax(query @ key.transpose(-1, -2), dim=-1) @ value  # [batch, heads, steps, head_width]
            return self.output(mixed.transpose(1, 2).reshape(-1, self.steps, self.width))  # type: ignore[no-any-return]

    class Layer(nn.Module):
        """One layer: tokens [batch, steps, width] and memory [batch, remembered, width] -> tokens."""

        def __init__(self, config: Config, steps: int, remembered: int) -> None:
            super().__init__()
            width = config.widths[-1]
            self.self_norm, self.cross_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
            self.self_attention = Attention(width, config.heads, steps)
            self.cross_attention = Attention(width, config.heads, steps, remembered)
            hidden = config.feed_forward
            self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

        def forward(self, tokens: "Tensor", memory: "Tensor") -> "Tensor":
            normed = self.self_norm(tokens)
            tokens = tokens + self.self_attention(normed, normed)
            tokens = tokens + self.cross_attention(self.cross_norm(tokens), memory)
            return tokens + self.mlp(self.mlp_norm(tokens))  # type: ignore[no-any-return]

    class Bottom(nn.Module):
        """The fields of all levels, finest first -> the coarsest one, after the transformer."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            self.width, self.grid = config.widths[-1], config.grids[-1]
            self.points = self.grid[0] * self.grid[1]
            finer = config.widths[:-1]
            factors = [PATCH ** (len(finer) - level) for level in range(len(finer))]
            # One projection a level, with a position for each point: they tell the levels and points apart.
            self.pools = nn.ModuleList(nn.AvgPool2d(factor) for factor in factors)
            self.projections = nn.ModuleList(nn.Conv2d(width, self.width, 1) for width in finer)
            self.position = nn.Parameter(torch.randn(self.points, self.width) * 0.02)
            self.memory_position = nn.Parameter(torch.randn(len(finer) * self.points, self.width) * 0.02)
            self.memory_norm, self.norm = nn.LayerNorm(self.width), nn.LayerNorm(self.width)
            remembered = len(finer) * self.points
            self.layers = nn.ModuleList(Layer(config, self.points, remembered) for _ in range(config.layers))

        def tokens(self, field: "Tensor") -> "Tensor":
            return field.reshape(-1, self.width, self.points).transpose(1, 2)

        def forward(self, finer: "list[Tensor]", coarsest: "Tensor") -> "Tensor":
            pooled = [
                self.tokens(projection(pool(field)))
                for pool, projection, field in zip(self.pools, self.projections, finer, strict=True)
            ]
            memory = self.memory_norm(torch.cat(pooled, dim=1) + self.memory_position)
            tokens = self.tokens(coarsest) + self.position
            for layer in self.layers:
                tokens = layer(tokens, memory)
            return self.norm(tokens).transpose(1, 2).reshape(-1, self.width, *self.grid)  # type: ignore[no-any-return]

    def joined(inputs: int, outputs: int) -> nn.Sequential:
        """A 3x3 convolution that keeps the grid."""
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.GELU())

    class SFNO(nn.Module):
        """state [batch, channels, latitudes, longitudes] -> field [batch, channels, latitudes, longitudes]."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            widths = config.widths
            finer, coarser = widths[:-1], widths[1:]
            pairs = tuple(zip(finer, coarser, strict=True))
            self.lift = nn.Conv2d(config.channels, widths[0], 3, padding=1)
            self.patch = nn.ModuleList(nn.Conv2d(slim, wide, PATCH, stride=PATCH) for slim, wide in pairs)
            self.blocks = nn.ModuleList(
                nn.Sequential(*(SpectralBlock(width, grid, config.modes) for _ in range(config.blocks)))
                for width, grid in zip(widths, config.grids, strict=True)
            )
            self.bottom = Bottom(config)
            self.rise = nn.ModuleList(nn.ConvTranspose2d(b, a, PATCH, stride=PATCH) for a, b in reversed(pairs))
            self.up = nn.ModuleList(joined(2 * slim, slim) for slim, _ in reversed(pairs))
            last = widths[0] // 2
            self.last = joined(widths[0], last)
            self.momentum = nn.Sequential(nn.Conv2d(last, last, 1), nn.GELU(), nn.Conv2d(last, WINDS, 1))
            self.head = nn.Conv2d(last, config.channels - WINDS, 1)

        def forward(self, state: "Tensor") -> "Tensor":
            field = self.blocks[0](self.lift(state))  # [batch, widths[0], latitudes, longitudes]
            finer = []
            for patch, blocks in zip(self.patch, self.blocks[1:], strict=True):
                finer.append(field)
                field = blocks(patch(field))  # a quarter of the grid in each direction
            field = self.bottom(finer, field)
            for rise, up in zip(self.rise, self.up, strict=True):
                field = up(torch.cat([finer.pop(), rise(field)], dim=1))  # four times the grid
            field = self.last(field)
            other, winds = self.head(field), self.momentum(field)
            change = torch.cat([other[:, :FIRST_WIND], winds, other[:, FIRST_WIND:]], dim=1)
            return state + change

    return SFNO


def build(config: Config) -> "nn.Module":
    """Return the model with freshly initialised weights, in training mode."""
    return network()(config)


NARROWING = Narrowing(
    keep=("spectral",),
    reason="the Fourier transforms and the complex products between them stay in fp32: torch has no products of "
    "complex halves, and cuFFT none in bf16",
)
