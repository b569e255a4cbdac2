"""tft: the Temporal Fusion Transformer, quantiles of the future from observed, known and static inputs.

Every input variable is embedded on its own, a learned softmax weighs the variables of each step (variable selection),
an LSTM reads the past and another, begun at its last state, the future; attention with heads that share their values
looks from each future step back over everything up to it, and gated residual networks (GRN) join the parts:

    GLU(x) = (W1 x + b1) * sigmoid(W2 x + b2)
    GRN(a, c) = LayerNorm(skip(a) + GLU(W4 ELU(W3 a + b3 + W5 c) + b4))
    attention = mean over heads h of softmax(Q_h K_h^T / sqrt(d) + mask) V W_O,   d = width / heads

Source: Lim et al. 2021, "Temporal Fusion Transformers for Interpretable Multi-horizon Time Series Forecasting".
Included are real-valued inputs of all three kinds: `observed` (known up to now; what is forecast is usually among
them), `known` (past and future, a calendar for instance) and, with `static_channels`, `static`, whose four contexts
steer variable selection, both LSTM states and the enrichment before the attention.  Without them those contexts are
absent, which is the paper's formula at zero.  Categorical inputs are not included: embed them upstream.

Of the attention only the rows of future steps are computed, since nothing reads the others.  The mask hides from a
future step those after it.  Quantiles come from one linear map, as published: they are in the order of
`quantiles`, and nothing keeps them from crossing.

With `classes` the model answers logits instead of quantiles: the last future step, which looks at all the others, is
mapped linearly to the classes.  That is ours, the paper forecasts only; the known inputs are needed as before.

Sizes: the width, heads and quantiles are the project's; 168 -> 24 steps is the paper's electricity task; 5 observed
(OHLCV) and 4 known channels (hour, weekday, day of month, day of year) are ours.

The networks of the single variables are computed together, as products of [variables, rows, width] with
[variables, width, width]: the same sums as one network after the other, in a tenth of the nodes.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from tsexport.errors import ConfigurationError
from tsexport.models.definition import require_classes, require_divisible, require_positive
from tsexport.types import BATCH, Task, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

MASKED = -1e4
"""Added to the scores of hidden steps: exp of it is 0 in fp32 and below, and unlike infinity it can be quantized."""


@dataclass(frozen=True)
class Config:
    """Sizes; `channels` counts the observed variables.  `quantiles` are levels between 0 and 1, increasing.

    `classes` is 0 for quantiles.
    """

    context_length: int = 168
    horizon: int = 24
    channels: int = 5
    known_channels: int = 4
    static_channels: int = 0
    width: int = 64
    heads: int = 4
    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)
    dropout: float = 0.1
    classes: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "context_length", "horizon", "channels", "known_channels", "width", "heads")
        require_divisible({"width": self.width, "heads": self.heads})
        if self.static_channels < 0:
            raise ConfigurationError(f"static_channels is {self.static_channels}; it must be 0 or more")
        steps = (0.0, *self.quantiles, 1.0)
        if not self.quantiles or not all(low < high for low, high in pairwise(steps)):
            raise ConfigurationError(
                f"quantiles is {list(self.quantiles)}; it must be levels between 0 and 1, each above the one before",
                next_step="Write for example --set quantiles=0.1,0.5,0.9.",
            )
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        if self.classes:
            require_classes(self.classes)

    @property
    def task(self) -> Task:
        return "classification" if self.classes else "quantiles"

    @property
    def steps(self) -> int:
        """Past and future steps together."""
        return self.context_length + self.horizon

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        observed = TensorSpec("observed", "float32", (BATCH, self.context_length, self.channels))
        known = TensorSpec("known", "float32", (BATCH, self.steps, self.known_channels))
        static = TensorSpec("static", "float32", (BATCH, self.static_channels))
        return (observed, known, static) if self.static_channels else (observed, known)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        if self.classes:
            return (TensorSpec("logits", "float32", (BATCH, self.classes)),)
        return (TensorSpec("quantiles", "float32", (BATCH, self.horizon, len(self.quantiles))),)


@cache
def network() -> "type[nn.Module]":
    """Return the class TFT (defined here so that reading a Config needs no torch)."""
    import torch
    from torch import nn

    class Gate(nn.Module):
        """GLU [.., width] -> [.., size_out]: the first half of the map's values, gated by the second."""

        def __init__(self, width: int, size_out: int, dropout: float) -> None:
            super().__init__()
            self.dropout = nn.Dropout(dropout)
            self.linear = nn.Linear(width, 2 * size_out)

        def forward(self, values: "Tensor") -> "Tensor":
            return nn.functional.glu(self.linear(self.dropout(values)), dim=-1)

    class GatedSkip(nn.Module):
        """LayerNorm(skip + GLU(values))."""

        def __init__(self, width: int, dropout: float) -> None:
            super().__init__()
            self.gate = Gate(width, width, dropout)
            self.norm = nn.LayerNorm(width)

        def forward(self, values: "Tensor", skip: "Tensor") -> "Tensor":
            return self.norm(skip + self.gate(values))  # type: ignore[no-any-return]

    class GatedResidual(nn.Module):
        """The GRN: [batch, steps, size_in] and a context [batch, 1, width] or None -> [batch, steps, size_out]."""

        def __init__(self, size_in: int, width: int, size_out: int, dropout: float, *, steered: bool = False) -> None:
            super().__init__()
            self.skip = nn.Linear(size_in, size_out) if size_in != size_out else nn.Identity()
            self.hidden = nn.Linear(size_in, width)
            self.context = nn.Linear(width, width, bias=False) if steered else None
            self.output = nn.Linear(width, width)
            self.gate = Gate(width, size_out, dropout)
            self.norm = nn.LayerNorm(size_out)

        def forward(self, values: "Tensor", context: "Tensor | None" = None) -> "Tensor":
            hidden = self.hidden(values)
            if self.context is not None and context is not None:
                hidden = hidden + self.context(context)
            gated = self.gate(self.output(nn.functional.elu(hidden)))
            return self.norm(self.skip(values) + gated)  # type: ignore[no-any-return]

    class Maps(nn.Module):
        """A linear map for each variable: [variables, rows, size_in] -> [variables, rows, size_out]."""

        def __init__(self, variables: int, size_in: int, size_out: int) -> None:
            super().__init__()
            self.outer = size_in == 1
            bound = size_in**-0.5  # as nn.Linear
            self.weight = nn.Parameter(torch.empty(variables, size_in, size_out).uniform_(-bound, bound))
            self.bias = nn.Parameter(torch.empty(variables, 1, size_out).uniform_(-bound, bound))

        def forward(self, values: "Tensor") -> "Tensor":
            product = values * self.weight if self.outer else values @ self.weight
            return product + self.bias

    class VariableResiduals(nn.Module):
        """A GRN without context for each variable, on [variables, rows, width]."""

        def __init__(self, variables: int, width: int, dropout: float) -> None:
            super().__init__()
            self.width = (width,)
            self.hidden, self.output = Maps(variables, width, width), Maps(variables, width, width)
            self.dropout = nn.Dropout(dropout)
            self.gate = Maps(variables, width, 2 * width)
            self.norm_weight = nn.Parameter(torch.ones(variables, 1, width))
            self.norm_bias = nn.Parameter(torch.zeros(variables, 1, width))

        def forward(self, values: "Tensor") -> "Tensor":
            hidden = self.dropout(self.output(nn.functional.elu(self.hidden(values))))
            gated = nn.functional.glu(self.gate(hidden), dim=-1)
            return nn.functional.layer_norm(values + gated, self.width) * self.norm_weight + self.norm_bias

    class VariableSelection(nn.Module):
        """Values [batch, steps, variables] and a context [batch, 1, width] or None -> [batch, steps, width]."""

        def __init__(self, variables: int, steps: int, config: Config, *, steered: bool) -> None:
            super().__init__()
            width = config.width
            self.variables, self.steps, self.width = variables, steps, width
            self.embedding = Maps(variables, 1, width)
            self.residuals = VariableResiduals(variables, width, config.dropout)
            self.weighing = GatedResidual(variables * width, width, variables, config.dropout, steered=steered)

        def forward(self, values: "Tensor", context: "Tensor | None") -> "Tensor":
            columns = values.permute(2, 0, 1).reshape(self.variables, -1, 1)
            embedded = self.embedding(columns)  # [variables, batch * steps, width]
            flat = embedded.permute(1, 0, 2).reshape(-1, self.steps, self.variables * self.width)
            weights = torch.softmax(self.weighing(flat, context), dim=-1)  # [batch, steps, variables]
            weights = weights.permute(2, 0, 1).reshape(self.variables, -1, 1)
            chosen: Tensor = (self.residuals(embedded) * weights).sum(dim=0)  # [batch * steps, width]
            return chosen.reshape(-1, self.steps, self.width)

    class StaticContexts(nn.Module):
        """static [batch, static_channels] -> four contexts [batch, 1, width]."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            width, dropout = config.width, config.dropout
            self.selection = VariableSelection(config.static_channels, 1, config, steered=False)
            self.for_selection = GatedResidual(width, width, width, dropout)
            self.for_hidden = GatedResidual(width, width, width, dropout)
            self.for_cell = GatedResidual(width, width, width, dropout)
            self.for_enrichment = GatedResidual(width, width, width, dropout)

        def forward(self, static: "Tensor") -> "tuple[Tensor, Tensor, Tensor, Tensor]":
            chosen = self.selection(static.unsqueeze(1), None)
            return (
                self.for_selection(chosen),
                self.for_hidden(chosen),
                self.for_cell(chosen),
                self.for_enrichment(chosen),
            )

    class InterpretableAttention(nn.Module):
        """From the future steps of [batch, steps, width] over all steps: [batch, horizon, width]."""

        mask: "Tensor"

        def __init__(self, config: Config) -> None:
            super().__init__()
            width, head_width = config.width, config.width // config.heads
            self.horizon, self.scale = config.horizon, head_width**-0.5
            self.query_split = (-1, config.horizon, config.heads, head_width)
            self.key_split = (-1, config.steps, config.heads, head_width)
            self.query, self.key = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
            self.value = nn.Linear(width, head_width, bias=False)
            self.output = nn.Linear(head_width, width, bias=False)
            self.dropout = nn.Dropout(config.dropout)
            asking = torch.arange(config.context_length, config.steps)[:, None]
            later = torch.arange(config.steps) > asking  # [horizon, steps]
            self.register_buffer("mask", later * MASKED, persistent=False)

        def forward(self, steps: "Tensor") -> "Tensor":
            query = self.query(steps[:, -self.horizon :]).reshape(self.query_split).permute(0, 2, 1, 3)
            key = self.key(steps).reshape(self.key_split).permute(0, 2, 3, 1)
            weights = torch.softmax(query @ key * self.scale + self.mask, dim=-1)  # [batch, heads, horizon, steps]
            # The values are shared, so that the heads can be averaged before the product.
            return self.output(self.dropout(weights).mean(dim=1) @ self.value(steps))  # type: ignore[no-any-return]

    class TFT(nn.Module):
        """observed [batch, context_length, channels], known [batch, context_length + horizon, known_channels] and,
        with `static_channels`, static [batch, static_channels] -> quantiles [batch, horizon, levels], or logits
        [batch, classes]."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            width, dropout = config.width, config.dropout
            steered = config.static_channels > 0
            self.context_length, self.horizon = config.context_length, config.horizon
            self.static_contexts = StaticContexts(config) if steered else None
            past_variables = config.channels + config.known_channels
            self.past = VariableSelection(past_variables, config.context_length, config, steered=steered)
            self.future = VariableSelection(config.known_channels, config.horizon, config, steered=steered)
            self.encoder = nn.LSTM(width, width, batch_first=True)
            self.decoder = nn.LSTM(width, width, batch_first=True)
            self.local_skip = GatedSkip(width, dropout)
            self.enrichment = GatedResidual(width, width, width, dropout, steered=steered)
            self.attention = InterpretableAttention(config)
            self.attention_skip = GatedSkip(width, dropout)
            self.feed_forward = GatedResidual(width, width, width, dropout)
            self.output_skip = GatedSkip(width, dropout)
            self.classifies = config.classes > 0
            if self.classifies:  # named apart, so that no checkpoint of three quantiles is taken for three classes
                self.classifier = nn.Linear(width, config.classes)
            else:
                self.projection = nn.Linear(width, len(config.quantiles))

        def forward(self, observed: "Tensor", known: "Tensor", static: "Tensor | None" = None) -> "Tensor":
            selecting = enriching = state = None
            if self.static_contexts is not None and static is not None:
                selecting, hidden, cell, enriching = self.static_contexts(static)
                state = (hidden.transpose(0, 1), cell.transpose(0, 1))  # [1, batch, width]
            seen = torch.cat([observed, known[:, : self.context_length]], dim=2)
            past = self.past(seen, selecting)  # [batch, context_length, width]
            future = self.future(known[:, self.context_length :], selecting)  # [batch, horizon, width]
            read, state = self.encoder(past, state)
            continued, _ = self.decoder(future, state)
            local = self.local_skip(torch.cat([read, continued], dim=1), torch.cat([past, future], dim=1))
            enriched = self.enrichment(local, enriching)  # [batch, steps, width]
            attended = self.attention_skip(self.attention(enriched), enriched[:, -self.horizon :])
            joined = self.output_skip(self.feed_forward(attended), local[:, -self.horizon :])
            if self.classifies:
                return self.classifier(joined[:, -1])  # type: ignore[no-any-return]
            return self.projection(joined)  # type: ignore[no-any-return]

    return TFT


def build(config: Config) -> "nn.Module":
    """Return the model with freshly initialised weights, in training mode."""
    return network()(config)
