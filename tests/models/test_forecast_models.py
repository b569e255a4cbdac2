"""itransformer, tft and nhits: shapes, counts by hand, plain references, and every export format."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tsexport.errors import ConfigurationError
from tsexport.exporters.checks import check_parity, feed_sets
from tsexport.exporters.conversion import convert_to_onnx, convert_to_openvino, convert_to_torchscript
from tsexport.exporters.formats import EXPORT_FORMATS
from tsexport.models import itransformer, nhits, tft
from tsexport.models.checkpoints import read_checkpoint
from tsexport.models.loading import load_strictly
from tsexport.models.settings import configure
from tsexport.models.sources import identify, open_source
from tsexport.runtimes.comparison import TOLERANCES
from tsexport.types import FORMATS, random_feeds

ATOL = 2e-5
"""fp32 against a reference that sums in another order."""

FILES = (itransformer, tft, nhits)
SMALL = {
    "itransformer": itransformer.Config(24, 5, 3, width=16, heads=2, feed_forward=32),
    "itransformer with marks": itransformer.Config(24, 5, 3, width=16, heads=2, feed_forward=32, time_marks=True),
    "itransformer without norm": itransformer.Config(24, 5, 3, width=16, heads=2, feed_forward=32, use_norm=False),
    "tft": tft.Config(12, 5, 3, 2, width=8, heads=2),
    "tft with static": tft.Config(12, 5, 3, 2, static_channels=3, width=8, heads=2),
    "tft of one variable each": tft.Config(12, 5, 1, 1, static_channels=1, width=8, heads=2, quantiles=(0.5,)),
    "nhits": nhits.Config(40, 12, 3, width=16),
    "nhits with uneven pools": nhits.Config(37, 11, 2, (8, 5, 1), (100, 3, 2), width=16),
    "nhits of one stack": nhits.Config(37, 11, 2, (3,), (1,), layers=1, width=16),
}


def make(config):
    """Build with every weight random, so that none hides a mistake by being zero or one."""
    torch.manual_seed(0)
    module = next(m for m in FILES if isinstance(config, m.Config)).build(config).eval()
    for value in module.parameters():
        value.data.uniform_(-0.4, 0.4)
    return module.requires_grad_(False)


def answer(module, feeds):
    with torch.inference_mode():
        return module(*map(torch.from_numpy, feeds.values())).numpy()


def ask(module, config, batch, seed=1):
    feeds = random_feeds(config.inputs, batch, seed)
    return answer(module, feeds), feeds


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("batch", [1, 4])
def test_shape_is_as_declared(name, batch):
    given, _ = ask(make(SMALL[name]), SMALL[name], batch)
    (output,) = SMALL[name].outputs
    assert given.shape == output.with_batch(batch)
    assert given.dtype.name == output.dtype
    assert np.isfinite(given).all()


@pytest.mark.parametrize("name", SMALL)
def test_rows_do_not_touch_each_other(name):
    module = make(SMALL[name])
    together, feeds = ask(module, SMALL[name], 3)
    alone = answer(module, {key: array[1:2] for key, array in feeds.items()})
    np.testing.assert_allclose(alone[0], together[1], atol=ATOL, rtol=0)


@pytest.mark.parametrize("name", SMALL)
def test_every_input_counts(name):
    module = make(SMALL[name])
    before, feeds = ask(module, SMALL[name], 2)
    for key, array in feeds.items():
        assert not np.allclose(answer(module, {**feeds, key: array[::-1].copy()}), before, atol=ATOL, rtol=0), key


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(), (5,)], ids=["zeros", "huge"])
def test_extreme_inputs_stay_finite(name, shape):
    scale = 1e4 if shape else 0.0
    feeds = {k: a * np.float32(scale) for k, a in random_feeds(SMALL[name].inputs, 2, 0).items()}
    assert np.isfinite(answer(make(SMALL[name]), feeds)).all()


def linear(size_in, size_out):
    return size_in * size_out + size_out


def itransformer_count(config):
    width, inner = config.width, config.feed_forward
    layer = 4 * linear(width, width) + linear(width, inner) + linear(inner, width) + 4 * width
    return linear(config.context_length, width) + config.layers * layer + 2 * width + linear(width, config.horizon)


def nhits_count(config):
    total = 0
    for pooling, rate in zip(config.pooling, config.downsampling, strict=True):
        seen, knots = int(np.ceil(config.context_length / pooling)), max(config.horizon // rate, 1)
        total += linear(seen, config.width) + (config.layers - 1) * linear(config.width, config.width)
        total += linear(config.width, config.context_length + knots)
    return total


def grn_count(size_in, width, size_out, *, steered=False):
    skip = linear(size_in, size_out) if size_in != size_out else 0
    gate = 2 * linear(width, size_out)
    return skip + linear(size_in, width) + steered * width**2 + linear(width, width) + gate + 2 * size_out


def selection_count(variables, width, *, steered):
    each = linear(1, width) + grn_count(width, width, width)
    return variables * each + grn_count(variables * width, width, variables, steered=steered)


def tft_count(config):
    width, steered = config.width, config.static_channels > 0
    head = width // config.heads
    past = selection_count(config.channels + config.known_channels, width, steered=steered)
    future = selection_count(config.known_channels, width, steered=steered)
    static = selection_count(config.static_channels, width, steered=False) + 4 * grn_count(width, width, width)
    lstm = 4 * (2 * width**2 + 2 * width)
    gated_skip = 2 * linear(width, width) + 2 * width
    attention = config.heads * 2 * width * head + width * head + head * width
    residuals = grn_count(width, width, width, steered=steered) + grn_count(width, width, width)
    answers = linear(width, len(config.quantiles))
    return past + future + steered * static + 2 * lstm + 3 * gated_skip + attention + residuals + answers


COUNTS = {itransformer: itransformer_count, nhits: nhits_count, tft: tft_count}
DEFAULTS = {
    "itransformer default": itransformer.Config(),
    "tft default": tft.Config(),
    "tft default with static": tft.Config(static_channels=3),
    "nhits default": nhits.Config(),
}


@pytest.mark.parametrize("config", [*SMALL.values(), *DEFAULTS.values()], ids=[*SMALL, *DEFAULTS])
def test_parameters_are_those_of_the_published_formulas(config):
    file, formula = next((m, f) for m, f in COUNTS.items() if isinstance(config, m.Config))
    assert count(file.build(config)) == formula(config)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (itransformer.Config(), {"heads": 3}, "width is 256, which heads 3 does not divide"),
        (itransformer.Config(), {"layers": 0}, "layers is 0; it must be 1 or more"),
        (itransformer.Config(), {"dropout": 1.0}, r"dropout is 1.0; .* below 1"),
        (nhits.Config(), {"pooling": (2, 2)}, "of different lengths"),
        (nhits.Config(), {"pooling": (2, 0, 1)}, r"pooling is \[2, 0, 1\]; .* from 1 on for each stack"),
        (nhits.Config(), {"downsampling": ()}, r"downsampling is \[\]"),
        (nhits.Config(), {"context_length": 1}, r"pooling is \[2, 2, 1\], longer than context_length 1"),
        (nhits.Config(), {"width": 0}, "width is 0; it must be 1 or more"),
        (tft.Config(), {"heads": 5}, "width is 64, which heads 5 does not divide"),
        (tft.Config(), {"static_channels": -1}, "static_channels is -1; it must be 0 or more"),
        (tft.Config(), {"known_channels": 0}, "known_channels is 0; it must be 1 or more"),
        (tft.Config(), {"quantiles": ()}, r"quantiles is \[\]; it must be levels between 0 and 1"),
        (tft.Config(), {"quantiles": (0.5, 0.5)}, r"quantiles is \[0.5, 0.5\].*each above the one before"),
        (tft.Config(), {"quantiles": (0.1, 1.0)}, r"quantiles is \[0.1, 1.0\]"),
        (tft.Config(), {"dropout": -0.1}, "dropout is -0.1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        replace(config, **changes)


def test_tuples_are_set_as_text():
    assert configure(tft.Config, {"quantiles": "0.05,0.5"}, model="tft").quantiles == (0.05, 0.5)
    config = configure(nhits.Config, {"pooling": "[8, 4]", "downsampling": "12,1"}, model="nhits")
    assert (config.pooling, config.downsampling, config.knots) == ((8, 4), (12, 1), (8, 96))


# itransformer


def test_itransformer_keeps_the_names_of_the_authors_repository():
    state = itransformer.build(itransformer.Config(layers=1)).state_dict()
    layer = "encoder.attn_layers.0"
    parts = (
        "enc_embedding.value_embedding",
        *(f"{layer}.attention.{part}_projection" for part in ("query", "key", "value", "out")),
        *(f"{layer}.{part}" for part in ("conv1", "conv2", "norm1", "norm2")),
        "encoder.norm",
        "projector",
    )
    assert set(state) == {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    assert state[f"{layer}.conv1.weight"].shape == (256, 256, 1)


@pytest.mark.parametrize("marks", [False, True])
def test_itransformer_loads_a_checkpoint_strictly_with_or_without_marks(tmp_path, marks):
    config = itransformer.Config(24, 5, 3, width=16, heads=2, feed_forward=32, time_marks=marks)
    saved = make(SMALL["itransformer"])
    torch.save({"state_dict": {f"module.{k}": v for k, v in saved.state_dict().items()}}, tmp_path / "weights.pth")
    loaded = itransformer.build(config).eval()
    checkpoint = read_checkpoint(tmp_path / "weights.pth")
    load_strictly(loaded, checkpoint, model="itransformer", definition=itransformer, config=config)
    if not marks:
        expected, feeds = ask(saved, config, 2)
        np.testing.assert_allclose(answer(loaded, feeds), expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize("name", ["itransformer", "itransformer with marks", "itransformer without norm"])
def test_itransformer_is_the_published_encoder(name):
    """Held against torch's own post-norm encoder layer, filled with the same weights."""
    config = SMALL[name]
    module = make(config)
    given, feeds = ask(module, config, 2)
    state = module.state_dict()
    layers = []
    for index in range(config.layers):
        own = {key.removeprefix(f"encoder.attn_layers.{index}."): value for key, value in state.items()}
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, nn.functional.gelu, batch_first=True).eval()
        three = ("query", "key", "value")
        layer.load_state_dict(
            {
                "self_attn.in_proj_weight": torch.cat([own[f"attention.{p}_projection.weight"] for p in three]),
                "self_attn.in_proj_bias": torch.cat([own[f"attention.{p}_projection.bias"] for p in three]),
                "self_attn.out_proj.weight": own["attention.out_projection.weight"],
                "self_attn.out_proj.bias": own["attention.out_projection.bias"],
                "linear1.weight": own["conv1.weight"].squeeze(-1),
                "linear1.bias": own["conv1.bias"],
                "linear2.weight": own["conv2.weight"].squeeze(-1),
                "linear2.bias": own["conv2.bias"],
                **{f"norm{n}.{kind}": own[f"norm{n}.{kind}"] for n in (1, 2) for kind in ("weight", "bias")},
            }
        )
        layers.append(layer)
    series = torch.from_numpy(feeds["series"])
    mean, deviation = series.mean(1, keepdim=True), torch.sqrt(series.var(1, keepdim=True, correction=0) + 1e-5)
    seen = (series - mean) / deviation if config.use_norm else series
    if config.time_marks:
        seen = torch.cat([seen, torch.from_numpy(feeds["time_marks"])], 2)
    with torch.inference_mode():
        tokens = module.enc_embedding.value_embedding(seen.mT)
        for layer in layers:
            tokens = layer(tokens)
        future = module.projector(module.encoder.norm(tokens)).mT[:, :, :3]
        expected = future * deviation + mean if config.use_norm else future
    np.testing.assert_allclose(given, expected.numpy(), atol=ATOL, rtol=1e-5)


def test_itransformer_follows_scale_and_offset_of_its_input():
    module = make(SMALL["itransformer"])
    given, feeds = ask(module, SMALL["itransformer"], 2)
    moved = answer(module, {"series": 100 * feeds["series"] + 7})
    np.testing.assert_allclose(moved, 100 * given + 7, atol=0.05, rtol=1e-3)


def test_itransformer_channels_have_no_order():
    module = make(SMALL["itransformer with marks"])
    given, feeds = ask(module, SMALL["itransformer with marks"], 2)
    swapped = answer(module, {**feeds, "series": feeds["series"][:, :, ::-1].copy()})
    np.testing.assert_allclose(swapped[:, :, ::-1], given, atol=ATOL, rtol=0)


# nhits


@pytest.mark.parametrize(("knots", "horizon"), [(1, 7), (2, 7), (3, 7), (6, 12), (5, 12), (12, 12), (24, 96)])
def test_nhits_interpolation_is_that_of_torch(knots, horizon):
    rate = horizon // knots
    config = nhits.Config(2 * horizon, horizon, 1, (1,), (rate,), width=4)
    values = torch.randn(3, config.knots[0])
    expected = nn.functional.interpolate(values[:, None], size=horizon, mode="linear")[:, 0]
    torch.testing.assert_close(nhits.build(config).blocks[0].spread(values), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["nhits", "nhits with uneven pools", "nhits of one stack"])
def test_nhits_is_the_published_recursion(name):
    config = SMALL[name]
    module = make(config)
    given, feeds = ask(module, config, 2)
    rows = torch.from_numpy(feeds["series"]).mT.reshape(-1, config.context_length)
    past, forecast = rows.flip(1), rows[:, -1:]
    with torch.inference_mode():
        for block, kernel in zip(module.blocks, config.pooling, strict=True):
            pooled = nn.functional.max_pool1d(past[:, None], kernel, kernel, ceil_mode=True)[:, 0]
            theta = block.layers(pooled)
            knots = theta[:, None, config.context_length :]
            forecast = forecast + nn.functional.interpolate(knots, size=config.horizon, mode="linear")[:, 0]
            past = past - theta[:, : config.context_length]
    expected = forecast.reshape(2, config.channels, config.horizon).mT.numpy()
    np.testing.assert_allclose(given, expected, atol=ATOL, rtol=1e-5)


def test_nhits_keeps_the_names_of_the_authors_repository():
    state = nhits.build(nhits.Config()).state_dict()
    assert set(state) == {
        f"blocks.{block}.layers.{layer}.{kind}"
        for block in range(3)
        for layer in (0, 2, 4)
        for kind in ("weight", "bias")
    }
    assert [tuple(state[f"blocks.{block}.layers.4.weight"].shape) for block in range(3)] == [
        (480 + 24, 512),
        (480 + 48, 512),
        (480 + 96, 512),
    ]


# exports

EXPORTS = {
    "itransformer": ("itransformer", {}),
    "itransformer with marks": ("itransformer", {"time_marks": True}),
    "tft": ("tft", {}),
    "tft with static": ("tft", {"static_channels": 3}),
    "nhits": ("nhits", {}),
}


@pytest.fixture(scope="session", params=EXPORTS)
def exported(request, tmp_path_factory):
    """A registered model in its default sizes, and its artifacts by format, made as a build makes them."""
    name, settings = EXPORTS[request.param]
    source = open_source(identify(name, settings=settings))
    folder = tmp_path_factory.mktemp(name)
    onnx = convert_to_onnx(source.module, None, source.spec, None, folder / "model.onnx").artifact
    return source, {
        "onnx": onnx,
        "torchscript": convert_to_torchscript(source.module, source.spec, None, folder / "model.pt").artifact,
        "openvino": convert_to_openvino(onnx, folder / "model.xml").artifact,
    }


@pytest.mark.parametrize(
    ("form", "runtime"), [(form, runtime) for form in FORMATS for runtime in EXPORT_FORMATS[form].runtimes]
)
def test_every_export_answers_as_the_model_at_any_batch(exported, form, runtime):
    source, artifacts = exported
    sets = feed_sets(source.spec.inputs, batches=(1, 3, 10))
    tolerance = TOLERANCES[EXPORT_FORMATS[form].tolerance]
    for parity in check_parity(source, artifacts[form], runtime, sets, tolerance, scaled=True):
        assert parity.passed, parity.worst


def test_onnx_is_opset_17_and_holds_the_weights_once(exported):
    source, artifacts = exported
    assert artifacts["onnx"].opset == 17
    assert artifacts["onnx"].size_bytes < 4 * source.spec.parameters * 1.1
    assert not [step for step in artifacts["onnx"].provenance if "caveat" in step]
