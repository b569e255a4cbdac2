"""How often `tsexport compare` is right: many runs on two copies of one bundle, and on a bundle that is slowed.

    same     a bundle and a copy of it, through `tsexport compare` as a user runs it: never red, and unchanged in at
             least 95 of 100
    slower   a bundle and itself, whose every call takes 10 % longer (bench/suites/slowed_worker.py waits, busy): caught
             in at least 95 of 100

The wait is calibrated: a fixed number of nanoseconds, that share of the median that the base had in the run before.
What it really was, held against the base's median in the same run, stands in the table.

How to run, on a quiet machine, from a checkout where tsexport is installed with its extra `build`, or as
`make bench-compare`:

    python bench/suites/compare_calibration.py --minutes 60
    python bench/suites/compare_calibration.py --resume --minutes 60      # goes on where it was stopped
    python bench/suites/compare_calibration.py --resume --minutes 0       # reports what is there

The two kinds take turns, so that whenever it is stopped there are as many of both.  Every run is kept as soon as it is
there, in OUTPUT.partial beside the output, and so is the bundle that was built for it: another build might select
another artifact.  A run counts again where machine, packages, bundle and settings are the same.
Results go to bench/results/compare_calibration-<instruction set>.json and .md.

What it does not say: anything about another machine, or about a model whose processes differ more from each other.
With fewer than 100 runs the table says how many there were; the bounds of every share are exact (Clopper and Pearson,
95 %, two-sided).
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Literal

from tsexport.bench.affinity import choose_cpus, threads_text
from tsexport.bench.compare_records import ComparisonRun, ComparisonVerdict, Slowdown
from tsexport.bench.comparing import MOST_ROUNDS, Contender, Limits, Setting, compare_contenders
from tsexport.bench.comparing_rule import LOOKS
from tsexport.bench.fingerprint import Machine, fingerprint
from tsexport.bench.noise import MachineNoise, NoiseWatch
from tsexport.bench.suites.contest import Pace
from tsexport.bench.suites.long_runs import Circumstances, Partial
from tsexport.bench.suites.report import machine_text, publish, results_path, table
from tsexport.bundles.bundle import Bundle, open_bundle
from tsexport.bundles.golden import INPUTS, read_golden
from tsexport.errors import ConfigurationError, TsexportError
from tsexport.measurements.comparing import MAX_SECONDS, THRESHOLD, compare_bundles, conclude, parse_threshold
from tsexport.options import BuildOptions
from tsexport.pipeline import build_bundle, bundle_name

SUITE = "compare_calibration"
MODEL, TARGET = "patchtst-cpu", "cpu4-int8"
RUNS, SLOWDOWN, ENOUGH = 100, "10%", 0.95
SCHEMA_VERSION = 1
Kind = Literal["same", "slower"]
KINDS: tuple[Kind, ...] = ("same", "slower")


@dataclass(frozen=True)
class KeptRun:
    """One comparison.  `delay_ns` is what every call of the candidate waited, 0 where it is a copy."""

    kind: Kind
    verdict: ComparisonVerdict
    reason: str
    ratio: Slowdown
    noise_floor: float
    runs: tuple[ComparisonRun, ...]
    seconds: float
    delay_ns: int
    noise: MachineNoise

    @property
    def base_median_ms(self) -> float:
        return median(self.runs[-1].base_medians_ms)

    @property
    def real_slowdown(self) -> float:
        """The wait as a share of the base's median in the same run."""
        return self.delay_ns / 1e6 / self.base_median_ms


@dataclass(frozen=True)
class Share:
    """How many of `runs` came out as they should, with exact 95 % bounds, and what is asked for."""

    what: str
    count: int
    runs: int
    low: float
    high: float
    asked: str


@dataclass(frozen=True)
class Report:
    """Everything that was measured, as it is written to JSON."""

    suite: str
    machine: Machine
    bundle: str
    artifact: str
    runtime: str
    threads: int
    cpus: tuple[int, ...]
    threshold: float
    slowdown: float
    wanted: int
    shares: tuple[Share, ...]
    runs: tuple[KeptRun, ...]
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Plan:
    """What is compared, and how."""

    bundle: Bundle
    copy: Path
    machine: Machine
    threads: int
    cpus: tuple[int, ...]
    threshold: float
    slowdown: float
    max_seconds: float
    seed: int

    @property
    def circumstances(self) -> Circumstances:
        selection = self.bundle.selection
        return Circumstances(
            self.machine,
            Pace(self.threads, MOST_ROUNDS, LOOKS[-1], self.max_seconds),
            0.0,
            self.seed,
            {},
            {
                "artifact": self.bundle.artifact(selection.artifact).sha256,
                "runtime": selection.runtime,
                "threshold": self.threshold,
                "slowdown": self.slowdown,
                "looks": list(LOOKS),
            },
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; return 0, or the code of the error that ended it.  A missed share is no error: it is reported."""
    args = _parser().parse_args(arguments)
    machine = fingerprint()
    output = args.output or results_path(SUITE, machine)
    partial = Partial(output.with_suffix(".partial"), KeptRun)
    if not args.resume:
        partial.clear()
    try:
        with tempfile.TemporaryDirectory(prefix="tsexport-calibration-") as folder:
            plan = _plan(args, machine, partial.folder, Path(folder))
            runs = measure(plan, args.runs, args.minutes, partial)
            report = report_of(plan, runs, args.runs)
    except TsexportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    publish(report, text_of(report), output)
    return 0


def measure(plan: Plan, wanted: int, minutes: float, partial: Partial[KeptRun]) -> tuple[KeptRun, ...]:
    """Return `wanted` runs of each kind, or as many as there are when the time is up; no run begins after it."""
    began = time.monotonic()
    done: list[KeptRun] = []
    for number in range(wanted):
        for kind in KINDS:
            name = f"{number + 1:03d}-{kind}"
            run = partial.found(name, plan.circumstances)
            if run is None:
                if time.monotonic() - began >= 60 * minutes:
                    continue
                run = run_once(plan, kind, number, base_median_ms=done[-1].base_median_ms if done else None)
                partial.keep(name, plan.circumstances, run)
            done.append(run)
            print(f"{name}: {run.verdict}, {run.ratio}, {run.seconds:.0f} s", file=sys.stderr)
    return tuple(done)


def run_once(plan: Plan, kind: Kind, number: int, base_median_ms: float | None) -> KeptRun:
    """Run one comparison; `base_median_ms` is what a slowed one is calibrated by (from the run before)."""
    if kind == "same":
        result = compare_bundles(
            plan.bundle,
            plan.copy,
            threshold=plan.threshold,
            threads=plan.threads,
            max_seconds=plan.max_seconds,
            seed=plan.seed + number,
        )
        return KeptRun(
            kind, result.verdict, result.reason, result.ratio, result.noise_floor, result.runs, result.seconds, 0,
            result.noise,
        )  # fmt: skip
    if base_median_ms is None:
        raise ConfigurationError("a slowed run is calibrated by the run before it, and there is none")
    delay_ns = round(plan.slowdown * base_median_ms * 1e6)
    began, manifest, selection = time.perf_counter(), plan.bundle.manifest, plan.bundle.selection
    base = Contender(plan.bundle.artifact(selection.artifact), selection.runtime)
    command = (sys.executable, "-P", str(Path(__file__).with_name("slowed_worker.py")), str(delay_ns))
    feeds = read_golden(plan.bundle.path, INPUTS, manifest.artifacts[0].inputs, manifest.golden.samples)
    watch = NoiseWatch(plan.cpus)
    runs = compare_contenders(
        base,
        replace(base, command=command),
        Setting(feeds, 1, plan.threads, plan.cpus),
        Limits(plan.threshold, plan.max_seconds, plan.seed + number),
        watch=watch,
    )
    verdict, reason = conclude(runs)
    return KeptRun(
        kind, verdict, reason, runs[-1].ratio, runs[-1].noise_floor, runs, time.perf_counter() - began, delay_ns,
        watch.record(),
    )  # fmt: skip


def report_of(plan: Plan, runs: tuple[KeptRun, ...], wanted: int) -> Report:
    """Return the record of what was measured, with the shares that are asked for."""
    selection = plan.bundle.selection
    same = [run.verdict for run in runs if run.kind == "same"]
    slower = [run.verdict for run in runs if run.kind == "slower"]
    enough = f"at least {ENOUGH:.0%}"
    shares = (
        share("two copies: a regression", same.count("regression"), len(same), "never"),
        share("two copies: unchanged", same.count("unchanged"), len(same), enough),
        share(f"slower by {plan.slowdown:.0%}: a regression", slower.count("regression"), len(slower), enough),
    )
    return Report(
        SUITE, plan.machine, plan.bundle.manifest.name, selection.artifact, selection.runtime, plan.threads, plan.cpus,
        plan.threshold, plan.slowdown, wanted, shares, runs,
    )  # fmt: skip


def share(what: str, count: int, runs: int, asked: str) -> Share:
    """Return a share with its exact bounds (Clopper and Pearson); of no runs anything may be true."""
    if runs == 0:
        return Share(what, 0, 0, 0.0, 1.0, asked)
    from scipy.stats import binomtest  # comes with nncf

    bounds = binomtest(count, runs).proportion_ci(0.95, method="exact")
    return Share(what, count, runs, float(bounds.low), float(bounds.high), asked)


def text_of(report: Report) -> str:
    """Return the report as Markdown."""
    shares = table(
        ("what comes out", "runs", "share", "95 % bounds", "asked for"),
        [
            (
                one.what,
                f"{one.count} of {one.runs}",
                f"{one.count / one.runs:.0%}" if one.runs else "not measured",
                f"{one.low:.1%} to {one.high:.1%}" if one.runs else "not measured",
                one.asked,
            )
            for one in report.shares
        ],
    )
    kinds = table(
        ("runs", *("regression", "improved", "unchanged", "inconclusive"), "median ratio", "seconds, median (most)"),
        [_kind_cells(kind, [run for run in report.runs if run.kind == kind]) for kind in KINDS],
    )
    lines = ["# How often tsexport compare is right", "", machine_text(report.machine), "", shares, "", kinds, ""]
    return "\n".join([*lines, *(f"- {note}" for note in _notes(report)), ""])


def _kind_cells(kind: Kind, runs: Sequence[KeptRun]) -> tuple[str, ...]:
    verdicts = [run.verdict for run in runs]
    counts = [str(verdicts.count(one)) for one in ("regression", "improved", "unchanged", "inconclusive")]
    if not runs:
        return (kind, *counts, "n/a", "n/a")
    seconds = [run.seconds for run in runs]
    ratio = f"{median(run.ratio.value for run in runs):.3f}"
    return (kind, *counts, ratio, f"{median(seconds):.0f} ({max(seconds):.0f})")


def _notes(report: Report) -> list[str]:
    counts = " and ".join(f"{sum(run.kind == kind for run in report.runs)} {kind}" for kind in KINDS)
    notes = [
        f"{counts} of {report.wanted} each; {report.artifact} of {report.bundle} on {report.runtime}, "
        f"{threads_text(report.threads)}, batch 1, threshold {report.threshold:.0%}.",
    ]
    if delays := [run.real_slowdown for run in report.runs if run.kind == "slower"]:
        notes.append(f"the wait was {min(delays):.1%} to {max(delays):.1%} of the base's median in the same run.")
    if report.runs:
        noise = [run.noise for run in report.runs]
        jitters = [one.jitter for one in noise if one.jitter is not None]
        others = [one.other_programs for one in noise if one.other_programs is not None]
        steals = [one.steal for one in noise if one.steal is not None]
        notes.append(
            f"noise over the runs, median (most): idle loop jitter {_span(jitters)}, other programs on these CPUs "
            f"{_span(others)}, steal {_span(steals)}."
        )
    notes += [f"{run.kind}, {run.verdict}: {run.reason}" for run in report.runs if run.verdict != _expected(run.kind)]
    return notes


def _expected(kind: Kind) -> ComparisonVerdict:
    return "unchanged" if kind == "same" else "regression"


def _span(values: Sequence[float]) -> str:
    return f"{median(values):.1%} ({max(values):.1%})" if values else "n/a"


def _plan(args: argparse.Namespace, machine: Machine, partial: Path, folder: Path) -> Plan:
    if min(args.runs, args.threads) < 1 or args.minutes < 0 or args.max_seconds <= 0 or args.seed < 0:
        raise ConfigurationError(
            "--runs and --threads are whole numbers from 1 on, --max-seconds is above 0, --minutes and --seed from 0 on"
        )
    bundle = _kept_bundle(partial / "bundle", args.threads) if args.bundle is None else open_bundle(args.bundle)
    copy = folder / "copy" / bundle.path.name
    shutil.copytree(bundle.path, copy)
    return Plan(
        bundle, copy, machine, args.threads, choose_cpus(args.threads), parse_threshold(args.threshold),
        parse_threshold(args.slowdown), args.max_seconds, args.seed,
    )  # fmt: skip


def _kept_bundle(folder: Path, threads: int) -> Bundle:
    """Return the bundle that an earlier run built for itself, or build it."""
    kept = folder / bundle_name(MODEL, TARGET, "host")
    if kept.is_dir():
        return open_bundle(kept)
    return build_bundle(BuildOptions(MODEL, TARGET, folder, threads=threads, seed=0), quiet=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help=f"a bundle; by default {MODEL} for {TARGET} is built")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"of each kind; {RUNS}")
    parser.add_argument("--minutes", type=float, default=600.0, help="no run begins after it; 600")
    parser.add_argument("--slowdown", default=SLOWDOWN, help=f"of the slowed bundle; {SLOWDOWN}")
    parser.add_argument("--threshold", default=f"{THRESHOLD:.0%}", help=f"as tsexport compare's; {THRESHOLD:.0%}")
    parser.add_argument("--max-seconds", type=float, default=MAX_SECONDS, help=f"as compare's; {MAX_SECONDS:g}")
    parser.add_argument("--threads", type=int, default=1, help="of both sides; 1")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstraps; 0")
    parser.add_argument("--resume", action="store_true", help="take the runs that are there already")
    parser.add_argument("--output", type=Path, help="the .json to write; the .md goes beside it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
