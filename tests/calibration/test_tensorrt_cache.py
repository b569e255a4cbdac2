"""TensorRT's calibration cache: written as TensorRT writes it, read back, and each kind of damage named."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.calibration.table import CalibrationTable, Observer, TensorRange
from tsexport.calibration.tensorrt_cache import cache_text, read_cache, tensorrt_number
from tsexport.errors import ConfigurationError, DataError

NAMES = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda name: name.splitlines() == [name])


def table(*ranges):
    return CalibrationTable("a" * 64, "b" * 64, (), Observer("entropy", symmetric=True), "tests", ranges)


def test_the_format_byte_by_byte():
    text = cache_text(table(TensorRange("x", -127.0, 12.7), TensorRange("/a/MatMul_output: 0", 0.0, 254.0)), "8.5.2")
    assert text == "TRT-8502-EntropyCalibration2\nx: 3f800000\n/a/MatMul_output: 0: 40000000\n"
    found = read_cache(text)
    assert found.version == 8502
    assert found.amax == {"x": 127.0, "/a/MatMul_output: 0": 254.0}


@settings(deadline=None)
@given(
    st.dictionaries(NAMES, st.tuples(st.floats(-1e38, 1e38), st.floats(-1e38, 1e38)), min_size=1, max_size=8),
    st.sampled_from(["8.0", "8.5.2", "8.6.2", "9.3", "10.3", "10.10.1"]),
)
def test_what_is_written_is_read(ranges, version):
    made = table(*(TensorRange(name, min(ends), max(ends)) for name, ends in ranges.items()))
    found = read_cache(cache_text(made, version))
    assert found.version == tensorrt_number(version)
    assert list(found.scales) == list(ranges)
    for one in made.ranges:
        assert found.scales[one.name] == np.float32(one.amax / 127)


@pytest.mark.parametrize(
    ("version", "number"), [("8.5.2", 8502), ("8.2", 8200), ("9.3", 9300), ("10.3", 100300), ("10.13.2", 101302)]
)
def test_versions(version, number):
    assert tensorrt_number(version) == number


@pytest.mark.parametrize("version", ["8", "ten", "8.5.2.1", ""])
def test_what_is_no_version(version):
    with pytest.raises(ConfigurationError, match=r"is no version of TensorRT; allowed is, for example, 8.5.2 or 10.3"):
        tensorrt_number(version)


def test_tensorrt_11_has_no_cache():
    with pytest.raises(ConfigurationError, match=r"TensorRT 11\.0 reads no calibration cache"):
        cache_text(table(TensorRange("x", -1, 1)), "11.0")


HEADER = "TRT-8502-EntropyCalibration2\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"the TensorRT cache begins with '', not with TRT-<version>-EntropyCalibration2"),
        ("x: 3f800000\n", "begins with 'x: 3f800000', not with TRT-"),
        ("TRT-8502-MinMaxCalibration\nx: 3f800000\n", "is of MinMaxCalibration; only caches of EntropyCalibration2"),
        (HEADER, "holds no tensor|line 2"),
        (HEADER + "x 3f800000\n", "line 2 is 'x 3f800000', not 'tensor: <8 hex digits>'"),
        (HEADER + ": 3f800000\n", "line 2 is ': 3f800000', not 'tensor: <8 hex digits>'"),
        (HEADER + "x: 3f800000\n\ny: 3f800000\n", "line 3 is '', not"),
        (HEADER + "x: 3f80000", r"line 2: '3f80000' is no float32 in 8 hex digits \(tensor 'x'\)"),
        (HEADER + "x: 3g800000\n", "line 2: '3g800000' is no float32 in 8 hex digits"),
        (HEADER + "x: 3f8000000\n", "line 2: '3f8000000' is no float32 in 8 hex digits"),
        (HEADER + f"x: {struct.pack('>f', float('nan')).hex()}\n", "line 2: the scale of 'x' is nan"),
        (HEADER + "x: 7f800000\n", "line 2: the scale of 'x' is inf"),
        (HEADER + "x: bf800000\n", "line 2: the scale of 'x' is -1; scales are finite and not below 0"),
        (HEADER + "x: 3f800000\nx: 3f800000\n", "line 3: the tensor 'x' stands there twice"),
    ],
)
def test_each_kind_of_damage_is_named(text, words):
    with pytest.raises(DataError, match=words) as caught:
        read_cache(text)
    assert caught.value.next_step == "write the cache again, or calibrate again"


@settings(deadline=None)
@given(st.text(max_size=80) | st.text(max_size=80).map(lambda text: HEADER + text))
def test_any_text_is_read_or_refused(text):
    try:
        found = read_cache(text)
    except DataError:
        return
    assert found.scales
    assert all(np.isfinite(scale) and scale >= 0 for scale in found.scales.values())


def test_windows_line_ends_and_zero_scales_are_read():
    assert read_cache("TRT-8502-EntropyCalibration2\r\nx: 3f800000\r\ny: 00000000\r\n").scales == {"x": 1.0, "y": 0.0}


def test_what_a_cache_cannot_hold():
    with pytest.raises(DataError, match=r"'a\\nb' cannot stand in a TensorRT cache: its name is empty or holds a line"):
        cache_text(table(TensorRange("a\nb", -1, 1)), "8.6")
    with pytest.raises(DataError, match="the tensor 'x' reaches 1e\\+300, which float32 cannot hold"):
        cache_text(table(TensorRange("x", -1e300, 1)), "8.6")
