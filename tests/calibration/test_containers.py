"""The shapes that models take: who sees which rows, in which split, with which label and weight."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.calibration.containers import (
    OHLCV,
    TIMEFRAMES,
    LabelledMinutes,
    LabelledRows,
    resampled,
    stacked,
)
from tsexport.calibration.series import SPLITS, Splits
from tsexport.calibration.synthetic import market_ohlcv
from tsexport.errors import ConfigurationError, DataError

THIRDS = Splits(0.5, 0.25, 0.25)


def labelled(rows, splits=THIRDS):
    """Rows whose features, labels and weights all tell the row's number."""
    number = np.arange(rows, dtype=np.float64)
    return LabelledRows(np.stack((number, -number), axis=1), number, number / rows, splits)


def minutes_of(rows, splits=THIRDS, *, keep=None):
    bars = market_ohlcv(1, rows, minutes_per_bar=1)
    if keep is not None:
        bars = type(bars)(*(getattr(bars, name)[keep] for name in ("time", *OHLCV)))
    number = np.arange(len(bars), dtype=np.float64)
    return LabelledMinutes(bars, number, np.ones(len(bars)), splits)


@given(rows=st.integers(8, 200), split=st.sampled_from(SPLITS))
def test_tabular_samples_are_the_rows_of_the_split(rows, split):
    samples = labelled(rows).tabular(split)
    begin, end = THIRDS.rows(split, rows)
    assert samples.x.shape == (end - begin, 2)
    np.testing.assert_array_equal(samples.x[:, 0], np.arange(begin, end))
    np.testing.assert_array_equal(samples.y, samples.rows)
    np.testing.assert_array_equal(samples.weights, samples.rows / rows)


@given(rows=st.integers(20, 200), split=st.sampled_from(SPLITS), seq_len=st.integers(1, 4))
def test_sequences_see_the_rows_before_their_own_and_none_of_another_split(rows, split, seq_len):
    samples = labelled(rows).sequence(split, seq_len)
    begin, end = THIRDS.rows(split, rows)
    assert samples.x.shape == (end - begin - seq_len, seq_len, 2)  # n shrinks by seq_len
    for x, y, weight, row in zip(samples.x, samples.y, samples.weights, samples.rows, strict=True):
        assert x[:, 0].tolist() == list(range(row - seq_len, row))
        assert (y, weight) == (row, row / rows)
        assert begin <= row - seq_len < row < end


def test_splits_share_no_row():
    table = labelled(100)
    seen = [set(table.sequence(split, 5).x[:, :, 0].ravel()) for split in SPLITS]
    assert not seen[0] & seen[1] | seen[0] & seen[2] | seen[1] & seen[2]


def test_the_shapes_of_the_specification():
    samples = minutes_of(200).multi_resolution("train")
    n = 100 - 15
    assert {name: array.shape for name, array in samples.x.items()} == {
        "1min": (n, 15, 5),
        "5min": (n, 3, 5),
        "15min": (n, 1, 5),
    }
    assert minutes_of(200).stack("train").x.shape == (n, 3, 15, 5)
    assert samples.y.shape == samples.weights.shape == (n,)


@given(
    keep=st.lists(st.integers(0, 299), max_size=4),
    timeframes=st.lists(st.sampled_from([*TIMEFRAMES]), min_size=1, max_size=5, unique=True),
    split=st.sampled_from(["train", "test"]),
)
@settings(max_examples=30, deadline=None)
def test_bars_of_every_timeframe_are_those_of_the_minutes_before(keep, timeframes, split):
    """Against a loop over minutes, with a few of them missing."""
    mask = np.ones(300, dtype=bool)
    mask[keep] = False
    data, splits = minutes_of(300, keep=mask), THIRDS
    begin, end = splits.rows(split, len(data.bars))
    whole = [
        row
        for row in range(begin + 60, end)
        if data.bars.time[row] - data.bars.time[row - 60] == np.timedelta64(60, "m")
    ]
    if not whole:
        with pytest.raises(DataError, match="60 minutes"):
            data.multi_resolution(split, timeframes, minutes=60)
        return
    samples = data.multi_resolution(split, timeframes, minutes=60)
    assert samples.rows.tolist() == whole
    assert samples.y.tolist() == whole
    for name in timeframes:
        length = TIMEFRAMES[name]
        for at in (0, len(whole) // 2, len(whole) - 1):
            for step in range(60 // length):
                first = whole[at] - 60 + step * length
                part = range(first, first + length)
                expected = [
                    data.bars.open[first],
                    max(data.bars.high[r] for r in part),
                    min(data.bars.low[r] for r in part),
                    data.bars.close[first + length - 1],
                    sum(data.bars.volume[r] for r in part),
                ]
                assert samples.x[name][at, step].tolist() == expected


@given(row=st.integers(15, 99))
@settings(max_examples=20, deadline=None)
def test_nothing_looks_ahead(row):
    data = minutes_of(200)
    changed = {name: getattr(data.bars, name).copy() for name in OHLCV}
    for column in changed.values():
        column[row:] *= 2
    before = data.multi_resolution("train")
    after = replace(data, bars=replace(data.bars, **changed)).multi_resolution("train")
    for name, array in before.x.items():
        np.testing.assert_array_equal(after.x[name][: row - 14], array[: row - 14])  # samples for rows up to `row`
        if row < 99:
            assert (after.x[name][row - 14] != array[row - 14]).any()


def test_the_stack_holds_each_timeframe_at_its_end_and_zeros_before():
    samples, stack = minutes_of(200).multi_resolution("test"), minutes_of(200).stack("test")
    for index, array in enumerate(samples.x.values()):
        steps = array.shape[1]
        np.testing.assert_array_equal(stack.x[:, index, 15 - steps :], array)
        assert (stack.x[:, index, : 15 - steps] == 0).all()
    np.testing.assert_array_equal(stack.rows, samples.rows)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: labelled(20).sequence("train", 10), "'train' has 10 rows, and a sequence of seq_len 10 .* take 11"),
        (lambda: labelled(3, Splits(train=0.1, test=0.9)).tabular("train"), "'train' has 0 rows"),
        (lambda: labelled(4, Splits(train=(0, 2), test=(9, 12))).tabular("test"), "'test' has 0 rows"),
        (lambda: minutes_of(28).multi_resolution("train"), "'train' has 14 rows, and 15 minutes .* take 16"),
        (lambda: minutes_of(60, keep=np.arange(60) % 10 > 0).multi_resolution("train"), "15 minutes without a gap"),
        (lambda: LabelledRows(np.ones(3), np.ones(3), np.ones(3), THIRDS), r"features have shape \[3\]"),
        (lambda: LabelledRows(np.ones((0, 2)), np.ones(0), np.ones(0), THIRDS), r"features have shape \[0, 2\]"),
        (lambda: LabelledRows(np.ones((3, 2)), np.ones(4), np.ones(3), THIRDS), "there are 3 rows, labels"),
        (lambda: LabelledRows(np.ones((3, 2)), np.ones(3), np.ones(2), THIRDS), "there are 3 rows, labels"),
        (lambda: LabelledRows(np.ones((3, 2)), np.ones(3), -np.ones(3), THIRDS), "weights must be finite"),
        (lambda: LabelledRows(np.ones((3, 2)), np.ones(3), np.full(3, np.nan), THIRDS), "weights must be finite"),
        (lambda: minutes_of(9, keep=np.zeros(9, dtype=bool)), "there are no bars"),
        (lambda: minutes_of(9, keep=np.array([0, 2, 1])), "bar 2 .* one-minute bars are needed, in order"),
        (lambda: resampled(np.ones((2, 7, 5)), 5), r"windows of shape \[2, 7, 5\] cannot become bars of 5 steps"),
        (lambda: resampled(np.ones((2, 10, 4)), 5), r"windows of shape \[2, 10, 4\]"),
        (lambda: stacked({}), "given: nothing"),
        (lambda: stacked({"1min": np.ones((2, 3, 5)), "5min": np.ones((1, 3, 5))}), r"1min \[2, 3, 5\], 5min"),
    ],
)
def test_data_that_does_not_do_is_refused(ask, message):
    with pytest.raises(DataError, match=message):
        ask()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: labelled(20).sequence("train", 0), "seq_len is 0; it must be 1 or more"),
        (
            lambda: labelled(20, Splits(train=0.5)).tabular("test"),
            "the split 'test' is not configured; split names train",
        ),
        (lambda: minutes_of(90).multi_resolution("train", ["5mins"]), r"no timeframe '5mins' \(did you mean '5min'"),
        (lambda: minutes_of(90).multi_resolution("train", []), r"timeframes are \[\]"),
        (lambda: minutes_of(90).multi_resolution("train", ["1min", "1min"]), "each once"),
        (lambda: minutes_of(90).multi_resolution("train", ["1h"]), "15 minutes are no whole number of bars of 1h"),
        (lambda: minutes_of(90).multi_resolution("train", ["1min"], 0), "0 minutes are no whole number"),
    ],
)
def test_settings_that_do_not_do_are_refused(ask, message):
    with pytest.raises(ConfigurationError, match=message):
        ask()
