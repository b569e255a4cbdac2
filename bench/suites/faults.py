"""Kills at random points: what stands afterwards, and whether the next build succeeds.

Commands run as users run them, with folders of their own, and are ended by SIGKILL, SIGTERM or SIGINT: at moments
drawn over all the time that they take, and at changes to files, drawn over all that they make (most in the output
folder, so that packing and publishing are hit often).  After each: what stands at the output is nothing, the old or the
new, whole; no cache entry that stands is damaged; no process is left; the same command, called again, succeeds and
leaves nothing behind.

How to run, from a checkout where tsexport is installed with its extras `build` and `sign`, or as
`make bench-faults`:

    nice python bench/suites/faults.py --kills 100 --others 50 [--minutes 60]
    nice python bench/suites/faults.py --resume

`--kills` are of builds, `--others` of attach, sign, bench --record and report together.  Every kill is kept as soon as
it is there, in OUTPUT.partial beside the output; with --resume it counts where machine and seed are the same, and the
text says how many states of the code there were.
Results go to bench/results/faults-<instruction set>.json and .md.  The exit code is 1 where a promise was broken.

What it does not say: what the loss of power does (what is published was synced before, which no kill can show), or how
another file system behaves.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

from tsexport.bench.fingerprint import Machine, fingerprint
from tsexport.bench.suites.contest import Pace
from tsexport.bench.suites.fault_cases import BUILDS, MODEL, TARGET, Case, cases, make_templates
from tsexport.bench.suites.fault_records import CacheState, Draw, How, Kill, Report, SignalName, Undisturbed
from tsexport.bench.suites.fault_rounds import kill_once, undisturbed
from tsexport.bench.suites.fault_text import report_text
from tsexport.bench.suites.long_runs import Circumstances, Partial
from tsexport.bench.suites.report import publish, results_path
from tsexport.errors import TsexportError

SUITE = "faults"
Value = TypeVar("Value")
SIGNALS: tuple[tuple[SignalName, float], ...] = (("SIGKILL", 0.8), ("SIGTERM", 0.1), ("SIGINT", 0.1))
CACHES: tuple[tuple[CacheState, float], ...] = (("full", 0.5), ("part", 0.4), ("empty", 0.1))
PLACES = (("output", 0.6), ("cache", 0.3), ("temporary", 0.1))
MOMENTS = 0.5
"""The share of kills that come at moments; the others come at changes."""


@dataclass(frozen=True)
class Wanted:
    """How many kills, and from which seed."""

    kills: int
    others: int
    seed: int


def draw_all(wanted: Wanted, known: Sequence[Case]) -> list[Draw]:
    """Return all kills, those of builds and of other commands by turns; more kills begin with the same ones."""
    builds = [one for one in known if one.name in BUILDS]
    others = [one for one in known if one.name not in BUILDS]
    ours = [draw(number, wanted.seed, builds[number % len(builds)]) for number in range(wanted.kills)]
    theirs = [draw(number, wanted.seed, others[number % len(others)]) for number in range(wanted.others)]
    return [one for pair in zip_longest(ours, theirs) for one in pair if one is not None]


def draw(number: int, seed: int, case: Case) -> Draw:
    """Return kill `number` (from 0) of a command, the same for the same seed."""
    dice = random.Random(f"{seed}-{case.name}-{number}")
    how: How = "moment" if dice.random() < MOMENTS else "change"
    places = [pair for pair in PLACES if pair[0] in case.places]
    caches = [pair for pair in CACHES if pair[0] in case.caches]
    return Draw(
        number=number,
        case=case.name,
        cache=_one_of(dice, caches),
        how=how,
        place=_one_of(dice, places) if how == "change" else "",
        share=dice.random(),
        signal=_one_of(dice, SIGNALS),
    )


def _one_of(dice: random.Random, weighted: Sequence[tuple[Value, float]]) -> Value:
    return dice.choices([value for value, _ in weighted], [weight for _, weight in weighted])[0]


def run(wanted: Wanted, minutes: float, partial: Partial[Kill], *, machine: Machine, resume: bool) -> Report:
    """Make the templates, and kill as often as was asked for, or until the time is up.

    Raises:
        InconclusiveError: a command fails without any fault.
    """
    if not resume:
        partial.clear()
    circumstances = Circumstances(machine, Pace(1, 1, 1, 1.0), 0.0, wanted.seed, {}, {})
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tsexport-faults-") as folder:
        made = make_templates(Path(folder) / "made")
        known = cases(made)
        root = Path(folder) / "round"
        whole: dict[tuple[str, str], Undisturbed] = {}
        kills: list[Kill] = []
        for one in draw_all(wanted, known):
            case = next(case for case in known if case.name == one.case)
            if (one.case, one.cache) not in whole:
                whole[one.case, one.cache] = undisturbed(case, one.cache, made, root)
            kill = partial.found(one.name, circumstances)
            if kill is None:
                if time.monotonic() - began >= 60 * minutes:
                    break
                kill = kill_once(case, one, whole[one.case, one.cache], made, root)
                partial.keep(one.name, circumstances, kill)
            kills.append(kill)
            print(f"[{len(kills)}/{wanted.kills + wanted.others}] {_line(kill)}", file=sys.stderr, flush=True)
    return Report(SUITE, machine, MODEL, TARGET, wanted.seed, tuple(whole.values()), tuple(kills))


def _line(kill: Kill) -> str:
    one = kill.draw
    where = f"{one.place} {kill.after}" if one.how == "change" else f"{one.share:.0%} of the time, after {kill.after}"
    promise = "; ".join(kill.problems) or "as promised"
    return (
        f"{one.case}, cache {one.cache}, {one.signal} at {where}: "
        f"{kill.state}, next {kill.next_code} in {kill.next_seconds:.1f} s: {promise}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; return 0, 1 where a promise was broken, or the code of the error that ended it."""
    args = _parser().parse_args(arguments)
    machine = fingerprint()
    output: Path = args.output or results_path(SUITE, machine)
    partial = Partial(output.with_suffix(".partial"), Kill)
    try:
        wanted = Wanted(args.kills, args.others, args.seed)
        report = run(wanted, args.minutes, partial, machine=machine, resume=args.resume)
    except TsexportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    publish(report, report_text(report), output)
    return 1 if any(kill.problems for kill in report.kills) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=_count, default=100, help="kills of builds; 100")
    parser.add_argument("--others", type=_count, default=50, help="kills of the other commands; 50")
    parser.add_argument("--seed", type=_count, default=0, help="of what is drawn; 0")
    parser.add_argument("--minutes", type=float, default=120.0, help="no kill begins after it; 120")
    parser.add_argument("--resume", action="store_true", help="take the kills that are there already")
    parser.add_argument("--output", type=Path, help="the .json to write; the .md goes beside it")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
