"""Calibration windows by regime: each regime has its share, the cost is bounded, the seed decides."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.calibration import regimes
from tsexport.calibration.arrays import ArrayDataset, NpzDataset
from tsexport.calibration.datasets import draw
from tsexport.calibration.opening import open_dataset
from tsexport.calibration.reference import raw_reference_windows, reference_windows
from tsexport.calibration.regimes import LEAST, Trait, balanced, calendar_of, draw_by_regime
from tsexport.calibration.series import SeriesConfig, Splits
from tsexport.errors import DataError

ROWS, FEATURES = 12, 3


def calm_and_wild(windows=1000, wild=20, seed=0):
    """Windows [windows, ROWS, FEATURES]: a few at the end move fifty times as much."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((windows, ROWS, FEATURES)).cumsum(axis=1)
    values[-wild:] *= 50
    return values.astype(np.float32)


def test_each_fifth_of_level_and_volatility_has_its_share():
    drawn = draw_by_regime(ArrayDataset({"x": calm_and_wild()}), 100, seed=3)
    assert drawn.subset.count == 100
    counts = dict(drawn.regimes)
    assert set(counts) == {f"{what} {index} of 5" for what in ("level", "volatility") for index in range(1, 6)}
    assert all(19 <= count <= 21 for count in counts.values())


def test_rare_windows_with_gaps_are_there():
    values = calm_and_wild(wild=1)
    values[[5, 400, 401, 900], 0, 0] = np.nan
    values[17, :, :2] = np.nan
    drawn = draw_by_regime(ArrayDataset({"x": values}), 100, seed=3)
    assert drawn.regimes["some gaps"] == 4
    assert drawn.regimes["gaps from 10% on"] == 1
    assert {5, 17, 400, 401, 900} <= set(drawn.subset.indices)
    plain = draw(ArrayDataset({"x": values}), 100, seed=3)
    assert not {5, 17, 400, 401, 900} <= set(plain.indices)


def test_the_seed_decides_and_npz_is_as_memory(tmp_path):
    values = calm_and_wild()
    np.savez(tmp_path / "a.npz", x=values)
    memory, file = ArrayDataset({"x": values}), NpzDataset(tmp_path / "a.npz")
    first = draw_by_regime(memory, 64, seed=1)
    assert first.subset.indices == draw_by_regime(file, 64, seed=1).subset.indices
    assert first.subset.indices == draw_by_regime(memory, 64, seed=1).subset.indices
    assert first.subset.indices != draw_by_regime(memory, 64, seed=2).subset.indices


def test_what_is_excluded_is_not_drawn_and_too_few_are_an_error():
    dataset = ArrayDataset({"x": calm_and_wild(60)})
    drawn = draw_by_regime(dataset, 30, seed=0, exclude=range(30))
    assert drawn.subset.indices == tuple(range(30, 60))
    with pytest.raises(DataError, match="31 samples were asked for and the data holds 60, 30 of them already used"):
        draw_by_regime(dataset, 31, seed=0, exclude=range(30))


def test_the_cost_is_bounded(monkeypatch):
    class Counting(ArrayDataset):
        read_windows = 0

        def read(self, indices, batch_size):
            for batch in super().read(indices, batch_size):
                Counting.read_windows += len(batch)
                yield batch

    dataset = Counting({"x": calm_and_wild(3000)})
    monkeypatch.setattr(regimes, "CANDIDATES", 500)
    draw_by_regime(dataset, 100, seed=0)
    assert 500 <= Counting.read_windows <= 502  # one more to see how large a window is, one for the batch
    Counting.read_windows = 0
    monkeypatch.setattr(regimes, "CANDIDATE_BYTES", 200 * ROWS * FEATURES * 4)
    draw_by_regime(dataset, 100, seed=0)
    assert 200 <= Counting.read_windows <= 202
    Counting.read_windows = 0
    assert draw_by_regime(dataset, 300, seed=0).subset.count == 300  # never fewer than are asked for
    assert Counting.read_windows <= 302


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_series_with_dates_have_seasons(write_series, suffix):
    pytest.importorskip("pyarrow")
    values = np.random.default_rng(0).standard_normal((3000, 3)).cumsum(axis=0)
    path = write_series(values, suffix)  # hours from Wednesday, 2020-01-01 on: to the fifth of May
    config = SeriesConfig(24, 2, time_column="time", split=Splits(train=1.0))
    dataset = open_dataset(path, series=config, split="train", names=("x",))
    drawn = draw_by_regime(dataset, 200, seed=0)
    assert all(48 <= drawn.regimes[f"hours {hours}"] <= 52 for hours in ("0-5", "6-11", "12-17", "18-23"))
    assert drawn.regimes["weekday"] + drawn.regimes["weekend"] == 200
    assert drawn.regimes["weekend"] == pytest.approx(200 * 2 / 7, abs=3)
    assert set(drawn.regimes) >= {"quarter 1 of the year", "quarter 2 of the year"}
    assert "quarter 3 of the year" not in drawn.regimes
    calendar = calendar_of(dataset, (0, 1, 100))
    assert calendar.minute_of_day.tolist() == [23 * 60, 0, 3 * 60]  # of the last row of the context
    assert calendar.weekday.tolist() == [2, 3, 0]
    without = replace(config, time_column=None)
    dataset = open_dataset(path, series=without, split="train", names=("x",))
    assert calendar_of(dataset, (0, 1)) is None


def test_reference_series_with_a_calendar_have_seasons():
    config = {"context_length": 48, "horizon": 12, "channels": 2, "known_channels": 4}
    marked, _ = reference_windows("tft", config, 0, "train", ("x", "marks"))
    timed, _ = raw_reference_windows("tft", config, 0, "train", ("x", "times"))
    indices = (0, 5, 77, 1000)
    by_marks, by_clock = calendar_of(marked, indices), calendar_of(timed, indices)
    for name in ("weekday", "day_of_month", "day_of_year"):
        assert getattr(by_marks, name).tolist() == getattr(by_clock, name).tolist()
    assert by_marks.minute_of_day.tolist() == by_clock.minute_of_day.tolist()
    assert "weekend" in draw_by_regime(marked, 64, seed=0).regimes


def test_a_time_column_of_numbers_has_no_season(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "a.csv"
    path.write_text("t,a\n" + "".join(f"{row},{np.sin(row)}\n" for row in range(200)))
    config = SeriesConfig(8, 1, time_column="t", split=Splits(train=1.0))
    dataset = open_dataset(path, series=config, split="train", names=("x",))
    assert calendar_of(dataset, (0, 3)) is None
    assert not any("week" in name for name in draw_by_regime(dataset, 32, seed=0).regimes)


@pytest.mark.parametrize("shape", [(40, 4, 5, 6), (40, 7), (40,)])
def test_grids_and_vectors_are_drawn_too(shape):
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    drawn = draw_by_regime(ArrayDataset({"x": values}), 32, seed=0)
    assert drawn.subset.count == 32
    assert bool(drawn.regimes) == (len(shape) > 1)


def test_tokens_and_infinities_do_not_stop_the_drawing():
    tokens = ArrayDataset({"ids": np.arange(400).reshape(100, 4)})
    assert draw_by_regime(tokens, 40, seed=0).regimes == {}
    values = calm_and_wild(100)
    values[3, 2, 1] = np.inf
    assert draw_by_regime(ArrayDataset({"x": values}), 99, seed=0).regimes["some gaps"] == 1


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), min_size=40, max_size=40), max_size=4), st.integers(1, 40), st.integers(0, 9)
)
def test_any_traits_are_balanced_without_repeats(columns, count, seed):
    traits = []
    for column in columns:
        there, classes = np.unique(column, return_inverse=True)
        traits.append(Trait(tuple(map(str, there)), classes))
    drawn = balanced(traits, 40, count, seed)
    assert len(set(drawn)) == len(drawn) == count
    assert drawn == sorted(drawn)
    assert all(0 <= index < 40 for index in drawn)
    if len(traits) == 1 and count >= LEAST * len(traits[0].names):
        there = np.bincount(traits[0].classes)
        taken = np.bincount(traits[0].classes[drawn], minlength=len(there))
        assert (taken >= np.minimum(there, LEAST) - 1).all()
