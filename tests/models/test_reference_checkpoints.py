"""The reference checkpoints of the small models: they fit, say what they are, and beat what needs no model."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tsexport.models.checkpoints import read_checkpoint
from tsexport.models.definition import sizes_of
from tsexport.models.loading import load_strictly
from tsexport.models.registry import CHECKPOINTS, get_entry, list_entries
from tsexport.models.sources import identify, open_source
from tsexport.models.training import reference
from tsexport.models.training.reference import ACCURACY_MARGIN, ERROR_FACTOR, RECIPES, Recipe, Scores, dataset_of
from tsexport.models.training.reproducible import read_metadata

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "models" / "training" / "reference.py"
LARGEST_SUM_BYTES = 20_000_000
SIZES = {"inception-time": "small", "sfno-edge": "test"}
METRIC_TOLERANCE = 2e-3
"""Relative: other kernels may answer one window in a thousand otherwise; the metadata have six digits."""


def settings_of(name):
    return {"size": SIZES[name]} if name in SIZES else {}


def opened(name):
    return open_source(identify(name, settings=settings_of(name)))


def test_every_small_model_has_one():
    with_one = {entry.name for entry in list_entries() if entry.checkpoint}
    assert with_one == {"patchtst-cpu", *RECIPES}
    assert set(RECIPES) == {"lstm", "gru", "tcn", "inception-time", "resnet1d", "unet", "weather-gnn", "sfno-edge"}
    assert {name: get_entry(name).checkpoint_size for name in SIZES} == SIZES
    assert not any(get_entry(name).checkpoint_size for name in RECIPES if name not in SIZES)


def test_they_are_small_enough_to_commit():
    files = sorted(CHECKPOINTS.iterdir())
    assert files == sorted(entry.checkpoint for entry in list_entries() if entry.checkpoint)
    assert sum(path.stat().st_size for path in files) < LARGEST_SUM_BYTES


@pytest.mark.parametrize("name", RECIPES)
def test_it_fits_and_is_named(name):
    entry, source = get_entry(name), opened(name)
    assert source.notes == (f"reference checkpoint that comes with tsexport: {name}.safetensors",)
    assert not any("untrained" in caveat for caveat in source.spec.caveats)
    state = read_checkpoint(entry.checkpoint).state
    fresh = entry.definition().build(entry.checkpoint_config())
    assert load_strictly(fresh, read_checkpoint(entry.checkpoint), model=name) == ()
    assert sum(state[key].numel() for key, _ in fresh.named_parameters()) == source.spec.parameters
    assert all(value.dtype in (torch.float32, torch.int64) for value in state.values())
    assert all(torch.isfinite(value).all() for value in state.values())


@pytest.mark.parametrize("name", RECIPES)
def test_metadata_say_how_it_was_made(name):
    metadata, recipe = read_metadata(get_entry(name).checkpoint), RECIPES[name]
    assert Recipe(metadata["steps"], metadata["batch"], metadata["learning_rate"]) == recipe
    assert metadata["series"] == dataset_of(get_entry(name), "train")[1]
    assert set(metadata["made_on"]) == {"architecture", "vectors", "torch", "numpy"}


@pytest.mark.parametrize("name", RECIPES)
def test_it_beats_what_needs_no_model(name):
    source, (dataset, _) = opened(name), dataset_of(get_entry(name), "test")
    few = 200 if source.spec.task == "classification" else 12
    target, inputs, answers = [], [], []
    for batch in dataset.read(range(0, dataset.count, dataset.count // few), 16):
        (feed,), (answer,) = batch.feeds.values(), source.run(batch.feeds).values()
        target, inputs, answers = [*target, batch.target], [*inputs, feed], [*answers, answer]
    target, inputs, answers = map(np.concatenate, (target, inputs, answers))
    if source.spec.task == "classification":
        majority = np.bincount(target[:, 0].astype(int)).max() / len(target)
        assert (answers.argmax(axis=1) == target[:, 0]).mean() >= majority + ACCURACY_MARGIN
    else:
        persistence = np.square(inputs - target).mean()
        assert np.square(answers - target).mean() <= ERROR_FACTOR * persistence


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_it_is_as_good_as_it_says(name):
    metadata, scores = read_metadata(get_entry(name).checkpoint), reference.judge(opened(name).module, get_entry(name))
    kept = "majority_accuracy" if scores.metric == "accuracy" else "persistence_mse"
    assert scores.reached == pytest.approx(metadata[scores.metric], rel=METRIC_TOLERANCE)
    assert scores.baseline == pytest.approx(metadata[kept], rel=METRIC_TOLERANCE)
    assert scores.is_clear


@pytest.mark.parametrize("name", SIZES)
def test_the_default_size_is_untrained_and_says_which_one_is_not(name):
    identity = identify(name)
    assert identity.is_untrained
    assert open_source(identity).notes == (
        "weights initialised from seed 0: untrained, accuracy means nothing",
        f"a trained checkpoint comes with tsexport: --set size={SIZES[name]}",
    )


@pytest.mark.parametrize("name", SIZES)
def test_the_fields_of_the_size_mean_the_size(name):
    fields = sizes_of(get_entry(name).definition().Config)[SIZES[name]]
    assert identify(name, settings=fields).is_reference
    assert not identify(name, settings={**fields, "channels": 14}).is_reference


def test_another_size_of_a_model_with_a_checkpoint_is_untrained():
    notes = open_source(identify("lstm", settings={"size": "small"})).notes
    assert notes == ("weights initialised from seed 0: untrained, accuracy means nothing",)


# The script


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=1800)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["lstn"], "there is no recipe for lstn; there are lstm, gru"), (["--first"], "--first goes with --check")],
)
def test_wrong_arguments_are_explained(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.fixture
def torch_as_before():
    """The script sets these for its process."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.usefixtures("torch_as_before")
def test_a_model_that_learned_nothing_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "lstm", Recipe(steps=20, batch=2, learning_rate=1e-9))
    with pytest.raises(SystemExit, match="lstm does not beat its baseline by the margin: nothing was written"):
        reference.train("lstm", tmp_path / "lstm.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("scores", "clear"),
    [
        (Scores("accuracy", 0.34 + ACCURACY_MARGIN, 0.33), True),
        (Scores("accuracy", 0.32 + ACCURACY_MARGIN, 0.33), False),
        (Scores("mse", 0.99 * ERROR_FACTOR, 1.0), True),
        (Scores("mse", 1.01 * ERROR_FACTOR, 1.0), False),
    ],
)
def test_the_margin(scores, clear):
    assert scores.is_clear is clear


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_script_begins_as_it_did(name):
    done = run(name, "--check", "--first")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inception-time", "sfno-edge"])
def test_the_script_makes_the_file_again(name):
    done = run(name, "--check")
    assert done.returncode == 0, done.stdout + done.stderr
