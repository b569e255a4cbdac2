"""lstm, gru, tcn, inception-time, resnet1d, unet: their formulas and their exports.

Every one runs in every format on every runtime; there are no exceptions to list.
"""

import numpy as np
import pytest
import torch
from torch import nn

from tsexport.exporters.checks import check_parity, feed_sets
from tsexport.exporters.conversion import convert_to_onnx, convert_to_openvino, convert_to_torchscript
from tsexport.exporters.formats import EXPORT_FORMATS
from tsexport.models import gru, inception_time, lstm, recurrent, resnet1d, same_conv, tcn, unet
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
