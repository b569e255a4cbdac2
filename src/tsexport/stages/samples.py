"""The first stage: open the source model and the data, and keep what the source answers.

Everything after it works from these records and arrays, so that a build whose stages are cached opens neither torch
nor data.  A model of many operations is judged on fewer windows: every artifact on every runtime answers all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tsexport.bundles.manifest import CheckpointRecord, DataRecord
from tsexport.cache import digest_of
from tsexport.npz import read_arrays, write_arrays
from tsexport.stages.context import Context
from tsexport.stages.preparing import quantile_levels
from tsexport.types import Array, Feeds, ModelSpec, random_feeds, rows_at_once

if TYPE_CHECKING:
    from tsexport.quantize.evaluation import EvaluationSet
    from tsexport.stages.data import Opened

GOLDEN_SAMPLES = 16
REAL_SAMPLES = 8
DAMAGED_SAMPLES = 8
"""Windows with gaps, where the graph repairs them; half of the golden and of the real ones are then such."""
SOURCE_BATCH = 64
"""The most samples that the source answers at once (see `rows_at_once`)."""
RANDOM_WINDOWS = 64
EVALUATION_FLOPS = 5e11
"""Operations that one pass over the evaluation windows may take, down to FEWEST_WINDOWS of them: some ten seconds on a
core, and a build takes a dozen passes.  A sample of inception-time takes 1.3e8, of migt-tvdt 6.5e10, of sfno-hybrid
6e11; up to 4.8e8 nothing is cut."""
FEWEST_WINDOWS = 16
MOST_EVALUATION_FLOPS = 2e12
"""Where even FEWEST_WINDOWS take more, there are fewer, down to those of a model without data: 4 of sfno-hybrid."""
FEWEST_RANDOM_WINDOWS = 4
"""Without data there is no metric to judge, only whether answers are the same."""
GOLDEN_FLOPS = 1e11
FEWEST_GOLDEN = 4
NO_REAL_DATA = "no data was given: artifacts were compared on random inputs alone"
RAW_UNITS = (
    "forecasts are in raw units and there are no labels: output errors are relative to the level of the series, which "
    "may be much larger than what varies in it"
)


@dataclass(frozen=True)
class SamplesRecord:
    """What the source is, what data it answered, and the operations that one sample takes (0: not known)."""

    spec: ModelSpec
    digest: str
    notes: tuple[str, ...]
    caveats: tuple[str, ...]
    checkpoint: CheckpointRecord | None
    calibration: DataRecord | None
    evaluation: DataRecord | None
    has_real: bool
    flops: float = 0.0

    @property
    def is_costly(self) -> bool:
        """Whether a sample takes so long that as few as will do are compared."""
        from tsexport.exporters.cost import COSTLY_FLOPS

        return self.flops >= COSTLY_FLOPS


@dataclass(frozen=True)
class Samples:
    """The record with its arrays: evaluation windows, the source's answers to them, and the target.

    `key` names all of it for caches: model, inputs, data, seed.  `damaged` are windows with gaps and the source's
    answers, where the graph repairs them; accuracy is not judged on them.
    """

    key: str
    record: SamplesRecord
    feeds: Feeds
    outputs: Feeds
    target: Array | None
    damaged: tuple[Feeds, Feeds] | None = None

    @property
    def spec(self) -> ModelSpec:
        return self.record.spec

    @property
    def real(self) -> Feeds | None:
        """A few real windows, or None where there is no data."""
        return self._first(REAL_SAMPLES)[0] if self.record.has_real else None

    @property
    def golden(self) -> tuple[Feeds, Feeds]:
        """The first windows and the source's answers to them."""
        from tsexport.exporters.cost import samples_within

        return self._first(samples_within(self.record.flops, GOLDEN_FLOPS, fewest=FEWEST_GOLDEN, most=GOLDEN_SAMPLES))

    def _first(self, count: int) -> tuple[Feeds, Feeds]:
        """Return the first windows and the source's answers; half are damaged ones where there are such."""
        if self.damaged is None:
            return _rows(self.feeds, count), _rows(self.outputs, count)
        feeds, outputs = self.damaged
        sound = count // 2
        return (
            {name: np.concatenate([self.feeds[name][:sound], array[:sound]]) for name, array in feeds.items()},
            {name: np.concatenate([self.outputs[name][:sound], array[:sound]]) for name, array in outputs.items()},
        )

    def evaluation_set(self, metric: str | None) -> "EvaluationSet":
        """Return the windows that accuracy is judged on."""
        from tsexport.calibration.metrics import default_metric
        from tsexport.quantize.evaluation import EvaluationSet

        metric = metric or default_metric(self.spec.task)
        return EvaluationSet(self.feeds, self.outputs, self.target, metric, quantile_levels(self.spec))

    def require_fitting_target(self, metric: str | None) -> None:
        """Raise where the target cannot be held against the first output by the metric.

        Raises:
            DataError: the target has another shape, or values that the metric cannot use.
            ConfigurationError: the metric needs quantile levels, and the model states none.
        """
        from tsexport.calibration.metrics import accumulate

        evaluation = self.evaluation_set(metric)
        if self.target is not None:
            first = next(iter(self.outputs.values()))
            accumulate(evaluation.metric, quantiles=evaluation.quantiles).update(first, self.target)


def _rows(arrays: Feeds, count: int) -> Feeds:
    return {name: array[:count] for name, array in arrays.items()}


def _ranges(ids: Sequence[str]) -> str:
    """Return window ids compactly: "test: 3-5,9" for test:000003, test:000004, ..."""
    split = ids[0].partition(":")[0] if ids and ":" in ids[0] else ""
    numbers = [int(one.rpartition(":")[2]) for one in ids]
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"{split}: {text}" if split else text


def _data_record(opened: "Opened | None", rows: Array | None = None) -> DataRecord | None:
    """Return the record of drawn windows, or of those `rows` of them."""
    if opened is None:
        return None
    ids = opened.ids if rows is None else tuple(opened.ids[row] for row in rows)
    regimes = dict(opened.regimes) if rows is None else {}  # counts of all the drawn windows
    return DataRecord(opened.source, opened.base_digest, len(ids), _ranges(ids), regimes)


def _read(opened: "Opened") -> tuple[dict[str, Array], Array | None]:
    batches = list(opened.dataset.batches(SOURCE_BATCH))
    feeds = {name: np.concatenate([batch.feeds[name] for batch in batches]) for name in opened.dataset.names}
    targets = [batch.target for batch in batches if batch.target is not None]
    return feeds, np.concatenate(targets) if targets else None


def answers_of(run: Callable[[Feeds], dict[str, Array]], feeds: Feeds, most: int) -> dict[str, Array]:
    """Return what a model answers to all samples, at most `most` at once, fewer where they are large."""
    count = len(next(iter(feeds.values())))
    rows = rows_at_once((array[:1].shape for array in feeds.values()), most)
    parts = [run({name: array[at : at + rows] for name, array in feeds.items()}) for at in range(0, count, rows)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _checkpoint_record(context: Context) -> CheckpointRecord | None:
    identity, source = context.identity, context.source
    path = identity.checkpoint or identity.path
    if path is None:
        return None
    sha256 = source.checkpoint_sha256 or identity.checkpoint_sha256 or ""
    unwrapped = [note for note in source.notes if note.startswith("checkpoint unwrapped")]
    return CheckpointRecord(path.name, sha256, unwrapped[0] if unwrapped else "plain", identity.is_reference)


def _spread(count: int, flops: float) -> Array:
    """Return which of `count` windows are judged on: all, or as many as a costly model is given, spread over them."""
    from tsexport.exporters.cost import samples_within

    enough = samples_within(flops, MOST_EVALUATION_FLOPS, fewest=FEWEST_RANDOM_WINDOWS, most=FEWEST_WINDOWS)
    wanted = min(count, samples_within(flops, EVALUATION_FLOPS, fewest=min(enough, count), most=count))
    return np.linspace(0, count - 1, wanted).astype(int)


def _open(context: Context, folder: Path) -> SamplesRecord:
    from tsexport.exporters.cost import flops_of, samples_within

    source, calibration, evaluation = context.source, context.calibration, context.evaluation
    caveats: list[str] = []
    notes = [*source.notes, *(note for one in (calibration, evaluation) if one is not None for note in one.notes)]
    flops = flops_of(source.module, source.spec) if source.module is not None else 0.0
    rows = None
    if evaluation is not None:
        feeds, target = _read(evaluation)
        rows = _spread(len(evaluation.ids), flops)
        if len(rows) < len(evaluation.ids):
            feeds = {name: array[rows] for name, array in feeds.items()}
            target = None if target is None else target[rows]
            notes.append(
                f"accuracy is judged on {len(rows)} of {len(evaluation.ids)} windows: one takes the model "
                f"{flops / 1e9:.3g} GFLOP"
            )
    else:
        windows = samples_within(flops, EVALUATION_FLOPS, fewest=FEWEST_RANDOM_WINDOWS, most=RANDOM_WINDOWS)
        feeds, target = random_feeds(source.spec.inputs, windows, context.options.seed), None
        caveats.append(NO_REAL_DATA)
    write_arrays(folder / "feeds.npz", feeds)
    write_arrays(folder / "outputs.npz", answers_of(source.run, feeds, SOURCE_BATCH))
    if context.plan.raw:
        damaged = _damaged(feeds, source.spec.inputs[0].name)
        write_arrays(folder / "damaged-feeds.npz", damaged)
        write_arrays(folder / "damaged-outputs.npz", answers_of(source.run, damaged, SOURCE_BATCH))
    if target is not None:
        write_arrays(folder / "target.npz", {"target": target})
    elif context.plan.raw and source.spec.config["preprocessing"]["scales_back"]:
        caveats.append(RAW_UNITS)
    return SamplesRecord(
        spec=source.spec,
        digest=source.digest,
        notes=tuple(notes),
        caveats=tuple(caveats),
        checkpoint=_checkpoint_record(context),
        calibration=_data_record(calibration),
        evaluation=_data_record(evaluation, rows),
        has_real=evaluation is not None,
        flops=flops,
    )


def _damaged(feeds: Feeds, raw: str) -> dict[str, Array]:
    """Return the first windows with gaps in the raw input."""
    from tsexport.calibration.preparation import damage

    first = _rows(feeds, DAMAGED_SAMPLES)
    return {**first, raw: damage(first[raw])}


def take_samples(context: Context) -> tuple[Samples, bool]:
    """Return the source's record and answers, and whether they came from the cache.

    Raises:
        UsageError, CheckpointError, DataError: the model or the data cannot be used.
    """
    identity = context.identity
    inputs = {
        "source": context.source_digest,
        # The record holds these names: the same content under another name is another record.
        "names": [identity.name, *(path.name for path in (identity.path, identity.checkpoint) if path)],
        "inputs": context.declared_inputs,
        "data": context.plan.digest,
        "calibrates": context.calibrates,
        "seed": context.options.seed,
    }
    cached = context.cache.stage("samples", inputs, SamplesRecord, lambda folder: _open(context, folder))
    target = cached.folder / "target.npz"
    samples = Samples(
        digest_of({**inputs, "source": cached.result.digest, "spec": cached.result.spec}),
        cached.result,
        read_arrays(cached.folder / "feeds.npz"),
        read_arrays(cached.folder / "outputs.npz"),
        read_arrays(target)["target"] if target.exists() else None,
        (read_arrays(cached.folder / "damaged-feeds.npz"), read_arrays(cached.folder / "damaged-outputs.npz"))
        if context.plan.raw
        else None,
    )
    samples.require_fitting_target(context.options.metric)
    return samples, cached.reused
