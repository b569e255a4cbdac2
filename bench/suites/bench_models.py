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
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tsexport.bench.affinity import threads_text
from tsexport.bench.fingerprint import Machine, fingerprint
from tsexport.bench.suites.contest import BATCH, Pace, make_entrants
from tsexport.bench.suites.goals import Judged
from tsexport.bench.suites.goals_of_models import judge_models
from tsexport.bench.suites.long_runs import (
    Failure,
    Run,
    add_arguments,
    measure_run,
    models_of,
    pace_of,
    settings_of,
)
from tsexport.bench.suites.one_model import measure_model, steps_of
from tsexport.bench.suites.overview import budgets_text, overview_text
from tsexport.bench.suites.report import (
    goals_text,
    machine_text,
    model_text,
    publish,
    results_path,
    table,
)
from tsexport.bench.suites.rows import ModelResult
from tsexport.calibration.reference import has_reference
from tsexport.errors import TsexportError
from tsexport.models.sources import identify
from tsexport.pipeline import plan_build
from tsexport.progress import Progress, duration
from tsexport.stages.data import model_config

ROUNDS, PROCESSES, MAX_SECONDS, SECONDS = 10, 2, 75.0, 1.0
ACCURACY_SECONDS = 8.0
"""For each contestant's errors."""
BUILD_SECONDS = 60.0
SCHEMA_VERSION = 1


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
    run.partial.clear()
    return 0


def measure_all(run: Run, *, resume: bool) -> Report:
    """Measure every model of a run, or take its result from the run before."""
    began = time.perf_counter()
    results, failures = measure_run(
        run,
        "bench_models",
        lambda model: steps_of(model, run.pace, with_build=True, build_seconds=BUILD_SECONDS),
        lambda model, progress: _measure(run, model, progress),
        resume=resume,
    )
    return Report(
        suite="bench_models",
        machine=run.machine,
        pace=run.pace,
        batch=BATCH,
        seconds=run.seconds,
        settings=run.settings,
        models=results,
        failures=failures,
        left_out=run.left_out,
        goals=judge_models(results, run.conditions),
        wall_seconds=time.perf_counter() - began,
    )


def _measure(run: Run, model: str, progress: Progress) -> ModelResult:
    identity = identify(model, settings=run.settings.get(model, {}), seed=run.seed)
    target = "cpu4-int8" if has_reference(model, model_config(identity)) else "cpu4-fp32"
    with tempfile.TemporaryDirectory(prefix="tsexport-suite-") as folder:
        return measure_model(
            plan_build(run.options(model, target, Path(folder))),
            None,
            run.pace,
            progress,
            Path(folder),
            enter=partial(make_entrants, plain_int8=False),
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
        f"idle. The run, from where it was taken up, took {duration(report.wall_seconds)}.",
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
    pace = pace_of(args)
    models, left_out = models_of(args.models)
    machine = fingerprint()
    return Run(
        models=models,
        left_out=left_out,
        settings=settings_of(args.set, models, args.seed),
        pace=pace,
        seconds=args.seconds,
        seed=args.seed,
        output=args.output or results_path("bench_models", machine),
        machine=machine,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=ROUNDS, processes=PROCESSES, max_seconds=MAX_SECONDS, seconds=SECONDS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
