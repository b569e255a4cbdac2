"""What tsexport selects for cpu4-int8, against what a user gets from the other tools' defaults.

For each model, interleaved in one run, one thread, batch 1:

    plain ONNX Runtime       torch.onnx.export (opset 17, dynamo=False, dynamic batch), default session options
    quantize_static          ONNX Runtime's, QDQ, all defaults, after quant_pre_process, on our calibration windows
    quantize_dynamic         ONNX Runtime's, all defaults
    plain OpenVINO           the plain ONNX file, hints as they come (bf16 where the CPU has it), and with f32 stated
    NNCF                     nncf.quantize in OpenVINO, all defaults; for transformers also model_type=TRANSFORMER
    Olive auto-opt           int8, in an environment of its own: --olive-python; without it "not run"
    tsexport selected        the selected artifact of a cpu4-int8 bundle, and its fastest fp32 one

each with latency, intervals, file size, memory, relative RMS error of the worst output and the change of the task
metric on the evaluation windows.  A tool that fails on a model is a row with its reason.  `goals_of_int8.py` says what
is judged; below each model stands what its build tried, with ratios and reasons.

How to run, on a quiet machine, from a checkout where tsexport is installed with its extras `build` and `quantize`, or
as `make bench-int8`:

    python bench/suites/int8_defaults.py --olive-python olive/bin/python
    python bench/suites/int8_defaults.py --models lstm,unet --rounds 4 --processes 2
    python bench/suites/int8_defaults.py --resume

A model's result is kept as soon as it is there (see `long_runs.py`).  Results go to
bench/results/int8_defaults-<instruction set>.json and .md.

What it does not say: anything about another instruction set, batches above 1, more threads than --threads says, or
models with other weights.  Models without a checkpoint of their own are untrained: their errors are a guide.  The
tools' options beyond their defaults are not tried, save NNCF's type for transformers.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsexport.bench.affinity import threads_text
from tsexport.bench.fingerprint import Machine, fingerprint
from tsexport.bench.suites.contest import BATCH, Pace
from tsexport.bench.suites.default_contest import DefaultTools
from tsexport.bench.suites.goals import Judged
from tsexport.bench.suites.goals_of_int8 import judge_int8, switches_set
from tsexport.bench.suites.int8_report import busy_text, by_budget_text, contestants_text, overview_text, tried_text
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
from tsexport.bench.suites.report import (
    goals_text,
    machine_text,
    notes_text,
    publish,
    results_path,
    table,
)
from tsexport.bench.suites.rows import ModelResult
from tsexport.errors import TsexportError, UsageError
from tsexport.pipeline import plan_build
from tsexport.progress import Progress, duration

SUITE = "int8_defaults"
TARGET = "cpu4-int8"
ROUNDS, PROCESSES, MAX_SECONDS, SECONDS = 10, 3, 120.0, 2.0
ACCURACY_SECONDS = 20.0
"""For each contestant's errors."""
BUILD_SECONDS, TOOLS_SECONDS = 180.0, 60.0
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
    switches: Mapping[str, str]
    models: tuple[ModelResult, ...]
    failures: tuple[Failure, ...]
    left_out: tuple[Failure, ...]
    goals: tuple[Judged, ...]
    wall_seconds: float
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Int8Run(Run):
    """A run with the Python of Olive's environment; `switches` are variables that keep a library from the CPU's
    instructions."""

    olive: Path | None
    switches: Mapping[str, str]

    @property
    def beside(self) -> Mapping[str, Any]:
        return {"olive": self.olive is not None, **self.switches}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; return the exit code: 0, or that of the error that ended it.  A missed goal is no error."""
    args = _parser().parse_args(arguments)
    try:
        run = run_of(args)
        report = measure_all(run, resume=args.resume)
    except TsexportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    publish(report, report_text(report), run.output)
    run.partial.clear()
    return 0


def measure_all(run: Int8Run, *, resume: bool) -> Report:
    """Measure every model of a run, or take its result from the run before."""
    began = time.perf_counter()
    results, failures = measure_run(
        run,
        SUITE,
        lambda model: steps_of(
            model, run.pace, with_build=True, build_seconds=BUILD_SECONDS, exports_seconds=TOOLS_SECONDS
        ),
        lambda model, progress: _measure(run, model, progress),
        resume=resume,
    )
    return Report(
        suite=SUITE,
        machine=run.machine,
        pace=run.pace,
        batch=BATCH,
        seconds=run.seconds,
        settings=run.settings,
        switches=run.switches,
        models=results,
        failures=failures,
        left_out=run.left_out,
        goals=judge_int8(results, run.conditions, run.switches),
        wall_seconds=time.perf_counter() - began,
    )


def _measure(run: Int8Run, model: str, progress: Progress) -> ModelResult:
    with tempfile.TemporaryDirectory(prefix="tsexport-suite-") as folder:
        plan = plan_build(run.options(model, TARGET, Path(folder)))
        calibration = plan.context.calibration
        assert calibration is not None, "a plan for int8 has calibration windows"
        tools = DefaultTools(calibration.dataset, run.olive)
        return measure_model(
            plan, None, run.pace, progress, Path(folder), enter=tools.enter, accuracy_seconds=ACCURACY_SECONDS
        )


def report_text(report: Report) -> str:
    """Return the report: goals, the overview, what is absent, and each model's contestants and candidates."""
    absent = [*report.failures, *report.left_out]
    parts = [
        "# INT8: what tsexport selects, against the other tools' defaults",
        machine_text(report.machine),
        f"Milliseconds are p50 of single calls at batch {report.batch}, {threads_text(report.pace.threads)}, "
        f"{report.pace.processes} fresh processes of each contestant, interleaved; 'x' columns say how many times "
        f"faster, with 95 % intervals. The run, from where it was taken up, took {duration(report.wall_seconds)}.",
        "".join(
            f"{name}={value} was set: it keeps one library from this CPU's instructions. "
            for name, value in sorted(report.switches.items())
        ),
        busy_text(report.models, report.machine.usable_cores),
        goals_text(report.goals, report.machine),
        overview_text(report.models) if report.models else "",
        "## Not measured\n\n" + table(("model", "why"), [(one.model, one.reason) for one in absent]) if absent else "",
        *(_model_text(one, report) for one in report.models),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _model_text(result: ModelResult, report: Report) -> str:
    notes = [one for one in (by_budget_text(result), result.why) if one]
    tried = tried_text(result.tried)
    parts = [
        f"## {result.model}",
        contestants_text(result),
        notes_text(result, report.machine, report.pace.threads, notes),
        f"What the build tried, by its own measurements against its fastest fp32 artifact:\n\n{tried}" if tried else "",
    ]
    return "\n\n".join(part for part in parts if part)


def run_of(args: argparse.Namespace) -> Int8Run:
    """Check what was asked for.

    Raises:
        UsageError, ConfigurationError: unknown models or settings, numbers out of range, no Python for Olive.
    """
    pace = pace_of(args)
    models, left_out = models_of(args.models)
    settings = settings_of(args.set, models, args.seed)
    if args.olive_python is not None and not args.olive_python.is_file():
        raise UsageError(
            f"--olive-python {args.olive_python} is not a file; expected the Python of an environment with Olive",
            next_step="make one of bench/suites/requirements.txt, and name its bin/python",
        )
    machine = fingerprint()
    return Int8Run(
        models=models,
        left_out=left_out,
        settings=settings,
        pace=pace,
        seconds=args.seconds,
        seed=args.seed,
        output=args.output or results_path(SUITE, machine),
        machine=machine,
        olive=args.olive_python.absolute() if args.olive_python else None,
        switches=switches_set(os.environ),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=ROUNDS, processes=PROCESSES, max_seconds=MAX_SECONDS, seconds=SECONDS)
    parser.add_argument("--olive-python", type=Path, help="the Python of Olive's environment; without it, not run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
