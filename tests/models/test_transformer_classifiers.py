"""patchtst, itransformer and tft as classifiers: the published sizes, their counts, and what their heads compute."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tsexport.calibration.reference import has_reference, reference_windows
from tsexport.errors import CheckpointError, ConfigurationError
from tsexport.exporters.checks import check_parity, feed_sets
from tsexport.exporters.conversion import convert_to_onnx, convert_to_openvino, convert_to_torchscript
from tsexport.exporters.formats import EXPORT_FORMATS
from tsexport.models import itransformer, patchtst, tft
from tsexport.models.registry import get_entry
from tsexport.models.settings import configure
from tsexport.models.sources import identify, open_source
from tsexport.runtimes.comparison import TOLERANCES
from tsexport.stages.preparing import quantile_levels
from tsexport.types import random_feeds

ATOL = 2e-5
"""fp32 against a reference that sums in another order."""

FILES = {"patchtst": patchtst, "itransformer": itransformer, "tft": tft}
CLASS_HEADS = {"patchtst": "head.linear", "itransformer": "projection", "tft": "classifier"}
"""As the authors of patchtst and itransformer name them."""
SIZED = ("patchtst", "itransformer")
SIZES = {"small": (256, 128, 4, 2), "medium": (512, 256, 8, 4), "large": (512, 512, 16, 8)}
"""The published table: steps, width, heads, layers."""
SMALL = {
    "patchtst": patchtst.Config(
        context_length=48, channels=3, layers=2, width=8, heads=2, feed_forward=12, dropout=0.0, classes=4
    ),
    "itransformer": itransformer.Config(24, 5, 3, width=16, heads=2, feed_forward=32, classes=4),
    "itransformer without norm": itransformer.Config(
        24, 5, 3, width=16, heads=2, feed_forward=32, use_norm=False, classes=4
    ),
    "tft": tft.Config(12, 5, 3, 2, width=8, heads=2, classes=4),
}


def file_of(config):
    return next(file for file in FILES.values() if isinstance(config, file.Config))


def make(config):
    """Build with every weight random, so that none hides a mistake by being zero or one."""
    torch.manual_seed(0)
    module = file_of(config).build(config).eval()
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if value.is_floating_point() and value.dim():
            low = 0.3 if "running_var" in name else -0.4
            value.data.uniform_(low, 0.4)
    return module.requires_grad_(False)


def ask(module, config, batch, seed=1):
    feeds = random_feeds(config.inputs, batch, seed)
    with torch.inference_mode():
        return module(*map(torch.from_numpy, feeds.values())), feeds


@pytest.mark.parametrize("name", SIZED)
def test_the_named_sizes_are_the_published_classifiers(name):
    for size, published in SIZES.items():
        config = configure(FILES[name].Config, {"size": size}, model=name)
        assert (config.context_length, config.width, config.heads, config.layers) == published
        assert (config.classes, config.task) == (3, "classification")
        assert [str(spec) for spec in (*config.inputs, *config.outputs)] == [
            f"series float32[batch, {published[0]}, 7]",
            "logits float32[batch, 3]",
        ]


def test_the_defaults_are_still_the_forecasters_of_the_public_checkpoints():
    assert patchtst.Config() == patchtst.Config(336, 96, 7, 16, 8, 3, 16, 4, 128, classes=0)
    assert itransformer.Config() == itransformer.Config(96, 96, 7, 2, 256, 8, 256, classes=0)
    for name in SIZED:
        assert FILES[name].Config().task == get_entry(name).task == "forecast"
    assert tft.Config().task == get_entry("tft").task == "quantiles"


def linear(size_in, size_out):
    return size_in * size_out + size_out


def encoder_layer(width, inner):
    return 4 * linear(width, width) + linear(width, inner) + linear(inner, width) + 4 * width


def patchtst_count(steps, width, layers):
    patches = (steps - 16) // 8 + 2
    scale = 1  # the checkpoints hold it beside the weights of each layer
    return (
        linear(16, width) + patches * width + layers * (encoder_layer(width, 2 * width) + scale) + linear(7 * width, 3)
    )


def itransformer_count(steps, width, layers):
    return linear(steps, width) + layers * encoder_layer(width, width) + 2 * width + linear(7 * width, 3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "formula"), [("patchtst", patchtst_count), ("itransformer", itransformer_count)])
def test_parameters_are_counted_by_hand(name, formula, size):
    steps, width, _, layers = SIZES[size]
    with torch.device("meta"):
        module = FILES[name].build(configure(FILES[name].Config, {"size": size}, model=name))
    assert sum(value.numel() for value in module.parameters()) == formula(steps, width, layers)


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
def test_shape_is_as_declared_and_rows_do_not_touch_each_other(config):
    module = make(config)
    together, feeds = ask(module, config, 3)
    assert tuple(together.shape) == config.outputs[0].with_batch(3) == (3, 4)
    with torch.inference_mode():
        alone = module(*(torch.from_numpy(array[1:2]) for array in feeds.values()))
    torch.testing.assert_close(alone[0], together[1], atol=ATOL, rtol=0)


def test_patchtst_maps_the_last_patch_of_all_channels():
    config = SMALL["patchtst"]
    module = make(config)
    tokens = []
    module.backbone.register_forward_hook(lambda _, __, output: tokens.append(output))
    given, _ = ask(module, config, 2)
    last = tokens[0].reshape(2, config.channels, config.patches, config.width)[:, :, -1].reshape(2, -1)
    assert given.std() > 0.01
    torch.testing.assert_close(
        given, last @ module.head.linear.weight.T + module.head.linear.bias, atol=ATOL, rtol=ATOL
    )


def test_a_classifier_has_the_forecasters_backbone():
    """So that a backbone trained to forecast, or on masked patches, can be fine-tuned."""
    for name in ("patchtst", "itransformer", "tft"):
        config = SMALL[name]
        forecaster, classifier = (
            {key: tuple(value.shape) for key, value in FILES[name].build(one).state_dict().items()}
            for one in (replace(config, classes=0), config)
        )
        heads = ("head.", "projector.", "projection.", "classifier.")
        assert {key: shape for key, shape in forecaster.items() if not key.startswith(heads)} == {
            key: shape for key, shape in classifier.items() if not key.startswith(heads)
        }
        assert {key for key in classifier if key.startswith(heads)} == {
            f"{CLASS_HEADS[name]}.{kind}" for kind in ("weight", "bias")
        }


@pytest.mark.parametrize("name", ["itransformer", "itransformer without norm"])
def test_itransformer_maps_gelu_of_all_tokens(name):
    config = SMALL[name]
    module = make(config)
    given, feeds = ask(module, config, 2)
    series = torch.from_numpy(feeds["series"])
    if config.use_norm:
        deviation = torch.sqrt(series.var(1, keepdim=True, correction=0) + 1e-5)
        series = (series - series.mean(1, keepdim=True)) / deviation
    with torch.inference_mode():
        tokens = module.encoder(module.enc_embedding(series.mT))  # held against torch's own encoder elsewhere
    flat = nn.functional.gelu(tokens).reshape(2, -1)
    torch.testing.assert_close(given, flat @ module.projection.weight.T + module.projection.bias, atol=ATOL, rtol=ATOL)


@pytest.mark.parametrize("name", SIZED)
def test_scale_and_offset_change_no_class(name):
    module = make(SMALL[name])
    given, feeds = ask(module, SMALL[name], 2)
    with torch.inference_mode():
        moved = module(torch.from_numpy(100 * feeds["series"] + 7))
    np.testing.assert_allclose(moved.numpy(), given.numpy(), atol=2e-3, rtol=0)  # epsilon, and fp32 of the offset


def test_tft_maps_the_last_step_which_sees_every_input():
    config = SMALL["tft"]
    module = make(config)
    joined = []
    module.output_skip.register_forward_hook(lambda _, __, output: joined.append(output))
    given, feeds = ask(module, config, 2)
    expected = joined[0][:, -1] @ module.classifier.weight.T + module.classifier.bias
    torch.testing.assert_close(given, expected, atol=ATOL, rtol=ATOL)
    for name, array in feeds.items():
        for step in (0, array.shape[1] - 1):
            changed = array.copy()
            changed[:, step] += 1
            with torch.inference_mode():
                other = module(*map(torch.from_numpy, {**feeds, name: changed}.values()))
            assert (other - given).abs().max() > 1e-6, (name, step)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (patchtst.Config(), {"classes": 1}, "classes is 1; a classifier needs 2 or more"),
        (itransformer.Config(), {"classes": 1}, "classes is 1; a classifier needs 2 or more"),
        (tft.Config(), {"classes": -1}, "classes is -1; a classifier needs 2 or more"),
        (itransformer.Config(), {"classes": 3, "time_marks": True}, "time_marks is true and classes is 3"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        replace(config, **changes)


@pytest.mark.parametrize("name", SIZED)
def test_a_field_goes_over_its_size(name):
    """A forecaster of a published size."""
    config = configure(FILES[name].Config, {"size": "small", "classes": "0"}, model=name)
    assert (config.context_length, config.task, config.outputs[0].name) == (256, "forecast", "forecast")


@pytest.mark.parametrize("name", FILES)
def test_the_opened_model_is_a_classifier_and_untrained(name):
    source = open_source(identify(name, settings={"classes": 3}))
    assert source.spec.task == "classification"
    assert "untrained: accuracy means nothing" in source.spec.caveats
    assert quantile_levels(source.spec) == ()  # of tft's three classes none is a quantile


@pytest.mark.parametrize("name", SIZED)
def test_classifiers_are_judged_on_the_series_with_classes(name):
    identity = identify(name, settings={"size": "small"})
    config = {field: getattr(identity.config, field) for field in identity.config.__dataclass_fields__}
    assert has_reference(name, config)
    dataset, source = reference_windows(name, config, 0, "test", ("series",))
    batch = next(dataset.batches(8))
    assert (batch.feeds["series"].shape, batch.target.shape) == ((8, 256, 7), (8, 1))
    assert source == "the reference series with classes"
    assert set(batch.target[:, 0]) <= {0, 1, 2}
    forecasts, _ = reference_windows(name, {**config, "classes": 0}, 0, "test", ("series",))
    assert next(forecasts.batches(8)).target.shape == (8, 96, 7)


@pytest.mark.parametrize(
    ("name", "settings", "hint"),
    [
        ("patchtst", {"classes": 3}, "It fits with --set classes=3."),
        ("itransformer", {"classes": 3}, "Settings that look wrong: classes"),
        ("tft", {"classes": 3}, "Settings that look wrong: classes"),
    ],
)
def test_a_classifiers_checkpoint_says_so_to_a_forecaster(tmp_path, name, settings, hint):
    file = FILES[name]
    torch.save(file.build(file.Config(**settings)).state_dict(), tmp_path / "classifier.pth")
    with pytest.raises(CheckpointError) as caught:
        open_source(identify(name, checkpoint=tmp_path / "classifier.pth"))
    assert hint in caught.value.next_step
    fitting = open_source(identify(name, checkpoint=tmp_path / "classifier.pth", settings=settings))
    assert fitting.spec.task == "classification"


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SIZED)
def test_published_sizes_answer_as_the_model_on_every_runtime(name, size, tmp_path):
    source = open_source(identify(name, settings={"size": size}))
    onnx = convert_to_onnx(source.module, None, source.spec, None, tmp_path / "model.onnx").artifact
    torchscript = convert_to_torchscript(source.module, source.spec, None, tmp_path / "model.pt").artifact
    met = []
    for artifact in (onnx, torchscript, convert_to_openvino(onnx, tmp_path / "model.xml").artifact):
        row = EXPORT_FORMATS[artifact.format]
        for runtime in row.runtimes:
            sets = feed_sets(source.spec.inputs, batches=(1, 3))
            results = check_parity(source, artifact, runtime, sets, TOLERANCES[row.tolerance], scaled=True)
            assert all(one.passed for one in results), (artifact.format, runtime, [one.worst for one in results])
            met.append(runtime)
    assert met == ["onnxruntime", "tract", "torchscript", "openvino"]
