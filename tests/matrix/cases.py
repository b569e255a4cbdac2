"""The table of models that the matrix exports; formats and runtimes stand in `test_matrix.py`.

A case is what `tsexport build` would be given: a registered model or a factory of `factories.py`, its settings, and a
public checkpoint where the folder with those is there.  Adding a model is one row.
"""

import csv
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np

from tsexport.models.sources import identify
from tsexport.types import Feeds, random_feeds

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("TSEXPORT_SHARED", ROOT.parent / "shared"))
FACTORIES = Path(__file__).with_name("factories.py")

SAMPLES = 8
"""How many real-ish windows a case gives."""


@dataclass(frozen=True)
class Case:
    """One model.  `real` gives windows as the model would meet them, [samples, ...] by input name.

    `calibration` gives those that INT8 candidates are calibrated on, by default the same few.
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
    component: str | None = None
    calibration: Callable[[], Feeds] | None = None

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


def market_days() -> Feeds:
    """Return reference days as `migt-tvdt` takes them, in small: 24 bars of 6 variables, some of them padded."""
    from tsexport.calibration.market_days import reference_days

    sizes = {"context_length": 24, "n_variables": 6, "target_variable": 3, "horizons": (1, 3, 6, 12, 24)}
    days, _ = reference_days(sizes, 0, "test", ("bars", "valid", "calendar"))
    return next(days.batches(SAMPLES)).feeds


def bars_and_asset() -> Feeds:
    """Return the feeds of the factory with two inputs."""
    return {**bars(12, 4), "asset": np.arange(SAMPLES) % 5}


HRM = {
    **{"days": 6, "daily_features": 4, "minutes": 22, "minute_features": 5, "h_width": 24, "h_layers": 2, "h_heads": 2},
    **{"h_feed_forward": 24, "l_width": 40, "l_layers": 2, "l_heads": 2, "l_feed_forward": 160},
}
"""hrm-27m, small; 22 minutes are no multiple of a window of 8."""
STREAM = {**HRM, "causal": True, "stream_minutes": 2}


def hrm_feeds(component: str | None = None, **settings: object) -> Feeds:
    """Return feeds of hrm-27m or of a part of it, of unit scale; every sample of a stream stands at another minute."""
    identity = identify("hrm-27m", settings={**HRM, **settings}, component=component)
    feeds = random_feeds(identity.inputs, SAMPLES, seed=11)
    return {**feeds, "position": np.arange(SAMPLES) * 2} if "position" in feeds else feeds


def windows(name: str, steps: int, channels: int) -> Callable[[], Feeds]:
    """Return what gives windows [samples, steps, channels] of a series under an input's name."""
    return lambda: {name: bars(steps, channels)["bars"]}


def calendar(steps: int) -> np.ndarray:
    """Return the calendar of hourly windows as models take it, [samples, steps, 4]."""
    from tsexport.calibration.synthetic import hourly_times, time_marks

    rows = np.arange(SAMPLES)[:, None] * 517 + np.arange(steps)
    return time_marks(hourly_times(rows.max() + 1)[rows])


def series_and_marks() -> Feeds:
    """Return the feeds of an itransformer of 32 steps and 5 channels with time marks."""
    return {"series": bars(32, 5)["bars"], "time_marks": calendar(32)}


def observed_and_known() -> Feeds:
    """Return the feeds of a tft of 24 observed steps and 6 to forecast."""
    return {"observed": bars(24, 5)["bars"], "known": calendar(30)}


def observed_known_and_static() -> Feeds:
    """Return the same with two values that do not change."""
    static = np.random.default_rng(4).standard_normal((SAMPLES, 2)).astype(np.float32)
    return {**observed_and_known(), "static": static}


@cache
def weather(channels: int, latitudes: int, longitudes: int) -> Feeds:
    """Return hours of the reference weather, a day apart: [samples, channels, latitudes, longitudes]."""
    from tsexport.calibration.weather import fields

    return {"state": fields(24 * np.arange(SAMPLES), channels, latitudes, longitudes)}


CASES = (
    Case("patchtst-cpu", "patchtst-cpu", market_windows, calibration=lambda: market_windows(128, training=True)),
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
    Case("hrm-27m", "hrm-27m", hrm_feeds, HRM),
    Case("hrm-27m-causal", "hrm-27m", hrm_feeds, {**HRM, "causal": True}),
    Case("hrm-27m-windows", "hrm-27m", hrm_feeds, {**HRM, "l_window": 8}),
    Case("hrm-27m-causal-windows", "hrm-27m", hrm_feeds, {**HRM, "l_window": 8, "causal": True}),
    Case("hrm-27m-cross", "hrm-27m", hrm_feeds, {**HRM, "cross_attention": True}),
    Case("hrm-27m-segments", "hrm-27m", hrm_feeds, {**HRM, "segments": 4}),
    *(
        Case(f"hrm-27m-{part}", "hrm-27m", partial(hrm_feeds, part), HRM, component=part)
        for part in ("h-module", "l-module", "conditioning-heads")
    ),
    *(
        Case(f"hrm-27m-{name}", "hrm-27m", partial(hrm_feeds, "stream-step", **more), more, component="stream-step")
        for name, more in (
            ("stream-step", STREAM),
            ("stream-step-windows", {**STREAM, "l_window": 8}),
            ("stream-step-cross", {**STREAM, "cross_attention": True}),
        )
    ),
    Case("encoder-pre-norm", f"{FACTORIES}:pre_norm", lambda: bars(6, 8)),
    Case("two-inputs-two-outputs", f"{FACTORIES}:two_by_two", bars_and_asset),
    Case(
        "migt-tvdt",
        "migt-tvdt",
        market_days,
        {
            **{"context_length": 24, "n_variables": 6, "width": 32, "heads": 4, "feed_forward": 48},
            **{"temporal_layers": 2, "variable_layers": 1},
        },
    ),
    Case("lstm", f"{FACTORIES}:lstm", bars, calibration=lambda: bars(count=128)),
    Case("cnn", f"{FACTORIES}:cnn", bars, calibration=lambda: bars(count=128)),
    Case("lstm-small", "lstm", windows("features", 20, 6), {"context_length": 20, "channels": 6, "hidden": 24}),
    Case("gru-small", "gru", windows("features", 20, 6), {"context_length": 20, "channels": 6, "hidden": 24}),
    Case(
        "tcn-small",
        "tcn",
        windows("features", 20, 6),
        {"context_length": 20, "channels": 6, "filters": 16, "dilations": (1, 2, 4)},
    ),
    Case(
        "inception-time-small",
        "inception-time",
        windows("features", 20, 5),
        {"context_length": 20, "filters": 8, "blocks": 4, "kernels": (9, 5, 3), "bottleneck": 8},
    ),
    Case(
        "inception-time-five-branches",
        "inception-time",
        windows("features", 24, 5),
        {"context_length": 24, "filters": 8, "blocks": 2, "kernels": (3, 5, 8, 11, 23), "pooling": False},
    ),
    Case(
        "resnet1d-small",
        "resnet1d",
        windows("features", 20, 5),
        {"context_length": 20, "filters": (16, 24, 24)},
    ),
    Case(
        "unet-small",
        "unet",
        lambda: weather(5, 16, 8),
        {"channels": 5, "latitudes": 16, "longitudes": 8, "widths": (8, 16, 24)},
    ),
    Case(
        "itransformer-small",
        "itransformer",
        windows("series", 32, 5),
        {"context_length": 32, "horizon": 8, "channels": 5, "layers": 1, "width": 32, "heads": 4, "feed_forward": 48},
    ),
    Case(
        "itransformer-marks",
        "itransformer",
        series_and_marks,
        {
            **{"context_length": 32, "horizon": 8, "channels": 5, "layers": 1, "width": 32, "heads": 4},
            **{"feed_forward": 48, "time_marks": True},
        },
    ),
    Case(
        "patchtst-classes",
        "patchtst",
        windows("series", 48, 3),
        {
            **{"context_length": 48, "channels": 3, "layers": 2, "width": 16, "heads": 2, "feed_forward": 32},
            **{"classes": 3},
        },
    ),
    Case(
        "itransformer-classes",
        "itransformer",
        windows("series", 32, 5),
        {
            **{"context_length": 32, "channels": 5, "layers": 1, "width": 32, "heads": 4, "feed_forward": 32},
            **{"classes": 3},
        },
    ),
    Case(
        "tft-classes",
        "tft",
        observed_and_known,
        {"context_length": 24, "horizon": 6, "width": 16, "heads": 2, "classes": 3},
    ),
    Case("tft-small", "tft", observed_and_known, {"context_length": 24, "horizon": 6, "width": 16, "heads": 2}),
    Case(
        "tft-static",
        "tft",
        observed_known_and_static,
        {"context_length": 24, "horizon": 6, "width": 16, "heads": 2, "static_channels": 2},
    ),
    Case(
        "nhits-small",
        "nhits",
        windows("series", 40, 5),
        {"context_length": 40, "horizon": 8, "channels": 5, "width": 32},
    ),
    # Few mesh points, and a grid whose poles send many edges to one of them.
    Case(
        "weather-gnn-small",
        "weather-gnn",
        lambda: weather(3, 6, 12),
        {"channels": 3, "latitudes": 6, "longitudes": 12, "mesh_level": 1, "width": 16, "steps": 2},
    ),
    Case("sfno-edge-test", "sfno-edge", lambda: weather(13, 64, 64), {"size": "test"}),
    # sfno-hybrid but for its size: two blocks a level, and a grid with other modes in each direction
    Case(
        "sfno-hybrid-small",
        "sfno-hybrid",
        lambda: weather(7, 64, 32),
        {
            **{"channels": 7, "latitudes": 64, "longitudes": 32, "widths": "8,16,32", "modes": 12},
            **{"layers": 3, "heads": 4, "feed_forward": 48},
        },
    ),
    # trained weights, where the folder of public checkpoints is there
    Case("patchtst-etth1", "patchtst", hourly_windows, checkpoint="patchtst_etth1_336_96_kemezeto.pth"),
    Case("dlinear-etth1", "dlinear", hourly_windows, checkpoint="dlinear_etth1_336_96.pth"),
    Case("linear-etth1", "linear", hourly_windows, checkpoint="linear_etth1_336_96.pth"),
    Case("lstm-bitcoin", f"{FACTORIES}:lstm", bars, checkpoint="cryptocast_LSTM.pth"),
    Case("cnn-bitcoin", f"{FACTORIES}:cnn", bars, checkpoint="cryptocast_1D-CNN.pth"),
)
BY_NAME = {case.name: case for case in CASES}
