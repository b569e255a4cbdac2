import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.calibration import tables
from tsexport.calibration.datasets import draw
from tsexport.calibration.series import SPLITS, SeriesConfig, Splits, series_config_from_mapping
from tsexport.calibration.tables import CsvTable, MemoryTable, ParquetTable
from tsexport.calibration.windows import windows_of
from tsexport.errors import ConfigurationError, DataError

ROOT = Path(__file__).resolve().parent.parent.parent
ETTH1 = Path(os.environ.get("TSEXPORT_SHARED", ROOT.parent / "shared")) / "data" / "ETTh1.csv"
STATISTICS = {"rtol": 0, "atol": 1e-6}  # float32 results of statistics summed in another order


def read_all(dataset, batch_size=16):
    batches = list(dataset.batches(batch_size))
    (name,) = dataset.names
    return (
        np.concatenate([b.feeds[name] for b in batches]),
        np.concatenate([b.target for b in batches]),
        [i for b in batches for i in b.ids],
    )


def plain_windows(values, config, split):
    """The same windows by plain slicing, from the definition: every window whose target rows all lie in the split."""
    begin, end = config.split.rows(split, len(values))
    found = []
    for start in range(len(values)):
        after = start + config.context_length
        target_rows = range(after, after + config.horizon)
        if config.target == "point":
            target_rows = target_rows[-1:]
        if begin <= target_rows[0] and target_rows[-1] < end:
            found.append((start, target_rows))
    found = found[:: config.stride]
    x = [values[s : s + config.context_length] for s, _ in found]
    y = [values[rows[0] : rows[-1] + 1] for _, rows in found]
    return [s for s, _ in found], np.array(x), np.array(y)


@st.composite
def cases(draw_value):
    rows = draw_value(st.integers(4, 120))
    cuts = sorted(draw_value(st.sets(st.integers(0, rows), min_size=4, max_size=4)))
    split = Splits(*[(cuts[i], cuts[i + 1]) for i in range(3)])
    target = draw_value(st.sampled_from(["path", "point"]))
    config = SeriesConfig(
        context_length=draw_value(st.integers(1, 20)),
        horizon=draw_value(st.integers(1, 10)),
        stride=draw_value(st.integers(1, 7)),
        target=target,
        target_columns=("b",) if target == "point" else (),
        scaling="none",
        split=split,
    )
    return rows, config


@settings(deadline=None)
@given(cases(), st.sampled_from(SPLITS), st.integers(1, 50), st.integers(1, 40), st.data())
def test_windows_are_plain_slices_whatever_the_blocks(case, split, block_rows, batch_size, data):
    rows, config = case
    values = np.arange(rows * 2, dtype=np.float64).reshape(rows, 2)
    starts, x, y = plain_windows(values, config, split)
    table = MemoryTable(values, ("a", "b"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BLOCK_ROWS", block_rows)
        if not starts:
            with pytest.raises(DataError, match="a window takes"):
                windows_of(table, config, split)
            return
        windows = windows_of(table, config, split)
        begin, end = config.split.rows(split, rows)
        before = config.context_length + (config.horizon - 1 if config.target == "point" else 0)
        first, last = max(0, begin - before), end - config.context_length - config.horizon
        assert windows.count == (last - first) // config.stride + 1 == len(starts)
        got_x, got_y, ids = read_all(windows, batch_size)
        np.testing.assert_array_equal(got_x, x)
        np.testing.assert_array_equal(got_y, y[:, 0, 1:] if config.target == "point" else y)
        assert ids == [f"{split}:{start:06d}" for start in starts]
        drawn = draw(windows, data.draw(st.integers(1, windows.count)), seed=0)
        np.testing.assert_array_equal(read_all(drawn, batch_size)[0], x[list(drawn.indices)])
        assert drawn.sample_ids == tuple(ids[i] for i in drawn.indices)


@settings(deadline=None)
@given(cases())
def test_splits_share_no_target_row(case):
    rows, config = case
    table = MemoryTable(np.arange(rows * 2, dtype=np.float64).reshape(rows, 2), ("a", "b"))
    split_of_row = {}
    for split in SPLITS:
        try:
            windows = windows_of(table, config, split)
        except DataError:  # too few rows for a window
            continue
        # The values are 2 * row (+ 1 in column b): the targets say which rows they are.
        for row in np.unique(read_all(windows)[1].astype(int) // 2):
            begin, end = config.split.rows(split, rows)
            assert begin <= row < end
            assert split_of_row.setdefault(int(row), split) == split


def config_of(scaling="none", **changes):
    defaults = {"context_length": 12, "horizon": 4, "scaling": scaling, "time_column": "time"}
    split = Splits((0, 150), (150, 200), (200, 300))
    return SeriesConfig(**{**defaults, "split": split, **changes})


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
@pytest.mark.parametrize("scaling", ["none", "standard", "minmax-window"])
def test_files_give_the_windows_of_the_values(write_series, values, suffix, scaling):
    path = write_series(values, suffix, row_group_size=64)
    table = ParquetTable(path) if suffix == ".parquet" else CsvTable(path)
    got = windows_of(table, config_of(scaling), "test", name="past")
    memory = windows_of(MemoryTable(values, ("a", "b", "c")), config_of(scaling, time_column=None), "test")
    assert got.names == ("past",)
    assert got.columns == ("a", "b", "c")
    for actual, expected in zip(read_all(got)[:2], read_all(memory)[:2], strict=True):
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected, **STATISTICS)
    assert read_all(got)[2] == read_all(memory)[2]


def test_standard_scaling_uses_the_training_rows_only(values):
    windows = windows_of(MemoryTable(values, ("a", "b", "c")), config_of("standard", time_column=None), "test")
    train = values[:150]
    scaled = (values - train.mean(axis=0)) / train.std(axis=0)
    x, y, _ = read_all(windows)
    np.testing.assert_allclose(x[0], scaled[188:200], **STATISTICS)
    np.testing.assert_allclose(y[-1], scaled[296:300], **STATISTICS)
    np.testing.assert_allclose(windows.scale.mean, train.mean(axis=0), rtol=1e-12)
    back = windows.target_scale.invert(y[0].astype(np.float64))
    np.testing.assert_allclose(back, values[200:204], rtol=0, atol=1e-5)


def test_targets_may_be_other_columns_in_another_order(values):
    config = config_of("standard", time_column=None, columns=("c", "a"), target_columns=("b", "a"))
    windows = windows_of(MemoryTable(values, ("a", "b", "c")), config, "test")
    scaled = (values - values[:150].mean(axis=0)) / values[:150].std(axis=0)
    x, y, _ = read_all(windows)
    np.testing.assert_allclose(x[0], scaled[188:200][:, [2, 0]], **STATISTICS)
    np.testing.assert_allclose(y[0], scaled[200:204][:, [1, 0]], **STATISTICS)
    np.testing.assert_allclose(windows.target_scale.std, values[:150].std(axis=0)[[1, 0]], rtol=1e-12)


def test_min_max_scales_the_target_by_the_context_of_its_column(values):
    values = values.copy()
    values[190:230, 0] = 3.0  # a flat stretch: the range counts as 1
    config = config_of("minmax-window", time_column=None, columns=("a", "b"), target="point", target_columns=("c",))
    windows = windows_of(MemoryTable(values, ("a", "b", "c")), config, "test")
    x, y, ids = read_all(windows)
    for at, name in enumerate(ids):
        start = int(name.split(":")[1])
        context = values[start : start + 12]
        low, span = context.min(axis=0), np.ptp(context, axis=0)
        span[span == 0] = 1
        np.testing.assert_allclose(x[at], ((context - low) / span)[:, :2], **STATISTICS)
        np.testing.assert_allclose(y[at], [(values[start + 15, 2] - low[2]) / span[2]], rtol=1e-6)
    flat = [i for i, name in enumerate(ids) if 190 <= int(name.split(":")[1]) <= 218]
    assert flat
    assert (x[flat, :, 0] == 0).all()
    assert windows.scale is None


@pytest.mark.skipif(not ETTH1.is_file(), reason="the public ETTh1 series is not here")
def test_etth1_protocol():
    config = series_config_from_mapping(
        {
            "time_column": "date",
            "context_length": 336,
            "horizon": 96,
            "split": {"train": [0, 8640], "validation": [8640, 11520], "test": [11520, 14400]},
        }
    )
    windows = windows_of(CsvTable(ETTH1), config, "test")
    assert windows.count == 2785
    values = np.loadtxt(ETTH1, delimiter=",", skiprows=1, usecols=range(1, 8))
    scaled = (values - values[:8640].mean(axis=0)) / values[:8640].std(axis=0)
    x, y, ids = read_all(windows, 128)
    assert (ids[0], ids[-1]) == ("test:011184", "test:013968")
    view = np.lib.stride_tricks.sliding_window_view(scaled[11184:14400], 432, axis=0).swapaxes(1, 2)
    np.testing.assert_allclose(x, view[:, :336], **STATISTICS)
    np.testing.assert_allclose(y, view[:, 336:], **STATISTICS)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_gap_is_named_with_column_row_and_time(write_series, values, suffix):
    values[210, 1] = values[250, 0] = np.nan
    path = write_series(values, suffix)
    table = ParquetTable(path) if suffix == ".parquet" else CsvTable(path)
    with pytest.raises(
        DataError, match=r"column 'b', data row 210 \(the first is 0\), time 2020-01-09T18:00:00"
    ) as error:
        windows_of(table, config_of(), "test")
    assert "is a gap" in error.value.message
    assert "Fill or cut the gap" in error.value.next_step


def test_infinity_is_named(write_series, values):
    values[3, 2] = -np.inf
    table = CsvTable(write_series(values))
    with pytest.raises(DataError, match=r"column 'c', data row 3 \(the first is 0\), is infinite \(-inf\)"):
        windows_of(table, config_of("standard", time_column=None, columns=("a", "c")), "test")


def test_rows_that_are_not_used_may_hold_anything(values):
    values[170:185, 0] = np.nan  # behind the training rows, before the context of the first test window at 188
    table = MemoryTable(values, ("a", "b", "c"))
    assert windows_of(table, config_of("standard", time_column=None), "test").count == 97
    with pytest.raises(DataError, match="data row 170"):
        windows_of(table, config_of("standard", time_column=None), "validation")


def test_a_constant_training_column_is_named(values):
    values[:150, 1] = 0.1
    table = MemoryTable(values, ("a", "b", "c"), source="prices.csv")
    message = r"prices\.csv: column 'b' is constant \(0\.1\) over the training rows 0 to 150"
    with pytest.raises(DataError, match=message) as error:
        windows_of(table, config_of("standard", time_column=None), "test")
    assert "Drop 'b'" in error.value.next_step
    assert 'scaling = "none"' in error.value.next_step
    assert windows_of(table, config_of("none", time_column=None), "test").count == 97


def test_too_few_rows_are_counted(values):
    table = MemoryTable(values[:20], ("a", "b", "c"))
    config = SeriesConfig(context_length=18, horizon=3, scaling="none", split=Splits(0.5, 0.25, 0.25))
    message = (
        r"a window takes 21 rows \(context_length 18 \+ horizon 3\), and the split 'test' offers 20 \(rows 0 to 20\)"
    )
    with pytest.raises(DataError, match=message):
        windows_of(table, config, "test")


def test_splits_must_fit_the_table(values):
    with pytest.raises(DataError, match="has 250 rows, and the split 'test' ends at row 300"):
        windows_of(MemoryTable(values[:250], ("a", "b", "c")), config_of(time_column=None), "test")
    config = config_of(time_column=None, split=Splits((0, 100)))
    with pytest.raises(ConfigurationError, match="the split 'test' is not configured; split names train"):
        windows_of(MemoryTable(values, ("a", "b", "c")), config, "test")


def test_unknown_columns_get_a_hint(values):
    table = MemoryTable(values, ("open", "close", "volume"))
    for changes in ({"columns": ("clsoe",)}, {"target_columns": ("clsoe",)}, {"time_column": "clsoe"}):
        with pytest.raises(
            DataError, match=r"no column 'clsoe' \(did you mean 'close'\?\); its columns are open, close"
        ):
            windows_of(table, config_of(**{"time_column": None, **changes}), "test")


def test_time_must_not_go_backwards(write_series, values, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_ROWS", 50)
    hours = np.arange(300.0)
    hours[250:] -= 100  # a second series below the first
    table = MemoryTable(np.column_stack([hours, values]), ("time", "a", "b", "c"))
    with pytest.raises(DataError, match=r"'time' goes backwards at data row 250 .*: 150\.0 after 249\.0") as error:
        windows_of(table, config_of(), "test")
    assert "one file for each" in error.value.next_step
    hours = np.arange(300.0)
    hours[257] = 3
    table = MemoryTable(np.column_stack([hours, values]), ("time", "a", "b", "c"))
    with pytest.raises(DataError, match="at data row 257"):
        windows_of(table, config_of(), "test")
    assert windows_of(table, config_of(), "validation").count == 47


def test_a_file_that_shrinks_while_it_is_read_is_an_error(write_series, values):
    path = write_series(values)
    windows = windows_of(CsvTable(path), config_of(), "test")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:260]))
    with pytest.raises(DataError, match="was changed while it was read"):
        list(windows.batches(8))


def test_digest_covers_content_and_configuration(values):
    table = MemoryTable(values, ("a", "b", "c"))
    config = config_of(time_column=None)
    digests = [
        windows_of(table, config, "test").digest,
        windows_of(table, config, "validation").digest,
        windows_of(table, config, "test", name="past").digest,
        windows_of(table, config_of(time_column=None, stride=2), "test").digest,
        windows_of(MemoryTable(values + 1, ("a", "b", "c")), config, "test").digest,
        windows_of(MemoryTable(values, ("a", "b", "d")), config, "test").digest,
    ]
    assert len(set(digests)) == len(digests)
    assert windows_of(MemoryTable(values.copy(), ("a", "b", "c")), config, "test").digest == digests[0]
