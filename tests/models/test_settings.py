"""Text to typed settings, and descriptions of inputs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsexport.errors import ConfigurationError
from tsexport.models import patchtst_cpu
from tsexport.models.settings import configure, parse_input, parse_scalar, parse_settings
from tsexport.types import TensorSpec


def test_values_are_read_as_the_fields_types():
    config = configure(
        patchtst_cpu.Config,
        {"layers": "4", "dropout": "0", "positional_encoding": "true", "width": 64},
        model="patchtst-cpu",
    )
    assert (config.layers, config.dropout, config.positional_encoding, config.width) == (4, 0.0, True, 64)
    assert isinstance(config.dropout, float)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": "4"}, "no setting 'layer'.*did you mean 'layers'"),
        ({"size": "small"}, "no setting 'size'"),
        ({"layers": "four"}, "layers is 'four'; it must be a whole number"),
        ({"layers": "2.5"}, "layers is 2.5; it must be a whole number"),
        ({"layers": "true"}, "layers is True; it must be a whole number"),
        ({"positional_encoding": "1"}, "positional_encoding is 1; it must be true or false"),
        ({"dropout": "much"}, "dropout is 'much'; it must be a number"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        configure(patchtst_cpu.Config, settings, model="patchtst-cpu")


@given(st.integers(-1000, 1000) | st.booleans())
def test_scalars_survive(value):
    assert parse_scalar(str(value).lower()) == value


@pytest.mark.parametrize("text", ["abc", "a b", "'open", "", "1\nother = 2", "[" * 5000, "1" * 5000])
def test_other_text_stays_text(text):
    assert parse_scalar(text) == text


def test_pairs_are_settings():
    given = ("horizon=96", "widths=[8, 16]", "name=a=b", "horizon=24")
    assert parse_settings(given) == {"horizon": 24, "widths": [8, 16], "name": "a=b"}


@pytest.mark.parametrize("pair", ["horizon", "=3", ""])
def test_bad_pairs(pair):
    with pytest.raises(ConfigurationError, match="has no form key=value"):
        parse_settings([pair])


def test_input_description():
    assert parse_input("x=batch,60,16") == TensorSpec("x", "float32", ("batch", 60, 16))
    assert parse_input("ids = batch, 8 : int64") == TensorSpec("ids", "int64", ("batch", 8))


@pytest.mark.parametrize("text", ["x", "x=", "=batch,3", "x=1,60", "x=batch,0", "x=batch,n", "x=batch,3:f32"])
def test_bad_input_descriptions(text):
    with pytest.raises(ConfigurationError, match=r"does not describe an input|is no dtype"):
        parse_input(text)
