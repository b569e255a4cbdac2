"""hrm-27m: published counts, the whole against its formulas in float64, what a minute may see, its parts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tsexport.bench.tables import load_tables
from tsexport.errors import CheckpointError, ConfigurationError
from tsexport.models import hrm_27m
from tsexport.models.registry import get_entry
from tsexport.models.sources import identify, open_source
from tsexport.types import random_feeds

ATOL = 2e-5
"""fp32 against float64, or against a sum in another order, in a few layers of unit scale."""
PUBLISHED_MARGIN = 0.03

SMALL = hrm_27m.Config(
    days=5,
    daily_features=4,
    minutes=14,
    minute_features=3,
    h_width=16,
    h_layers=2,
    h_heads=2,
    h_feed_forward=20,
    l_width=24,
    l_layers=2,
    l_heads=3,
    l_feed_forward=40,
)
CONFIGS = {
    "plain": SMALL,
    "causal": replace(SMALL, causal=True),
    "windows": replace(SMALL, l_window=7),
    "a shorter last window": replace(SMALL, l_window=4),
    "causal windows": replace(SMALL, l_window=4, causal=True),
    "segments": replace(SMALL, segments=4),
    "cross-attention": replace(SMALL, cross_attention=True),
    "all": replace(SMALL, cross_attention=True, segments=2, l_window=4),
}


@pytest.fixture(scope="module")
def make(random_weights):
    return lambda config: random_weights(hrm_27m.build, config, 0.5)


def tensors(specs, batch, seed=1):
    return {name: torch.from_numpy(array) for name, array in random_feeds(specs, batch, seed).items()}


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


# Counts


@pytest.fixture(scope="module")
def published():
    """The published memory rows of hrm-27m in fp32, by component."""
    return {row.component: row for row in load_tables().memory if row.model == "hrm-27m" and row.precision == "fp32"}


@pytest.fixture(scope="module")
def full_size():
    with torch.device("meta"):
        return hrm_27m.build(hrm_27m.Config())


@pytest.mark.parametrize(("component", "part"), [("h-module", "h_module"), ("l-module", "l_module")])
def test_a_module_has_the_published_parameters(full_size, published, component, part):
    given, wanted = parameters(getattr(full_size, part)), published[component].parameters
    print(f"{component}: {given:,} parameters, published {wanted:,.0f} ({given / wanted - 1:+.2%})")
    assert given == pytest.approx(wanted, rel=PUBLISHED_MARGIN)


def test_conditioning_and_heads_stay_below_the_published_bound(full_size, published):
    assert parameters(full_size.conditioning) < published["conditioning-heads"].parameters_max
    # ... which cross-attention at full width alone takes: why it is off by default.
    with torch.device("meta"):
        crossing = hrm_27m.build(hrm_27m.Config(cross_attention=True))
    assert parameters(crossing.conditioning.cross) > 1.0e6


def test_the_published_total_is_h_and_l_alone(full_size, published):
    without_heads = parameters(full_size.h_module) + parameters(full_size.l_module)
    total, claim = parameters(full_size), published["total"].parameters
    print(f"published {claim:,.0f}; H and L {without_heads:,}, all {total:,}")
    assert claim == published["h-module"].parameters + published["l-module"].parameters
    assert without_heads == pytest.approx(claim, rel=PUBLISHED_MARGIN)
    assert total == without_heads + parameters(full_size.conditioning) == get_entry("hrm-27m").parameters
    assert total > 1.03 * claim


def test_layers_have_the_published_shape():
    """6 d^2 a layer of H, 16 d^2 one of L, which is SwiGLU of 4 times the width."""
    config = hrm_27m.Config()
    module = hrm_27m.build(replace(config, h_layers=1, l_layers=1))
    for layer, squares in ((module.h_module.layers[0], 6), (module.l_module.layers[0], 16)):
        matrices = sum(p.numel() for p in layer.parameters() if p.dim() == 2)
        assert matrices == squares * layer.norm1.weight.numel() ** 2
    assert (config.l_heads, config.l_width // config.l_heads) == (8, 68)


# The whole, against its formulas in float64


def numbers(module):
    return {name: value.numpy().astype(np.float64) for name, value in module.state_dict().items()}


def linear(state, name, x):
    bias = state.get(f"{name}.bias", 0)
    return x @ state[f"{name}.weight"].T + bias


def norm(state, name, x):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def attention(query, key, value, heads, allowed):
    """Heads side by side; queries carry the scale already."""
    mixed = []
    for part in np.split(np.arange(query.shape[-1]), heads):
        scores = np.where(allowed, query[:, part] @ key[:, part].T, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed.append(weights / weights.sum(-1, keepdims=True) @ value[:, part])
    return np.concatenate(mixed, axis=-1)


def self_attention(state, name, x, heads, allowed):
    query, key, value = np.split(linear(state, f"{name}.qkv", x), 3, axis=-1)
    return linear(state, f"{name}.out", attention(query, key, value, heads, allowed))


def gelu(x):
    return nn.functional.gelu(torch.from_numpy(x)).numpy()


def silu(x):
    return x / (1 + np.exp(-x))


def may_see(config):
    """Which minute (column) a minute (row) may see."""
    minute = np.arange(config.minutes)
    allowed = minute[:, None] // config.span == minute // config.span
    return allowed & (minute <= minute[:, None]) if config.causal else allowed


def reference(config, state, daily, minutes):
    """One day [days, ...], [minutes, ...] -> forecast, q."""
    z = np.zeros(config.h_width)
    for _ in range(config.segments):
        x = linear(state, "h_module.embedding", daily) + state["h_module.positions"] + z
        for index in range(config.h_layers):
            name = f"h_module.layers.{index}"
            normed = norm(state, f"{name}.norm1", x)
            x = x + self_attention(state, f"{name}.attention", normed, config.h_heads, True)
            hidden = gelu(linear(state, f"{name}.linear1", norm(state, f"{name}.norm2", x)))
            x = x + linear(state, f"{name}.linear2", hidden)
        history = norm(state, "h_module.norm", x)
        scale, shift = np.split(linear(state, "conditioning.film", history.mean(0)), 2)
        x = linear(state, "l_module.embedding", minutes) + state["l_module.positions"]
        for index in range(config.l_layers):
            name = f"l_module.layers.{index}"
            modulated = norm(state, f"{name}.norm1", x) * (1 + scale) + shift
            x = x + self_attention(state, f"{name}.attention", modulated, config.l_heads, may_see(config))
            normed = norm(state, f"{name}.norm2", x)
            x = x + linear(
                state, f"{name}.down", silu(linear(state, f"{name}.gate", normed)) * linear(state, f"{name}.up", normed)
            )
        tokens = norm(state, "l_module.norm", x)
        if config.cross_attention:
            name = "conditioning.cross"
            query = linear(state, f"{name}.query", norm(state, f"{name}.norm", tokens))
            key, value = (linear(state, f"{name}.{part}", history) for part in ("key", "value"))
            mixed = attention(query, key, value, config.l_heads, True)
            tokens = tokens + linear(state, f"{name}.out", mixed)
        z = history.mean(0) + linear(state, "conditioning.feedback", tokens.mean(0))
    return linear(state, "conditioning.forecast_head", tokens), linear(state, "conditioning.q_head", z)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_whole_is_its_formulas(make, config):
    module = make(config)
    feeds = tensors(config.inputs, 2)
    with torch.inference_mode():
        answers = module(**feeds)
    assert [tuple(answer.shape) for answer in answers] == [output.with_batch(2) for output in config.outputs]
    for row in range(2):
        expected = reference(
            config, numbers(module), *(value[row].numpy().astype(np.float64) for value in feeds.values())
        )
        for answer, wanted in zip(answers, expected, strict=True):
            np.testing.assert_allclose(answer[row].numpy(), wanted, atol=ATOL, rtol=ATOL)


def test_fresh_queries_carry_the_scale():
    """So a fresh model's scores are those of the usual initialisation divided by sqrt(head width)."""
    torch.manual_seed(0)
    weight = hrm_27m.build(SMALL).l_module.layers[0].attention.qkv.weight
    query, key, _ = weight.detach().split(SMALL.l_width)
    assert query.abs().max() * np.sqrt(SMALL.l_width // SMALL.l_heads) == pytest.approx(
        float(key.abs().max()), rel=0.02
    )


# What a minute may see


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("minute", [0, 5, 13])
def test_which_minutes_a_change_reaches(make, config, minute):
    config = replace(config, segments=1)  # from the second segment on every minute hears of every other
    module = make(config)
    feeds = tensors(config.inputs, 1)
    changed = {**feeds, "minutes": feeds["minutes"].clone()}
    changed["minutes"][:, minute] += 1
    with torch.inference_mode():
        (before, _), (after, _) = module(**feeds), module(**changed)
    reached = (before != after).any(-1)[0].numpy()
    assert reached[may_see(config)[:, minute]].all()
    assert not reached[~may_see(config)[:, minute]].any()


def test_further_segments_let_every_minute_hear_of_every_other(make):
    module = make(replace(SMALL, segments=2, l_window=7))
    feeds = tensors(SMALL.inputs, 1)
    changed = {**feeds, "minutes": feeds["minutes"].clone()}
    changed["minutes"][:, 13] += 1
    with torch.inference_mode():
        assert (module(**feeds)[0] != module(**changed)[0]).any(-1).all()


def test_days_reach_every_minute(make):
    module = make(CONFIGS["causal windows"])
    feeds = tensors(SMALL.inputs, 1)
    with torch.inference_mode():
        before, after = module(**feeds)[0], module(feeds["daily"] + 1, feeds["minutes"])[0]
    assert (before != after).any(-1).all()


# Parts


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_components_together_are_the_whole(make, config):
    whole = make(config)
    parts = {part.name: part for part in hrm_27m.COMPONENTS if part.name != "stream-step"}
    assert list(parts) == ["h-module", "l-module", "conditioning-heads"]

    def ask(name, known):
        spec = parts[name].tensors(config)
        given = [known[one.name] for one in spec.inputs]
        assert [tuple(value.shape) for value in given] == [one.with_batch(2) for one in spec.inputs]
        with torch.inference_mode():
            answers = parts[name].take(whole)(*given)
        answers = answers if isinstance(answers, tuple) else (answers,)
        assert [tuple(value.shape) for value in answers] == [one.with_batch(2) for one in spec.outputs]
        return {one.name: value for one, value in zip(spec.outputs, answers, strict=True)}

    known = tensors(config.inputs, 2)
    with torch.inference_mode():
        forecast, q = whole(**known)
    known["state"] = torch.zeros(2, config.h_width)
    known["tokens"] = torch.zeros(2, config.minutes, config.l_width)  # before L has run, for scale and shift alone
    for _ in range(config.segments):
        known |= ask("h-module", known)
        known |= {name: value for name, value in ask("conditioning-heads", known).items() if name in ("scale", "shift")}
        known |= ask("l-module", known)
        known |= ask("conditioning-heads", known)
    torch.testing.assert_close(known["forecast"], forecast, atol=ATOL, rtol=0)
    torch.testing.assert_close(known["q"], q, atol=ATOL, rtol=0)


def test_a_component_has_the_weights_of_the_wholes_checkpoint(make, tmp_path):
    settings = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__}
    whole, path = make(SMALL), tmp_path / "whole.pth"
    torch.save(whole.state_dict(), path)
    part = open_source(identify("hrm-27m", checkpoint=path, settings=settings, component="h-module"))
    assert part.spec.parameters == parameters(whole.h_module)
    assert all(torch.equal(a, b) for a, b in zip(part.module.parameters(), whole.h_module.parameters(), strict=True))
    torch.save(whole.h_module.state_dict(), path)
    with pytest.raises(CheckpointError, match="does not fit hrm-27m: missing: h_module"):
        open_source(identify("hrm-27m", checkpoint=path, settings=settings, component="h-module"))


# Configurations


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"days": 0}, "days is 0; it must be 1 or more"),
        ({"h_width": 380}, "h_width is 380, which h_heads 6 does not divide"),
        ({"l_heads": 7}, "l_width is 544, which l_heads 7 does not divide"),
        ({"stream_minutes": 60}, "minutes is 390, which stream_minutes 60 does not divide"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be at least 0 and below 1"),
        ({"l_window": 1}, "l_window is 1; it must be 0 for the whole day, or from 2 to minutes 390"),
        ({"l_window": 391}, "l_window is 391; it must be 0 for the whole day, or from 2 to minutes 390"),
        ({"segments": 0}, "segments is 0; it must be 1 or more"),
        ({"causal": True, "segments": 2}, "causal is true and segments is 2: every segment but the first reads"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        replace(hrm_27m.Config(), **changes)


def test_streaming_without_causal_attention_says_what_to_set():
    with pytest.raises(ConfigurationError, match="causal is false") as caught:
        identify("hrm-27m", component="stream-step")
    assert caught.value.next_step == "Add --set causal=true."
