"""tft: causality, and each part held against its published formula."""

import numpy as np
import pytest
import torch
from torch import nn

from tsexport.models import tft
from tsexport.types import random_feeds

ATOL = 2e-5
"""fp32 against a reference that sums in another order."""

PLAIN = tft.Config(12, 5, 3, 2, width=8, heads=2)
STEERED = tft.Config(12, 5, 3, 2, static_channels=3, width=8, heads=2)


@pytest.fixture(scope="module")
def make(random_weights):
    return lambda config: random_weights(tft.build, config, 0.4)


def answer(module, feeds):
    with torch.inference_mode():
        return module(*map(torch.from_numpy, feeds.values())).numpy()


def ask(module, config, batch, seed=1):
    feeds = random_feeds(config.inputs, batch, seed)
    return answer(module, feeds), feeds


@pytest.mark.parametrize("config", [PLAIN, STEERED], ids=["plain", "steered"])
def test_known_inputs_of_the_future_are_seen_only_from_their_step_on(make, config):
    module = make(config)
    before, feeds = ask(module, config, 2)
    for step in range(config.horizon):
        known = feeds["known"].copy()
        known[:, config.context_length + step] += 1
        after = answer(module, {**feeds, "known": known})
        assert np.array_equal(after[:, :step], before[:, :step]), f"step {step} reaches back"
        assert not np.isclose(after[:, step:], before[:, step:], atol=1e-6, rtol=0).all(axis=(0, 2)).any()


def test_attention_is_the_published_one(make):
    """Softmax over the steps up to each future one, head by head, averaged, over shared values."""
    config = PLAIN
    attention = make(config).attention
    steps = torch.randn(2, config.steps, config.width)
    with torch.inference_mode():
        given = attention(steps).numpy()
    x = steps.numpy().astype(np.float64)
    query, key, value, output = (
        getattr(attention, part).weight.numpy().astype(np.float64) for part in ("query", "key", "value", "output")
    )
    for row in range(2):
        for future in range(config.horizon):
            allowed = x[row, : config.context_length + future + 1]
            asking = x[row, config.context_length + future]
            heads = []
            for head in (slice(0, 4), slice(4, 8)):
                scores = (allowed @ key[head].T) @ (query[head] @ asking) / np.sqrt(4)
                weights = np.exp(scores - scores.max())
                heads.append(weights / weights.sum() @ (allowed @ value.T))
            np.testing.assert_allclose(given[row, future], np.mean(heads, axis=0) @ output.T, atol=ATOL, rtol=0)


def residual(block, values, context=None):
    """The GRN by its formula, of the parts of `block`."""
    hidden = block.hidden(values)
    if context is not None:
        hidden = hidden + block.context(context)
    first, second = block.gate.linear(block.output(nn.functional.elu(hidden))).chunk(2, dim=-1)
    return block.norm(block.skip(values) + first * torch.sigmoid(second))


@pytest.mark.parametrize("steered", [False, True])
def test_variable_selection_is_that_of_one_network_after_the_other(make, steered):
    config = STEERED if steered else PLAIN
    selection = make(config).past
    values = torch.randn(2, config.context_length, 5)
    context = torch.randn(2, 1, config.width) if steered else None
    with torch.inference_mode():
        given = selection(values, context)
        embedded, processed = [], []
        for index in range(5):
            maps = {name: part.data[index] for name, part in selection.residuals.named_parameters()}
            variable = values[:, :, index, None] * selection.embedding.weight[index] + selection.embedding.bias[index]
            hidden = nn.functional.elu(variable @ maps["hidden.weight"] + maps["hidden.bias"])
            hidden = hidden @ maps["output.weight"] + maps["output.bias"]
            first, second = (hidden @ maps["gate.weight"] + maps["gate.bias"]).chunk(2, dim=-1)
            total = variable + first * torch.sigmoid(second)
            centred = total - total.mean(-1, keepdim=True)
            normed = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
            embedded.append(variable)
            processed.append(normed * maps["norm_weight"] + maps["norm_bias"])
        weights = torch.softmax(residual(selection.weighing, torch.cat(embedded, -1), context), dim=-1)
        expected = sum(weights[:, :, index, None] * processed[index] for index in range(5))
    torch.testing.assert_close(given, expected, atol=ATOL, rtol=1e-5)


def test_joins_its_parts_as_published(make):
    config = STEERED
    module = make(config)
    given, feeds = ask(module, config, 2)
    observed, known, static = map(torch.from_numpy, feeds.values())

    def gated(block, values, skip):
        first, second = block.gate.linear(values).chunk(2, dim=-1)
        return block.norm(skip + first * torch.sigmoid(second))

    with torch.inference_mode():
        contexts = module.static_contexts
        chosen = contexts.selection(static[:, None], None)
        selecting, hidden, cell, enriching = (
            residual(getattr(contexts, f"for_{use}"), chosen) for use in ("selection", "hidden", "cell", "enrichment")
        )
        past = module.past(torch.cat([observed, known[:, :12]], 2), selecting)
        future = module.future(known[:, 12:], selecting)
        read, state = module.encoder(past, (hidden.mT.permute(2, 0, 1), cell.mT.permute(2, 0, 1)))
        continued, _ = module.decoder(future, state)
        local = gated(module.local_skip, torch.cat([read, continued], 1), torch.cat([past, future], 1))
        enriched = residual(module.enrichment, local, enriching)
        attended = gated(module.attention_skip, module.attention(enriched), enriched[:, 12:])
        joined = gated(module.output_skip, residual(module.feed_forward, attended), local[:, 12:])
        expected = module.projection(joined).numpy()
    np.testing.assert_allclose(given, expected, atol=ATOL, rtol=1e-5)


def test_masked_scores_vanish_in_half_precision_too():
    assert torch.exp(torch.tensor(tft.MASKED, dtype=torch.float16)) == 0
    assert torch.isfinite(torch.tensor(tft.MASKED, dtype=torch.float16))
