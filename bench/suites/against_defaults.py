"""tsexport's artifacts against what a user gets by default, side by side.

For each model one table, measured in interleaved rounds over several fresh processes of every contestant:

    eager                the module in torch: eval mode, inference mode, fast path of nn.TransformerEncoder on
    plain TorchScript    torch.jit.trace, saved and loaded as it is
    plain ONNX Runtime   torch.onnx.export (opset 17, dynamo=False, dynamic batch), default session options
    quantize_dynamic     ONNX Runtime's quantize_dynamic on that file, all defaults
    plain OpenVINO       that file compiled by OpenVINO, default hints (on a CPU with bf16 also with f32 stated)
    tsexport selected    the selected artifact of a cpu4-int8 bundle, as tsexport.load loads it
    tsexport fastest fp32   the same bundle's fastest fp32 artifact, where that is not the selected one

Then the project's goals, each with its 95 % interval: "met" only where the whole interval holds it.

How to run, on a quiet machine, from a checkout where tsexport is installed with its extra `build` (`make bench`):

    python bench/suites/against_defaults.py
    python bench/suites/against_defaults.py --models patchtst-cpu --processes 5 --bundle dist/patchtst-cpu-cpu4-int8

Results go to bench/results/against_defaults-<instruction set>.json and .md.

What it does not say: anything about another machine, about batches above 1, about more than one thread unless
--threads says so, about models with other weights (patchtst, dlinear and linear are untrained here: their errors mean
little), or about a server under load.  Every call times the session alone, its feeds ready in memory.  What tsexport's
session checks at every call counts as its own time; the plain ones check nothing.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsexport.bench.fingerprint import Machine, fingerprint
from tsexport.bench.suites.contest import BATCH, Pace
from tsexport.bench.suites.goals import Conditions, Judged, judge_goals
from tsexport.bench.suites.one_model import measure_model, steps_of
from tsexport.bench.suites.report import goals_text, machine_text, model_text, publish, results_path
from tsexport.bench.suites.rows import ModelResult
from tsexport.bundles.bundle import Bundle, open_bundle
from tsexport.cache import default_root
from tsexport.errors import ConfigurationError, TsexportError, UsageError
from tsexport.models.settings import parse_settings
from tsexport.options import BuildOptions
from tsexport.pipeline import plan_build
from tsexport.progress import Progress

MODELS = ("patchtst-cpu", "patchtst", "dlinear", "linear")
TARGET = "cpu4-int8"
ROUNDS, PROCESSES, MAX_SECONDS = 30, 3, 120.0
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Report:
    """Everything that one run measured, as it is written to JSON."""

    suite: str
    machine: Machine
    threads: int
    batch: int
    settings: Mapping[str, Any]
    models: tuple[ModelResult, ...]
    goals: tuple[Judged, ...]
    schema_version: int = SCHEMA_VERSION


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; return the exit code: 0, or that of the error that ended it.  A missed goal is no error."""
    args = _parser().parse_args(arguments)
    try:
        report = run(args)
    except TsexportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    text = "\n".join(
        [
            "# tsexport against what the tools give by default",
            "",
            machine_text(report.machine),
            "",
            "Times are of single calls; 'x' columns say how many times faster, with 95 % intervals.",
            "",
            *(model_text(one, report.machine, report.threads) for one in report.models),
            goals_text(report.goals, report.machine),
        ]
    )
    publish(report, text, args.output or results_path(report.suite, report.machine))
    return 0


def run(args: argparse.Namespace) -> Report:
    """Measure every model that was asked for.

    Raises:
        TsexportError: a model, setting or bundle that cannot be used.
    """
    models = [name for name in args.models.split(",") if name]
    settings = parse_settings(args.set)
    if args.seed < 0 or min(args.threads, args.rounds, args.processes) < 1:
        raise ConfigurationError("--threads, --rounds and --processes are whole numbers from 1 on, --seed from 0 on")
    machine = fingerprint()
    bundles = _bundles(args.bundle, models)
    pace = Pace(args.threads, args.rounds, args.processes, args.max_seconds)
    conditions = Conditions(machine.instruction_set, machine.vnni, args.threads, BATCH, not settings)
    steps = [step for model in models for step in steps_of(model, pace, with_build=model not in bundles)]
    progress = Progress(steps, memory=default_root() / "times" / "against_defaults.json")
    results = []
    for model in models:
        with tempfile.TemporaryDirectory(prefix="tsexport-suite-") as folder:
            options = BuildOptions(
                model, TARGET, Path(folder), settings=settings, threads=args.threads, batches=(BATCH,), seed=args.seed
            )
            results.append(measure_model(plan_build(options), bundles.get(model), pace, progress, Path(folder)))
    progress.remember()
    goals = tuple(one for result in results for one in judge_goals(result, conditions))
    return Report("against_defaults", machine, args.threads, BATCH, settings, tuple(results), goals)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help=f"names with commas; by default {','.join(MODELS)}")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of every model")
    parser.add_argument("--threads", type=int, default=1, help="threads of every contestant; 1")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"interleaved rounds of each process; {ROUNDS}")
    parser.add_argument("--processes", type=int, default=PROCESSES, help=f"fresh processes of each; {PROCESSES}")
    parser.add_argument(
        "--max-seconds", type=float, default=MAX_SECONDS, help=f"no new round after it, per process; {MAX_SECONDS:g}"
    )
    parser.add_argument("--bundle", action="append", default=[], type=Path, help="a cpu4-int8 bundle, not built anew")
    parser.add_argument("--seed", type=int, default=0, help="of drawn windows and untrained weights; 0")
    parser.add_argument("--output", type=Path, help="the .json to write; the .md goes beside it")
    return parser


def _bundles(paths: Sequence[Path], models: Sequence[str]) -> dict[str, Bundle]:
    """Return the given bundles by their model's name."""
    bundles = {}
    for path in paths:
        bundle = open_bundle(path)
        model = bundle.manifest.model.name
        if model not in models:
            raise UsageError(f"{path} is a bundle of {model}, which is not among --models {','.join(models)}")
        bundles[model] = bundle
    return bundles


if __name__ == "__main__":
    sys.exit(main())
