"""What must be true of every registered model, and of each one."""

import ast
import io
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from tsexport.errors import ConfigurationError
from tsexport.models import dlinear, linear, patchtst, patchtst_cpu
from tsexport.models.registry import list_entries
from tsexport.types import random_feeds

ATOL = 2e-5
"""fp32 parity of a plain export: another order of sums in a few layers."""

SMALL = {
    "patchtst-cpu": patchtst_cpu.Config(layers=1),
    "patchtst-cpu with positions": patchtst_cpu.Config(layers=1, positional_encoding=True, horizon=3),
    "patchtst": patchtst.Config(context_length=48, horizon=5, channels=3, layers=2, width=8, heads=2),
    "patchtst with gather": patchtst.Config(context_length=50, horizon=5, channels=3, patch_length=12, stride=5),
    "dlinear": dlinear.Config(context_length=40, horizon=5, channels=3),
    "dlinear individual": dlinear.Config(context_length=40, horizon=5, channels=3, individual=True),
    "linear": linear.Config(context_length=40, horizon=5, channels=3),
    "linear individual": linear.Config(context_length=40, horizon=5, channels=3, individual=True),
}
FILES = {"patchtst-cpu": patchtst_cpu, "patchtst": patchtst, "dlinear": dlinear, "linear": linear}


def make(config):
    """Build with every weight random, so that none hides a mistake by being zero or one."""
    torch.manual_seed(0)
    module = next(m for m in FILES.values() if isinstance(config, m.Config)).build(config).eval()
    for value in (*module.parameters(), *module.buffers()):
        if value.is_floating_point() and value.dim():
            value.data.uniform_(0.05, 0.3)
    return module.requires_grad_(False)


def ask(module, config, batch, seed=1):
    feeds = random_feeds(config.inputs, batch, seed)
    with torch.inference_mode():
        return module(*map(torch.from_numpy, feeds.values())).numpy(), feeds


def test_every_registered_model_is_tested_here():
    """In this folder, that is: a file of tests imports the model's."""
    imported = {
        name.name
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "tsexport.models"
        for name in node.names
    }
    assert {entry.module.rpartition(".")[2] for entry in list_entries()} <= imported


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("batch", [1, 4])
def test_shape_is_as_declared(name, batch):
    answer, _ = ask(make(SMALL[name]), SMALL[name], batch)
    (output,) = SMALL[name].outputs
    assert answer.shape == output.with_batch(batch)
    assert answer.dtype.name == output.dtype
    assert np.isfinite(answer).all()


@pytest.mark.parametrize("name", SMALL)
def test_rows_do_not_touch_each_other(name):
    module = make(SMALL[name])
    together, feeds = ask(module, SMALL[name], 3)
    with torch.inference_mode():
        alone = module(torch.from_numpy(next(iter(feeds.values()))[1:2])).numpy()
    np.testing.assert_allclose(alone[0], together[1], atol=ATOL, rtol=0)


@pytest.mark.parametrize("name", SMALL)
def test_trace_serves_another_batch(name, trace):
    config = SMALL[name]
    module = make(config)
    example = torch.from_numpy(next(iter(random_feeds(config.inputs, 2, 0).values())))
    with torch.no_grad():
        traced = trace(module, example)
    expected, _ = ask(module, config, 5)
    actual, _ = ask(traced, config, 5)
    np.testing.assert_allclose(actual, expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize("name", SMALL)
def test_exports_to_opset_17_with_a_dynamic_batch(name):
    config = SMALL[name]
    module = make(config)
    file = io.BytesIO()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its operator has no ONNX form
    try:
        with warnings.catch_warnings():
            # The TorchScript-based exporter is deprecated, and the one that writes a true opset 17.
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            # nn.MultiheadAttention compares its own constant width.
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module="torch.nn.functional")
            torch.onnx.export(
                module,
                (torch.from_numpy(next(iter(random_feeds(config.inputs, 2, 0).values()))),),
                file,
                dynamo=False,
                opset_version=17,
                input_names=[config.inputs[0].name],
                output_names=[config.outputs[0].name],
                dynamic_axes={config.inputs[0].name: {0: "batch"}, config.outputs[0].name: {0: "batch"}},
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    expected, feeds = ask(module, config, 5)
    np.testing.assert_allclose(session.run(None, feeds)[0], expected, atol=ATOL, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (patchtst_cpu.Config(), {"width": 130}, "width is 130, which heads 4 does not divide"),
        (patchtst_cpu.Config(), {"context_length": 100}, "context_length is 100, which patch_length 16"),
        (patchtst_cpu.Config(), {"layers": 0}, "layers is 0; it must be 1 or more"),
        (patchtst_cpu.Config(), {"dropout": 1.0}, r"dropout is 1.0; .* below 1"),
        (patchtst.Config(), {"heads": 3}, "width is 16, which heads 3 does not divide"),
        (patchtst.Config(), {"context_length": 10}, "patch_length is 16, longer than context_length 10"),
        (patchtst.Config(), {"stride": 0}, "stride is 0; it must be 1 or more"),
        (patchtst.Config(), {"dropout": -0.1}, "dropout is -0.1"),
        (dlinear.Config(), {"kernel": 24}, "kernel is 24; .* odd number from 3 on"),
        (dlinear.Config(), {"horizon": -1}, "horizon is -1"),
        (linear.Config(), {"channels": 0}, "channels is 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        replace(config, **changes)


def test_patchtst_cpu_keeps_the_prefixes_of_checkpoints_in_the_field():
    module = patchtst_cpu.build(patchtst_cpu.Config())
    prefixes = {name.split(".")[0] for name in module.state_dict()}
    assert prefixes == {"patch_embedding", "layer_norm", "transformer", "output_proj"}
    assert module.patch_embedding.weight.shape == (128, 128)
    assert isinstance(module.transformer, nn.TransformerEncoder)
    assert len(module.transformer.layers) == 3


@pytest.mark.parametrize("positional", [False, True])
def test_patchtst_cpu_tells_the_order_of_patches_only_with_positions(positional):
    config = patchtst_cpu.Config(layers=1, positional_encoding=positional)
    module = make(config)
    if positional:
        module.positions.data.normal_()
    answer, feeds = ask(module, config, 2)
    window = feeds["features"].reshape(2, 8, 16, 8)
    with torch.inference_mode():
        swapped = module(torch.from_numpy(np.ascontiguousarray(window[:, ::-1]).reshape(2, 128, 8))).numpy()
    assert np.allclose(answer, swapped, atol=ATOL, rtol=0) is not positional


@pytest.mark.parametrize(
    ("context", "patch", "stride"), [(336, 16, 8), (50, 12, 5), (53, 8, 4), (40, 8, 8), (37, 4, 7)]
)
def test_patches_are_those_of_unfold(context, patch, stride):
    config = patchtst.Config(context_length=context, patch_length=patch, stride=stride)
    rows = torch.randn(3, context)
    expected = nn.functional.pad(rows[:, None], (0, stride), mode="replicate")[:, 0].unfold(1, patch, stride)
    actual = patchtst.build(config).patches(rows)
    assert expected.shape == (3, config.patches, patch)
    assert torch.equal(actual, expected)


def test_patchtst_follows_scale_and_offset_of_its_input():
    config = SMALL["patchtst"]
    module = make(config)
    answer, feeds = ask(module, config, 2)
    with torch.inference_mode():
        moved = module(torch.from_numpy(100 * feeds["series"] + 7)).numpy()
    np.testing.assert_allclose(moved, 100 * answer + 7, atol=0.05, rtol=1e-3)


def test_dlinear_is_its_formula():
    config = dlinear.Config(context_length=40, horizon=5, channels=2, kernel=5)
    module = make(config)
    answer, feeds = ask(module, config, 1)
    x = feeds["series"][0].astype(np.float64)
    padded = np.concatenate((np.repeat(x[:1], 2, 0), x, np.repeat(x[-1:], 2, 0)))
    trend = np.array([padded[t : t + 5].mean(axis=0) for t in range(40)])
    state = {name: value.numpy().astype(np.float64) for name, value in module.state_dict().items()}
    expected = sum(
        state[f"Linear_{part}.weight"] @ values + state[f"Linear_{part}.bias"][:, None]
        for part, values in (("Seasonal", x - trend), ("Trend", trend))
    )
    np.testing.assert_allclose(answer[0], expected, atol=ATOL, rtol=0)


def test_individual_weights_serve_their_channel():
    config = linear.Config(context_length=4, horizon=2, channels=3, individual=True)
    module = linear.build(config)
    for channel, layer in enumerate(module.Linear):
        nn.init.constant_(layer.weight, channel)
        nn.init.zeros_(layer.bias)
    with torch.inference_mode():
        answer = module(torch.ones(1, 4, 3))
    assert answer[0, 0].tolist() == [0, 4, 8]
