"""Every registered model in its default sizes: eager, the plain exports and what tsexport selects, side by side.

For each model, interleaved in one run, one thread, batch 1: eager, plain TorchScript, plain ONNX in ONNX Runtime, plain
OpenVINO in f32 (and as it comes, where the CPU has bf16), and the fastest fp32 artifact and the selected one of a
cpu4-int8 bundle: latency with intervals, file size, memory above idle, error, and the published rows with the verdicts
of the bundle's build.  `goals_of_models.py` says what is judged.

How to run, on a quiet machine, from a checkout where tsexport is installed with its extra `build`, or as
`make bench-models`:

    python bench/suites/bench_models.py
    python bench/suites/bench_models.py --models lstm,unet --set lstm.size=small --seconds 4
    python bench/suites/bench_models.py --resume

A model's result is kept as soon as it is there, in OUTPUT.partial beside the output; after a crash or an interrupt,
`--resume` measures only what is missing, if machine, versions and settings are the same.  A model that fails is listed
with the reason, and the others are measured.  Results go to bench/results/bench_models-<instruction set>.json and .md.

What it does not say: what `against_defaults.py` does not say either.  Models without a checkpoint of their own are
untrained: their errors mean little.  A model without a reference series to calibrate on is built for fp32 alone.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsexport.bench.fingerprint import Machine, fingerprint
from tsexport.bench.suites.contest import BATCH, Pace
from tsexport.bench.suites.goals import Conditions, Judged
from tsexport.bench.suites.goals_of_models import judge_models
from tsexport.bench.suites.one_model import measure_model, steps_of
from tsexport.bench.suites.overview import budgets_text, overview_text
from tsexport.bench.suites.report import (
    goals_text,
    machine_text,
    model_text,
    publish,
    results_path,
    table,
    threads_text,
)
from tsexport.bench.suites.rows import ModelResult
from tsexport.cache import default_root
from tsexport.calibration.reference import has_reference
from tsexport.codec import encode, from_plain
from tsexport.data import model_config
from tsexport.errors import BundleError, ConfigurationError, TsexportError
from tsexport.models.registry import get_entry, list_entries
from tsexport.models.settings import parse_scalar
from tsexport.models.sources import identify
from tsexport.options import BuildOptions
from tsexport.pipeline import plan_build
from tsexport.progress import Progress, duration

LEFT_OUT: Mapping[str, str] = {
    "sfno-hybrid": "2 GB in fp32, and minutes to export: it has a benchmark of its own; name it in --models to run it",
}
"""Models that a run without --models does not take, each with the reason."""
ROUNDS, PROCESSES, MAX_SECONDS, SECONDS = 10, 2, 75.0, 1.0
ACCURACY_SECONDS = 8.0
"""For each contestant's errors."""
BUILD_SECONDS = 60.0
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Failure:
    """A model that could not be measured."""

    model: str
    reason: str


@dataclass(frozen=True)
class Kept:
    """One model's result in OUTPUT.partial, and what has to be the same for it to count."""

    machine: Machine
    pace: Pace
    seconds: float
    seed: int
    settings: Mapping[str, Any]
    result: ModelResult


@dataclass(frozen=True)
class Report:
    """Everything that one run measured, as it is written to JSON."""

    suite: str
    machine: Machine
    pace: Pace
    batch: int
    seconds: float
    settings: Mapping[str, Mapping[str, Any]]
    models: tuple[ModelResult, ...]
    failures: tuple[Failure, ...]
    left_out: tuple[Failure, ...]
    goals: tuple[Judged, ...]
    wall_seconds: float
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Run:
    """What a run was asked for."""

    models: tuple[str, ...]
    left_out: tuple[Failure, ...]
    settings: Mapping[str, Mapping[str, Any]]
    pace: Pace
    seconds: float
    seed: int
    output: Path
    machine: Machine

    @property
    def partial(self) -> Path:
        return self.output.with_suffix(".partial")

    def kept(self, model: str, result: ModelResult) -> Kept:
        return Kept(self.machine, self.pace, self.seconds, self.seed, self.settings.get(model, {}), result)

    def keep(self, model: str, result: ModelResult) -> None:
        """Write a model's result, whole or not at all."""
        self.partial.mkdir(parents=True, exist_ok=True)
        temporary = self.partial / f".{model}.{os.getpid()}"
        temporary.write_text(encode(self.kept(model, result)))
        temporary.replace(self.partial / f"{model}.json")

    def found(self, model: str) -> ModelResult | None:
        """Return the result of an earlier run under the same conditions; None where there is none."""
        path = self.partial / f"{model}.json"
        try:
            kept = from_plain(Kept, json.loads(path.read_text()), what=path.name, next_step="measure it again")
        except (OSError, ValueError, BundleError):
            return None
        return kept.result if kept == self.kept(model, kept.result) else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; return the exit code: 0, or that of the error that ended it.  A missed goal is no error."""
    args = _parser().parse_args(arguments)
    try:
        run = _run_of(args)
        report = measure_all(run, resume=args.resume)
    except TsexportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    publish(report, report_text(report), run.output)
    shutil.rmtree(run.partial, ignore_errors=True)
    return 0


def measure_all(run: Run, *, resume: bool) -> Report:
    """Measure every model of a run, or take its result from the run before."""
    began = time.perf_counter()
    if not resume:
        shutil.rmtree(run.partial, ignore_errors=True)
    earlier = {model: result for model in run.models if (result := run.found(model)) is not None}
    steps = [
        step
        for model in run.models
        if model not in earlier
        for step in steps_of(model, run.pace, with_build=True, build_seconds=BUILD_SECONDS)
    ]
    progress = Progress(steps, memory=default_root() / "times" / "bench_models.json")
    results: list[ModelResult] = []
    failures: list[Failure] = []
    for model in run.models:
        if model in earlier:
            print(f"{model}: taken from {run.partial.name}", file=sys.stderr)
            results.append(earlier[model])
            continue
        try:
            results.append(_measure(run, model, progress))
        except TsexportError as error:
            failures.append(Failure(model, error.message.splitlines()[0][:300]))
            print(f"{model} failed: {failures[-1].reason}", file=sys.stderr)
            continue
        run.keep(model, results[-1])
        progress.remember()
    conditions = Conditions(
        run.machine.instruction_set, run.machine.vnni, run.pace.threads, BATCH, default_settings=not run.settings
    )
    return Report(
        suite="bench_models",
        machine=run.machine,
        pace=run.pace,
        batch=BATCH,
        seconds=run.seconds,
        settings=run.settings,
        models=tuple(results),
        failures=tuple(failures),
        left_out=run.left_out,
        goals=judge_models(results, conditions),
        wall_seconds=time.perf_counter() - began,
    )


def _measure(run: Run, model: str, progress: Progress) -> ModelResult:
    settings = run.settings.get(model, {})
    identity = identify(model, settings=settings, seed=run.seed)
    target = "cpu4-int8" if has_reference(model, model_config(identity)) else "cpu4-fp32"
    with tempfile.TemporaryDirectory(prefix="tsexport-suite-") as folder:
        options = BuildOptions(
            model,
            target,
            Path(folder),
            settings=settings,
            threads=run.pace.threads,
            batches=(BATCH,),
            seconds=run.seconds,
            seed=run.seed,
        )
        return measure_model(
            plan_build(options),
            None,
            run.pace,
            progress,
            Path(folder),
            plain_int8=False,
            accuracy_seconds=ACCURACY_SECONDS,
        )


def report_text(report: Report) -> str:
    """Return the report: goals, the overview, the budgets, and each model's table."""
    absent = [*report.failures, *report.left_out]
    parts = [
        "# Every registered model: plain exports and what tsexport selects",
        machine_text(report.machine),
        f"Milliseconds are p50 of single calls at batch {report.batch}, "
        f"{threads_text(report.pace.threads)}, {report.pace.processes} fresh processes of each contestant, "
        f"interleaved; 'x' columns say how many times faster, with 95 % intervals; memory is a process's peak above "
        f"idle. The run took {duration(report.wall_seconds)}.",
        goals_text(report.goals, report.machine),
        overview_text(report.models) if report.models else "",
        "## Not measured\n\n" + table(("model", "why"), [(one.model, one.reason) for one in absent]) + "\n"
        if absent
        else "",
        budgets_text(report.models),
        *(f"{model_text(one, report.machine, report.pace.threads)}- {one.why}\n" for one in report.models),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _run_of(args: argparse.Namespace) -> Run:
    """Check what was asked for.

    Raises:
        UsageError, ConfigurationError: unknown models or settings, numbers out of range.
    """
    if args.seed < 0 or min(args.threads, args.rounds, args.processes) < 1 or min(args.seconds, args.max_seconds) <= 0:
        raise ConfigurationError(
            "--threads, --rounds and --processes are whole numbers from 1 on, --seconds and --max-seconds above 0, "
            "--seed from 0 on"
        )
    named = tuple(name for name in (args.models or "").split(",") if name)
    models = named or tuple(entry.name for entry in list_entries() if entry.name not in LEFT_OUT)
    settings = _settings(args.set, models)
    for model in models:  # every name and setting is checked before the first model is measured
        get_entry(model)
        identify(model, settings=settings.get(model, {}), seed=args.seed)
    machine = fingerprint()
    left_out = () if named else (entry.name for entry in list_entries() if entry.name in LEFT_OUT)
    return Run(
        models=models,
        left_out=tuple(Failure(name, LEFT_OUT[name]) for name in left_out),
        settings=settings,
        pace=Pace(args.threads, args.rounds, args.processes, args.max_seconds),
        seconds=args.seconds,
        seed=args.seed,
        output=args.output or results_path("bench_models", machine),
        machine=machine,
    )


def _settings(pairs: Sequence[str], models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the settings by model of "MODEL.KEY=VALUE"."""
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
    return settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="names with commas; by default every registered one but the very large")
    parser.add_argument("--set", action="append", default=[], metavar="MODEL.KEY=VALUE", help="a setting of one model")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help=f"as tsexport build's, for selecting; {SECONDS:g}"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of every contestant; 1")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"interleaved rounds of each process; {ROUNDS}")
    parser.add_argument("--processes", type=int, default=PROCESSES, help=f"fresh processes of each; {PROCESSES}")
    parser.add_argument(
        "--max-seconds", type=float, default=MAX_SECONDS, help=f"no new round after it, per process; {MAX_SECONDS:g}"
    )
    parser.add_argument("--seed", type=int, default=0, help="of drawn windows and untrained weights; 0")
    parser.add_argument("--resume", action="store_true", help="take what the run before already measured")
    parser.add_argument("--output", type=Path, help="the .json to write; the .md goes beside it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
