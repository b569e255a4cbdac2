import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tsexport.calibration.arrays import ArrayDataset
from tsexport.calibration.scaling import StandardScale, window_scale
from tsexport.calibration.statistics import RangeObserver, RunningStatistics, input_ranges

MOMENTS = {"rtol": 1e-9, "atol": 1e-9}  # float64 sums in another order
BACK = {"rtol": 1e-9, "atol": 1e-6}  # values up to 1e6 divided and multiplied again
FLOATS = st.floats(-1e6, 1e6, width=64)


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 60), st.integers(1, 3)), elements=FLOATS), st.data())
def test_one_pass_equals_two_passes(rows, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=5)))
    statistics = RunningStatistics(rows.shape[1])
    for block in np.split(rows, cuts):
        statistics.update(block)
    scale = 1e6
    np.testing.assert_allclose(statistics.mean / scale, rows.mean(axis=0) / scale, **MOMENTS)
    np.testing.assert_allclose(statistics.std / scale, rows.std(axis=0) / scale, **MOMENTS)
    np.testing.assert_array_equal(statistics.minimum, rows.min(axis=0))
    np.testing.assert_array_equal(statistics.maximum, rows.max(axis=0))
    np.testing.assert_array_equal(statistics.constant, (rows == rows[0]).all(axis=0))
    assert statistics.count == len(rows)


def test_no_cancellation_far_from_zero():
    rows = 1e9 + np.random.default_rng(0).standard_normal((10_000, 1)) * 1e-3
    statistics = RunningStatistics(1)
    for block in np.split(rows, 10):
        statistics.update(block)
    np.testing.assert_allclose(statistics.std, rows.std(axis=0), rtol=1e-6)


def test_a_repeated_inexact_number_is_constant():
    statistics = RunningStatistics(1)
    for size in (3, 7, 1000):
        statistics.update(np.full((size, 1), 0.1))
    assert statistics.constant.tolist() == [True]


@given(hnp.arrays(np.float64, (20, 2), elements=FLOATS), hnp.arrays(np.float64, 2, elements=st.floats(1e-3, 1e3)))
def test_standard_scale_gives_back(values, std):
    scale = StandardScale(values.mean(axis=0), std)
    np.testing.assert_allclose(scale.invert(scale.apply(values)), values, **BACK)


@given(hnp.arrays(np.float64, (3, 7, 2), elements=FLOATS))
def test_window_scale_gives_back_and_lies_in_the_unit_interval(windows):
    scale = window_scale(windows)
    scaled = scale.apply(windows)
    assert scaled.min() >= 0
    assert scaled.max() <= 1 + 1e-12
    np.testing.assert_allclose(scale.invert(scaled), windows, **BACK)


def test_a_zero_range_counts_as_one():
    scale = window_scale(np.full((1, 4, 1), 5.0))
    assert scale.span.item() == 1
    assert scale.apply(np.array([[[5.0], [7.5]]])).ravel().tolist() == [0, 2.5]


def test_observer_sees_what_numpy_sees():
    x = np.random.default_rng(0).standard_normal((50, 4, 3)).astype(np.float32)
    tokens = np.arange(50)
    ranges = input_ranges(ArrayDataset({"x": x, "tokens": tokens}).batches(7))
    assert [r.name for r in ranges] == ["x", "tokens"]
    for seen, array in zip(ranges, (x.astype(np.float64), tokens), strict=True):
        assert (seen.minimum, seen.maximum, seen.values) == (array.min(), array.max(), array.size)
        assert seen.mean == pytest.approx(array.mean(), rel=1e-9)
        assert seen.std == pytest.approx(array.std(), rel=1e-9)


def test_observer_shows_infinities():
    observer = RangeObserver()
    observer.update({"y": np.array([1.0, np.inf])})
    (seen,) = observer.ranges
    assert seen.maximum == math.inf
    assert RangeObserver().ranges == ()
