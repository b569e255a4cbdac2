"""Open a file of calibration or evaluation data as a dataset, by its suffix."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tsexport.calibration.arrays import NpzDataset
from tsexport.calibration.datasets import Dataset
from tsexport.calibration.marked_windows import CLOCK, ClockTable, MarkedWindows
from tsexport.calibration.series import KEYS_NEEDED, SeriesConfig, SplitName
from tsexport.calibration.tables import open_table
from tsexport.calibration.windows import resolve_columns, windows_of
from tsexport.errors import ConfigurationError, DataError, did_you_mean
from tsexport.types import TensorSpec

SERIES_SUFFIXES = (".csv", ".csv.gz", ".parquet", ".pq")
SUFFIXES = (".npz", *SERIES_SUFFIXES)


def open_dataset(path: Path, *, series: SeriesConfig | None, split: SplitName, names: Sequence[str]) -> Dataset:
    """Open an .npz of arrays, or a csv, csv.gz or parquet series.

    Args:
        path: the file.
        series: how windows are cut; needed for series, not used for arrays (they are samples already).
        split: which windows of a series; not used for arrays.
        names: the model's inputs; a series feeds the only one.

    Raises:
        ConfigurationError: a series without a configuration, or for a model of several inputs.
        DataError: no such file, another suffix, or content that cannot be used.
    """
    suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise DataError(
            f"{path.name} has a suffix that is not read{did_you_mean(path.suffix, SUFFIXES)}; "
            f"allowed are {', '.join(SUFFIXES)}.",
            next_step="Write arrays with numpy.savez, or a series as csv or parquet.",
        )
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what}; expected a file of data.", next_step="Check the path.")
    if suffix == ".npz":
        return NpzDataset(path)
    if series is None:
        raise ConfigurationError(
            f"{path.name} is a series, and no series configuration says how to cut windows from it.",
            next_step=KEYS_NEEDED,
        )
    if len(names) != 1:
        raise ConfigurationError(
            f"{path.name} is a series, which feeds one input, and the model has {len(names)}: {', '.join(names)}.",
            next_step="Write the inputs as arrays into an .npz.",
        )
    return windows_of(open_table(path), series, split, name=names[0])


def timed_windows(path: Path, series: SeriesConfig, split: SplitName, inputs: Sequence[TensorSpec]) -> MarkedWindows:
    """Open a csv, csv.gz or parquet series for a graph that takes windows and the time of each row.

    Args:
        path, series, split: as `open_dataset` takes them.
        inputs: for windows and for times; these reach over the horizon too where the model knows it.

    Raises:
        ConfigurationError: no time column is named, or a model that knows the future has several target columns.
        DataError: no such file, or content that cannot be used.
    """
    if series.time_column is None:
        raise ConfigurationError(
            f"{path.name}: {inputs[1].name} is fed from the time column, and the series configuration names none.",
            next_step='Set time_column = "NAME".',
        )
    table = open_table(path)
    columns, targets = resolve_columns(table, series)
    ahead = inputs[1].shape[1] != series.context_length
    if ahead and (series.target != "path" or len(targets) != 1):
        raise ConfigurationError(
            f"{path.name}: a model that is fed the times of its horizon answers the path of one target column, and the "
            f'series configuration has target = "{series.target}" and {len(targets)} target columns.',
            next_step='Set target = "path" and target_columns = ["NAME"].',
        )
    timed = replace(series, columns=(*columns, *CLOCK), target_columns=(*targets, *CLOCK) if ahead else targets)
    windows = windows_of(ClockTable(table, series.time_column), timed, split, name=inputs[0].name)
    return MarkedWindows(windows, tuple(spec.name for spec in inputs), len(columns), ahead, timed=True)
