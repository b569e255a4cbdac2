"""Histograms of streams: the counts of the whole, however the stream is cut, and clear errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tsexport.calibration.histogram_files import read_histograms, write_histograms
from tsexport.calibration.histograms import Counts, Histograms
from tsexport.errors import DataError

FLOATS = st.floats(-(2.0**127), 2.0**127, width=32)
TENSORS = hnp.arrays(np.float32, st.integers(1, 60), elements=FLOATS)


def counted(*tensors, axis=None, bins=None):
    histograms = Histograms("t", axis, bins)
    for tensor in tensors:
        histograms.update(tensor)
    return histograms


def same(a: Counts, b: Counts) -> bool:
    return (a.minimum, a.maximum, a.width, a.first) == (b.minimum, b.maximum, b.width, b.first) and np.array_equal(
        a.counts, b.counts
    )


@settings(deadline=None)
@given(TENSORS, st.lists(st.integers(0, 60), max_size=4), st.booleans())
def test_any_split_gives_the_same_histogram(tensor, cuts, backwards):
    parts = np.split(tensor, sorted(min(cut, len(tensor)) for cut in cuts))
    whole = counted(tensor).channels[0]
    ordered = parts[::-1] if backwards else parts
    assert same(counted(*ordered).channels[0], whole)
    merged = Histograms("t")
    for part in ordered:
        merged.merge(counted(part))
    assert same(merged.channels[0], whole)


@settings(deadline=None)
@given(TENSORS, st.integers(2, 300))
def test_counts_are_numpys_on_the_same_edges(tensor, bins):
    (seen,) = counted(tensor, bins=bins).channels
    assert (seen.minimum, seen.maximum) == (tensor.min(), tensor.max())
    assert len(seen.counts) <= bins
    assert np.log2(seen.width) % 1 == 0
    expected = np.floor(tensor.astype(np.float64) / seen.width).astype(np.int64) - seen.first
    assert np.array_equal(np.bincount(expected, minlength=len(seen.counts)), seen.counts)
    # centers are the values to half a bin
    assert np.abs(seen.centers[expected] - tensor).max() <= seen.width / 2
    magnitudes = seen.magnitudes
    assert magnitudes.counts.sum() == tensor.size
    assert float(np.abs(tensor).max()) <= len(magnitudes.counts) * magnitudes.width


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("bins", [16, 1024, 4096])
def test_about_half_of_the_bins_are_used(scale, bins):
    values = (np.random.default_rng(0).standard_normal(10_000) * scale).astype(np.float32)
    (seen,) = counted(values, bins=bins).channels
    assert bins / 2 - 1 <= len(seen.counts) <= bins


def test_channels_are_counted_each_on_its_own_grid():
    values = np.random.default_rng(1).standard_normal((40, 3, 5)).astype(np.float32) * np.array([[[1], [1e-4], [1e6]]])
    channels = counted(*np.split(values.astype(np.float32), 4), axis=1).channels
    assert len(channels) == 3
    for index, seen in enumerate(channels):
        assert same(seen, counted(values[:, index].astype(np.float32).ravel(), bins=1024).channels[0])


def test_no_more_memory_for_more_values():
    histograms = counted(np.zeros((4, 8, 2), np.float32), axis=1)
    before = histograms._counts.nbytes
    histograms.update(np.random.default_rng(0).standard_normal((400, 8, 20)).astype(np.float32) * 1e9)
    assert histograms._counts.nbytes == before == 8 * 1024 * 8


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named(bad):
    values = np.zeros((4, 3), np.float32)
    values[2, 1] = bad
    with pytest.raises(DataError, match=r"the tensor 'act/7' held NaN or infinity in 1 of 12 values") as caught:
        Histograms("act/7").update(values)
    assert "leave the layer in floating point" in caught.value.next_step


def test_what_cannot_be_counted_is_named():
    with pytest.raises(DataError, match=r"'ids' holds int64; ranges are taken of floating-point tensors"):
        Histograms("ids").update(np.zeros((2, 2), np.int64))
    with pytest.raises(DataError, match=r"'a' has the shape \[2, 3\], and the observer's axis is 2") as caught:
        Histograms("a", axis=2).update(np.zeros((2, 3), np.float32))
    assert caught.value.next_step == "allowed are axes from 1 to 1"
    three = Histograms("a", axis=1)
    three.update(np.zeros((2, 3), np.float32))
    with pytest.raises(DataError, match=r"'a' had 3 channels on axis 1, and has 4 now"):
        three.update(np.zeros((2, 4), np.float32))
    with pytest.raises(DataError, match=r"'a' held no values in the calibration windows"):
        _ = Histograms("a").channels
    with pytest.raises(ValueError, match="count differently"):
        Histograms("a").merge(Histograms("a", axis=1))


@settings(deadline=None)
@given(st.lists(TENSORS, max_size=3), st.booleans())
def test_what_is_written_is_read(tmp_path_factory, tensors, by_channel):
    path = tmp_path_factory.mktemp("histograms") / "a.npz"
    seen = {
        f"t/{index}": counted(tensor[None] if by_channel else tensor, axis=1 if by_channel else None).channels
        for index, tensor in enumerate(tensors)
    }
    write_histograms(path, seen)
    found = read_histograms(path, tuple(seen))
    assert list(found) == list(seen)
    for name, channels in seen.items():
        assert len(found[name]) == len(channels)
        assert all(map(same, found[name], channels))
