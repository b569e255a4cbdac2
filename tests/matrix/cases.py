"""The table of models that the matrix exports; formats and runtimes stand in `test_matrix.py`.

A case is what `tsexport build` would be given: a registered model or a factory of `factories.py`, its settings, and a
public checkpoint where the folder with those is there.  Adding a model is one row.
"""

import csv
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from tsexport.types import Feeds

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("TSEXPORT_SHARED", ROOT.parent / "shared"))
FACTORIES = Path(__file__).with_name("factories.py")

SAMPLES = 8
"""How many real-ish windows a case gives."""


@dataclass(frozen=True)
class Case:
    """One model.  `real` gives windows as the model would meet them, [samples, ...] by input name.

    `checkpoint` is a file of the shared folder; "" stands for the model's own: the reference checkpoint where the
    settings are the default ones, else weights from a seed.  `tolerance` is a name of `TOLERANCES`, "" for the one that
    the format is held to.
    """

    name: str
    model: str
    real: Callable[[], Feeds]
    settings: Mapping[str, object] = field(default_factory=dict)
    checkpoint: str = ""
    tolerance: str = ""

    @property
    def checkpoint_path(self) -> Path | None:
        return SHARED / "data" / "checkpoints" / self.checkpoint if self.checkpoint else None

    @property
    def missing(self) -> str:
        """Why the case cannot run here, or ""."""
        path = self.checkpoint_path
        return f"the public checkpoint {path.name} is not there" if path and not path.is_file() else ""


@cache
def market_windows(count: int = SAMPLES, *, training: bool = False) -> Feeds:
    """Return windows of the market series that the reference checkpoint is judged on (or was trained on)."""
    from tsexport.calibration.market import evaluation_starts, reference_table, scaled_examples, training_starts

    table, _ = reference_table()
    starts = (training_starts if training else evaluation_starts)(len(table))
    return {"features": scaled_examples(table, starts[:: len(starts) // count][:count])[0].astype(np.float32)}


@cache
def hourly_windows() -> Feeds:
    """Return windows [8, 336, 7] of ETTh1's test part, standardised; of a synthetic series where ETTh1 is not there."""
    path = SHARED / "data" / "ETTh1.csv"
    if path.is_file():
        with path.open() as file:
            rows = np.array([row[1:] for row in csv.reader(file)][1:], dtype=np.float64)
        rows = (rows - rows[:8640].mean(0)) / rows[:8640].std(0)
        first = 11520 - 336
    else:
        from tsexport.calibration.synthetic import channels_series

        rows, first = channels_series(3, 3500, 7), 0
    return {"series": np.stack([rows[s : s + 336] for s in range(first, first + SAMPLES * 300, 300)]).astype("f4")}


@cache
def bars(steps: int = 60, channels: int = 16, count: int = SAMPLES, *, offset: int = 0) -> Feeds:
    """Return windows [count, steps, channels] of a seeded series of roughly unit scale."""
    from tsexport.calibration.synthetic import channels_series

    series = channels_series(5, 20_000, channels)[offset:]
    return {"bars": np.stack([series[s : s + steps] for s in range(0, count * 37, 37)])}


@cache
def weather(channels: int, latitudes: int, longitudes: int) -> Feeds:
    """Return states [8, channels, latitudes, longitudes]: waves around the globe that differ by channel and time."""
    latitude = np.linspace(np.pi / 2, -np.pi / 2, latitudes + 2)[1:-1, None]
    longitude = np.arange(longitudes) * 2 * np.pi / longitudes
    phases = np.arange(SAMPLES)[:, None] * 0.3 + np.arange(channels)
    waves = np.cos(latitude) * np.sin(2 * longitude + phases[:, :, None, None])
    zonal = np.sin((1 + np.arange(channels))[:, None, None] * latitude)  # [channels, latitudes, 1]
    return {"state": (waves + zonal).astype(np.float32)}


def bars_and_asset() -> Feeds:
    """Return the feeds of the factory with two inputs."""
    return {**bars(12, 4), "asset": np.arange(SAMPLES) % 5}


CASES = (
    Case("patchtst-cpu", "patchtst-cpu", market_windows),
    Case("patchtst-cpu-positional", "patchtst-cpu", market_windows, {"positional_encoding": True}),
    Case(
        "patchtst-cpu-small",
        "patchtst-cpu",
        lambda: {"features": market_windows()["features"][:, -48:, :3].copy()},
        {
            **{"context_length": 48, "channels": 3, "patch_length": 8, "horizon": 4},
            **{"layers": 1, "width": 24, "heads": 2, "feed_forward": 40},
        },
    ),
    Case("patchtst", "patchtst", hourly_windows),
    # Where a patch is not two strides long, patches are gathered; the last ones overlap the padded end.
    Case("patchtst-stride-5", "patchtst", hourly_windows, {"stride": 5, "horizon": 24, "layers": 1}),
    Case("dlinear", "dlinear", hourly_windows),
    Case("dlinear-individual", "dlinear", hourly_windows, {"individual": True}),
    Case("linear", "linear", hourly_windows),
    Case("linear-individual", "linear", hourly_windows, {"individual": True}),
    Case("two-inputs-two-outputs", f"{FACTORIES}:two_by_two", bars_and_asset),
    Case("lstm", f"{FACTORIES}:lstm", bars),
    Case("cnn", f"{FACTORIES}:cnn", bars),
    # Few mesh points, and a grid whose poles send many edges to one of them.
    Case(
        "weather-gnn-small",
        "weather-gnn",
        lambda: weather(channels=3, latitudes=6, longitudes=12),
        {"channels": 3, "latitudes": 6, "longitudes": 12, "mesh_level": 1, "width": 16, "steps": 2},
    ),
    # trained weights, where the folder of public checkpoints is there
    Case("patchtst-etth1", "patchtst", hourly_windows, checkpoint="patchtst_etth1_336_96_kemezeto.pth"),
    Case("dlinear-etth1", "dlinear", hourly_windows, checkpoint="dlinear_etth1_336_96.pth"),
    Case("linear-etth1", "linear", hourly_windows, checkpoint="linear_etth1_336_96.pth"),
    Case("lstm-bitcoin", f"{FACTORIES}:lstm", bars, checkpoint="cryptocast_LSTM.pth"),
    Case("cnn-bitcoin", f"{FACTORIES}:cnn", bars, checkpoint="cryptocast_1D-CNN.pth"),
)
BY_NAME = {case.name: case for case in CASES}
