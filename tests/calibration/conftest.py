"""Series that the tests of calibration write to files."""

import gzip
from pathlib import Path

import numpy as np
import pytest

ROWS = 300
COLUMNS = ("a", "b", "c")


@pytest.fixture
def values():
    """A random walk [ROWS, 3]; repr of its float64 survives a csv exactly."""
    return np.random.default_rng(1).standard_normal((ROWS, len(COLUMNS))).cumsum(axis=0)


def csv_text(values, columns=COLUMNS):
    hours = np.datetime64("2020-01-01T00:00:00") + np.arange(len(values)) * np.timedelta64(1, "h")
    lines = [",".join(["time", *columns])]
    for hour, row in zip(hours, values, strict=True):
        fields = ["" if np.isnan(value) else repr(float(value)) for value in row]
        lines.append(",".join([str(hour), *fields]))
    return "\n".join(lines) + "\n"


@pytest.fixture
def write_series(tmp_path):
    """Return a function that writes values [rows, columns] as csv, csv.gz or parquet and returns the path."""

    def write(values, suffix=".csv", columns=COLUMNS, row_group_size=None) -> Path:
        path = tmp_path / f"series{suffix}"
        text = csv_text(values, columns)
        if suffix == ".csv":
            path.write_text(text)
        elif suffix == ".csv.gz":
            path.write_bytes(gzip.compress(text.encode()))
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            hours = np.datetime64("2020-01-01T00:00:00") + np.arange(len(values)) * np.timedelta64(1, "h")
            table = pa.table({"time": hours, **{name: values[:, i] for i, name in enumerate(columns)}})
            pq.write_table(table, path, row_group_size=row_group_size)
        return path

    return write
