"""The series that a registered model is calibrated and judged on where the user gives no data.

`patchtst-cpu` has the market series its reference checkpoint was trained on.  Any other forecasting model that calls
its sizes `context_length`, `horizon` and `channels` gets a seeded multi-channel series; what it answers there says
nothing about its accuracy on real data.
"""

from collections.abc import Mapping
from typing import Any

from tsexport.calibration.market import (
    CLOSE,
    EVALUATION_FRACTION,
    FEATURES,
    HORIZON_BARS,
    TRAINING_FRACTION,
    reference_table,
)
from tsexport.calibration.series import SeriesConfig, Splits
from tsexport.calibration.synthetic import channels_series
from tsexport.calibration.tables import MemoryTable, Table

CHANNELS_ROWS = 4_000
SIZES = ("context_length", "horizon", "channels")


def has_reference(model: str, config: Mapping[str, Any]) -> bool:
    """Return whether there is a reference series for a registered model of this configuration."""
    return all(isinstance(config.get(key), int) for key in SIZES)


def reference_series(model: str, config: Mapping[str, Any], seed: int) -> tuple[Table, SeriesConfig]:
    """Return the reference series of a model and how windows are cut from it.

    Args:
        model: the registered name.
        config: the model's configuration, for which `has_reference` is true.
        seed: of the multi-channel series; the market series has its own.
    """
    if model == "patchtst-cpu" and config["channels"] == len(FEATURES) and config["horizon"] == 1:
        values, _ = reference_table()
        unused = 1.0 - TRAINING_FRACTION - EVALUATION_FRACTION
        return MemoryTable(values, FEATURES, source="the reference market series"), SeriesConfig(
            context_length=config["context_length"],
            horizon=HORIZON_BARS,
            columns=FEATURES,
            target_columns=(FEATURES[CLOSE],),
            scaling="minmax-window",
            target="point",
            split=Splits(TRAINING_FRACTION, unused, EVALUATION_FRACTION),
        )
    names = tuple(f"channel_{index}" for index in range(config["channels"]))
    rows = max(CHANNELS_ROWS, 10 * (config["context_length"] + config["horizon"]))
    table = MemoryTable(channels_series(seed, rows, config["channels"]), names, source="the reference series")
    return table, SeriesConfig(context_length=config["context_length"], horizon=config["horizon"])
