"""The reference series of classifiers: windows with the class of the move behind them, balanced and learnable."""

import numpy as np
import pytest

from tsexport.calibration.reference import (
    CLASS_COLUMN,
    MOVE_ROWS,
    classes_series,
    has_reference,
    move_classes,
    reference_series,
    reference_windows,
)
from tsexport.calibration.synthetic import FIRST_BAR, hourly_times, time_marks
from tsexport.calibration.windows import windows_of
from tsexport.errors import UsageError
from tsexport.models.sources import identify
from tsexport.options import BuildOptions
from tsexport.stages.data import plan_data
from tsexport.targets import parse_target

CONFIG = {"context_length": 24, "channels": 2, "classes": 3}


def read(split, config=CONFIG):
    table, series = reference_series("lstm", config, seed=0)
    windows = windows_of(table, series, split, name="features")
    batches = list(windows.batches(500))
    return (
        np.concatenate([batch.feeds["features"] for batch in batches]),
        np.concatenate([batch.target for batch in batches]),
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CONFIG, True),
        ({"context_length": 24, "horizon": 8, "channels": 2}, True),
        ({"context_length": 24, "horizon": 8, "channels": 2, "time_marks": True}, True),
        ({"context_length": 24, "horizon": 8, "channels": 2, "known_channels": 4, "static_channels": 0}, True),
        ({"context_length": 24, "horizon": 8, "channels": 2, "known_channels": 3}, False),
        ({"context_length": 24, "horizon": 8, "channels": 2, "known_channels": 4, "static_channels": 1}, False),
        ({"context_length": 24, "horizon": 8, "channels": 2, "classes": 0}, True),
        ({"context_length": 24, "horizon": 8, "channels": 2, "classes": 3}, True),
        ({"context_length": 24, "horizon": 8, "channels": 2, "classes": 3, "known_channels": 4}, False),
        ({"channels": 13, "latitudes": 64, "longitudes": 64}, True),
        ({}, False),
    ],
)
def test_which_configurations_have_a_reference(config, expected):
    assert has_reference("some-model", config) is expected


def test_classes_are_cut_at_the_training_quantiles_of_the_moves():
    series = np.cumsum(np.random.default_rng(0).standard_normal(1000)).astype(np.float32)
    labels = move_classes(series, 4, training_rows=700)
    moves = series[MOVE_ROWS:] - series[:-MOVE_ROWS]
    cuts = np.quantile(moves[: 700 - MOVE_ROWS], [0.25, 0.5, 0.75])
    assert (labels[MOVE_ROWS:] == (moves[:, None] > cuts).sum(axis=1)).all()
    assert np.bincount(labels[MOVE_ROWS:700]).tolist() == [174, 173, 173, 174]


def test_the_target_is_the_class_of_the_move_behind_the_window():
    table, series = classes_series(24, 2, 3)
    values = next(iter(table.blocks(table.columns, 0, 200))).values
    windows = windows_of(table, series, "train", name="features")
    (batch,) = windows.batches(50, stop=50)
    assert table.columns == ("channel_0", "channel_1", CLASS_COLUMN)
    np.testing.assert_array_equal(batch.feeds["features"][7], values[7:31, :2].astype(np.float32))
    np.testing.assert_array_equal(batch.target[:, 0], values[23 + MOVE_ROWS : 73 + MOVE_ROWS, 2])
    # Upwards is the highest class: the target follows the move from the window's last row.
    moves = values[23 + MOVE_ROWS : 73 + MOVE_ROWS, 0] - batch.feeds["features"][:, -1, 0]
    assert moves[batch.target[:, 0] == 2].min() > moves[batch.target[:, 0] == 0].max()


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_class_is_there_about_as_often(split):
    _, target = read(split)
    shares = np.bincount(target[:, 0].astype(int), minlength=3) / len(target)
    assert (shares > 0.28).all()


def test_classes_can_be_learned():
    """A linear classifier, fitted to the training windows by least squares, beats chance on those held out."""
    (inputs, target), (held_inputs, held_target) = read("train"), read("test")
    design, held = (np.column_stack((x.reshape(len(x), -1), np.ones(len(x)))) for x in (inputs, held_inputs))
    scores = held @ np.linalg.lstsq(design, np.eye(3)[target[:, 0].astype(int)], rcond=None)[0]
    assert (scores.argmax(axis=1) == held_target[:, 0]).mean() > 0.55


def test_the_series_does_not_follow_the_builds_seed():
    first, second = (reference_series("lstm", CONFIG, seed)[0] for seed in (0, 1))
    assert first.digest == second.digest


def test_a_long_context_gets_a_longer_series():
    table, series = classes_series(2000, 1, 3)
    assert table.row_count == 10 * (2000 + MOVE_ROWS)
    assert windows_of(table, series, "test", name="x").count > 64


def plan(tmp_path, model, **options):
    given = BuildOptions(model=model, target="cpu4-int8", output=tmp_path, **options)
    return plan_data(given, parse_target("cpu4-int8"), identify(model, settings=given.settings))


def test_a_classifier_without_data_uses_the_reference_series(tmp_path):
    assert plan(tmp_path, "lstm").reference


def test_a_model_of_a_grid_without_data_uses_the_reference_weather(tmp_path):
    assert plan(tmp_path, "unet").reference


WITH_STATICS = {"static_channels": 2}


def test_int8_without_data_and_without_a_reference_says_what_to_give(tmp_path):
    with pytest.raises(UsageError, match="tsexport has no reference series for tft") as caught:
        plan(tmp_path, "tft", settings=WITH_STATICS)
    assert "--calibration FILE: .npz" in caught.value.next_step
    assert "observed float32[batch, 168, 5]" in caught.value.next_step


def test_int8_of_such_a_model_takes_a_users_data(tmp_path):
    np.savez(tmp_path / "windows.npz", observed=np.zeros((64, 168, 5), np.float32))
    assert not plan(tmp_path, "tft", settings=WITH_STATICS, calibration=tmp_path / "windows.npz").is_empty


def calendar(hours):
    """The marks of datetimes by the datetime library, [rows, 4]."""
    rows = [
        (t.hour / 23, t.weekday() / 6, (t.day - 1) / 30, (t.timetuple().tm_yday - 1) / 365)
        for t in (FIRST_BAR + np.timedelta64(int(hour), "h") for hour in hours)
        for t in [t.astype("datetime64[s]").item()]
    ]
    return np.array(rows) - 0.5


def test_the_calendar_is_that_of_the_datetime_library():
    hours = np.array([0, 1, 23, 24, 31 * 24, 59 * 24 + 5, 60 * 24, 366 * 24 - 1, 366 * 24])
    marks = time_marks(hourly_times(9000))
    np.testing.assert_allclose(marks[hours], calendar(hours), atol=1e-6, rtol=0)
    assert marks.min() == -0.5
    assert marks.max() == 0.5


def test_marks_of_the_past_stand_beside_the_channels():
    config = {"context_length": 24, "horizon": 8, "channels": 2, "time_marks": True}
    windows, source = reference_windows("itransformer", config, 0, "test", ("series", "time_marks"))
    first = next(windows.batches(3))
    table, _ = reference_series("itransformer", config, seed=0)
    rows = next(iter(table.blocks(table.columns, 0, table.row_count))).values
    start = int(first.ids[1].partition(":")[2])
    assert source == "the reference series with its calendar"
    assert windows.names == ("series", "time_marks")
    np.testing.assert_array_equal(first.feeds["series"][1], rows[start : start + 24, :2])
    np.testing.assert_array_equal(first.feeds["time_marks"][1], rows[start : start + 24, 2:])
    np.testing.assert_array_equal(first.target[1], rows[start + 24 : start + 32, :2])


def test_a_known_calendar_reaches_over_the_horizon():
    config = {"context_length": 24, "horizon": 8, "channels": 2, "known_channels": 4, "static_channels": 0}
    windows, _ = reference_windows("tft", config, 0, "test", ("observed", "known"))
    first = next(windows.batches(3))
    table, _ = reference_series("tft", config, seed=0)
    rows = next(iter(table.blocks(table.columns, 0, table.row_count))).values
    start = int(first.ids[1].partition(":")[2])
    np.testing.assert_array_equal(first.feeds["observed"][1], rows[start : start + 24, :2])
    np.testing.assert_array_equal(first.feeds["known"][1], rows[start : start + 32, 2:])
    np.testing.assert_array_equal(first.target[1], rows[start + 24 : start + 32, 0])
    assert windows.digest != reference_windows("tft", config, 0, "train", ("observed", "known"))[0].digest


def test_a_model_of_one_input_gets_the_plain_series():
    config = {"context_length": 24, "horizon": 8, "channels": 2}
    windows, source = reference_windows("nhits", config, 0, "train", ("series",))
    assert source == "the reference series"
    assert next(windows.batches(3)).feeds["series"].shape == (3, 24, 2)
