"""The series that a registered model is calibrated and judged on where the user gives no data.

`patchtst-cpu` has the market series its reference checkpoint was trained on; models that are fed more than one series
have data of their own (`OWN_DATA`).  Any other forecasting model that calls its sizes `context_length`, `horizon` and
`channels` gets a seeded multi-channel series, with the calendar of its hourly rows where the model takes one: as
`time_marks` of the past, or as `known_channels` of past and future, when the target is the first channel.  A classifier
(`context_length`, `channels`, `classes`) gets a series with a class at each row, a model of a grid (`channels`,
`latitudes`, `longitudes`) the weather of `tsexport.calibration.weather`.  What a model answers there says nothing about
its accuracy on real data.

The class of a window is that of the first channel's move over the MOVE_ROWS rows behind it: moves are cut at the
quantiles 1/n, 2/n, ... of the training rows' moves into n classes, 0 the furthest down, so that all are about as
frequent.  Daily and weekly seasons and the reversion of what departs from them make the move predictable in part.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsexport.calibration.datasets import Dataset
from tsexport.calibration.marked_windows import CLOCK, MarkedWindows, clock_of
from tsexport.calibration.market import (
    CLOSE,
    EVALUATION_FRACTION,
    FEATURES,
    HORIZON_BARS,
    TRAINING_FRACTION,
    reference_table,
)
from tsexport.calibration.market_days import days_rule, has_reference_days, raw_reference_days, reference_days
from tsexport.calibration.series import SeriesConfig, SplitName, Splits
from tsexport.calibration.synthetic import TIME_MARKS, channels_series, hourly_times, time_marks
from tsexport.calibration.tables import MemoryTable, Table
from tsexport.calibration.trading_days import has_trading_days, reference_trading_days
from tsexport.calibration.weather import HOURS, WeatherHours
from tsexport.calibration.windows import windows_of


@dataclass(frozen=True)
class OwnData:
    """What a model is fed that no single series gives.

    `exists` says whether there is any for a configuration; `windows` takes (configuration, seed, split, input names),
    `raw_windows` likewise, for inputs that the graph prepares as `rule` says; None where that cannot be.
    """

    exists: Callable[[Mapping[str, Any]], bool]
    windows: "OwnWindows"
    raw_windows: "OwnWindows | None" = None
    rule: Callable[[Mapping[str, Any]], SeriesConfig] | None = None


OwnWindows = Callable[[Mapping[str, Any], int, SplitName, Sequence[str]], tuple[Dataset, str]]


OWN_DATA = {
    "migt-tvdt": OwnData(has_reference_days, reference_days, raw_reference_days, days_rule),
    "hrm-27m": OwnData(has_trading_days, reference_trading_days),
}
CHANNELS_ROWS = 4_000
FORECAST_SIZES = ("context_length", "horizon", "channels")
CLASSIFIER_SIZES = ("context_length", "channels", "classes")
GRID_SIZES = ("channels", "latitudes", "longitudes")
CLASSES_ROWS = 12_000
CLASSES_SEED = 2025
"""Fixed, since the seed draws the seasons too: a checkpoint is trained on one series."""
MOVE_ROWS = 6
CLASS_COLUMN = "class"


def has_reference(model: str, config: Mapping[str, Any]) -> bool:
    """Return whether there is a reference series for a registered model of this configuration.

    There is none with static inputs, nor with known ones of another number than the calendar has, nor for a classifier
    that takes a calendar.
    """
    if model in OWN_DATA:
        return OWN_DATA[model].exists(config)
    if config.get("static_channels") or config.get("known_channels", len(TIME_MARKS)) != len(TIME_MARKS):
        return False
    if _classifies(config):
        return not _takes_marks(config)
    return any(_has_sizes(config, sizes) for sizes in (FORECAST_SIZES, GRID_SIZES))


def has_reference_series(model: str, config: Mapping[str, Any]) -> bool:
    """Return whether it is known how a model's raw windows are prepared: see `reference_rule`."""
    own = OWN_DATA.get(model)
    return has_reference(model, config) and (own is None or own.rule is not None)


def reference_rule(model: str, config: Mapping[str, Any], seed: int) -> tuple[Table | None, SeriesConfig]:
    """Return how windows of a model's reference series are cut and scaled, and its table where there is one."""
    own = OWN_DATA.get(model)
    if own is not None and own.rule is not None:
        return None, own.rule(config)
    return reference_series(model, config, seed)


def reference_windows(
    model: str, config: Mapping[str, Any], seed: int, split: SplitName, names: Sequence[str]
) -> tuple[Dataset, str]:
    """Return the windows of one split of the reference series, fed to the inputs `names`, and what the series is.

    Args:
        model, config, seed: as `reference_series` takes them.
        split: which windows.
        names: the model's inputs: one, two where it takes a calendar, or those of its own data.
    """
    if model in OWN_DATA:
        return OWN_DATA[model].windows(config, seed, split, names)
    if _has_sizes(config, GRID_SIZES):
        channels, latitudes, longitudes = (config[name] for name in GRID_SIZES)
        first, stop = _splits().rows(split, HOURS)
        return WeatherHours(names[0], channels, latitudes, longitudes, split, first, stop), "the reference weather"
    table, series = reference_series(model, config, seed)
    windows = windows_of(table, series, split, name=names[0])
    if not _takes_marks(config):
        return windows, table.source
    return MarkedWindows(windows, tuple(names), config["channels"], ahead="known_channels" in config), table.source


def raw_reference_windows(
    model: str, config: Mapping[str, Any], seed: int, split: SplitName, names: Sequence[str]
) -> tuple[Dataset, str]:
    """Return what `reference_windows` does, before scaling, and with the rows' times in minutes in place of marks."""
    own = OWN_DATA.get(model)
    if own is not None:
        assert own.raw_windows is not None  # `has_reference_series` says so
        return own.raw_windows(config, seed, split, names)
    table, series = reference_series(model, config, seed)
    series = replace(series, scaling="none")
    if not _takes_marks(config):
        return windows_of(table, series, split, name=names[0]), table.source
    columns, ahead = _channel_names(config["channels"]), "known_channels" in config
    values = channels_series(seed, table.row_count, config["channels"])
    clock = clock_of(hourly_times(table.row_count))
    timed = MemoryTable(np.column_stack((values, clock)), (*columns, *CLOCK), source=table.source)
    series = replace(series, target_columns=(columns[0], *CLOCK) if ahead else columns)
    windows = windows_of(timed, series, split, name=names[0])
    return MarkedWindows(windows, tuple(names), config["channels"], ahead, timed=True), table.source


def reference_series(model: str, config: Mapping[str, Any], seed: int) -> tuple[Table, SeriesConfig]:
    """Return the reference series of a model and how windows are cut from it.

    Args:
        model: the registered name.
        config: the model's configuration, for which `has_reference` is true; of a series, not of a grid.
        seed: of the multi-channel series; the market series and that with classes have their own.
    """
    if _classifies(config):
        return classes_series(config["context_length"], config["channels"], config["classes"])
    if model == "patchtst-cpu" and config["channels"] == len(FEATURES) and config["horizon"] == 1:
        values, _ = reference_table()
        return MemoryTable(values, FEATURES, source="the reference market series"), SeriesConfig(
            context_length=config["context_length"],
            horizon=HORIZON_BARS,
            columns=FEATURES,
            target_columns=(FEATURES[CLOSE],),
            scaling="minmax-window",
            target="point",
            short_windows="zeros",
            split=_splits(),
        )
    names = _channel_names(config["channels"])
    rows = max(CHANNELS_ROWS, 10 * (config["context_length"] + config["horizon"]))
    values = channels_series(seed, rows, config["channels"])
    if _takes_marks(config):
        targets = (names[0], *TIME_MARKS) if "known_channels" in config else names
        marked = np.column_stack((values, time_marks(hourly_times(rows))))
        table = MemoryTable(marked, (*names, *TIME_MARKS), source="the reference series with its calendar")
        # Both are of about unit scale already.
        return table, SeriesConfig(
            context_length=config["context_length"], horizon=config["horizon"], target_columns=targets, scaling="none"
        )
    table = MemoryTable(values, names, source="the reference series")
    return table, SeriesConfig(context_length=config["context_length"], horizon=config["horizon"])


def classes_series(context_length: int, channels: int, classes: int) -> tuple[Table, SeriesConfig]:
    """Return the reference series of classifiers: windows [n, context_length, channels], targets [n, 1] of classes.

    The channels are of about unit scale and are not scaled further.
    """
    rows = max(CLASSES_ROWS, 10 * (context_length + MOVE_ROWS))
    values = channels_series(CLASSES_SEED, rows, channels)
    labels = move_classes(values[:, 0], classes, training_rows=int(rows * TRAINING_FRACTION))
    names = _channel_names(channels)
    table = MemoryTable(
        np.column_stack((values, labels.astype(np.float32))),
        (*names, CLASS_COLUMN),
        source="the reference series with classes",
    )
    return table, SeriesConfig(
        context_length=context_length,
        horizon=MOVE_ROWS,
        columns=names,
        target_columns=(CLASS_COLUMN,),
        scaling="none",
        target="point",
        split=_splits(),
    )


def move_classes(series: NDArray[np.float32], classes: int, *, training_rows: int) -> NDArray[np.intp]:
    """Return at each row the class, from 0 on, of the move that ends there; rows before MOVE_ROWS have no full one.

    Args:
        series: values [rows].
        classes: number of classes.
        training_rows: the first rows, whose moves say where the classes are cut.
    """
    before = np.concatenate((np.full(MOVE_ROWS, series[0]), series[:-MOVE_ROWS]))
    moves = series - before
    cuts = np.quantile(moves[MOVE_ROWS:training_rows], np.arange(1, classes) / classes)
    return np.asarray(np.searchsorted(cuts, moves))


def _classifies(config: Mapping[str, Any]) -> bool:
    """A model that can do both has `classes` 0 where it forecasts."""
    return _has_sizes(config, CLASSIFIER_SIZES) and config["classes"] > 0


def _takes_marks(config: Mapping[str, Any]) -> bool:
    return bool(config.get("time_marks")) or "known_channels" in config


def _splits() -> Splits:
    return Splits(TRAINING_FRACTION, 1.0 - TRAINING_FRACTION - EVALUATION_FRACTION, EVALUATION_FRACTION)


def _channel_names(channels: int) -> tuple[str, ...]:
    return tuple(f"channel_{index}" for index in range(channels))


def _has_sizes(config: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    return all(isinstance(config.get(name), int) for name in names)
