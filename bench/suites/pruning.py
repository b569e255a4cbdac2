"""Structured pruning: how much faster and smaller 30 % fewer channels make a model, and what the refit takes back.

Each model is built whole with `--prune 0.3` for cpu4-fp32, as a user builds it: reference checkpoint and reference
series.  The pruned fp32 ONNX is raced against the whole model's, batch 1, one thread, interleaved round by round in
fresh processes (`tsexport.bench.race`); the ratio is the median over rounds with its 95 % bootstrap interval.
Parameters, FLOPs and sizes are counted, output errors are relative RMS on windows that calibration did not see.

Goals, for `unet` and `inception-time`: at least 1.4 times the speed in ONNX Runtime, 30 % or more fewer parameters,
and a refit that takes back at least half of the output error that pruning caused.

How to run, on a quiet machine, from a checkout where tsexport is installed with its extras `build` and `quantize`:

    python bench/suites/pruning.py [--model unet] [--fraction 0.3] [--seconds 8] [--set key=value]

Results go to bench/results/pruning-<instruction set>.json and .md.
What it does not say: what training on after pruning would give, and what pruning and INT8 give together.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tsexport.bench.fingerprint import Machine, fingerprint
from tsexport.bench.race import RaceResult
from tsexport.bench.statistics import Ratio
from tsexport.bench.suites.goals import Status, status_of
from tsexport.bench.suites.report import load_text, machine_text, percent, publish, ratio_text, results_path, table
from tsexport.bundles.measured import read_measurements
from tsexport.errors import TsexportError
from tsexport.models.settings import parse_settings
from tsexport.options import BuildOptions
from tsexport.pipeline import build_bundle
from tsexport.quantize.pruning_records import PruningRecord

SCHEMA_VERSION = 1
MODELS = ("unet", "inception-time")
FRACTION = 0.3
SPEED, PARAMETERS, RECOVERED = 1.4, 0.30, 0.5


@dataclass(frozen=True)
class Row:
    """One model: what was removed, the race (`speedup` is whole / pruned in ONNX Runtime), and the goals' verdicts."""

    model: str
    pruning: PruningRecord
    race: RaceResult | None
    speedup: Ratio | None
    recovered: float
    speed: Status
    parameters: Status
    refit: Status


@dataclass(frozen=True)
class Report:
    """Everything that one run measured."""

    suite: str
    machine: Machine
    fraction: float
    settings: tuple[str, ...]
    rows: tuple[Row, ...]
    goals: tuple[float, float, float]
    load_average: tuple[float, float]
    schema_version: int = SCHEMA_VERSION


def measure(model: str, fraction: float, settings: Sequence[str], seconds: float, folder: Path) -> Row:
    """Build one model pruned, and judge it."""
    options = BuildOptions(
        model,
        "cpu4-fp32",
        folder,
        settings=parse_settings(tuple(settings)),
        formats=("onnx",),
        runtime="onnxruntime",
        batches=(1,),
        threads=1,
        seconds=seconds,
        prune=fraction,
    )
    bundle = build_bundle(options, quiet=False, say=lambda line: print(line, file=sys.stderr))
    record = bundle.manifest.pruning
    assert record is not None
    races = [one for measured in read_measurements(bundle) for one in measured.races]
    race = next((one for one in races if any(entry.artifact == "pruned-fp32" for entry in one.entries)), None)
    speedup = next((one.speedup for one in race.entries if one.artifact == "pruned-fp32"), None) if race else None
    return Row(
        model,
        record,
        race,
        speedup,
        record.recovered,
        status_of(speedup, SPEED) if speedup is not None else "not measured",
        _met((record.parameters.share_removed or 0.0) >= PARAMETERS),
        _met(record.recovered >= RECOVERED),
    )


def _met(holds: bool) -> Status:
    return "met" if holds else "missed"


def report_text(report: Report) -> str:
    """Return the tables as Markdown."""
    rows = []
    for one in report.rows:
        pruning = one.pruning
        rows.append(
            [
                one.model,
                ratio_text(one.speedup),
                *(
                    percent(change.share_removed)
                    for change in (pruning.channels, pruning.parameters, pruning.flops, pruning.size_bytes)
                ),
                percent(pruning.unrefitted.output_error),
                percent(pruning.accuracy.output_error),
                percent(one.recovered),
                percent(pruning.accuracy.degradation, signed=True),
            ]
        )
    columns = ["model", "x speed", "channels", "parameters", "FLOPs", "ONNX size"]
    columns += ["error, pruned", "error, refitted", "taken back", "metric worse by"]
    goals = [[one.model, one.speed, one.parameters, one.refit] for one in report.rows]
    return "\n".join(
        [
            f"# Pruning: {report.fraction:.0%} of the channels",
            "",
            f"{machine_text(report.machine)}; 1 thread, batch 1, interleaved; {load_text(report.load_average)}.",
            "",
            table(columns, rows),
            "",
            "x speed: fp32 ONNX in ONNX Runtime, whole / pruned, with the 95 % interval.  Channels to size: removed.",
            "",
            table(
                ["goal", f"{SPEED:g} times the speed", f"{PARAMETERS:.0%} fewer parameters", "half taken back"], goals
            ),
            "",
        ]
    )


def run(models: Sequence[str], fraction: float, settings: Sequence[str], seconds: float) -> Report:
    """Measure every model in turn."""
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="tsexport-pruning-") as folder:
        rows = tuple(measure(model, fraction, settings, seconds, Path(folder)) for model in models)
    load_average = (before, os.getloadavg()[0])
    goals = (SPEED, PARAMETERS, RECOVERED)
    return Report("pruning", fingerprint(), fraction, tuple(settings), rows, goals, load_average)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; a missed goal is no error."""
    args = _parser().parse_args(arguments)
    try:
        report = run(args.model or MODELS, args.fraction, args.settings, args.seconds)
    except TsexportError as error:
        print(f"pruning: {error}", file=sys.stderr)
        return error.exit_code
    publish(report, report_text(report), args.output or results_path(report.suite, report.machine))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help=f"by default {' and '.join(MODELS)}")
    parser.add_argument("--fraction", type=float, default=FRACTION, help="of the channels; 0.3")
    parser.add_argument("--seconds", type=float, default=8.0, help="of the race, in the units of `build --seconds`; 8")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="a smaller model"
    )
    parser.add_argument("--output", type=Path, help="the .json to write; the .md goes beside it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
