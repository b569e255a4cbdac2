"""lstm, gru, tcn, inception-time, resnet1d, unet: as many parameters as their formulas say, and the named sizes."""

from dataclasses import replace

import pytest
import torch

from tsexport.errors import ConfigurationError
from tsexport.models import recurrent, unet
from tsexport.models.registry import get_entry
from tsexport.models.settings import configure

SIZED = ("lstm", "gru", "inception-time")


def config_of(name, settings=None):
    return configure(get_entry(name).definition().Config, settings or {}, model=name)


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
        module = get_entry(name).definition().build(config_of(name, settings))
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
    assert config_of(name, {"size": "medium"}) == get_entry(name).definition().Config()


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
