import re

import numpy as np
import pytest

from tsexport.calibration.arrays import ArrayDataset
from tsexport.calibration.checks import MIN_CALIBRATION_SAMPLES, MIN_EVALUATION_SAMPLES, check_dataset
from tsexport.calibration.datasets import digest_of
from tsexport.calibration.series import SeriesConfig, Splits
from tsexport.calibration.tables import MemoryTable
from tsexport.calibration.windows import windows_of
from tsexport.errors import DataError
from tsexport.types import TensorSpec

X = TensorSpec("x", "float32", ("batch", 8, 3))
TOKENS = TensorSpec("tokens", "int64", ("batch", 4))


def random(count=100, shape=(8, 3), dtype=np.float32):
    return np.random.default_rng(0).standard_normal((count, *shape)).astype(dtype)


def check(arrays, inputs=(X,), purpose="calibration", target=None):
    return check_dataset(ArrayDataset(arrays, target), inputs, purpose, batch_size=16)


def refuses(message):
    return pytest.raises(DataError, match=re.escape(message))


def test_gaps_that_the_graph_fills_are_no_fault():
    windows = np.random.default_rng(0).standard_normal((64, 5, 2)).astype(np.float32)
    windows[3, :2] = windows[4, 1, 0] = np.nan
    data, spec = ArrayDataset({"x": windows}), TensorSpec("x", "float32", ("batch", 5, 2))
    with pytest.raises(DataError, match="input 'x' has 5 NaN or infinite values in 2 samples"):
        check_dataset(data, (spec,), "evaluation")
    checked = check_dataset(data, (spec,), "evaluation", gaps_in="x")
    assert (checked.ranges[0].minimum, checked.ranges[0].maximum) == (np.nanmin(windows), np.nanmax(windows))
    windows[9, 0, 0] = np.inf
    with pytest.raises(DataError, match="input 'x' has 1 NaN or infinite values in 1 samples"):
        check_dataset(ArrayDataset({"x": windows}), (spec,), "evaluation", gaps_in="x")


def test_good_data_passes_unchanged():
    data = ArrayDataset({"x": random(), "tokens": np.zeros((100, 4), np.int64)})
    checked = check_dataset(data, (TOKENS, X), "calibration")
    assert checked.dataset is data
    assert checked.notes == ()
    assert [r.name for r in checked.ranges] == ["x", "tokens"]
    assert checked.ranges[0].minimum == random().min()


def test_series_fit_a_model_of_their_shape():
    table = MemoryTable(np.random.default_rng(0).standard_normal((300, 3)), ("a", "b", "c"))
    windows = windows_of(table, SeriesConfig(8, 2, split=Splits(0.5, 0.2, 0.3)), "train")
    assert check_dataset(windows, (X,), "calibration").dataset is windows
    narrow = windows_of(table, SeriesConfig(8, 2, columns=("a",)), "train")
    with refuses("input 'x' has samples of shape [8, 1]; the model takes [8, 3]") as error:
        check_dataset(narrow, (X,), "calibration")
    assert "context_length and columns" in error.value.next_step


def test_missing_and_extra_inputs():
    with refuses("the data lacks the input 'tokens'; the model's inputs are x float32[batch, 8, 3], tokens int64"):
        check({"x": random()}, (X, TOKENS))
    with refuses("has array that the model does not take: 'y';"):
        check({"x": random(), "y": random()})
    with refuses(
        "lacks the input 'tokens' and has array that the model does not take: 'token' (did you mean 'tokens'?)"
    ):
        check({"x": random(), "token": random()}, (X, TOKENS))


@pytest.mark.parametrize("shape", [(8, 4), (8,), (8, 3, 1), ()])
def test_wrong_shape(shape):
    with refuses(f"input 'x' has samples of shape {list(shape)}; the model takes [8, 3] (x float32[batch, 8, 3])"):
        check({"x": random(shape=shape)})


def test_a_symbolic_dimension_takes_any_size():
    check({"x": random()}, (TensorSpec("x", "float32", ("batch", "time", 3)),))


def test_float64_is_converted_with_a_note():
    checked = check({"x": random(dtype=np.float64)})
    assert checked.notes == ("input 'x' was converted from float64 to float32",)
    (batch, *_) = checked.dataset.batches(5, start=3)
    assert batch.feeds["x"].dtype == np.float32
    assert batch.ids[0] == "sample:000003"
    np.testing.assert_array_equal(batch.feeds["x"], random(dtype=np.float64)[3:8].astype(np.float32))
    assert checked.dataset.digest != ArrayDataset({"x": random(dtype=np.float64)}).digest
    assert len(checked.dataset.digest) == len(digest_of(""))


@pytest.mark.parametrize(("given", "expected"), [("int32", "int64"), ("uint8", "uint16"), ("float32", "float64")])
def test_a_wider_type_of_the_same_kind_is_converted(given, expected):
    values = np.arange(200).reshape(50, 4).astype(given)
    checked = check({"v": values}, (TensorSpec("v", expected, ("batch", 4)),))
    assert next(checked.dataset.batches(1)).feeds["v"].dtype == expected
    assert len(checked.notes) == 1


@pytest.mark.parametrize(("given", "expected"), [("int64", "float32"), ("int64", "int32"), ("float32", "float16")])
def test_another_dtype_is_an_error(given, expected):
    with refuses(f"input 'v' has dtype {given}; the model takes {expected}.") as error:
        check({"v": np.zeros((50, 4), given)}, (TensorSpec("v", expected, ("batch", 4)),))
    assert f"v.astype('{expected}')" in error.value.next_step


def test_nan_and_infinity_are_counted_and_located():
    x = random()
    x[70, 2, 1] = np.nan
    x[70, 5, 0] = np.inf
    x[90, 0, 0] = -np.inf
    with refuses(
        "input 'x' has 3 NaN or infinite values in 2 samples; the first is nan in sample sample:000070 at [2, 1]."
    ):
        check({"x": x})


def test_a_bad_target_is_named():
    target = np.zeros(100)
    target[65] = np.nan
    with refuses(
        "the target has 1 NaN or infinite values in 1 samples; the first is nan in sample sample:000065 at []"
    ):
        check({"x": random()}, purpose="evaluation", target=target)


def test_a_value_beyond_float32_is_found_after_the_conversion():
    x = random(dtype=np.float64)
    x[5, 0, 0] = 1e300
    with refuses("the first is inf in sample sample:000005 at [0, 0]"):
        check({"x": x})


def test_constant_features_are_an_error_for_calibration_only():
    x = random()
    x[:, :, 1] = 0.5
    message = "constant in all 100 calibration samples: input 'x', feature 1 (always 0.5)"
    with refuses(message) as error:
        check({"x": x})
    assert "every feature varies" in error.value.next_step
    (note,) = check({"x": x}, purpose="evaluation").notes
    assert note == "constant in all 100 evaluation samples: input 'x', feature 1 (always 0.5)"


def test_many_constant_features_are_abridged():
    with refuses("features 0 (always 0), 1 (always 0), 2 (always 0)") as error:
        check({"x": np.zeros((50, 20), np.float32)}, (TensorSpec("x", "float32", ("batch", 20)),))
    assert "7 (always 0) and 12 more" in error.value.message


@pytest.mark.parametrize(("shape", "constant"), [((), 0), ((4,), 2), ((6, 4), 2), ((4, 5, 5), 2)])
def test_the_feature_axis_depends_on_the_rank(shape, constant):
    x = random(shape=shape)
    spec = TensorSpec("x", "float32", ("batch", *shape))
    check({"x": x}, (spec,))
    index = (slice(None),) if not shape else (slice(None), constant) if len(shape) == 3 else (..., constant)
    x[index] = 7
    with refuses(f"input 'x', feature {constant} (always 7)"):
        check({"x": x}, (spec,))


def test_masks_and_indices_may_be_constant():
    mask = TensorSpec("mask", "bool", ("batch", 4))
    check({"mask": np.ones((50, 4), bool), "tokens": np.zeros((50, 4), np.int64)}, (mask, TOKENS))


@pytest.mark.parametrize(
    ("purpose", "needed"), [("calibration", MIN_CALIBRATION_SAMPLES), ("evaluation", MIN_EVALUATION_SAMPLES)]
)
def test_too_few_samples(purpose, needed):
    check({"x": random(needed)}, purpose=purpose)
    with refuses(f"{purpose} got {needed - 1} samples and needs at least {needed}.") as error:
        check({"x": random(needed - 1)}, purpose=purpose)
    assert "smaller stride" in error.value.next_step
