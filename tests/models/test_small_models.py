"""lstm, gru, tcn, inception-time, resnet1d, unet: their formulas, their counts, their sizes, and their exports.

Every one runs in every format on every runtime; there are no exceptions to list.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tsexport.errors import ConfigurationError
from tsexport.exporters.checks import check_parity, feed_sets
from tsexport.exporters.conversion import convert_to_onnx, convert_to_openvino, convert_to_torchscript
from tsexport.exporters.formats import EXPORT_FORMATS
from tsexport.models import gru, inception_time, lstm, recurrent, resnet1d, same_conv, tcn, unet
from tsexport.models.registry import get_entry
from tsexport.models.settings import configure
from tsexport.models.sources import identify, open_source
from tsexport.runtimes.comparison import TOLERANCES
from tsexport.types import random_feeds

FILES = {"lstm": lstm, "gru": gru, "tcn": tcn, "inception-time": inception_time, "resnet1d": resnet1d, "unet": unet}
VARIANTS = {
    "lstm": ("lstm", {"size": "small"}),
    "lstm with one layer": ("lstm", {"size": "small", "layers": 1}),
    "gru": ("gru", {"size": "small"}),
    "tcn": ("tcn", {}),
    "inception-time": ("inception-time", {"size": "small", "blocks": 4}),
    "inception-time with five branches": (
        "inception-time",
        {"size": "small", "kernels": "3,5,8,11,23", "pooling": "false"},
    ),
    "resnet1d": ("resnet1d", {}),
    "unet": ("unet", {"latitudes": 32, "longitudes": 16, "widths": "8,16,32"}),
}
SIZED = ("lstm", "gru", "inception-time")
ATOL = 2e-5
"""Between torch and a plain formula in float64: fp32 rounding over a few hundred terms of about unit size."""


def config_of(name, settings=None):
    return configure(FILES[name].Config, settings or {}, model=name)


def shake(module):
    """Give every BatchNorm statistics and weights as after training: fresh ones do nothing, and would hide mistakes."""
    generator = torch.Generator().manual_seed(3)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3, generator=generator)
            part.running_var.uniform_(0.5, 2, generator=generator)
            part.weight.data.uniform_(0.5, 1.5, generator=generator)
            part.bias.data.normal_(0, 0.3, generator=generator)
    return module


def open_variant(name):
    model, settings = VARIANTS[name]
    source = open_source(identify(model, settings=settings))
    shake(source.module)
    return source


def make(config):
    file = next(file for file in FILES.values() if file.Config is type(config))
    torch.manual_seed(0)
    return shake(file.build(config)).eval().requires_grad_(False)


def arrays(module):
    return {name: value.double().numpy() for name, value in module.state_dict().items()}


# ---------------------------------------------------------------- what they compute


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", VARIANTS)
def test_shape_is_as_declared_and_rows_do_not_touch_each_other(name, batch):
    source = open_variant(name)
    feeds = random_feeds(source.spec.inputs, batch, seed=1)
    (output,) = source.spec.outputs
    answer = source.run(feeds)[output.name]
    alone = source.run({key: array[-1:] for key, array in feeds.items()})[output.name]
    assert answer.shape == output.with_batch(batch)
    assert answer.dtype == np.float32
    np.testing.assert_allclose(alone[0], answer[-1], atol=ATOL)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_step(x, state, w, r, bx, br):
    hidden, cell = state
    i, f, g, o = np.split(w @ x + bx + r @ hidden + br, 4)
    cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(cell), cell


def gru_step(x, state, w, r, bx, br):
    (hidden,) = state
    (xr, xz, xn), (hr, hz, hn) = np.split(w @ x + bx, 3), np.split(r @ hidden + br, 3)
    z = sigmoid(xz + hz)
    return ((1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn) + z * hidden,)


@pytest.mark.parametrize(("build", "step", "states"), [(lstm.build, lstm_step, 2), (gru.build, gru_step, 1)])
def test_recurrent_models_are_their_formulas(build, step, states):
    config = recurrent.Config(context_length=7, channels=3, hidden=5, layers=2)
    torch.manual_seed(1)
    module = build(config).eval().requires_grad_(False)
    weights = arrays(module)
    series = random_feeds(config.inputs, 2, seed=0)["features"]
    for row, answer in zip(series.astype(np.float64), module(torch.from_numpy(series)).numpy(), strict=True):
        for layer in range(2):
            parts = [weights[f"recurrent.{part}_l{layer}"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            state, seen = (np.zeros(5),) * states, []
            for x in row:
                state = step(x, state, *parts)
                seen.append(state[0])
            row = np.array(seen)
        np.testing.assert_allclose(answer, weights["head.weight"] @ row[-1] + weights["head.bias"], atol=ATOL)


def steps_that_matter(module, config):
    """Return which steps of the input the logits depend on."""
    features = torch.from_numpy(random_feeds(config.inputs, 1, seed=0)["features"]).requires_grad_()
    module(features).square().sum().backward()
    return np.flatnonzero(features.grad.abs().sum(dim=(0, 2)).numpy())


def test_tcn_sees_its_receptive_field():
    config = tcn.Config(context_length=60, channels=2, filters=8, dilations=(1, 2, 4))
    assert config.receptive_field == 29
    assert steps_that_matter(make(config), config).tolist() == list(range(60 - 29, 60))
    assert tcn.Config().receptive_field == 253  # more than its 60 bars


def test_tcn_is_causal():
    config = tcn.Config(context_length=20, channels=2, filters=8, dilations=(1, 2, 4))
    blocks = make(config).blocks
    series = torch.from_numpy(random_feeds(config.inputs, 1, seed=0)["features"]).transpose(1, 2)
    later = series.clone()
    later[:, :, 12:] += 1.0
    before, after = blocks(series), blocks(later)
    torch.testing.assert_close(before[:, :, :12], after[:, :, :12])
    assert (before[:, :, 12:] != after[:, :, 12:]).any(dim=1).all()


@pytest.mark.parametrize("kernel", [1, 2, 3, 8, 39])
def test_a_same_convolution_is_centred_with_one_step_more_behind_where_it_is_even(kernel):
    layer = make_same(3, 2, kernel)
    series = np.random.default_rng(0).standard_normal((3, 20))
    padded = np.pad(series, ((0, 0), ((kernel - 1) // 2, kernel // 2)))
    state = arrays(layer)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=1)  # [inputs, time, kernel]
    plain = np.einsum("itk,oik->ot", windows, state["conv.weight"])
    scale = state["norm.weight"] / np.sqrt(state["norm.running_var"] + 1e-5)
    expected = (plain - state["norm.running_mean"][:, None]) * scale[:, None] + state["norm.bias"][:, None]
    actual = layer(torch.from_numpy(series.astype(np.float32))[None])[0].numpy()
    np.testing.assert_allclose(actual, expected, atol=ATOL)


def make_same(inputs, outputs, kernel):
    torch.manual_seed(0)
    return shake(same_conv.same_conv()(inputs, outputs, kernel)).eval().requires_grad_(False)


def test_inception_time_is_the_papers_network():
    """Against the paper's own order: branches joined first, then one BatchNorm over all of them."""
    config = inception_time.Config(context_length=24, channels=5, filters=4, blocks=4, kernels=(9, 5, 3), bottleneck=6)
    module = make(config)
    features = torch.from_numpy(random_feeds(config.inputs, 2, seed=0)["features"])

    def joined_norm(parts, norms):
        values = [
            torch.cat([getattr(n, name) for n in norms]) for name in ("running_mean", "running_var", "weight", "bias")
        ]
        return nn.functional.batch_norm(torch.cat(parts, dim=1), *values)

    x = before = features.transpose(1, 2)
    for number, block in enumerate(module.blocks):
        narrow = nn.functional.conv1d(x, block.bottleneck.weight) if x.shape[1] > 6 else x
        parts = [nn.functional.conv1d(narrow, b.conv.weight, padding="same") for b in block.branches]
        pooled = nn.functional.max_pool1d(x, 3, stride=1, padding=1)
        parts.append(nn.functional.conv1d(pooled, block.pooled.conv.weight))
        x = joined_norm(parts, [*(b.norm for b in block.branches), block.pooled.norm])
        if number == 2:
            (shortcut,) = module.shortcuts
            x = x + joined_norm([nn.functional.conv1d(before, shortcut.conv.weight)], [shortcut.norm])
        x = torch.relu(x)
    expected = x.mean(dim=2) @ module.head.weight.T + module.head.bias
    np.testing.assert_allclose(module(features).numpy(), expected.numpy(), atol=ATOL)


@pytest.mark.parametrize(("blocks", "shortcuts"), [(2, 0), (3, 1), (4, 1), (6, 2), (8, 2)])
def test_inception_time_has_a_residual_connection_behind_every_third_block(blocks, shortcuts):
    module = inception_time.build(inception_time.Config(filters=2, blocks=blocks))
    assert len(module.shortcuts) == shortcuts


def test_inception_time_narrows_what_is_wider_than_the_bottleneck():
    module = inception_time.build(inception_time.Config())
    assert [isinstance(block.bottleneck, nn.Identity) for block in module.blocks] == [True, False, False, False]
    assert module.blocks[1].bottleneck.weight.shape == (32, 512, 1)


def test_resnet1d_adds_the_input_to_each_block():
    config = resnet1d.Config(channels=5, filters=(4, 4))
    module = make(config)
    for block in module.blocks:
        assert [layer.conv.kernel_size for layer in block.layers if not isinstance(layer, nn.ReLU)] == [
            (8,),
            (5,),
            (3,),
        ]
        for value in block.layers.parameters():
            value.zero_()  # BatchNorm's weight and bias too: what is left is the shortcut
    features = torch.from_numpy(random_feeds(config.inputs, 2, seed=0)["features"])
    first, second = module.blocks
    expected = torch.relu(second.shortcut(torch.relu(first.shortcut(features.transpose(1, 2)))))
    assert isinstance(second.shortcut, nn.BatchNorm1d)
    torch.testing.assert_close(module(features), module.head(expected.mean(dim=2)))


def test_unet_joins_each_level_with_the_one_of_the_same_grid():
    config = unet.Config(channels=3, latitudes=16, longitudes=8, widths=(4, 6, 10))
    module = make(config)
    state = torch.from_numpy(random_feeds(config.inputs, 2, seed=0)["state"])
    pool = nn.functional.max_pool2d
    top = module.down[0](state)
    middle = module.down[1](pool(top, 2))
    bottom = module.down[2](pool(middle, 2))
    assert bottom.shape == (2, 10, 4, 2)
    middle = module.up[0](torch.cat([middle, module.rise[0](bottom)], dim=1))
    top = module.up[1](torch.cat([top, module.rise[1](middle)], dim=1))
    torch.testing.assert_close(module(state), module.head(top))


# ---------------------------------------------------------------- counts and sizes


def recurrent_count(gates, features, hidden, layers):
    inputs = [features] + [hidden] * (layers - 1)
    return sum(gates * hidden * (n + hidden + 2) for n in inputs) + 3 * (hidden + 1)


def inception_count(features, filters, blocks, kernels=(39, 19, 9), pooling=True):
    width = filters * (len(kernels) + pooling)
    total = 3 * (width + 1)
    for block in range(blocks):
        inputs = features if block == 0 else width
        narrow = 32 if inputs > 32 else inputs
        total += 32 * inputs if inputs > 32 else 0
        total += narrow * filters * sum(kernels) + pooling * inputs * filters + 2 * width
    for shortcut in range(blocks // 3):
        total += (features if shortcut == 0 else width) * width + 2 * width
    return total


def resnet_count(features=5):
    total, inputs = 3 * (128 + 1), features
    for width in (64, 128, 128):
        total += 8 * inputs * width + (5 + 3) * width * width + 3 * 2 * width
        total += 2 * width + (inputs * width if inputs != width else 0)
        inputs = width
    return total


def tcn_count(features=26, filters=64):
    blocks = 12 * (3 * filters * filters + filters)
    return blocks - 3 * filters * (filters - features) + (features + 1) * filters + 3 * (filters + 1)


def unet_count(channels=13, a=32, b=64, c=128):
    def level(n, m):
        return 9 * n * m + 9 * m * m + 4 * m

    down = level(channels, a) + level(a, b) + level(b, c)
    up = 4 * c * b + b + level(2 * b, b) + 4 * b * a + a + level(2 * a, a)
    return down + up + (a + 1) * channels


COUNTS = [
    ("lstm", {"size": "small"}, recurrent_count(4, 26, 64, 2)),
    ("lstm", {}, recurrent_count(4, 26, 128, 2)),
    ("lstm", {"size": "large"}, recurrent_count(4, 26, 256, 4)),
    ("gru", {"size": "small"}, recurrent_count(3, 26, 64, 2)),
    ("gru", {}, recurrent_count(3, 26, 128, 2)),
    ("gru", {"size": "large"}, recurrent_count(3, 26, 256, 4)),
    ("tcn", {}, tcn_count()),
    ("inception-time", {"size": "small"}, inception_count(5, 32, 2)),
    ("inception-time", {}, inception_count(5, 128, 4)),
    ("inception-time", {"size": "large"}, inception_count(5, 256, 8)),
    (
        "inception-time",
        {"kernels": "3,5,8,11,23", "pooling": "false"},
        inception_count(5, 128, 4, (3, 5, 8, 11, 23), pooling=False),
    ),
    ("resnet1d", {}, resnet_count()),
    ("unet", {}, unet_count()),
]


@pytest.mark.parametrize(("name", "settings", "expected"), COUNTS)
def test_parameters_are_as_many_as_the_formula_says(name, settings, expected):
    with torch.device("meta"):  # shapes alone
        module = FILES[name].build(config_of(name, settings))
    assert sum(p.numel() for p in module.parameters()) == expected
    if not settings:
        assert get_entry(name).parameters == expected


def test_the_published_sizes():
    """Steps, width and depth as in the table of the Model Infrastructure Requirements Guide."""
    for name in ("lstm", "gru"):
        configs = [config_of(name, {"size": size}) for size in ("small", "medium", "large")]
        assert [(c.context_length, c.hidden, c.layers, c.channels) for c in configs] == [
            (60, 64, 2, 26),
            (60, 128, 2, 26),
            (120, 256, 4, 26),
        ]
    configs = [config_of("inception-time", {"size": size}) for size in ("small", "medium", "large")]
    assert [(c.context_length, c.filters, c.blocks, c.channels) for c in configs] == [
        (60, 32, 2, 5),
        (60, 128, 4, 5),
        (120, 256, 8, 5),
    ]


@pytest.mark.parametrize("name", SIZED)
def test_medium_is_the_default(name):
    assert config_of(name, {"size": "medium"}) == FILES[name].Config()


def test_a_field_goes_over_its_size_in_either_order():
    expected = recurrent.Config(context_length=120, hidden=64, layers=4)
    assert config_of("lstm", {"size": "large", "hidden": "64"}) == expected
    assert config_of("lstm", {"hidden": 64, "size": "large"}) == expected


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lstm", {"size": "smal"}, r"lstm has no size 'smal' \(did you mean 'small'\?\); it has small, medium, large"),
        ("gru", {"size": 3}, "gru has no size 3; it has small, medium, large"),
        ("tcn", {"size": "small"}, "tcn has no setting 'size'"),
        ("lstm", {"sise": "small"}, r"lstm has no setting 'sise' \(did you mean 'size'\?\)"),
        ("lstm", {"hidden": 0}, "hidden is 0; it must be 1 or more"),
        ("lstm", {"dropout": 1}, "dropout is 1.0; it must be at least 0 and below 1"),
        ("gru", {"classes": 1}, "classes is 1; a classifier needs 2 or more"),
        ("tcn", {"dilations": "1,0"}, r"dilations is \(1, 0\); it must hold one number or more, each 1 or more"),
        ("tcn", {"dilations": "[]"}, r"dilations is \(\); it must hold one number or more"),
        ("resnet1d", {"kernels": "8;5"}, "kernels is '8;5'; it must be whole numbers with commas between them"),
        ("inception-time", {"kernels": [3, 2.5]}, r"kernels is \[3, 2.5\]; it must be whole numbers"),
        ("unet", {"latitudes": 66}, "latitudes is 66; 3 levels halve it 2 times"),
    ],
)
def test_settings_that_do_not_fit_are_refused(name, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        config_of(name, settings)


@pytest.mark.parametrize("text", ["3,5,8", "[3, 5, 8]", " 3, 5, 8 ", [3, 5, 8], (3, 5, 8)])
def test_lists_of_numbers_may_be_written_with_or_without_brackets(text):
    assert config_of("inception-time", {"kernels": text}).kernels == (3, 5, 8)


def test_one_number_is_a_list_of_one():
    assert config_of("unet", {"widths": "16"}) == replace(unet.Config(), widths=(16,))
    assert config_of("unet", {"widths": 16}).widths == (16,)


# ---------------------------------------------------------------- exports


def require_parity_everywhere(source, folder):
    onnx = convert_to_onnx(source.module, None, source.spec, None, folder / "model.onnx").artifact
    torchscript = convert_to_torchscript(source.module, source.spec, None, folder / "model.pt").artifact
    openvino = convert_to_openvino(onnx, folder / "model.xml").artifact
    assert onnx.opset == 17
    met = []
    for artifact in (onnx, torchscript, openvino):
        row = EXPORT_FORMATS[artifact.format]
        for runtime in row.runtimes:
            sets = feed_sets(source.spec.inputs, batches=(1, 2, 5))
            results = check_parity(source, artifact, runtime, sets, TOLERANCES[row.tolerance], scaled=True)
            assert all(one.passed for one in results), (artifact.format, runtime, [one.worst for one in results])
            met.append(runtime)
    assert met == ["onnxruntime", "tract", "torchscript", "openvino"]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_format_answers_as_the_model_on_every_runtime(name, tmp_path):
    require_parity_everywhere(open_variant(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [*((name, {"size": size}) for name in SIZED for size in ("medium", "large")), ("unet", {})],
)
def test_published_sizes_answer_as_the_model_on_every_runtime(name, settings, tmp_path):
    source = open_source(identify(name, settings=settings))
    shake(source.module)
    require_parity_everywhere(source, tmp_path)


def test_convolutions_export_without_leftovers(tmp_path):
    """Paddings and BatchNorm are part of the convolutions: nothing computes shapes, and few operators are left.

    Those along time have a height of 1, which Unsqueeze gives and Squeeze takes.
    """
    import onnx

    allowed = {
        "tcn": {"Transpose", "Unsqueeze", "Squeeze", "Conv", "Relu", "Add", "Gather", "MatMul"},
        "inception-time": {
            *{"Transpose", "Unsqueeze", "Squeeze", "Conv", "MaxPool", "Concat", "Relu", "Add", "ReduceMean", "MatMul"}
        },
        "unet": {"Conv", "Relu", "MaxPool", "ConvTranspose", "Concat"},
    }
    for name, operators in allowed.items():
        source = open_variant(name)
        convert_to_onnx(source.module, None, source.spec, None, tmp_path / "model.onnx")
        graph = onnx.load(tmp_path / "model.onnx").graph
        assert {node.op_type for node in graph.node} == operators
