#!/usr/bin/env python3
"""Train the reference checkpoints of the small models: `python models/training/reference.py [MODEL ...] [--check]`.

Each model learns its reference series (see `tsexport.calibration.reference`): classifiers the class of the move behind
a window, models of a grid the next hour's weather.  The training split is for training, the test split to judge by.
A model takes half a minute to two minutes on one core.

A checkpoint is written only where it beats what needs no model by a margin: the class that is most frequent in training
by `ACCURACY_MARGIN`, persistence (the next hour is as this one) by the factor `ERROR_FACTOR` of its squared error.

The same script gives the same bytes: it starts itself again with one thread and with the kernels that every x86-64 CPU
with AVX2 has, and everything random comes from one seed.  A file's metadata hold the seed, the steps, the loss of the
first steps, what was reached, and the kind of machine.

`--check` trains into a temporary folder and compares: bit by bit on the same kind of machine; on another, the test
metrics must agree to 5 %.  `--check --first` takes the first steps alone, and compares their losses.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from tsexport.calibration.metrics import METRICS, MetricAccumulator
from tsexport.calibration.reference import reference_windows
from tsexport.models.registry import ModelEntry, get_entry
from tsexport.models.training.reproducible import (
    CHECKPOINTS,
    kind_of_machine,
    read_metadata,
    reproduces,
    restart_with,
    write_checkpoint,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tsexport.calibration.datasets import Dataset
    from tsexport.types import Array

FIXED_KERNELS = {
    "OMP_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}
SEED = 0
WEIGHT_DECAY = 0.01
WARM_UP_FRACTION = 0.1
GRADIENT_NORM = 1.0
FIRST_STEPS = 5
FIRST_LOSSES_TOLERANCE = 0.01
"""Relative, on another kind of machine."""
EVALUATION_BATCH = 32

ACCURACY_MARGIN = 0.15
ERROR_FACTOR = 0.6


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: AdamW, `batch` samples a step, a learning rate that rises to its peak and falls."""

    steps: int
    batch: int
    learning_rate: float


RECIPES = {
    "lstm": Recipe(steps=250, batch=64, learning_rate=2e-3),
    "gru": Recipe(steps=250, batch=64, learning_rate=2e-3),
    "tcn": Recipe(steps=250, batch=64, learning_rate=1e-3),
    "inception-time": Recipe(steps=400, batch=64, learning_rate=2e-3),
    "resnet1d": Recipe(steps=200, batch=64, learning_rate=1e-3),
    "unet": Recipe(steps=600, batch=4, learning_rate=2e-3),
    "sfno-edge": Recipe(steps=1200, batch=1, learning_rate=6e-3),
    "weather-gnn": Recipe(steps=800, batch=1, learning_rate=2e-3),
}


@dataclass(frozen=True)
class Scores:
    """A model's metric on the test split, and that of the baseline, which needs no model."""

    metric: Literal["accuracy", "mse"]
    reached: float
    baseline: float

    @property
    def is_clear(self) -> bool:
        """Whether the model beats the baseline by the margin."""
        if self.metric == "accuracy":
            return self.reached >= self.baseline + ACCURACY_MARGIN
        return self.reached <= ERROR_FACTOR * self.baseline


def dataset_of(entry: ModelEntry, split: Literal["train", "test"]) -> "tuple[Dataset, str]":
    """Return a split of the model's reference series, and what the series is."""
    config = entry.checkpoint_config()
    return reference_windows(entry.name, asdict(config), SEED, split, [spec.name for spec in config.inputs])


def losses(module: "nn.Module", dataset: "Dataset", recipe: Recipe, *, classifies: bool) -> Iterator[float]:
    """Train `module` a step at a time, and yield the loss of each."""
    import torch

    numbers = np.random.default_rng(SEED)
    optimizer = torch.optim.AdamW(module.parameters(), recipe.learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=WARM_UP_FRACTION
    )
    module.train()
    for _ in range(recipe.steps):
        chosen = np.sort(numbers.choice(dataset.count, recipe.batch, replace=False))
        (batch,) = dataset.read(chosen.tolist(), recipe.batch)
        (feed,) = batch.feeds.values()
        loss = loss_of(module(torch.from_numpy(feed)), batch.target, classifies=classifies)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.parameters(), GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        yield loss.item()


def loss_of(output: "Tensor", target: "Array | None", *, classifies: bool) -> "Tensor":
    """Return the cross entropy of logits [batch, classes], or the mean squared error of fields."""
    import torch

    wanted = torch.from_numpy(target)
    if classifies:
        return torch.nn.functional.cross_entropy(output, wanted[:, 0].long())
    return torch.nn.functional.mse_loss(output, wanted)


def judge(module: "nn.Module", entry: ModelEntry) -> Scores:
    """Return what the model reaches on the test split, and what its baseline does."""
    import torch

    classifies = entry.task == "classification"
    dataset, _ = dataset_of(entry, "test")
    reached, baseline = (METRICS["accuracy" if classifies else "mse"].make(()) for _ in range(2))
    usual = most_frequent_class(entry) if classifies else None
    module.eval()
    for batch in dataset.batches(EVALUATION_BATCH):
        (feed,) = batch.feeds.values()
        with torch.inference_mode():
            output = module(torch.from_numpy(feed)).numpy()
        add(reached, output, batch.target)
        add(baseline, feed if usual is None else np.tile(np.eye(output.shape[1])[usual], (len(batch), 1)), batch.target)
    return Scores("accuracy" if classifies else "mse", reached.result(), baseline.result())


def add(metric: MetricAccumulator, output: "Array", target: "Array | None") -> None:
    assert target is not None  # reference series have one
    metric.update(output, target)


def most_frequent_class(entry: ModelEntry) -> int:
    """Return the class that most windows of the training split have."""
    dataset, _ = dataset_of(entry, "train")
    targets = [batch.target for batch in dataset.batches(1024) if batch.target is not None]
    return int(np.bincount(np.concatenate(targets)[:, 0].astype(np.int64)).argmax())


def train(name: str, output: Path) -> None:
    """Train a model and write its checkpoint."""
    entry, recipe = get_entry(name), RECIPES[name]
    module, dataset, source = begin(entry)
    first: list[float] = []
    started = time.process_time()
    for step, loss in enumerate(losses(module, dataset, recipe, classifies=entry.task == "classification"), start=1):
        if step <= FIRST_STEPS:
            first.append(round(loss, 6))
        if step % 50 == 0:
            left = (time.process_time() - started) / step * (recipe.steps - step)
            print(f"{name}: step {step} of {recipe.steps}, loss {loss:.4f}, {left:.0f} s of CPU left", file=sys.stderr)
    seconds = time.process_time() - started
    scores = judge(module, entry)
    kept = "persistence" if scores.metric == "mse" else "majority"
    print(f"{name}: test {scores.metric} {scores.reached:.4f}, {kept} {scores.baseline:.4f}, {seconds:.0f} s of CPU")
    if not scores.is_clear:
        sys.exit(f"{name} does not beat its baseline by the margin: nothing was written")
    metadata = {
        "seed": SEED,
        "series": source,
        **asdict(recipe),
        "first_losses": first,
        scores.metric: round(scores.reached, 6),
        f"{kept}_{scores.metric}": round(scores.baseline, 6),
    }
    write_checkpoint(module, output, metadata)


def begin(entry: ModelEntry) -> "tuple[nn.Module, Dataset, str]":
    """Return the model before its first step, its training split, and what the series is."""
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    module = entry.definition().build(entry.checkpoint_config())
    return module, *dataset_of(entry, "train")


def begins_as(name: str, committed: Path) -> bool:
    """Take the first steps, and return whether their losses are those of the committed file."""
    entry, metadata = get_entry(name), read_metadata(committed)
    module, dataset, _ = begin(entry)
    steps = losses(module, dataset, RECIPES[name], classifies=entry.task == "classification")
    found = [round(loss, 6) for loss in islice(steps, FIRST_STEPS)]
    expected = metadata["first_losses"]
    assert isinstance(expected, list)
    same_machine = metadata["made_on"] == kind_of_machine()
    print(f"{name}: losses of the first steps {found}, committed {expected}")
    return found == expected or (not same_machine and np.allclose(found, expected, rtol=FIRST_LOSSES_TOLERANCE, atol=0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(RECIPES)}; by default all")
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    parser.add_argument("--first", action="store_true", help="with --check: the first steps alone")
    parser.add_argument("--output", type=Path, default=CHECKPOINTS, help="the folder (default: the committed one)")
    args = parser.parse_args()
    if unknown := [name for name in args.models if name not in RECIPES]:
        parser.error(f"there is no recipe for {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    if args.first and not args.check:
        parser.error("--first goes with --check")
    restart_with(FIXED_KERNELS)
    good = True
    for name in args.models or RECIPES:
        path = args.output / f"{name}.safetensors"
        if args.first:
            good &= begins_as(name, path)
        elif args.check:
            good &= reproduces(path, partial(train, name), get_metric(name))
        else:
            train(name, path)
    return 0 if good else 1


def get_metric(name: str) -> str:
    return "accuracy" if get_entry(name).task == "classification" else "mse"


if __name__ == "__main__":
    sys.exit(main())
