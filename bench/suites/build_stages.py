"""How long the stages of a build take: cold, with an empty cache, and again with everything cached.

`tsexport build patchtst-cpu --target cpu4-int8` runs as a command of its own, first with a fresh TSEXPORT_CACHE, then
with the same one.  The stages' times are those that the build wrote into the bundle's measurements/; what the command
took besides (starting Python, imports between the stages, sealing the bundle) stands in a row of its own and counts.

Goals, on two cores, for everything but the measuring stages: under 60 s cold, under 5 s warm.

How to run, on a quiet machine, from a checkout where tsexport is installed with its extra `build`:

    python bench/suites/build_stages.py [--cold 1] [--warm 3]

Where there are more than two cores the builds are held to two of them.  Results go to
bench/results/build_stages-<instruction set>.json and .md.

What it does not say: how long the measuring stages must take (they are capped by time, not by work), how long other
models take, or what the first import after installing costs (compiled files and the disk cache are warm from the second
build on).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tsexport.bench.fingerprint import Machine, fingerprint
from tsexport.bench.records import read_record
from tsexport.bench.suites.report import machine_text, publish, results_path, table
from tsexport.errors import InconclusiveError, TsexportError

MODEL, TARGET = "patchtst-cpu", "cpu4-int8"
CORES = 2
MEASURING = "measure "
"""Stages that measure have names that begin so."""
OUTSIDE = "outside the stages (start, imports, sealing)"
SCHEMA_VERSION = 1
Kind = Literal["cold", "warm"]
GOALS: tuple[tuple[Kind, float], ...] = (("cold", 60.0), ("warm", 5.0))
"""Seconds for everything but the measuring stages."""


@dataclass(frozen=True)
class Build:
    """One build: its stages' seconds in order, and the whole command's."""

    kind: Kind
    stages: tuple[tuple[str, float], ...]
    wall_seconds: float

    @property
    def measuring_seconds(self) -> float:
        return sum(seconds for name, seconds in self.stages if name.startswith(MEASURING))

    @property
    def judged_seconds(self) -> float:
        """The whole command without the measuring stages."""
        return self.wall_seconds - self.measuring_seconds

    @property
    def outside_seconds(self) -> float:
        return self.wall_seconds - sum(seconds for _, seconds in self.stages)


@dataclass(frozen=True)
class StageGoal:
    """A goal on `judged_seconds`, over all builds of its kind: met where all hold it, missed where none does."""

    kind: Kind
    limit_seconds: float
    seconds: tuple[float, ...]
    status: Literal["met", "missed", "inconclusive", "not measured"]
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """Everything that one run measured."""

    suite: str
    machine: Machine
    cores_used: int
    model: str
    target: str
    builds: tuple[Build, ...]
    goals: tuple[StageGoal, ...]
    schema_version: int = SCHEMA_VERSION


def judge(kind: Kind, limit: float, seconds: Sequence[float], cores: int) -> StageGoal:
    """Return the goal judged; missed on fewer cores than it names is inconclusive."""
    given = tuple(seconds)
    if not given:
        return StageGoal(kind, limit, given, "not measured", "no such build was made")
    if max(given) < limit:
        return StageGoal(kind, limit, given, "met")
    if min(given) < limit:
        return StageGoal(kind, limit, given, "inconclusive", "some builds hold it, some do not")
    if cores < CORES:
        return StageGoal(kind, limit, given, "inconclusive", f"missed on {cores} of the {CORES} cores it names")
    return StageGoal(kind, limit, given, "missed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; return the exit code: 0, or that of the error that ended it.  A missed goal is no error."""
    args = _parser().parse_args(arguments)
    try:
        report = run(args.cold, args.warm, tuple(args.option))
    except TsexportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    publish(report, report_text(report), args.output or results_path("build_stages", report.machine))
    return 0


def run(cold: int, warm: int, options: tuple[str, ...]) -> Report:
    """Build `cold` times with an empty cache, then `warm` times with the last one's.

    Raises:
        InconclusiveError: a build failed.
    """
    machine = fingerprint()
    cores = _hold_to_two_cores(machine)
    total, builds = cold + warm, list[Build]()
    with tempfile.TemporaryDirectory(prefix="tsexport-stages-") as folder:
        for number in range(total):
            kind: Kind = "cold" if number < cold else "warm"
            cache = Path(folder) / f"cache-{min(number, max(cold - 1, 0))}"
            left = f", about {_expected(builds, cold - number, warm):.0f} s left" if builds else ""
            print(f"[{number + 1}/{total}] {kind} build{left}", file=sys.stderr)
            builds.append(_build(kind, cache, Path(folder) / "dist", options))
    goals = tuple(
        judge(kind, limit, [one.judged_seconds for one in builds if one.kind == kind], cores) for kind, limit in GOALS
    )
    return Report("build_stages", machine, cores, MODEL, TARGET, tuple(builds), goals)


def _expected(builds: Sequence[Build], cold_left: int, warm: int) -> float:
    """Return the seconds left, if builds go on as the last one did without what is then cached."""
    done = sum(one.kind == "warm" for one in builds)
    last = builds[-1]
    return max(cold_left, 0) * last.wall_seconds + (warm - done) * (last.measuring_seconds + dict(GOALS)["warm"])


def _hold_to_two_cores(machine: Machine) -> int:
    """Hold this process and its children to two cores where the system can; return how many they have."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
        return min(CORES, machine.usable_cores)
    return machine.usable_cores


def _build(kind: Kind, cache: Path, output: Path, options: tuple[str, ...]) -> Build:
    command = [
        sys.executable, "-m", "tsexport", "build", MODEL, "--target", TARGET, "-o", str(output), "--force",
        "--name", "bundle", *options,
    ]  # fmt: skip
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, env={**os.environ, "TSEXPORT_CACHE": str(cache)})
    wall = time.perf_counter() - started
    if done.returncode:
        raise InconclusiveError(f"the {kind} build ended with exit code {done.returncode}: {' '.join(command[1:])}")
    records = [read_record(path) for path in sorted((output / "bundle" / "measurements").glob("*.json"))]
    stages = next((one.stage_seconds for one in records if one.stage_seconds), ())
    if not stages:
        raise InconclusiveError("the bundle's measurements/ hold no times of stages")
    return Build(kind, stages, wall)


def report_text(report: Report) -> str:
    """Return the tables as Markdown."""
    names = list(dict.fromkeys(name for build in report.builds for name, _ in build.stages))
    columns = ["stage", *(f"{build.kind}, s" for build in report.builds)]
    rows = [[name, *(f"{dict(build.stages).get(name, 0.0):.2f}" for build in report.builds)] for name in names]
    rows += [
        [OUTSIDE, *(f"{build.outside_seconds:.2f}" for build in report.builds)],
        ["the whole command", *(f"{build.wall_seconds:.2f}" for build in report.builds)],
        ["the whole without measuring", *(f"{build.judged_seconds:.2f}" for build in report.builds)],
    ]
    goals = [
        [
            f"{goal.kind}, without measuring, under {goal.limit_seconds:g} s",
            ", ".join(f"{seconds:.1f} s" for seconds in goal.seconds) or "n/a",
            goal.status,
            goal.reason,
        ]
        for goal in report.goals
    ]
    return "\n".join(
        [
            f"# Stages of `tsexport build {report.model} --target {report.target}`",
            "",
            f"{machine_text(report.machine)}; held to {report.cores_used} cores.",
            "",
            table(columns, rows),
            "",
            table(["goal", "measured", "status", "why"], goals),
            "",
        ]
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cold", type=_count, default=1, help="builds with an empty cache, at least 1; 1")
    parser.add_argument("--warm", type=_count, default=3, help="builds after them with the last one's cache; 3")
    parser.add_argument(
        "--option", action="append", default=[], metavar="OPTION", help="one more word of the build's command line"
    )
    parser.add_argument("--output", type=Path, help="the .json to write; the .md goes beside it")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
