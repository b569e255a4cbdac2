"""The default sizes are the published ones, field by field: heads, kernels and levels change no count of parameters."""

import numpy as np
import pytest
import torch

from tsexport.models import patchtst_cpu
from tsexport.models.registry import get_entry
from tsexport.types import random_feeds

PUBLISHED = {
    "patchtst-cpu": {
        **{"context_length": 128, "channels": 8, "horizon": 1, "patch_length": 16, "layers": 3, "width": 128},
        **{"heads": 4, "feed_forward": 512, "dropout": 0.1, "positional_encoding": False},
    },
    "hrm-27m": {
        **{"h_layers": 4, "h_width": 384, "h_heads": 6, "h_feed_forward": 384},
        **{"l_layers": 5, "l_width": 544, "l_heads": 8, "l_feed_forward": 4 * 544, "minutes": 390},
        **{"cross_attention": False, "causal": False, "segments": 1},
    },
    "migt-tvdt": {
        **{"context_length": 288, "n_variables": 24, "width": 256, "heads": 8},
        **{"temporal_layers": 4, "variable_layers": 2},
    },
    "sfno-hybrid": {
        **{"channels": 13, "latitudes": 256, "longitudes": 256, "widths": (256, 512, 1024), "modes": 32, "blocks": 2},
        **{"layers": 12, "heads": 8, "feed_forward": 4096},
    },
    "sfno-edge": {"widths": (32, 64, 128), "modes": 16, "layers": 4},
    "weather-gnn": {"latitudes": 32, "longitudes": 64, "channels": 13, "mesh_level": 3, "width": 64, "steps": 8},
    "unet": {"channels": 13, "latitudes": 64, "longitudes": 64, "widths": (32, 64, 128)},
    "lstm": {"context_length": 60, "channels": 26, "classes": 3},
    "gru": {"context_length": 60, "channels": 26, "classes": 3},
    "tcn": {"context_length": 60, "classes": 3, "kernel": 3, "dilations": (1, 2, 4, 8, 16, 32), "filters": 64},
    "inception-time": {
        **{"context_length": 60, "channels": 5, "classes": 3, "bottleneck": 32},
        **{"kernels": (39, 19, 9), "pooling": True},
    },
    "resnet1d": {
        **{"context_length": 60, "channels": 5, "classes": 3},
        **{"filters": (64, 128, 128), "kernels": (8, 5, 3)},
    },
    "tft": {"width": 64, "heads": 4, "quantiles": (0.1, 0.5, 0.9)},
    "nhits": {"pooling": (2, 2, 1), "width": 512},
    "dlinear": {"kernel": 25, "individual": False},
    "linear": {"individual": False},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_defaults_are_the_published_sizes(name):
    config = get_entry(name).definition().Config()
    assert {field: getattr(config, field) for field in PUBLISHED[name]} == PUBLISHED[name]


def test_the_shapes_of_hrm_are_those_of_the_document():
    config = get_entry("hrm-27m").definition().Config()
    assert [str(spec) for spec in (*config.inputs, *config.outputs)] == [
        "daily float32[batch, 64, 16]",
        "minutes float32[batch, 390, 16]",
        "forecast float32[batch, 390, 3]",
        "q float32[batch, 2]",
    ]


@pytest.mark.parametrize("window", [60, 90])
def test_windows_of_hrm_take_the_same_checkpoint(window):
    """Windows of 60 to 90 minutes are for small devices; 390 is a multiple of neither."""
    definition = get_entry("hrm-27m").definition()
    with torch.device("meta"):
        whole, windowed = (definition.build(definition.Config(l_window=size)).state_dict() for size in (0, window))
    assert {name: value.shape for name, value in whole.items()} == {
        name: value.shape for name, value in windowed.items()
    }


def test_patchtst_cpu_is_the_published_encoder():
    module = patchtst_cpu.build(patchtst_cpu.Config())
    for layer in module.transformer.layers:
        assert (layer.self_attn.num_heads, layer.self_attn.batch_first, layer.norm_first) == (4, True, False)
        assert layer.activation is torch.nn.functional.relu
        assert (layer.dropout.p, layer.linear1.out_features) == (0.1, 512)


def test_patchtst_cpu_flattens_a_patch_step_by_step():
    config = patchtst_cpu.Config(layers=1)
    module = patchtst_cpu.build(config).eval()
    seen = []
    module.patch_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    (features,) = random_feeds(config.inputs, 2, seed=0).values()
    with torch.inference_mode():
        module(torch.from_numpy(features))
    expected = [[row[16 * patch : 16 * patch + 16].ravel() for patch in range(8)] for row in features]
    np.testing.assert_array_equal(seen[0].numpy(), np.array(expected))
