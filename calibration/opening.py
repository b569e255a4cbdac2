"""Open a file of calibration or evaluation data as a dataset, by its suffix."""

from collections.abc import Sequence
from pathlib import Path

from tsexport.calibration.arrays import NpzDataset
from tsexport.calibration.datasets import Dataset
from tsexport.calibration.series import KEYS_NEEDED, SeriesConfig, SplitName
from tsexport.calibration.tables import open_table
from tsexport.calibration.windows import windows_of
from tsexport.errors import ConfigurationError, DataError, did_you_mean

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
