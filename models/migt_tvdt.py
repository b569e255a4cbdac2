"""migt-tvdt: 7 quantiles of a price at 5 horizons, from 288 bars of 24 market variables.

Every variable is normalised over the valid bars of its window and gated, each value embedded, and the bar's calendar
added.  Attention runs over the time of each variable (4 layers), then over the variables of each bar (2 layers); a
learned weighing pools all valid tokens into one vector, from which the quantiles come:

    x' = (x - mean) / sqrt(variance + eps) over valid bars              RevIN (Kim et al. 2022), without affine
    y = x' * sigmoid(W x'_t + b)                                        LGU: the variables of bar t gate each other
    token[v, t] = y[v, t] w_v + b_v + W_p position(calendar_t)          [batch, variables, bars, width]
    layer: x + attention(norm(x)), then x + W_2 relu(W_1 norm(x))       pre-norm
    pooled = sum of a_i token_i, a = softmax(u . norm(token) + mask)
    q_1 = base, q_(k+1) = q_k + softplus(gap_k), times deviation plus mean of the target variable

Position, 96 values: time of day as sin and cos of harmonics 1 to 16 of the day (32), day of week learned (16), day of
month and day of year as Time2Vec (Kazemi et al. 2019: one linear value, the others sines; 16 and 32).

Inputs: `bars` in the order of `calibration.migt_features`; `valid`, True where a bar is; `calendar` per bar: minute of
the day 0..1439, weekday 0..6 (Monday is 0), day of the month 1..31, day of the year 1..366, anything of that in
padding.  What stands in padding changes nothing, and a window without a valid bar answers finite numbers.

Source: the MIGT-TVDT document the project was created from; the gated normalisation is named after Gu et al. 2025,
"MIGT: Memory Instance Gated Transformer".  The document gives widths, heads, numbers of layers and the position; the
form of the gate, the feed-forward width, ReLU, pre-norm, the horizons in bars and the levels are ours.

Fault of the document: it says that `scaled_dot_product_attention` masks where a boolean mask is True, and inverts its
mask.  It is the other way round: there True takes part; it is `nn.MultiheadAttention`'s `key_padding_mask` that ignores
True.  Here the mask is a number added to the scores, 0 for valid bars, computed once.

Fault of the document: 25 features are produced and the model takes 24.  See `misfit_hint`.

Quantiles cannot cross: the last operation takes at each level the largest of those up to it, which no rounding and no
quantization of what comes before can undo.  The gaps are positive anyway, so that it changes nothing but rounding.

Limits: 6912 tokens of width 256 a sample.  Each sample adds about 0.1 GB of activations, and where a runtime writes the
scores out, [192, 288, 288], another 0.06 GB for each copy of them.  In half precision RevIN stays in fp32: dollar
volumes exceed 65504.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from tsexport.errors import ConfigurationError
from tsexport.models.definition import require_divisible, require_dropout, require_positive
from tsexport.types import BATCH, HeadLayout, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tsexport.models.loading import Misfit

MINUTES_PER_DAY = 1440
DAYS_PER_WEEK, DAYS_PER_MONTH, DAYS_PER_YEAR = 7, 31, 366
CALENDAR_INDICES = 4
TIME_OF_DAY, DAY_OF_WEEK, DAY_OF_MONTH, DAY_OF_YEAR = 32, 16, 16, 32
"""How many of the position's values each index of the calendar gives."""
POSITION = TIME_OF_DAY + DAY_OF_WEEK + DAY_OF_MONTH + DAY_OF_YEAR

REVIN_EPSILON = 1e-5
MASKED = -1e4
"""Added to the scores of padding: exp of it is 0 in fp32 and below, and unlike infinity it gives no NaN."""
FEATURES_PRODUCED = 25


@dataclass(frozen=True)
class Config:
    """Sizes; `horizons` are bars ahead, `target_variable` (3: close) is what the quantiles are of."""

    context_length: int = 288
    n_variables: int = 24
    target_variable: int = 3
    horizons: tuple[int, ...] = (1, 3, 6, 12, 24)
    quantiles: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
    width: int = 256
    heads: int = 8
    temporal_layers: int = 4
    variable_layers: int = 2
    feed_forward: int = 1024
    dropout: float = 0.1

    def __post_init__(self) -> None:
        require_positive(self, "context_length", "n_variables", "horizons", "width", "heads")
        require_positive(self, "temporal_layers", "variable_layers", "feed_forward")
        require_divisible({"width": self.width, "heads": self.heads})
        require_dropout(self.dropout)
        if not 0 <= self.target_variable < self.n_variables:
            raise ConfigurationError(
                f"target_variable is {self.target_variable}; it must be at least 0 and below n_variables, "
                f"{self.n_variables}",
                next_step="Count variables from 0: the close is 3.",
            )
        steps = (0.0, *self.quantiles, 1.0)
        if not self.quantiles or not all(low < high for low, high in pairwise(steps)):
            raise ConfigurationError(
                f"quantiles is {list(self.quantiles)}; it must be levels between 0 and 1, each above the one before",
                next_step="Write for example --set quantiles=0.1,0.5,0.9.",
            )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec("bars", "float32", (BATCH, self.context_length, self.n_variables)),
            TensorSpec("valid", "bool", (BATCH, self.context_length)),
            TensorSpec("calendar", "int64", (BATCH, self.context_length, CALENDAR_INDICES)),
        )

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("quantiles", "float32", (BATCH, len(self.horizons), len(self.quantiles))),)


def misfit_hint(config: Config, misfit: "Misfit") -> str:
    """Return what to do about a checkpoint of another number of variables, "" where that is not what is wrong."""
    taken = next((file[0] for name, _, file in misfit.reshaped if name == "embedding.weight"), None)
    if taken is None or taken == config.n_variables:
        return ""
    return (
        f"The checkpoint takes {taken} variables and the model {config.n_variables}: set n_variables={taken}. Of the "
        f"{FEATURES_PRODUCED} features that are produced 24 go in: drop macd_signal (the alternative is "
        f"bbands_middle), or set n_variables={FEATURES_PRODUCED}."
    )


@cache
def network() -> "type[nn.Module]":
    """Return the class MIGTTVDT (defined here so that reading a Config needs no torch)."""
    import torch
    from torch import nn

    class Gate(nn.Module):
        """LGU: normalised rows [rows, variables] -> the same, each value damped as the bar's others say."""

        def __init__(self, variables: int) -> None:
            super().__init__()
            self.linear = nn.Linear(variables, variables)

        def forward(self, rows: "Tensor") -> "Tensor":
            return rows * torch.sigmoid(self.linear(rows))

    class VariableEmbedding(nn.Module):
        """Values [batch, variables, bars, 1] -> [batch, variables, bars, width], each variable by a map of its own."""

        def __init__(self, variables: int, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(variables, 1, width))
            self.bias = nn.Parameter(torch.randn(variables, 1, width))

        def forward(self, values: "Tensor") -> "Tensor":
            return values * self.weight + self.bias

    class Time2Vec(nn.Module):
        """Values [.., 1] in 0..1 -> [.., size]: w_0 x + p_0, then sin(w_i x + p_i)."""

        def __init__(self, size: int) -> None:
            super().__init__()
            frequency = 2 * torch.pi * torch.arange(size, dtype=torch.float32)  # harmonics to begin with
            frequency[0] = 1
            self.frequency = nn.Parameter(frequency)
            self.phase = nn.Parameter(torch.empty(size).uniform_(-torch.pi, torch.pi))

        def forward(self, values: "Tensor") -> "Tensor":
            angles = values * self.frequency + self.phase
            return torch.cat([angles[..., :1], torch.sin(angles[..., 1:])], dim=-1)

    class Position(nn.Module):
        """calendar [batch, bars, 4] -> [batch, 1, bars, width]: computed from the indices, so no table is exported."""

        harmonics: "Tensor"

        def __init__(self, config: Config) -> None:
            super().__init__()
            self.shape = (-1, 1, config.context_length, config.width)
            harmonics = 2 * torch.pi * torch.arange(1, TIME_OF_DAY // 2 + 1) / MINUTES_PER_DAY
            self.register_buffer("harmonics", harmonics, persistent=False)
            self.weekday = nn.Embedding(DAYS_PER_WEEK, DAY_OF_WEEK)
            self.day_of_month, self.day_of_year = Time2Vec(DAY_OF_MONTH), Time2Vec(DAY_OF_YEAR)
            self.projection = nn.Linear(POSITION, config.width)

        def forward(self, calendar: "Tensor") -> "Tensor":
            rows = calendar.reshape(-1, CALENDAR_INDICES)
            numbers = rows.to(self.harmonics.dtype)
            angles = numbers[:, :1] * self.harmonics
            parts = [
                torch.sin(angles),
                torch.cos(angles),
                self.weekday(rows[:, 1]),
                self.day_of_month(numbers[:, 2:3] / DAYS_PER_MONTH),
                self.day_of_year(numbers[:, 3:] / DAYS_PER_YEAR),
            ]
            return self.projection(torch.cat(parts, dim=1)).reshape(self.shape)  # type: ignore[no-any-return]

    class SelfAttention(nn.Module):
        """Rows [batch * groups * steps, width] attend to the steps of their group."""

        def __init__(self, config: Config, groups: int, steps: int) -> None:
            super().__init__()
            width, heads, head_width = config.width, config.heads, config.width // config.heads
            self.head_width, self.groups, self.steps = head_width, groups, steps
            self.scale, self.dropout = head_width**-0.5, config.dropout
            self.keep_heads(heads)
            self.in_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

        @property
        def head_layout(self) -> HeadLayout:
            return HeadLayout(self.heads, self.head_width, (("in_proj", 3),), "out_proj")

        def keep_heads(self, count: int) -> None:
            self.heads, self.width = count, count * self.head_width
            self.split = (-1, self.steps, 3 * count, self.head_width)
            # one mask [batch, 1, 1, steps] serves all groups
            self.together = (-1, self.groups * count, self.steps, self.head_width)
            self.apart = (-1, count, self.steps, self.head_width)

        def forward(self, rows: "Tensor", mask: "Tensor | None") -> "Tensor":
            projected = self.in_proj(rows).reshape(self.split).transpose(1, 2)
            q, k, v = (part.reshape(self.together) for part in projected.split(self.heads, dim=1))
            dropout = self.dropout if self.training else 0.0
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)
            return self.out_proj(mixed.reshape(self.apart).transpose(1, 2).reshape(-1, self.width))  # type: ignore[no-any-return]

    class Layer(nn.Module):
        """Pre-norm attention and feed-forward on rows [batch * groups * steps, width]."""

        def __init__(self, config: Config, groups: int, steps: int) -> None:
            super().__init__()
            self.attention = SelfAttention(config, groups, steps)
            self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
            self.linear1 = nn.Linear(config.width, config.feed_forward)
            self.linear2 = nn.Linear(config.feed_forward, config.width)
            self.dropout = nn.Dropout(config.dropout)

        def forward(self, rows: "Tensor", mask: "Tensor | None") -> "Tensor":
            rows = rows + self.dropout(self.attention(self.norm1(rows), mask))
            hidden = self.dropout(torch.relu(self.linear1(self.norm2(rows))))
            return rows + self.dropout(self.linear2(hidden))  # type: ignore[no-any-return]

    class Quantiles(nn.Module):
        """pooled [batch, width], mean and deviation [batch, 1, 1] -> [batch, horizons, levels], sorted."""

        upto: "Tensor"

        def __init__(self, config: Config) -> None:
            super().__init__()
            levels = len(config.quantiles)
            self.shape = (-1, len(config.horizons), levels)
            self.linear = nn.Linear(config.width, len(config.horizons) * levels)
            self.register_buffer("upto", torch.ones(levels, levels, dtype=torch.bool).tril(), persistent=False)

        def forward(self, pooled: "Tensor", mean: "Tensor", deviation: "Tensor") -> "Tensor":
            raw = self.linear(pooled).reshape(self.shape)
            steps = torch.cat([raw[:, :, :1], nn.functional.softplus(raw[:, :, 1:])], dim=2)
            zero = torch.zeros((), dtype=steps.dtype)
            levels = torch.where(self.upto, steps.unsqueeze(2), zero).sum(dim=3) * deviation + mean
            # Whatever rounding did: at each level the largest of those up to it.
            return torch.where(self.upto, levels.unsqueeze(2), levels[:, :, :1].unsqueeze(3)).amax(dim=3)

    class MIGTTVDT(nn.Module):
        """bars [batch, bars, variables], valid [batch, bars], calendar [batch, bars, 4] -> quantiles."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            steps, variables, width = config.context_length, config.n_variables, config.width
            self.target, self.variables = config.target_variable, variables
            self.by_bar, self.rows = (-1, steps, variables), (-1, width)
            self.by_variable = (-1, variables, steps, width)
            self.flat, self.all_tokens = (-1, 1, steps * variables), (-1, steps * variables, width)
            self.gate = Gate(variables)
            self.embedding = VariableEmbedding(variables, width)
            self.position = Position(config)
            self.dropout = nn.Dropout(config.dropout)
            self.temporal = nn.ModuleList(Layer(config, variables, steps) for _ in range(config.temporal_layers))
            self.across = nn.ModuleList(Layer(config, steps, variables) for _ in range(config.variable_layers))
            self.norm = nn.LayerNorm(width)
            self.weighing = nn.Linear(width, 1, bias=False)
            self.quantiles = Quantiles(config)

        def forward(self, bars: "Tensor", valid: "Tensor", calendar: "Tensor") -> "Tensor":
            seen = valid.unsqueeze(2)  # [batch, bars, 1]
            taken = seen.to(bars.dtype)
            mask = (1 - taken) * MASKED
            values = torch.where(seen, bars, torch.zeros((), dtype=bars.dtype))  # padding may hold anything, NaN too
            count = taken.sum(dim=1, keepdim=True).clamp(min=1)
            mean = values.sum(dim=1, keepdim=True) / count  # [batch, 1, variables]
            centred = (values - mean) * taken
            deviation = torch.sqrt((centred * centred).sum(dim=1, keepdim=True) / count + REVIN_EPSILON)
            gated = self.gate((centred / deviation).reshape(-1, self.variables)).reshape(self.by_bar)

            columns = gated.transpose(1, 2).unsqueeze(3)  # [batch, variables, bars, 1]
            tokens = self.embedding(columns) + self.position(calendar)
            rows = self.dropout(tokens).reshape(self.rows)
            bars_mask = mask.transpose(1, 2).unsqueeze(1)  # [batch, 1, 1, bars]
            for layer in self.temporal:
                rows = layer(rows, bars_mask)
            rows = rows.reshape(self.by_variable).transpose(1, 2).reshape(self.rows)  # bar after bar from here on
            for layer in self.across:
                rows = layer(rows, None)

            rows = self.norm(rows)
            scores = self.weighing(rows).reshape(self.by_bar) + mask
            weights = torch.softmax(scores.reshape(self.flat), dim=2)
            pooled = (weights @ rows.reshape(self.all_tokens)).squeeze(1)  # [batch, width]
            target = slice(self.target, self.target + 1)
            return self.quantiles(pooled, mean[:, :, target], deviation[:, :, target])  # type: ignore[no-any-return]

    return MIGTTVDT


def build(config: Config) -> "nn.Module":
    """Return the model with freshly initialised weights, in training mode."""
    return network()(config)
