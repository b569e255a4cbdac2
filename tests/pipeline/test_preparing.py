"""--include-preprocessing: what goes into the graph, what is refused, and real series through every runtime."""

import csv
import gzip
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tsexport.calibration.market import CLOSE, FEATURES, HORIZON_BARS, market_features, scaled_examples
from tsexport.calibration.preparation import damage
from tsexport.calibration.synthetic import Bars
from tsexport.calibration.tables import open_table
from tsexport.calibration.windows import windows_of
from tsexport.context import Context
from tsexport.errors import ConfigurationError, DataError, UsageError
from tsexport.exporters.conversion import convert_to_onnx, convert_to_openvino, convert_to_torchscript
from tsexport.models.sources import open_source
from tsexport.options import BuildOptions
from tsexport.pipeline import plan_build
from tsexport.runtimes.registry import load
from tsexport.types import Artifact, Feeds

RUNTIMES = ("torchscript", "onnxruntime", "openvino", "tract")
SCALED_ATOL = 1e-4
"""Of what the target is scaled by: float32 rounding through a preparation, a model, and back."""
LINEAR = {"context_length": 48, "horizon": 12, "channels": 2}
ROOT = Path(__file__).resolve().parent.parent.parent
SHARED = Path(os.environ.get("TSEXPORT_SHARED", ROOT.parent / "shared"))
FACTORIES = ROOT / "tests" / "models" / "factories"
ETTH1, TRADES = SHARED / "data" / "ETTh1.csv", SHARED / "data" / "lean_minute_trades_ohlcv.csv.gz"


def context_of(model, settings=None, **options) -> Context:
    given = {"output": Path("dist"), "name": "prepared", "include_preprocessing": True, **options}
    return plan_build(BuildOptions(model, "cpu4-fp32", settings=settings or {}, **given)).context


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    import torch

    torch.set_num_threads(1)


# --- what is refused -------------------------------------------------------------------------------------------------


def table(path, row_count=600, columns=("a", "b")):
    values = np.random.default_rng(0).standard_normal((row_count, len(columns))).cumsum(axis=0) + 50
    lines = [",".join(columns), *(",".join(f"{value:.6f}" for value in row) for row in values)]
    path.write_text("\n".join(lines) + "\n")
    return path


TFT = {"context_length": 24, "horizon": 6, "width": 16, "heads": 2, "channels": 2}
FIRST_TIME = np.datetime64("2096-02-28T21:00", "m")


def timed_table(path, row_count=600):
    """Columns a and b, and quarters of hours over a leap day."""
    values = np.random.default_rng(0).standard_normal((row_count, 2)).cumsum(axis=0) + 50
    times = FIRST_TIME + 15 * np.arange(row_count)
    lines = [f"{a:.6f},{b:.6f},{str(time).replace('T', ' ')}:00" for (a, b), time in zip(values, times, strict=True)]
    path.write_text("\n".join(["a,b,t", *lines]) + "\n")
    return path


def test_a_model_without_a_series_says_what_to_give():
    with pytest.raises(ConfigurationError, match=r"tsexport knows no series for .*cryptocast.py:lstm") as error:
        context_of(f"{FACTORIES / 'cryptocast.py'}:lstm")
    assert error.value.next_step.startswith("give --config FILE with [series]: columns")


def test_an_onnx_file_has_no_module(model_files):
    with pytest.raises(UsageError, match=r"puts operators before a torch module, and .* is an ONNX file") as error:
        context_of(str(model_files.fp32))
    assert "module:factory" in error.value.next_step


def test_statistics_are_not_those_of_another_series(tmp_path):
    """`linear` has a reference series, whose statistics are not those that somebody's checkpoint was trained with."""
    import torch

    checkpoint = tmp_path / "mine.pth"
    torch.save(context_of("linear", LINEAR).source.module.model.state_dict(), checkpoint)
    message = 'scaling = "standard" puts statistics of your training rows into the graph, and no series was given'
    with pytest.raises(ConfigurationError, match=message) as error:
        _ = context_of("linear", LINEAR, checkpoint=checkpoint).source
    assert "--calibration FILE.csv" in error.value.next_step
    series = {"columns": ["a", "b"], "scaling": "standard"}
    with pytest.raises(ConfigurationError, match=message):
        _ = context_of("linear", LINEAR, series=series).source
    assert context_of("linear", LINEAR, checkpoint=checkpoint, series={**series, "scaling": "revin"}).source


@pytest.mark.parametrize(
    ("series", "message"),
    [
        (
            {"context_length": 40, "columns": ["a", "b"]},
            r"windows of the series are \[40, 2\], and the model takes series float32",
        ),
        ({"columns": ["a", "b", "c"]}, r"windows of the series are \[48, 3\], and the model takes series float32"),
        (
            {"columns": ["a", "b"], "target_columns": ["b", "c"], "scaling": "minmax-window"},
            "takes its numbers from the window, and the target column 'c' is not among its columns a, b",
        ),
        (
            {"target_columns": ["a"], "columns": ["a", "b"]},
            r"scales the first output back as the series' target, \[12, 1\] of a, and the model gives forecast float",
        ),
        ({"horizon": 5, "columns": ["a", "b"]}, r"as the series' target, \[5, 2\] of a, b, and the model gives forec"),
    ],
)
def test_a_series_that_does_not_fit(tmp_path, series, message):
    path = table(tmp_path / "series.csv", columns=("a", "b", "c"))
    with pytest.raises(ConfigurationError, match=message) as error:
        _ = context_of("linear", LINEAR, calibration=path, evaluation=path, series=series).source
    assert error.value.next_step


def test_inputs_that_are_no_windows(tmp_path):
    with pytest.raises(ConfigurationError, match=r"prepares windows float32\[batch, context_length, channels\], and b"):
        _ = context_of("unet", series={"context_length": 1, "horizon": 1, "scaling": "none"}).source


def test_short_windows_that_are_unknown():
    with pytest.raises(
        ConfigurationError, match=r"short_windows = 'zero' is unknown .did you mean 'zeros'\?.; allowed "
    ):
        context_of("linear", LINEAR, series={"short_windows": "zero"})


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({}, "time_minutes is fed from the time column, and the series configuration names none"),
        (
            {"time_column": "t"},
            "answers the path of one target column, and the series configuration has target = .*path",
        ),
        (
            {"time_column": "t", "target_columns": ["a"], "target": "point"},
            'answers the path of one target column, and the series configuration has target = "point" and 1 target col',
        ),
    ],
)
def test_times_that_a_series_does_not_give(tmp_path, series, message):
    path = timed_table(tmp_path / "series.csv")
    series = {"columns": ["a", "b"], "scaling": "none", **series}
    with pytest.raises(ConfigurationError, match=message) as error:
        _ = context_of("tft", TFT, calibration=path, series=series).evaluation
    assert error.value.next_step


def test_a_time_column_without_dates(tmp_path):
    path = table(tmp_path / "series.csv", columns=("a", "b", "t"))
    series = {"columns": ["a", "b"], "target_columns": ["a"], "time_column": "t", "scaling": "none"}
    values = np.genfromtxt(path, delimiter=",", skip_header=1)
    values[:, 2] = np.arange(len(values))
    np.savetxt(path, values, delimiter=",", header="a,b,t", comments="")
    with pytest.raises(DataError, match="the time column 't' holds float64 and no dates"):
        _ = context_of("tft", TFT, calibration=path, series=series).evaluation


def test_times_come_from_the_time_column(tmp_path):
    path = timed_table(tmp_path / "series.csv")
    series = {"columns": ["a", "b"], "target_columns": ["b"], "time_column": "t"}
    context = context_of("tft", TFT, calibration=path, series=series)
    batch = next(iter(context.evaluation.dataset.batches(5)))
    rows = [int(one.rpartition(":")[2]) for one in batch.ids]
    given = np.genfromtxt(path, delimiter=",", skip_header=1, usecols=(0, 1))
    arrays = (batch.feeds["raw_observed"], batch.feeds["time_minutes"], batch.target)
    for row, window, times, target in zip(rows, *arrays, strict=True):
        np.testing.assert_array_equal(times, FIRST_TIME.astype(np.int64) + 15 * np.arange(row, row + 30))
        np.testing.assert_allclose(window, given[row : row + 24], rtol=1e-6)
        np.testing.assert_allclose(target, given[row + 24 : row + 30, 1], rtol=1e-6)


# --- what the source says --------------------------------------------------------------------------------------------


def test_the_source_says_what_was_included():
    source = context_of("patchtst-cpu").source
    assert list(map(str, source.spec.inputs)) == ["raw_features float32[batch, 128, 8]"]
    assert source.spec.config["preprocessing"] == {
        "columns": list(FEATURES),
        "scaling": "minmax-window",
        "short_windows": "zeros",
        "beside": [],
        "scales_back": True,
        "sorts_quantiles": False,
    }
    assert source.notes[-1].endswith("NaN where a value is missing; forecasts and errors are in the series' own units")


def test_a_classifier_is_not_scaled_back():
    series = {"horizon": 6, "scaling": "revin", "columns": [f"c{index}" for index in range(26)]}
    source = context_of("lstm", {"size": "small"}, series=series).source
    assert not source.spec.config["preprocessing"]["scales_back"]


def test_the_digest_changes_with_the_preparation():
    digests = {
        context_of("linear", LINEAR, series={"columns": ["a", "b"], "scaling": scaling}).source.digest
        for scaling in ("none", "minmax-window", "revin")
    }
    plain = context_of("linear", LINEAR, include_preprocessing=False)
    assert len({*digests, plain.source.digest}) == 4
    assert plain.plan.digest != context_of("linear", LINEAR).plan.digest


# --- through every runtime -------------------------------------------------------------------------------------------


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
def exported(tmp_path_factory):
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
    assert HORIZON_BARS == 8
    np.testing.assert_array_less(np.abs((got - low) / span - answer), atol)


def test_a_day_too_short_for_the_model(exported):
    """The last 40 bars alone: as if zeros stood before them (the rule of patchtst-cpu)."""
    one = exported("market-minmax")
    short = one.feeds[one.raw].copy()
    short[:, :88] = np.nan
    padded = np.nan_to_num(short, nan=0.0)
    source = one.context.source
    np.testing.assert_array_equal(source.run({one.raw: short})["forecast"], source.run({one.raw: padded})["forecast"])
