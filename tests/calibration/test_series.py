import re

import pytest

from tsexport.calibration.series import KEYS, SeriesConfig, Splits, series_config_from_mapping
from tsexport.errors import ConfigurationError

ETTH1 = {"train": [0, 8640], "validation": [8640, 11520], "test": [11520, 14400]}
SMALL = {"context_length": 8, "horizon": 2}


def test_a_whole_configuration_is_read():
    config = series_config_from_mapping(
        {
            "context_length": 336,
            "horizon": 96,
            "columns": ["a", "b"],
            "target_columns": ["b"],
            "time_column": "date",
            "stride": 2,
            "scaling": "minmax-window",
            "target": "point",
            "split": ETTH1,
        }
    )
    assert config == SeriesConfig(
        context_length=336,
        horizon=96,
        columns=("a", "b"),
        target_columns=("b",),
        time_column="date",
        stride=2,
        scaling="minmax-window",
        target="point",
        split=Splits((0, 8640), (8640, 11520), (11520, 14400)),
    )


def test_defaults_are_those_that_the_message_promises():
    config = series_config_from_mapping(SMALL)
    assert (config.columns, config.target_columns, config.stride) == ((), (), 1)
    assert (config.scaling, config.target, config.split) == ("standard", "path", Splits(0.7, 0.1, 0.2))


def test_lengths_come_from_the_model_where_they_are_not_given():
    model = {"context_length": 128, "horizon": 24, "channels": 8}
    assert series_config_from_mapping({}, model_config=model).context_length == 128
    config = series_config_from_mapping({"horizon": 1}, model_config=model)
    assert (config.context_length, config.horizon) == (128, 1)
    with pytest.raises(ConfigurationError, match="lacks horizon") as error:
        series_config_from_mapping({"context_length": 4}, model_config={})
    for key in KEYS:
        assert key in error.value.next_step


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contextlength": 3}, "no key 'contextlength' (did you mean 'context_length'?); allowed are context_length,"),
        ({"split": {"valid": 0.1}}, "split has no key 'valid' (did you mean 'validation'?)"),
        ({"context_length": 0}, "context_length = 0 must be a whole number of rows, 1 or more"),
        ({"horizon": 2.5}, "horizon = 2.5 must be"),
        ({"stride": True}, "stride = True must be"),
        ({"scaling": "standart"}, "scaling = 'standart' is unknown (did you mean 'standard'?); allowed are none,"),
        ({"target": "points"}, "(did you mean 'point'?); allowed are path, point"),
        ({"columns": "a"}, "columns = 'a' must be a list of column names"),
        ({"columns": []}, "columns = [] must be a list"),
        ({"target_columns": [1]}, "target_columns = [1] must be a list"),
        ({"columns": ["a", "b", "a"]}, "columns names 'a' twice"),
        ({"columns": ["a"], "time_column": "a"}, "columns names 'a', which is the time column"),
        ({"time_column": 3}, "time_column = 3 must be the name of a column"),
        ({"target": "point"}, "needs exactly one target column, and target_columns names 0"),
        ({"target": "point", "target_columns": ["a", "b"]}, "names 2"),
        ({"split": 0.7}, "split = 0.7 must be a table"),
        ({"split": {"train": 8640}}, "split train = 8640 cannot be used; allowed is either row ranges"),
        ({"split": {"train": [0, 5.0]}}, "split train = [0, 5.0] cannot be used"),
        ({"split": {}}, "split names no rows"),
        ({"split": {"train": [0, 10], "test": 0.2}}, "split mixes row ranges and fractions"),
        ({"split": {"train": [0, 10], "test": [9, 20]}}, "split test = [9, 20] must begin at row 10 or later"),
        ({"split": {"train": [5, 5]}}, "split train = [5, 5] must begin at row 0"),
        ({"split": {"train": [-1, 5]}}, "split train = [-1, 5] must begin"),
        ({"split": {"train": 0.0}}, "split train = 0.0 must be a fraction above 0"),
        ({"split": {"train": 1.5}}, "split train = 1.5 must be a fraction"),
        ({"split": {"train": 0.8, "test": 0.3}}, "the fractions of split sum to 1.1, which is more than 1"),
        ({"split": {"test": 1.0}}, "uses statistics of the training rows, and split names no train"),
    ],
)
def test_what_cannot_be_used_is_named(change, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        series_config_from_mapping({**SMALL, **change})


def test_split_without_train_is_fine_where_no_statistics_are_needed():
    config = series_config_from_mapping({**SMALL, "scaling": "none", "split": {"test": 1.0}})
    assert config.split.given == ("test",)


@pytest.mark.parametrize(("rows", "train"), [(100, (0, 70)), (99, (0, 69)), (17420, (0, 12194))])
def test_fractions_cover_the_table_in_order(rows, train):
    splits = Splits(0.7, 0.1, 0.2)
    assert splits.rows("train", rows) == train
    assert splits.rows("validation", rows)[0] == train[1]
    assert splits.rows("test", rows)[0] == splits.rows("validation", rows)[1]
    assert splits.rows("test", rows)[1] == rows


def test_a_fraction_does_not_lose_a_row_to_rounding():
    assert Splits(0.29).rows("train", 100) == (0, 29)  # 0.29 * 100 is 28.999999999999996
