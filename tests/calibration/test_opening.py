import gzip
import itertools
import sys

import numpy as np
import pytest

from tsexport.calibration import tables
from tsexport.calibration.opening import open_dataset
from tsexport.calibration.series import KEYS, SeriesConfig, Splits
from tsexport.calibration.tables import CsvTable, MemoryTable, ParquetTable
from tsexport.errors import ConfigurationError, DataError, MissingDependencyError

CONFIG = SeriesConfig(context_length=8, horizon=2, scaling="none", time_column="time", split=Splits(0.5, 0.2, 0.3))


def open_as(path, series=CONFIG, names=("x",)):
    return open_dataset(path, series=series, split="train", names=names)


def read_everything(dataset):
    return sum(len(batch) for batch in dataset.batches(32))


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet", ".pq"])
def test_series_by_suffix(write_series, values, suffix):
    dataset = open_as(write_series(values, suffix))
    assert dataset.count == read_everything(dataset) == 141
    assert len(dataset.digest) == 64


def test_arrays_by_suffix(tmp_path):
    np.savez(tmp_path / "a.npz", first=np.zeros((5, 2)), second=np.zeros((5, 2)))
    assert open_as(tmp_path / "a.npz", series=None, names=("first", "second")).count == 5
    assert open_as(tmp_path / "a.npz").names == ("first", "second")


def test_another_suffix(tmp_path):
    with pytest.raises(DataError, match=r"x\.npy has a suffix .* \(did you mean '\.npz'\?\); allowed are \.npz, \.csv"):
        open_as(tmp_path / "x.npy")
    with pytest.raises(DataError, match="allowed are"):
        open_as(tmp_path / "series")


def test_no_such_file(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        open_as(tmp_path / "a.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        open_as(tmp_path / "folder.csv")


def test_a_series_needs_a_configuration(write_series, values):
    with pytest.raises(ConfigurationError, match="no series configuration") as error:
        open_as(write_series(values), series=None)
    for key in KEYS:
        assert key in error.value.next_step


def test_a_series_feeds_one_input(write_series, values):
    with pytest.raises(ConfigurationError, match="feeds one input, and the model has 2: daily, minutes") as error:
        open_as(write_series(values), names=("daily", "minutes"))
    assert ".npz" in error.value.next_step


@pytest.mark.parametrize("row", [0, 4, 299, 11_000])
def test_a_field_that_is_no_number(tmp_path, row, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_BYTES", 4096)
    lines = [f"{i},{i}.5" for i in range(max(300, row + 2))]
    lines[row] = f"{row},abc"
    (tmp_path / "a.csv").write_text("\n".join(["time,a", *lines]))
    config = SeriesConfig(8, 2, columns=("a",), time_column="time", scaling="none", split=Splits(1.0))
    with pytest.raises(DataError, match=rf"'abc' in column 'a', data row {row} \(the first is 0\), is not a number"):
        open_as(tmp_path / "a.csv", series=config)


def test_a_broken_number_does_not_drop_its_column(tmp_path):
    (tmp_path / "a.csv").write_text("a,b,label\n" + "\n".join(f"{i},{i}.5,up" for i in range(300)) + "\n1,2 EUR,up\n")
    config = SeriesConfig(8, 2, scaling="none", split=Splits(1.0))
    with pytest.raises(DataError, match="'2 EUR' in column 'b', data row 300"):
        open_as(tmp_path / "a.csv", series=config)
    (tmp_path / "a.csv").write_text("a,b,label\n" + "\n".join(f"{i},{i}.5,up" for i in range(300)))
    assert open_as(tmp_path / "a.csv", series=config).columns == ("a", "b")


def test_text_in_parquet_is_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": ["x"] * 20, "b": [1.0] * 20}), tmp_path / "a.parquet")
    config = SeriesConfig(8, 2, columns=("a",), scaling="none", split=Splits(1.0))
    with pytest.raises(DataError, match="column 'a' holds string, not numbers; numeric columns are b"):
        open_as(tmp_path / "a.parquet", series=config)


def test_integers_and_decimals_are_numbers(tmp_path):
    from decimal import Decimal

    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"i": list(range(20)), "d": [Decimal(i) / 4 for i in range(20)], "s": ["x"] * 20, "t": [True] * 20}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    dataset = open_as(tmp_path / "a.parquet", series=SeriesConfig(8, 2, scaling="none", split=Splits(1.0)))
    assert dataset.columns == ("i", "d")
    np.testing.assert_array_equal(next(dataset.batches(1)).feeds["x"][0, :, 1], np.arange(8) / 4)


def test_files_that_are_not_what_they_seem(tmp_path):
    cases = {
        "empty.csv": b"",
        "ragged.csv": b"a,b\n1,2\n3\n",
        "text.parquet": b"a,b\n1,2\n",
        "plain.csv.gz": b"a,b\n1,2\n",
        "cut.csv.gz": gzip.compress(b"a,b\n" + b"1,2\n" * 5000)[:-20],
    }
    config = SeriesConfig(8, 2, scaling="none", split=Splits(1.0))
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} cannot be read") as error:
            open_as(tmp_path / name, series=config)
        assert "a csv with a header" in error.value.next_step


def test_headers_that_cannot_be_used(tmp_path):
    (tmp_path / "a.csv").write_text(",a\n0,1\n")
    with pytest.raises(DataError, match="column 0 has no name") as error:
        CsvTable(tmp_path / "a.csv")
    assert "index=False" in error.value.next_step
    (tmp_path / "a.csv").write_text("a,b,a\n0,1,2\n")
    with pytest.raises(DataError, match="two columns are named 'a'"):
        CsvTable(tmp_path / "a.csv")
    with pytest.raises(DataError, match="2 column names were given for values of shape \\[4, 3\\]"):
        MemoryTable(np.zeros((4, 3)), ("a", "b"))


def test_no_numeric_column(tmp_path):
    (tmp_path / "a.csv").write_text("a;b\n1;2\n3;4\n")
    with pytest.raises(DataError, match="has no numeric column; its columns are a;b") as error:
        open_as(tmp_path / "a.csv", series=SeriesConfig(1, 1, scaling="none", split=Splits(1.0)))
    assert "separator" in error.value.next_step


def test_a_header_alone_has_no_rows(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n")
    assert CsvTable(tmp_path / "a.csv").row_count == 0
    with pytest.raises(DataError, match="offers 0"):
        open_as(tmp_path / "a.csv", series=SeriesConfig(1, 1, scaling="none", split=Splits(1.0)))


@pytest.mark.parametrize("start", [0, 1, 63, 64, 65, 200, 299])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_blocks_begin_and_end_where_they_should(write_series, values, suffix, start, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_BYTES", 2048)
    monkeypatch.setattr(tables, "BLOCK_ROWS", 50)
    path = write_series(values, suffix, row_group_size=64)
    table = ParquetTable(path) if suffix == ".parquet" else CsvTable(path)
    assert table.row_count == 300
    stop = min(300, start + 130)
    blocks = list(table.blocks(("c", "a"), start, stop, "time"))
    assert blocks[0].first_row == start
    assert all(a.first_row + len(a.values) == b.first_row for a, b in itertools.pairwise(blocks))
    np.testing.assert_array_equal(np.concatenate([b.values for b in blocks]), values[start:stop][:, [2, 0]])
    hours = np.datetime64("2020-01-01T00:00:00") + np.arange(start, stop) * np.timedelta64(1, "h")
    np.testing.assert_array_equal(np.concatenate([b.times for b in blocks]), hours)


def test_a_missing_pyarrow_names_the_command(write_series, values, monkeypatch):
    path = write_series(values)
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match="pyarrow, which is not installed") as error:
        open_as(path)
    assert 'pip install "tsexport[build]"' in error.value.next_step


def test_opening_imports_nothing_heavy():
    import subprocess

    code = "import sys, tsexport.calibration.opening; print({'pyarrow', 'torch', 'onnx'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_rows_may_be_longer_than_a_block(tmp_path, monkeypatch):
    names = [f"c{i}" for i in range(200)]
    rows = np.random.default_rng(0).standard_normal((30, 200))
    text = [",".join(names), *[",".join(map(repr, row.tolist())) for row in rows]]
    monkeypatch.setattr(tables, "BLOCK_BYTES", 1024)
    assert len(text[1]) > 1024
    (tmp_path / "wide.csv").write_text("\n".join(text))
    blocks = list(CsvTable(tmp_path / "wide.csv").blocks(names, 0, 30))
    np.testing.assert_array_equal(np.concatenate([b.values for b in blocks]), rows)
