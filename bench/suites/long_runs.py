"""What suites over many models share: which models, their settings, results kept one by one, failures, going on.

A model's result is kept as soon as it is there, in OUTPUT.partial beside the output; after a crash or an interrupt a
run that resumes measures only what is missing, if everything that the results depend on is the same.  A model that
fails is listed with the reason, and the others are measured.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tsexport.bench.fingerprint import Machine
from tsexport.bench.suites.contest import BATCH, Pace
from tsexport.bench.suites.goals import Conditions
from tsexport.bench.suites.rows import ModelResult
from tsexport.cache import default_root
from tsexport.codec import from_plain, to_plain, write_whole
from tsexport.errors import BundleError, ConfigurationError, TsexportError
from tsexport.models.registry import get_entry, list_entries
from tsexport.models.settings import parse_scalar
from tsexport.models.sources import identify
from tsexport.options import BuildOptions
from tsexport.progress import Progress

Result = TypeVar("Result")

LEFT_OUT: Mapping[str, str] = {
    "sfno-hybrid": "2 GB in fp32, and minutes to export: it has a benchmark of its own; name it in --models to run it",
}
"""Models that a run without --models does not take, each with the reason."""


@dataclass(frozen=True)
class Failure:
    """A model that could not be measured."""

    model: str
    reason: str


@dataclass(frozen=True)
class Circumstances:
    """What has to be the same for a kept result to count; `beside` is what one suite depends on besides."""

    machine: Machine
    pace: Pace
    seconds: float
    seed: int
    settings: Mapping[str, Any]
    beside: Mapping[str, Any]


@dataclass(frozen=True)
class Partial(Generic[Result]):
    """Results by model, each a file of its own in `folder`, with the circumstances under which it counts."""

    folder: Path
    kind: type[Result]

    def keep(self, model: str, circumstances: Circumstances, result: Result) -> None:
        """Write a model's result, whole or not at all."""
        document = {"circumstances": to_plain(circumstances), "result": to_plain(result)}
        write_whole(self.folder / f"{model}.json", json.dumps(document, indent=2, allow_nan=False))

    def found(self, model: str, circumstances: Circumstances) -> Result | None:
        """Return the result of an earlier run under the same circumstances; None where there is none."""
        path = self.folder / f"{model}.json"
        try:
            document = json.loads(path.read_text())
            if document["circumstances"] != to_plain(circumstances):
                return None
            # the reader takes any dataclass; its signature asks for one where a type variable cannot say so
            return from_plain(self.kind, document["result"], what=path.name, next_step="measure it again")
        except (OSError, ValueError, KeyError, TypeError, BundleError):
            return None

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Run:
    """What a run over many models was asked for; a suite that depends on more adds it, and names it in `beside`."""

    models: tuple[str, ...]
    left_out: tuple[Failure, ...]
    settings: Mapping[str, Mapping[str, Any]]
    pace: Pace
    seconds: float
    seed: int
    output: Path
    machine: Machine

    @property
    def beside(self) -> Mapping[str, Any]:
        return {}

    @property
    def partial(self) -> Partial[ModelResult]:
        return Partial(self.output.with_suffix(".partial"), ModelResult)

    @property
    def conditions(self) -> Conditions:
        """What goals are judged under."""
        return Conditions(
            self.machine.instruction_set,
            self.machine.vnni,
            self.pace.threads,
            BATCH,
            default_settings=not self.settings,
        )

    def circumstances(self, model: str) -> Circumstances:
        return Circumstances(
            self.machine, self.pace, self.seconds, self.seed, self.settings.get(model, {}), self.beside
        )

    def keep(self, model: str, result: ModelResult) -> None:
        self.partial.keep(model, self.circumstances(model), result)

    def found(self, model: str) -> ModelResult | None:
        return self.partial.found(model, self.circumstances(model))

    def options(self, model: str, target: str, folder: Path) -> BuildOptions:
        """Return the options of the build that gives a model's contestants."""
        return BuildOptions(
            model,
            target,
            folder,
            settings=self.settings.get(model, {}),
            threads=self.pace.threads,
            batches=(BATCH,),
            seconds=self.seconds,
            seed=self.seed,
        )


def measure_run(
    run: Run,
    suite: str,
    steps: Callable[[str], Sequence[tuple[str, float]]],
    measure: Callable[[str, Progress], ModelResult],
    *,
    resume: bool,
) -> tuple[tuple[ModelResult, ...], tuple[Failure, ...]]:
    """Measure every model of a run, or take its result from the run before.

    Args:
        suite: under whose name the times of the steps are remembered.
        steps: those of a model, with their expected seconds.
        measure: measures one model.
        resume: what was kept counts; else it is thrown away first.
    """
    if not resume:
        run.partial.clear()
    earlier = {model: result for model in run.models if (result := run.found(model)) is not None}
    expected = [step for model in run.models if model not in earlier for step in steps(model)]
    progress = Progress(expected, memory=default_root() / "times" / f"{suite}.json")

    def measure_one(model: str) -> ModelResult:
        result = measure(model, progress)
        progress.remember()
        return result

    return measure_each(run.models, earlier, measure_one, run.keep, run.partial.folder)


def measure_each(
    models: Sequence[str],
    earlier: Mapping[str, Result],
    measure: Callable[[str], Result],
    keep: Callable[[str, Result], None],
    partial: Path,
) -> tuple[tuple[Result, ...], tuple[Failure, ...]]:
    """Measure models one after another; return the results, and those that failed with their reasons.

    Args:
        earlier: results that are there already, by model.
        measure: measures one model; a TsexportError is a failure of that model alone.
        keep: writes a result down as soon as it is there.
        partial: where the earlier results were found, for the message.
    """
    results: list[Result] = []
    failures: list[Failure] = []
    for model in models:
        if model in earlier:
            print(f"{model}: taken from {partial.name}", file=sys.stderr)
            results.append(earlier[model])
            continue
        try:
            results.append(measure(model))
        except TsexportError as error:
            failures.append(Failure(model, error.message.splitlines()[0][:300]))
            print(f"{model} failed: {failures[-1].reason}", file=sys.stderr)
            continue
        keep(model, results[-1])
    return tuple(results), tuple(failures)


def models_of(given: str | None) -> tuple[tuple[str, ...], tuple[Failure, ...]]:
    """Return the models of "a,b", by default every registered one but the very large, and what is left out."""
    named = tuple(name for name in (given or "").split(",") if name)
    if named:
        return named, ()
    names = [entry.name for entry in list_entries()]
    left_out = tuple(Failure(name, LEFT_OUT[name]) for name in names if name in LEFT_OUT)
    return tuple(name for name in names if name not in LEFT_OUT), left_out


def settings_of(pairs: Sequence[str], models: Sequence[str], seed: int) -> dict[str, dict[str, Any]]:
    """Return the settings by model of "MODEL.KEY=VALUE", after every model and setting was checked.

    Raises:
        UsageError, ConfigurationError: unknown models or settings.
    """
    settings: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        place, separator, value = pair.partition("=")
        model, dot, key = place.partition(".")
        if not (separator and dot and key) or model not in models:
            raise ConfigurationError(
                f"--set {pair!r} has no form MODEL.KEY=VALUE with a model of this run: {', '.join(models)}",
                next_step="write --set lstm.size=small",
            )
        settings.setdefault(model, {})[key] = parse_scalar(value)
    for model in models:
        get_entry(model)
        identify(model, settings=settings.get(model, {}), seed=seed)
    return settings


def pace_of(args: argparse.Namespace) -> Pace:
    """Return how long it is measured.

    Raises:
        ConfigurationError: numbers out of range.
    """
    if args.seed < 0 or min(args.threads, args.rounds, args.processes) < 1 or min(args.seconds, args.max_seconds) <= 0:
        raise ConfigurationError(
            "--threads, --rounds and --processes are whole numbers from 1 on, --seconds and --max-seconds above 0, "
            "--seed from 0 on"
        )
    return Pace(args.threads, args.rounds, args.processes, args.max_seconds)


def add_arguments(
    parser: argparse.ArgumentParser, *, rounds: int, processes: int, max_seconds: float, seconds: float
) -> None:
    """Add the options that such suites have in common, with a suite's own defaults."""
    parser.add_argument("--models", help="names with commas; by default every registered one but the very large")
    parser.add_argument("--set", action="append", default=[], metavar="MODEL.KEY=VALUE", help="a setting of one model")
    parser.add_argument(
        "--seconds", type=float, default=seconds, help=f"as tsexport build's, for selecting; {seconds:g}"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of every contestant; 1")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"interleaved rounds of each process; {rounds}")
    parser.add_argument("--processes", type=int, default=processes, help=f"fresh processes of each; {processes}")
    parser.add_argument(
        "--max-seconds", type=float, default=max_seconds, help=f"no new round after it, per process; {max_seconds:g}"
    )
    parser.add_argument("--seed", type=int, default=0, help="of drawn windows and untrained weights; 0")
    parser.add_argument("--resume", action="store_true", help="take what the run before already measured")
    parser.add_argument("--output", type=Path, help="the .json to write; the .md goes beside it")
