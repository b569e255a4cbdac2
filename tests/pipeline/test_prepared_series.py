"""--include-preprocessing on series, real ones where they are here: raw windows through every runtime, against the
Python path."""

import csv
import gzip
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tsexport.calibration.market import CLOSE, market_features, scaled_examples
from tsexport.calibration.preparation import damage
from tsexport.calibration.synthetic import Bars
from tsexport.calibration.tables import open_table
from tsexport.calibration.windows import windows_of
from tsexport.exporters.conversion import convert_to_onnx, convert_to_openvino, convert_to_torchscript
from tsexport.models.sources import open_source
from tsexport.runtimes.registry import load
from tsexport.stages.context import Context
from tsexport.types import Artifact, Feeds

RUNTIMES = ("torchscript", "onnxruntime", "openvino", "tract")
SCALED_ATOL = 1e-4
"""Of what the target is scaled by: float32 rounding through a preparation, a model, and back."""
LINEAR = {"context_length": 48, "horizon": 12, "channels": 2}
TFT = {"context_length": 24, "horizon": 6, "width": 16, "heads": 2, "channels": 2}
ROOT = Path(__file__).resolve().parent.parent.parent
SHARED = Path(os.environ.get("TSEXPORT_SHARED", ROOT.parent / "shared"))
ETTH1, TRADES = SHARED / "data" / "ETTh1.csv", SHARED / "data" / "lean_minute_trades_ohlcv.csv.gz"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    import torch

    torch.set_num_threads(1)


@dataclass(frozen=True)
class Exported:
    """A prepared source in every format, with raw windows that it was not exported with."""

    context: Context
    artifacts: dict[str, Artifact]
    feeds: Feeds
    target: np.ndarray

    @property
    def raw(self) -> str:
        return self.context.source.spec.inputs[0].name


@pytest.fixture(scope="module")
def exported(context_of, tmp_path_factory):
    """Return a function that exports a case once."""

    @cache
    def export(name):
        context = context_of(**CASES[name](tmp_path_factory.mktemp(f"{name}-data")))
        source, folder = context.source, tmp_path_factory.mktemp(name)
        opened = context.evaluation
        batch = next(iter(opened.dataset.batches(24)))
        raw = source.spec.inputs[0].name
        real = {**batch.feeds, raw: damage(batch.feeds[raw])}
        real = {key: array[:8] for key, array in real.items()}
        onnx = convert_to_onnx(source.module, None, source.spec, real, folder / "model.onnx").artifact
        script = convert_to_torchscript(source.module, source.spec, real, folder / "model.pt").artifact
        ir = convert_to_openvino(onnx, folder / "model.xml").artifact
        artifacts = {"onnxruntime": onnx, "tract": onnx, "torchscript": script, "openvino": ir}
        return Exported(context, artifacts, batch.feeds, batch.target)

    return export


def etth1(folder):
    if not ETTH1.is_file():
        pytest.skip(f"the public ETTh1 series is not in {ETTH1.parent}")
    series = {"time_column": "date", "split": {"train": [0, 8640], "test": [11520, 14400]}}
    settings = {"context_length": 96, "horizon": 24, "channels": 7}
    return {"model": "dlinear", "settings": settings, "calibration": ETTH1, "series": series}


def minute_bars() -> Bars:
    if not TRADES.is_file():
        pytest.skip(f"the public minute trades are not in {TRADES.parent}")
    with gzip.open(TRADES, "rt") as file:
        rows = [row for row in csv.DictReader(file) if row["symbol"] == "btcusd"]
    time = np.array([row["timestamp_exchange_local"] for row in rows], "datetime64[m]")
    return Bars(
        time, *(np.array([float(row[name]) for row in rows]) for name in ("open", "high", "low", "close", "volume"))
    )


def trades(folder, scaling):
    bars = minute_bars()
    path = folder / "bars.csv"
    rows = zip(bars.close, bars.volume, strict=True)
    path.write_text(
        "\n".join(["close,volume", *(f"{float(close)!r},{float(volume)!r}" for close, volume in rows)]) + "\n"
    )
    return {"model": "linear", "settings": LINEAR, "calibration": path, "series": {"scaling": scaling}}


CASES = {
    "etth1-standard": etth1,
    "trades-standard": lambda folder: trades(folder, "standard"),
    "trades-minmax": lambda folder: trades(folder, "minmax-window"),
    "trades-revin": lambda folder: trades(folder, "revin"),
    "etth1-calendar": lambda folder: (
        etth1(folder)
        | {
            "model": "itransformer",
            "settings": {"context_length": 48, "horizon": 12, "width": 32, "heads": 2, "time_marks": True},
        }
    ),
    "market-days": lambda folder: {
        "model": "migt-tvdt",
        "settings": {
            "context_length": 48,
            "n_variables": 6,
            "width": 32,
            "heads": 2,
            "feed_forward": 32,
            "temporal_layers": 1,
            "variable_layers": 1,
        },
    },
    "market-minmax": lambda folder: {"model": "patchtst-cpu"},
    "calendar": lambda folder: {
        "model": "itransformer",
        "settings": {"context_length": 48, "horizon": 12, "width": 32, "heads": 2, "time_marks": True},
    },
    "calendar-quantiles": lambda folder: {
        "model": "tft",
        "settings": TFT,
    },
}


def damaged_once(feeds, raw):
    """One window in four each with gaps, short, constant, and with a column that is not there."""
    return {**feeds, raw: damage(feeds[raw])}


SLOW = ("calendar-quantiles", "market-days")  # seconds of tracing


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_raw_windows_are_answered_as_along_the_python_path(exported, name, runtime):
    one = exported(name)
    first = one.context.source.spec.outputs[0].name
    # What the target varies by within the windows: raw levels would hide an error.
    unit = one.target.std(axis=tuple(range(one.target.ndim - 1))) if one.target.ndim == 3 else one.target.std()
    with load(one.artifacts[runtime], runtime, threads=1) as session:
        for feeds in (one.feeds, damaged_once(one.feeds, one.raw)):
            expected, got = one.context.source.run(feeds)[first], session.run(feeds)[first]
            assert np.isfinite(got).all()
            atol = SCALED_ATOL * unit + 2 * np.spacing(np.abs(expected))
            np.testing.assert_array_less(np.abs(got - expected), np.broadcast_to(atol, got.shape))
            if one.context.source.spec.task == "quantiles":
                assert (np.diff(got, axis=-1) >= 0).all()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_etth1_is_forecast_as_from_windows_scaled_in_training(exported, runtime):
    """Against the path that trains and judges: the table's own float64, scaled there, and inverted there."""
    one = exported("etth1-standard")
    plan = one.context.plan
    scaled = windows_of(open_table(ETTH1), plan.series, "test", name="series")
    plain = open_source(one.context.identity)
    places = one.context.evaluation.indices[: len(one.target)]
    batch = next(iter(scaled.read(places, len(places))))
    wanted = plain.run(batch.feeds)["forecast"]
    with load(one.artifacts[runtime], runtime, threads=1) as session:
        got = session.run(one.feeds)["forecast"]
    np.testing.assert_allclose(scaled.target_scale.apply(got), wanted, rtol=0, atol=SCALED_ATOL)
    np.testing.assert_allclose(scaled.target_scale.apply(one.target), batch.target, rtol=0, atol=SCALED_ATOL)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_minute_bars_are_forecast_as_from_scaled_examples(exported, runtime):
    """patchtst-cpu on real minutes: features of OHLCV bars, against windows that are scaled as in its training."""
    one = exported("market-minmax")
    features = market_features(minute_bars())
    starts = np.arange(0, len(features) - 200, 97)[:32]
    windows, _ = scaled_examples(features, starts)
    raw = features[starts[:, None] + np.arange(windows.shape[1])]
    answer = open_source(one.context.identity).run({"features": windows.astype(np.float32)})["forecast"]
    with load(one.artifacts[runtime], runtime, threads=1) as session:
        got = session.run({one.raw: raw})["forecast"]
    low, high = raw[:, :, CLOSE].min(axis=1, keepdims=True), raw[:, :, CLOSE].max(axis=1, keepdims=True)
    span = np.where(high > low, high - low, 1)
    atol = SCALED_ATOL + 2 * np.spacing(high) / span
    np.testing.assert_array_less(np.abs((got - low) / span - answer), atol)


def test_a_day_too_short_for_the_model(exported):
    """The last 40 bars alone: as if zeros stood before them (the rule of patchtst-cpu)."""
    one = exported("market-minmax")
    short = one.feeds[one.raw].copy()
    short[:, :88] = np.nan
    padded = np.nan_to_num(short, nan=0.0)
    source = one.context.source
    np.testing.assert_array_equal(source.run({one.raw: short})["forecast"], source.run({one.raw: padded})["forecast"])
