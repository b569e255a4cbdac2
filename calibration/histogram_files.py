"""Histograms of tensors in a file: the windows are run once, and every observer takes its ranges from there."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tsexport.calibration.histograms import Counts
from tsexport.npz import read_arrays, write_arrays


def write_histograms(path: Path, seen: Mapping[str, tuple[Counts, ...]]) -> None:
    """Write histograms by tensor to an .npz: each property of all channels of all tensors as one array."""
    every = [counts for channels in seen.values() for counts in channels]
    write_arrays(
        path,
        {
            "channels": np.array([len(channels) for channels in seen.values()], np.int64),
            "bins": np.array([len(one.counts) for one in every], np.int64),
            "first": np.array([one.first for one in every], np.int64),
            **{
                name: np.array([getattr(one, name) for one in every], np.float64)
                for name in ("minimum", "maximum", "width")
            },
            "counts": np.concatenate([np.empty(0, np.int64), *(one.counts for one in every)]),
        },
        compress=True,
    )


def read_histograms(path: Path, tensors: tuple[str, ...]) -> dict[str, tuple[Counts, ...]]:
    """Return what `write_histograms` wrote of these tensors, in its order."""
    arrays = read_arrays(path)
    parts = np.split(arrays["counts"], np.cumsum(arrays["bins"])[:-1])
    every = iter(
        Counts(float(minimum), float(maximum), float(width), int(first), counts)
        for minimum, maximum, width, first, counts in zip(
            arrays["minimum"], arrays["maximum"], arrays["width"], arrays["first"], parts, strict=True
        )
    )
    return {
        name: tuple(next(every) for _ in range(channels))
        for name, channels in zip(tensors, arrays["channels"], strict=True)
    }
