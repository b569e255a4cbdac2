"""Which windows calibrate and which judge: never the same, whatever files are given."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.calibration.checks import MIN_CALIBRATION_SAMPLES, MIN_EVALUATION_SAMPLES
from tsexport.errors import ConfigurationError, DataError, UsageError
from tsexport.models.sources import identify
from tsexport.options import BuildOptions
from tsexport.stages.data import CALIBRATION_WINDOWS, EVALUATION_WINDOWS, open_calibration, open_evaluation, plan_data
from tsexport.targets import parse_target

LINEAR = {"context_length": 8, "horizon": 4, "channels": 2}
(INPUT,) = identify("linear", settings=LINEAR).inputs
OUTPUT_SHAPE = (4, 2)
SERIES = {"columns": ["a", "b"]}


def planned(target="cpu4-int8", *, model="linear", checkpoint=None, given=LINEAR, **options):
    identity = identify(model, checkpoint=checkpoint, settings=given)
    plan = plan_data(BuildOptions(model, target, Path("dist"), **options), parse_target(target), identity)
    return plan, identity


def opened(**options):
    plan, identity = planned(**options)
    calibration = open_calibration(plan, identity, (INPUT,))
    return calibration, open_evaluation(plan, identity, (INPUT,), calibration)


def windows(path, samples, seed=0, *, target=False):
    generator = np.random.default_rng(seed)
    arrays = {INPUT.name: generator.standard_normal((samples, *INPUT.shape[1:])).astype(np.float32)}
    if target:
        arrays["target"] = generator.standard_normal((samples, *OUTPUT_SHAPE)).astype(np.float32)
    np.savez(path, **arrays)
    return path


def rows(opened):
    """The content of every window that was drawn."""
    return {row.tobytes() for batch in opened.dataset.batches(64) for row in batch.feeds[INPUT.name]}


def table(path, row_count, seed=0):
    values = np.random.default_rng(seed).standard_normal((row_count, 2)).cumsum(axis=0)
    if path.suffix == ".csv":
        lines = ["a,b", *(f"{a:.6f},{b:.6f}" for a, b in values)]
        path.write_text("\n".join(lines) + "\n")
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"a": values[:, 0], "b": values[:, 1]}), path)
    return path


# --- disjoint --------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(MIN_CALIBRATION_SAMPLES + MIN_EVALUATION_SAMPLES, 1500), st.integers(0, 3))
def test_windows_of_one_file_calibrate_or_judge_never_both(tmp_path_factory, samples, seed):
    path = windows(tmp_path_factory.mktemp("arrays") / "data.npz", samples)
    calibration, evaluation = opened(calibration=path, seed=seed)
    assert not set(calibration.indices) & set(evaluation.indices)
    assert not rows(calibration) & rows(evaluation)
    assert MIN_CALIBRATION_SAMPLES <= len(calibration.indices) <= CALIBRATION_WINDOWS
    assert MIN_EVALUATION_SAMPLES <= len(evaluation.indices) <= EVALUATION_WINDOWS


def test_the_same_file_given_for_both_is_shared_out(tmp_path):
    path = windows(tmp_path / "data.npz", 200, target=True)
    calibration, evaluation = opened(calibration=path, evaluation=path)
    assert not rows(calibration) & rows(evaluation)
    assert len(calibration.indices) == 200 - MIN_EVALUATION_SAMPLES


def test_a_file_of_its_own_for_evaluation_is_used_whole(tmp_path):
    calibration, evaluation = opened(
        calibration=windows(tmp_path / "a.npz", 100), evaluation=windows(tmp_path / "b.npz", 80, 1, target=True)
    )
    assert len(calibration.indices) == 100
    assert len(evaluation.indices) == 80
    assert evaluation.dataset.has_target
    assert evaluation.source == "b.npz"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_series_calibrates_on_its_training_rows_and_is_judged_on_its_test_rows(tmp_path, suffix):
    calibration, evaluation = opened(calibration=table(tmp_path / f"data{suffix}", 1000), series=SERIES)
    assert all(one.startswith("train:") for one in calibration.ids)
    assert all(one.startswith("test:") for one in evaluation.ids)
    assert not rows(calibration) & rows(evaluation)
    assert evaluation.dataset.has_target


def test_a_series_with_one_split_is_shared_out(tmp_path):
    path = table(tmp_path / "data.csv", 300)
    calibration, evaluation = opened(calibration=path, series={**SERIES, "split": {"train": 1.0}})
    assert not set(calibration.indices) & set(evaluation.indices)
    assert len(evaluation.indices) >= MIN_EVALUATION_SAMPLES


def test_the_reference_series_calibrates_where_only_evaluation_is_given(tmp_path):
    calibration, evaluation = opened(evaluation=windows(tmp_path / "b.npz", 80, target=True))
    assert calibration.source == "the reference series"
    assert len(calibration.indices) == CALIBRATION_WINDOWS
    assert evaluation.source == "b.npz"


# --- what the plan decides -------------------------------------------------------------------------------------------


def test_the_digest_follows_content_names_configuration_and_seed(tmp_path):
    path, other = windows(tmp_path / "a.npz", 100), windows(tmp_path / "b.npz", 100, seed=1)
    same = tmp_path / "same.npz"
    same.write_bytes(path.read_bytes())
    digests = [
        planned(**options)[0].digest
        for options in (
            {"calibration": path},
            {"calibration": other},
            {"calibration": same},
            {"evaluation": path},
            {"calibration": path, "evaluation": other},
            {"calibration": path, "seed": 1},
            {"calibration": path, "series": {"stride": 2}},
            {},
            {"given": {**LINEAR, "horizon": 5}},
        )
    ]
    assert len(set(digests)) == len(digests)
    assert planned(calibration=path)[0].digest == digests[0]


def test_an_own_checkpoint_needs_calibration_for_int8(tmp_path):
    checkpoint = tmp_path / "mine.pth"
    checkpoint.write_bytes(b"content")
    with pytest.raises(UsageError, match="cpu4-int8 calibrates on data like the model's own, and for linear none") as e:
        planned(checkpoint=checkpoint)
    assert e.value.next_step.startswith("give --calibration FILE: .npz of arrays named as the inputs, or csv or parq")
    plan, _ = planned("cpu4-fp32", checkpoint=checkpoint)
    assert plan.is_empty, "data of another kind would say nothing about a user's own weights"
    assert not planned(checkpoint=checkpoint, calibration=windows(tmp_path / "a.npz", 100))[0].is_empty


def test_a_factory_needs_calibration_for_int8_too(tmp_path):
    with pytest.raises(UsageError, match="for mine:make none was given"):
        planned(model="mine:make", given={})
    assert planned("cpu4-fp32", model="mine:make", given={})[0].is_empty


def test_a_series_takes_its_lengths_from_the_models_configuration(tmp_path):
    plan, _ = planned(calibration=table(tmp_path / "data.csv", 100), series=SERIES)
    assert (plan.series.context_length, plan.series.horizon) == (8, 4)


def test_a_series_of_a_model_without_lengths_says_which_keys_it_needs(tmp_path):
    path = table(tmp_path / "data.csv", 100)
    with pytest.raises(ConfigurationError, match="lacks context_length") as caught:
        planned(model="mine:make", given={}, calibration=path)
    assert "context_length and horizon" in caught.value.next_step


def test_unknown_keys_of_series(tmp_path):
    with pytest.raises(ConfigurationError, match=r"has no key 'colums' \(did you mean 'columns'\?\)"):
        planned(calibration=table(tmp_path / "data.csv", 100), series={"colums": ["a"]})


@pytest.mark.parametrize("key", ["calibration", "evaluation"])
def test_a_file_that_is_not_there(tmp_path, key):
    with pytest.raises(UsageError, match=r"nothing.npz is not a file; expected calibration or evaluation data"):
        planned(**{key: tmp_path / "nothing.npz"})


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (1, "calibration got 1 samples and needs at least 32"),
        (31, "calibration got 31 samples and needs at least 32"),
        (32, "evaluation got 0 samples, since calibration reads 32 of the 32 in a.npz, and needs at least 64"),
        (95, "evaluation got 63 samples, since calibration reads 32 of the 95 in a.npz, and needs at least 64"),
    ],
)
def test_too_few_samples(tmp_path, samples, message):
    with pytest.raises(DataError, match=message):
        opened(calibration=windows(tmp_path / "a.npz", samples))
