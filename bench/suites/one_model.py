"""One model from its plan to its result: the bundle, the plain exports, and all of them side by side."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tsexport.bench.race import RaceResult
from tsexport.bench.records import MachineRecord, read_record
from tsexport.bench.suites.contest import (
    Entrant,
    Pace,
    Say,
    Tell,
    fewer_windows,
    judge_accuracy,
    make_entrants,
    time_side_by_side,
    try_once,
)
from tsexport.bench.suites.plain_runtimes import EagerSource, registered
from tsexport.bench.suites.rows import ModelResult, TriedCandidate
from tsexport.bundles.bundle import Bundle
from tsexport.errors import UsageError
from tsexport.models.sources import SourceIdentity
from tsexport.pipeline import run_build
from tsexport.progress import Progress, Step
from tsexport.quantize.evaluation import EvaluationSet
from tsexport.stages.data import model_config
from tsexport.stages.planned import Plan
from tsexport.stages.samples import Samples, take_samples
from tsexport.types import Candidate, ModelSpec

Enter = Callable[[ModelSpec, EagerSource, Bundle, Path, Tell], tuple[Entrant, ...]]
"""Makes the contestants of a model in a folder."""


def steps_of(
    model: str, pace: Pace, *, with_build: bool, build_seconds: float = 90.0, exports_seconds: float = 10.0
) -> list[tuple[str, float]]:
    """Return a model's steps with a first guess at their seconds: 8 contestants take 50 ms a round and 2 s to start."""
    race_seconds = min(8 * 0.05 * pace.rounds, pace.max_seconds) + 16.0
    return [
        (f"{model}: model and data", 5.0),
        *([(f"{model}: build the bundle", build_seconds)] if with_build else []),
        (f"{model}: plain exports", exports_seconds),
        (f"{model}: try each once", 15.0),
        (f"{model}: accuracy", 10.0),
        *((f"{model}: side by side, process {n + 1}", race_seconds) for n in range(pace.processes)),
    ]


def measure_model(
    plan: Plan,
    given: Bundle | None,
    pace: Pace,
    progress: Progress,
    folder: Path,
    *,
    enter: Enter = make_entrants,
    accuracy_seconds: float = math.inf,
) -> ModelResult:
    """Build a model's bundle unless one is given, make the contestants in `folder`, and time all of them.

    Args:
        enter: makes the contestants: by default the plain exports, and quantize_dynamic among them.
        accuracy_seconds: for each contestant's errors; without it they are over all windows of the evaluation.

    Raises:
        TsexportError: the model cannot be built, or the given bundle is of another configuration.
    """
    model = plan.context.identity.name
    if given is not None:
        _require_same(given, plan.context.identity)
    with progress.step(f"{model}: model and data") as step:
        samples, step.reused = take_samples(plan.context)
    if given is None:
        with progress.step(f"{model}: build the bundle"):
            bundle = run_build(plan, quiet=True)
    else:
        bundle = given
    evaluation = samples.evaluation_set(plan.context.options.metric)
    options = plan.context.options
    eager = EagerSource(options.model, options.settings, options.seed)
    with registered():
        with progress.step(f"{model}: plain exports") as step:
            entrants = enter(samples.spec, eager, bundle, folder, step.say)
        with progress.step(f"{model}: try each once"):
            entrants = try_once(entrants, evaluation, folder, pace.threads)
            if accuracy_seconds < math.inf:
                evaluation = fewer_windows(evaluation, entrants, accuracy_seconds)
        with progress.step(f"{model}: accuracy") as step:
            rows = []
            for index, one in enumerate(entrants):
                step.say(one.name, index / len(entrants))
                rows.append(judge_accuracy(one, evaluation, bundle, pace.threads))
        with _RaceSteps(model, progress) as steps:
            result = time_side_by_side(
                model, entrants, rows, evaluation, pace, steps.start, _caveats(samples, evaluation)
            )
    record = _record(bundle)
    return replace(
        result,
        why=bundle.selection.why,
        verdicts=record.verdicts if record else (),
        tried=tried_candidates(bundle.manifest.candidates, record.races if record else ()),
        family=samples.spec.family,
    )


def _record(bundle: Bundle) -> MachineRecord | None:
    """Return what the bundle's own build measured on this machine; None for one that came without measurements."""
    records = sorted((bundle.path / "measurements").glob("*.json"))
    return read_record(records[0]) if len(records) == 1 else None


def tried_candidates(candidates: Sequence[Candidate], races: Sequence[RaceResult]) -> tuple[TriedCandidate, ...]:
    """Return the candidates of a build, with their speed in the last race that they ran."""
    speeds = {(entry.artifact, entry.runtime): entry.speedup for result in races for entry in result.entries}
    return tuple(
        TriedCandidate(
            name=one.name,
            runtime=one.runtime,
            precision=one.precision,
            status=one.status,
            reason=one.reason,
            size_bytes=one.size_bytes,
            output_error=one.accuracy.output_error if one.accuracy else None,
            degradation=one.accuracy.degradation if one.accuracy else None,
            speedup=speeds.get((one.artifact, one.runtime)) if one.artifact else None,
            int8_share=one.coverage.int8_share if one.coverage else None,
            conversions=one.coverage.conversions if one.coverage else None,
        )
        for one in candidates
    )


def _require_same(bundle: Bundle, identity: SourceIdentity) -> None:
    """Raise UsageError unless a bundle was made of the model that eager runs."""
    manifest = bundle.manifest
    checkpoint = manifest.provenance.checkpoint
    own = dict(model_config(identity)), identity.checkpoint_sha256
    if (dict(manifest.model.config), checkpoint.sha256 if checkpoint else None) != own:
        raise UsageError(
            f"the bundle {bundle.name} was built with another configuration or checkpoint of {identity.name}",
            next_step="give the same --set as at its build, or leave --bundle out",
        )


def _caveats(samples: Samples, evaluation: EvaluationSet) -> tuple[str, ...]:
    metric = (
        f"task metric: {evaluation.metric} on {samples.record.evaluation.source}" if samples.record.evaluation else ""
    )
    return tuple(one for one in (metric, *samples.spec.caveats, *samples.record.caveats) if one)


class _RaceSteps:
    """Turns the processes of one race into steps of the progress: a step ends when the next begins."""

    def __init__(self, model: str, progress: Progress) -> None:
        self._model, self._progress = model, progress
        self._open: Any = None

    def start(self, number: int) -> Say:
        """Begin the step of a process, and return its progress callback."""
        self._end()
        self._open = self._progress.step(f"{self._model}: side by side, process {number + 1}")
        step: Step = self._open.__enter__()
        return step.say

    def _end(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None

    def __enter__(self) -> "_RaceSteps":
        return self

    def __exit__(self, *error: object) -> None:
        self._end()
