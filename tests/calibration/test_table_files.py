"""Calibration tables as files: the same table back, the same bytes, and refused where it does not match."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.calibration.table import CalibrationTable, Observer, TensorRange
from tsexport.calibration.table_files import matching_table, read_tables, tables_text
from tsexport.errors import CalibrationTableError, ConfigurationError

MODEL, DATA = "a" * 64, "b" * 64
RANGES = (TensorRange("x", -1.0, 2.0), TensorRange("y", 0.0, 0.5))
TABLE = CalibrationTable(MODEL, DATA, ("train:000001",), Observer("percentile", 99.99), "tests", RANGES)
FLOATS = st.floats(-1e30, 1e30)


@st.composite
def tables(draw):
    axis = draw(st.none() | st.integers(1, 3))
    method = draw(st.sampled_from(["minmax", "entropy", "mse", "percentile"]))
    observer = Observer(method, 99.9 if method == "percentile" else None, draw(st.booleans()), axis)
    ranges = []
    for name in draw(st.lists(st.text(st.characters(codec="utf-8")), unique=True, max_size=4)):
        ends = [sorted(draw(st.tuples(FLOATS, FLOATS))) for _ in range(draw(st.integers(1, 3)))]
        lows, highs = zip(*ends, strict=True)
        channels = (lows, highs) if axis else ((), ())
        ranges.append(TensorRange(name, min(lows), max(highs), *channels))
    ids = tuple(draw(st.lists(st.text(st.characters(codec="utf-8")), max_size=3)))
    return CalibrationTable(MODEL, DATA, ids, observer, "tests", tuple(ranges))


@settings(deadline=None)
@given(st.lists(tables(), min_size=1, max_size=3))
def test_what_is_written_is_read(tmp_path_factory, some):
    path = tmp_path_factory.mktemp("tables") / "calibration.json"
    path.write_text(tables_text(some))
    assert read_tables(path) == tuple(dict.fromkeys(some))
    assert tables_text(read_tables(path)) == path.read_text()


def match(tables=(TABLE,), **other):
    given = {"model_sha256": MODEL, "data_sha256": DATA, "tensors": ("y",), "observer": TABLE.observer, **other}
    return matching_table(tables, **given)


def test_the_table_that_fits_is_found():
    other = replace(TABLE, observer=Observer("mse"))
    assert match((other, TABLE)) is TABLE
    assert match((other, TABLE), observer=Observer("mse")) is other
    fewer = replace(TABLE, ranges=RANGES[:1])
    assert match((fewer, TABLE)) is TABLE
    assert match((fewer, TABLE), tensors=("x",)) is fewer


@pytest.mark.parametrize(
    ("other", "words", "step"),
    [
        (
            {"observer": Observer("mse", symmetric=True)},
            "with another observer: percentile 99.99, affine, per tensor; this build calibrates with mse, symmetric",
            "calibrate anew, without --calibration-table",
        ),
        (
            {"model_sha256": "c" * 64},
            "to another model: .* SHA-256 a{12}, .* quantizes c{12}",
            "checkpoint and settings",
        ),
        ({"data_sha256": "d" * 64}, "with other data: windows of digest b{12}, .* with d{12}", "--seed"),
        ({"tensors": ("x", "z", "u")}, "has no range of 'z', 'u'", "calibrate anew"),
    ],
)
def test_a_table_that_does_not_match_is_refused(other, words, step):
    with pytest.raises(CalibrationTableError, match=words) as caught:
        match(**other)
    assert step in caught.value.next_step
    assert caught.value.exit_code == 2


def damaged(**changes):
    plain = json.loads(tables_text([TABLE]))
    plain["tables"][0].update(changes)
    return json.dumps(plain)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "calibration.json is not valid JSON"),
        (
            "TRT-8502-EntropyCalibration2\nx: 3f800000\n",
            "is TensorRT's calibration cache, of 1 tensors; it does not say",
        ),
        ("[]", "calibration.json has no schema_version; a file of calibration tables has 1"),
        ('{"schema_version": 2}', "calibration.json has schema_version 2; a file of calibration tables has 1"),
        ('{"schema_version": 1}', "calibration.json: missing 'tables'"),
        ('{"schema_version": 1, "tables": []}', "calibration.json holds no calibration table"),
        (damaged(rangs=1), "unknown key 'rangs' \\(did you mean 'ranges'\\?\\)"),
        (damaged(tool=3), r"tables\[0\].tool: is 3, needed is a string"),
        (
            damaged(ranges=[{"name": "x", "low": 2, "high": 1, "channel_lows": [], "channel_highs": []}]),
            "the range of 'x' begins at 2 and ends at 1",
        ),
        (
            damaged(ranges=[{"name": "x", "low": 0, "high": 1, "channel_lows": [0], "channel_highs": [1]}]),
            "the range of 'x' has 1 and 1 ends of channels; the observer is percentile 99.99, affine, per tensor",
        ),
        (
            damaged(ranges=[{"name": "x", "low": 0, "high": 1, "channel_lows": [], "channel_highs": []}] * 2),
            "the tensor 'x' has two ranges under percentile 99.99",
        ),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, text, words):
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(CalibrationTableError, match=words):
        read_tables(path)


def test_an_observer_that_cannot_be_and_a_file_that_is_not_there(tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(damaged(observer={"method": "mse", "percentile": 3, "symmetric": False, "axis": None}))
    with pytest.raises(ConfigurationError, match="percentile"):
        read_tables(path)
    with pytest.raises(CalibrationTableError, match=r"--calibration-table .*none.json cannot be read: No such file"):
        read_tables(tmp_path / "none.json")
