"""migt-tvdt: masks, sorted quantiles in every float, the position, checkpoints, and each part against its formula."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.errors import CheckpointError, ConfigurationError
from tsexport.models import migt_tvdt
from tsexport.models.checkpoints import read_checkpoint
from tsexport.models.loading import load_strictly
from tsexport.models.registry import get_entry
from tsexport.types import random_feeds

SMALL = migt_tvdt.Config(
    context_length=12, n_variables=5, width=16, heads=2, temporal_layers=2, variable_layers=1, feed_forward=24
)
ATOL = 2e-5
"""fp32 against a reference that sums in another order."""
SAVED_ATOL = 1e-6
"""What saving and loading may change."""


def make(config=SMALL, seed=0):
    """Build with every weight random, so that none hides a mistake by being zero or one."""
    torch.manual_seed(seed)
    module = migt_tvdt.build(config).eval()
    for name, value in module.named_parameters():
        if not name.endswith("frequency"):
            value.data.uniform_(-0.4, 0.4)
    return module.requires_grad_(False)


def answer(module, feeds):
    with torch.inference_mode():
        return module(*map(torch.from_numpy, feeds.values())).numpy()


def feeds_of(config, batch, seed=1):
    feeds = random_feeds(config.inputs, batch, seed)
    feeds["valid"][:, 0] = True
    feeds["calendar"] = np.random.default_rng(seed).integers(
        (0, 0, 1, 1), (1440, 7, 32, 367), (batch, config.context_length, 4)
    )
    return feeds


@pytest.mark.parametrize("batch", [1, 4])
def test_shape_is_as_declared(batch):
    given_shape = answer(make(), feeds_of(SMALL, batch))
    assert given_shape.shape == SMALL.outputs[0].with_batch(batch) == (batch, 5, 7)
    assert given_shape.dtype == np.float32


def test_the_default_is_the_published_model():
    config = migt_tvdt.Config()
    assert [str(spec) for spec in (*config.inputs, *config.outputs)] == [
        "bars float32[batch, 288, 24]",
        "valid bool[batch, 288]",
        "calendar int64[batch, 288, 4]",
        "quantiles float32[batch, 5, 7]",
    ]
    assert migt_tvdt.POSITION == 96


@pytest.mark.parametrize("config", [SMALL, migt_tvdt.Config(), migt_tvdt.Config(n_variables=25)])
def test_parameters_are_counted_by_hand(config):
    """The document publishes no number."""
    width, inner, variables = config.width, config.feed_forward, config.n_variables
    layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    position = 7 * 16 + 2 * (16 + 32) + 96 * width + width
    answers = len(config.horizons) * len(config.quantiles)
    expected = variables * variables + variables + 2 * variables * width + position
    expected += (
        (config.temporal_layers + config.variable_layers) * layer + 2 * width + width + width * answers + answers
    )
    with torch.device("meta"):
        assert sum(value.numel() for value in migt_tvdt.build(config).parameters()) == expected
    if config == migt_tvdt.Config():
        assert get_entry("migt-tvdt").parameters == expected


def test_rows_do_not_touch_each_other():
    module, feeds = make(), feeds_of(SMALL, 3)
    alone = answer(module, {name: array[1:2] for name, array in feeds.items()})
    np.testing.assert_allclose(alone[0], answer(module, feeds)[1], atol=ATOL, rtol=0)


# the mask: True takes part


def test_torch_takes_part_where_a_boolean_mask_is_true():
    """The document has it the other way round."""
    q, k, v = torch.randn(3, 1, 2, 5, 8).unbind()
    valid = torch.tensor([True, True, False, True, False])
    attend = torch.nn.functional.scaled_dot_product_attention
    expected = attend(q, k[:, :, valid], v[:, :, valid])
    torch.testing.assert_close(attend(q, k, v, valid.expand(5, 5)), expected, atol=ATOL, rtol=0)
    added = (~valid).expand(5, 5) * migt_tvdt.MASKED
    torch.testing.assert_close(attend(q, k, v, added), expected, atol=ATOL, rtol=0)


def test_padding_changes_nothing_and_valid_bars_do():
    module, feeds = make(), feeds_of(SMALL, 4)
    before = answer(module, feeds)
    for garbage in (1e9, -3.0, np.nan, np.inf):
        padding = ~feeds["valid"]
        bars = np.where(padding[:, :, None], np.float32(garbage), feeds["bars"])
        calendar = np.where(padding[:, :, None], 1, feeds["calendar"])
        np.testing.assert_array_equal(answer(module, {**feeds, "bars": bars, "calendar": calendar}), before)
    step = int(np.flatnonzero(feeds["valid"][0])[-1])
    moved = feeds["bars"].copy()
    moved[0, step] += 1
    assert np.abs(answer(module, {**feeds, "bars": moved})[0] - before[0]).max() > 1e-3
    assert np.abs(answer(module, {**feeds, "valid": ~feeds["valid"]}) - before).max() > 1e-3


def test_a_padded_day_answers_as_the_short_one():
    """The same weights in a model whose day is as short as what is valid."""
    short = replace(SMALL, context_length=7)
    feeds = feeds_of(SMALL, 3)
    feeds["valid"] = np.broadcast_to(np.arange(12) < 7, (3, 12)).copy()
    whole = {name: array[:, :7].copy() for name, array in feeds.items()}
    np.testing.assert_allclose(answer(make(), feeds), answer(make(short), whole), atol=ATOL, rtol=0)


def test_a_day_without_a_valid_bar_is_finite_and_touches_no_other():
    module, feeds = make(), feeds_of(SMALL, 3)
    before = answer(module, feeds)
    feeds["valid"][1] = False
    after = answer(module, feeds)
    assert np.isfinite(after).all()
    np.testing.assert_allclose(after[[0, 2]], before[[0, 2]], atol=ATOL, rtol=0)


def test_statistics_are_those_of_valid_bars():
    """Forecasts follow level and scale of the target variable; what is valid alone decides them."""
    module, feeds = make(), feeds_of(SMALL, 3)
    feeds["valid"] = np.arange(12)[None] < np.array([[12], [5], [2]])
    feeds["bars"][~feeds["valid"]] = 1e6
    moved = 64 * feeds["bars"] + 512
    np.testing.assert_allclose(
        answer(module, {**feeds, "bars": moved}), 64 * answer(module, feeds) + 512, atol=0.2, rtol=0
    )  # epsilon of the deviation, and 512 in fp32


def test_masked_scores_vanish_in_half_precision_too():
    assert torch.exp(torch.tensor(migt_tvdt.MASKED, dtype=torch.float16)) == 0
    assert torch.isfinite(torch.tensor(migt_tvdt.MASKED, dtype=torch.float16))


# quantiles cannot cross


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@given(seed=st.integers(0, 2**31), size=st.sampled_from([1e-3, 1.0, 30.0]), level=st.sampled_from([0.0, 1e2, 3e4]))
@settings(max_examples=40, deadline=None)
def test_quantiles_are_sorted_in_every_float(dtype, seed, size, level):
    torch.manual_seed(seed)
    head = make().quantiles.to(dtype)
    pooled = (size * torch.randn(64, SMALL.width)).to(dtype)
    mean, deviation = (level + torch.randn(64, 1, 1)).to(dtype), torch.rand(64, 1, 1).to(dtype) + 0.003
    with torch.inference_mode():
        quantiles = head(pooled, mean, deviation).float().numpy()
    assert np.isfinite(quantiles).all()
    assert (np.diff(quantiles, axis=2) >= 0).all()


def test_rounding_alone_would_let_them_cross():
    """The guard is needed: quantized one by one, as int8 does, increasing values can come out in another order."""
    levels = torch.tensor([0.1, 0.16, 0.17, 0.3, 0.4, 0.5, 0.6])
    scales = torch.tensor([0.1, 0.1, 0.4, 0.1, 0.1, 0.1, 0.1])
    rounded = torch.round(levels / scales) * scales
    assert rounded[2] < rounded[1]
    head = make().quantiles
    with torch.inference_mode():
        guarded = torch.where(head.upto, rounded.unsqueeze(0), rounded[:1].unsqueeze(1)).amax(dim=1)
    torch.testing.assert_close(guarded, torch.cummax(rounded, 0).values, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_whole_model_in_half_precision_is_sorted(dtype):
    module, feeds = make().to(dtype), feeds_of(SMALL, 16)
    bars, valid, calendar = map(torch.from_numpy, feeds.values())
    with torch.inference_mode():
        quantiles = module(bars.to(dtype), valid, calendar)
    assert quantiles.dtype == dtype
    assert (quantiles.float().diff(dim=2) >= 0).all()
    fp32 = answer(make(), feeds)
    assert np.abs(quantiles.float().numpy() - fp32).max() < 0.1 * np.abs(fp32).max()


# parts against their formulas


def test_position_is_its_formula():
    position = make().position
    calendar = np.array([[[0, 0, 1, 1], [1439, 6, 31, 366], [615, 3, 14, 200]]] * 4).reshape(1, 12, 4)
    with torch.inference_mode():
        given_rows = position(torch.from_numpy(calendar)).numpy()
    assert given_rows.shape == (1, 1, 12, SMALL.width)
    state = {name: value.double().numpy() for name, value in position.state_dict().items()}
    for row, (minute, weekday, month_day, year_day) in enumerate(calendar[0]):
        angles = [2 * math.pi * n * minute / 1440 for n in range(1, 17)]
        values = [*map(math.sin, angles), *map(math.cos, angles), *state["weekday.weight"][weekday]]
        for name, tau in (("day_of_month", month_day / 31), ("day_of_year", year_day / 366)):
            inner = state[f"{name}.frequency"] * tau + state[f"{name}.phase"]
            values += [inner[0], *np.sin(inner[1:])]
        assert len(values) == 96
        expected = state["projection.weight"] @ np.array(values) + state["projection.bias"]
        np.testing.assert_allclose(given_rows[0, 0, row], expected, atol=1e-4, rtol=0)  # angles up to 200 in fp32


def test_the_day_closes_upon_itself():
    position = make().position
    calendar = torch.tensor([[[0, 2, 5, 40], [1439, 2, 5, 40], [720, 2, 5, 40]] * 4])
    with torch.inference_mode():
        midnight, before, noon = position(calendar)[0, 0, :3]
    assert (midnight - before).abs().max() < 0.25 * (midnight - noon).abs().max()


def test_the_whole_is_its_formula():
    """Sample by sample in float64, over valid bars only, so that no mask is needed."""
    config = SMALL
    module, feeds = make(), feeds_of(config, 3)
    given_answers = answer(module, feeds)
    weights = {name: value.double().numpy() for name, value in module.state_dict().items()}

    def linear(rows, name):
        return rows @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    def norm(rows, name):
        centred = rows - rows.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def softmax(scores):
        weight = np.exp(scores - scores.max(-1, keepdims=True))
        return weight / weight.sum(-1, keepdims=True)

    def layer(tokens, name):  # [steps, width]
        parts = np.split(linear(norm(tokens, f"{name}.norm1"), f"{name}.attention.in_proj"), 3 * config.heads, axis=1)
        mixed = []
        for head in range(config.heads):
            q, k, v = (parts[head + config.heads * part] for part in range(3))
            mixed.append(softmax(q @ k.T / math.sqrt(config.width // config.heads)) @ v)
        tokens = tokens + linear(np.concatenate(mixed, axis=1), f"{name}.attention.out_proj")
        hidden = np.maximum(linear(norm(tokens, f"{name}.norm2"), f"{name}.linear1"), 0)
        return tokens + linear(hidden, f"{name}.linear2")

    for sample in range(3):
        valid = feeds["valid"][sample]
        values = feeds["bars"][sample][valid].astype(np.float64)
        mean, deviation = values.mean(0), np.sqrt(values.var(0) + 1e-5)
        normalised = (values - mean) / deviation
        gated = normalised / (1 + np.exp(-linear(normalised, "gate.linear")))
        with torch.inference_mode():
            position = module.position(torch.from_numpy(feeds["calendar"][[sample]]))[0, 0].double().numpy()[valid]
        tokens = [
            gated[:, [v]] * weights["embedding.weight"][v] + weights["embedding.bias"][v] + position
            for v in range(config.n_variables)
        ]
        for index in range(config.temporal_layers):
            tokens = [layer(one, f"temporal.{index}") for one in tokens]
        bars = np.stack(tokens, axis=1)  # [valid bars, variables, width]
        for index in range(config.variable_layers):
            bars = np.stack([layer(bar, f"across.{index}") for bar in bars])
        rows = norm(bars.reshape(-1, config.width), "norm")
        pooled = softmax(linear(rows, "weighing")[:, 0]) @ rows
        raw = linear(pooled, "quantiles.linear").reshape(5, 7)
        steps = np.concatenate([raw[:, :1], np.log1p(np.exp(raw[:, 1:]))], axis=1)
        expected = np.cumsum(steps, axis=1) * deviation[3] + mean[3]
        np.testing.assert_allclose(given_answers[sample], expected, atol=1e-4, rtol=0)


# files


def test_saved_and_loaded_it_answers_the_same(tmp_path):
    module, feeds = make(), feeds_of(SMALL, 4)
    torch.save(module.state_dict(), tmp_path / "a.pth")
    again = migt_tvdt.build(SMALL).eval()
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    assert load_strictly(again, checkpoint, model="migt-tvdt", definition=migt_tvdt, config=SMALL) == ()
    np.testing.assert_allclose(answer(again, feeds), answer(module, feeds), atol=SAVED_ATOL, rtol=0)


@pytest.mark.parametrize(("taken", "wanted"), [(25, 24), (24, 25)])
def test_a_checkpoint_of_the_other_width_says_which_feature_to_drop(tmp_path, taken, wanted):
    torch.save(migt_tvdt.build(replace(SMALL, n_variables=taken)).state_dict(), tmp_path / "a.pth")
    config = replace(SMALL, n_variables=wanted)
    with pytest.raises(CheckpointError, match="does not fit migt-tvdt") as caught:
        load_strictly(
            migt_tvdt.build(config),
            read_checkpoint(tmp_path / "a.pth"),
            model="migt-tvdt",
            definition=migt_tvdt,
            config=config,
        )
    assert f"takes {taken} variables and the model {wanted}: set n_variables={taken}" in caught.value.next_step
    assert "drop macd_signal (the alternative is bbands_middle), or set n_variables=25" in caught.value.next_step


def test_another_misfit_is_explained_by_settings(tmp_path):
    torch.save(migt_tvdt.build(replace(SMALL, feed_forward=40)).state_dict(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        load_strictly(
            migt_tvdt.build(SMALL),
            read_checkpoint(tmp_path / "a.pth"),
            model="migt-tvdt",
            definition=migt_tvdt,
            config=SMALL,
        )
    assert "--set feed_forward=40" in caught.value.next_step


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "width is 256, which heads 3 does not divide"),
        ({"context_length": 0}, "context_length is 0; it must be 1 or more"),
        ({"horizons": (1, 0)}, r"horizons is \(1, 0\); it must hold"),
        ({"target_variable": 24}, "target_variable is 24; .* below n_variables, 24"),
        ({"target_variable": -1}, "target_variable is -1"),
        ({"quantiles": (0.5, 0.1)}, r"quantiles is \[0.5, 0.1\].*each above the one before"),
        ({"quantiles": ()}, r"quantiles is \[\]"),
        ({"dropout": 1.0}, r"dropout is 1.0; .* below 1"),
        ({"variable_layers": 0}, "variable_layers is 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        replace(migt_tvdt.Config(), **changes)
