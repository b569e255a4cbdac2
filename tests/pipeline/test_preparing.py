"""--include-preprocessing: what is refused, what the source model says, and where times and samples come from."""

from pathlib import Path

import numpy as np
import pytest

from tsexport.calibration.market import FEATURES
from tsexport.errors import ConfigurationError, DataError, UsageError
from tsexport.stages.samples import RAW_UNITS, take_samples

LINEAR = {"context_length": 48, "horizon": 12, "channels": 2}
TFT = {"context_length": 24, "horizon": 6, "width": 16, "heads": 2, "channels": 2}
FACTORIES = Path(__file__).resolve().parent.parent / "models" / "factories"
FIRST_TIME = np.datetime64("2096-02-28T21:00", "m")


# --- what is refused -------------------------------------------------------------------------------------------------


def table(path, row_count=600, columns=("a", "b")):
    values = np.random.default_rng(0).standard_normal((row_count, len(columns))).cumsum(axis=0) + 50
    lines = [",".join(columns), *(",".join(f"{value:.6f}" for value in row) for row in values)]
    path.write_text("\n".join(lines) + "\n")
    return path


def timed_table(path, row_count=600):
    """Columns a and b, and quarters of hours over a leap day."""
    values = np.random.default_rng(0).standard_normal((row_count, 2)).cumsum(axis=0) + 50
    times = FIRST_TIME + 15 * np.arange(row_count)
    lines = [f"{a:.6f},{b:.6f},{str(time).replace('T', ' ')}:00" for (a, b), time in zip(values, times, strict=True)]
    path.write_text("\n".join(["a,b,t", *lines]) + "\n")
    return path


def test_a_model_without_a_series_says_what_to_give(context_of):
    with pytest.raises(ConfigurationError, match=r"tsexport knows no series for .*cryptocast.py:lstm") as error:
        context_of(f"{FACTORIES / 'cryptocast.py'}:lstm")
    assert error.value.next_step.startswith("give --config FILE with [series]: columns")


def test_an_onnx_file_has_no_module(context_of, model_files):
    with pytest.raises(UsageError, match=r"puts operators before a torch module, and .* is an ONNX file") as error:
        context_of(str(model_files.fp32))
    assert "module:factory" in error.value.next_step


def test_statistics_are_not_those_of_another_series(context_of, tmp_path):
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
def test_a_series_that_does_not_fit(context_of, tmp_path, series, message):
    path = table(tmp_path / "series.csv", columns=("a", "b", "c"))
    with pytest.raises(ConfigurationError, match=message) as error:
        _ = context_of("linear", LINEAR, calibration=path, evaluation=path, series=series).source
    assert error.value.next_step


def test_inputs_that_are_no_windows(context_of, tmp_path):
    with pytest.raises(ConfigurationError, match=r"prepares windows float32\[batch, context_length, channels\], and b"):
        _ = context_of("unet", series={"context_length": 1, "horizon": 1, "scaling": "none"}).source


def test_short_windows_that_are_unknown(context_of):
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
def test_times_that_a_series_does_not_give(context_of, tmp_path, series, message):
    path = timed_table(tmp_path / "series.csv")
    series = {"columns": ["a", "b"], "scaling": "none", **series}
    with pytest.raises(ConfigurationError, match=message) as error:
        _ = context_of("tft", TFT, calibration=path, series=series).evaluation
    assert error.value.next_step


def test_a_time_column_without_dates(context_of, tmp_path):
    path = table(tmp_path / "series.csv", columns=("a", "b", "t"))
    series = {"columns": ["a", "b"], "target_columns": ["a"], "time_column": "t", "scaling": "none"}
    values = np.genfromtxt(path, delimiter=",", skip_header=1)
    values[:, 2] = np.arange(len(values))
    np.savetxt(path, values, delimiter=",", header="a,b,t", comments="")
    with pytest.raises(DataError, match="the time column 't' holds float64 and no dates"):
        _ = context_of("tft", TFT, calibration=path, series=series).evaluation


def test_times_come_from_the_time_column(context_of, tmp_path):
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


def test_the_source_says_what_was_included(context_of):
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


def test_a_classifier_is_not_scaled_back(context_of):
    series = {"horizon": 6, "scaling": "revin", "columns": [f"c{index}" for index in range(26)]}
    source = context_of("lstm", {"size": "small"}, series=series).source
    assert not source.spec.config["preprocessing"]["scales_back"]


def test_the_digest_changes_with_the_preparation(context_of):
    digests = {
        context_of("linear", LINEAR, series={"columns": ["a", "b"], "scaling": scaling}).source.digest
        for scaling in ("none", "minmax-window", "revin")
    }
    plain = context_of("linear", LINEAR, include_preprocessing=False)
    assert len({*digests, plain.source.digest}) == 4
    assert plain.plan.digest != context_of("linear", LINEAR).plan.digest


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.parametrize("labelled", [True, False])
def test_samples_hold_windows_with_gaps_beside_those_that_are_judged(context_of, tmp_path, labelled):
    generator = np.random.default_rng(2)
    windows = (generator.standard_normal((80, 48, 2)).cumsum(axis=1) + 100).astype(np.float32)
    windows[70, 20:25] = np.nan  # the user's own data may have gaps too
    target = {"target": generator.standard_normal((80, 12, 2)).astype(np.float32)} if labelled else {}
    np.savez(tmp_path / "windows.npz", raw_series=windows, **target)
    series = {"columns": ["a", "b"], "scaling": "revin"}
    context = context_of("linear", LINEAR, evaluation=tmp_path / "windows.npz", series=series)
    samples, reused = take_samples(context)
    again, reused_again = take_samples(context_of("linear", LINEAR, evaluation=tmp_path / "windows.npz", series=series))
    assert (reused, reused_again) == (False, True)
    assert again.key == samples.key
    assert (RAW_UNITS in samples.record.caveats) == (not labelled)
    for one in (samples, again):
        feeds, outputs = one.golden
        assert np.isnan(feeds["raw_series"][8:]).any()
        assert not np.isnan(feeds["raw_series"][:8]).any()
        np.testing.assert_array_equal(outputs["forecast"], context.source.run(feeds)["forecast"])
        assert np.isnan(one.real["raw_series"][4:]).any()
        assert len(one.feeds["raw_series"]) == 80
