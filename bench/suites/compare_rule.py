"""How often the rule of `tsexport compare` errs, by simulation: nothing is timed.

Processes are drawn instead of started: the logarithm of a process's latency is its layout, drawn once, plus noise of
2 % in every block.  Layouts spread by s between processes:

    normal      a normal distribution of standard deviation s
    two modes   slower with probability 0.3, the standard deviation is s
    odd ones    normal, and one process of twenty is slower by 20 %

Each case is a base against a candidate that is as fast, slower by the threshold itself, or by 10 %, with a second run
where the first is red, as `tsexport compare` does, within 34 pairs together.

    python bench/suites/compare_rule.py
    python bench/suites/compare_rule.py --runs 1000

Results go to bench/results/compare_rule.json and .md.  What it does not say: how layouts really spread; for that see
bench/suites/compare_calibration.py.  The bootstrap has fewer resamples here than in the command, for time's sake, which
makes intervals a little narrower, and errors a little more frequent.
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tsexport.bench.compare_records import ComparisonVerdict
from tsexport.bench.comparing_rule import LOOKS, PairTimes, judge_pairs
from tsexport.bench.suites.report import RESULTS, publish, table

Generator = np.random.Generator
Floats = NDArray[np.float64]

RUNS, RESAMPLES = 200, 2000
THRESHOLD, ROUNDS, WITHIN, IDLE = 0.05, 6, 0.02, 0.003
PAIRS = 34
"""What fits into 120 s where a pair takes 3.5 s."""
SPREADS = (0.01, 0.02, 0.04)
CHANGES = (0.0, THRESHOLD, 0.10)
SCHEMA_VERSION = 1


def _normal(generator: Generator, s: float) -> Floats:
    return generator.normal(0.0, s, 2)


def _two_modes(generator: Generator, s: float) -> Floats:
    return np.where(generator.random(2) < 0.3, s / math.sqrt(0.3 * 0.7), 0.0)


def _odd_ones(generator: Generator, s: float) -> Floats:
    return generator.normal(0.0, s, 2) + np.where(generator.random(2) < 0.05, 0.2, 0.0)


LAYOUTS: Mapping[str, Callable[[Generator, float], Floats]] = {
    "normal": _normal,
    "two modes": _two_modes,
    "odd ones": _odd_ones,
}


@dataclass(frozen=True)
class Case:
    """What came out of `runs` simulated comparisons; `first_red` counts first runs that were red."""

    layout: str
    spread: float
    change: float
    runs: int
    regression: int
    improved: int
    unchanged: int
    inconclusive: int
    first_red: int
    mean_pairs: float


@dataclass(frozen=True)
class Report:
    """Every case, as it is written to JSON."""

    suite: str
    threshold: float
    resamples: int
    cases: tuple[Case, ...]
    schema_version: int = SCHEMA_VERSION


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS, help=f"of each case; {RUNS}")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn; 0")
    parser.add_argument("--output", type=Path, default=RESULTS / "compare_rule.json", help="the .json to write")
    args = parser.parse_args(arguments)
    if args.runs < 1 or args.seed < 0:
        parser.error("--runs is a whole number from 1 on, --seed from 0 on")
    cases = []
    for change in CHANGES:
        for layout in LAYOUTS:
            for spread in SPREADS:
                cases.append(simulate(layout, spread, change, args.runs, args.seed))
                print(cases[-1], file=sys.stderr)
    report = Report("compare_rule", THRESHOLD, RESAMPLES, tuple(cases))
    publish(report, text_of(report), args.output)
    return 0


def simulate(layout: str, spread: float, change: float, runs: int, seed: int) -> Case:
    """Return what comes out of so many comparisons of a candidate that is slower by `change`."""
    generator = np.random.default_rng([seed, list(LAYOUTS).index(layout), round(1000 * spread), round(1000 * change)])
    verdicts: Counter[ComparisonVerdict] = Counter()
    first_red, pairs = 0, 0
    for _ in range(runs):
        verdict, used = _one_run(generator, layout, spread, change, LOOKS[-1])
        if verdict == "regression":
            first_red += 1
            second, more = _one_run(generator, layout, spread, change, max(LOOKS[0], PAIRS - used))
            verdict, used = ("regression" if second == "regression" else "inconclusive"), used + more
        verdicts[verdict] += 1
        pairs += used
    return Case(
        layout, spread, change, runs, verdicts["regression"], verdicts["improved"], verdicts["unchanged"],
        verdicts["inconclusive"], first_red, pairs / runs,
    )  # fmt: skip


def draw_pair(generator: Generator, layout: str, spread: float, change: float) -> PairTimes:
    """Return one drawn pair of processes."""
    ours, theirs = LAYOUTS[layout](generator, spread)
    base = np.exp(ours + generator.normal(0.0, WITHIN, (ROUNDS, 2)))
    candidate = np.exp(math.log1p(change) + theirs + generator.normal(0.0, WITHIN, (ROUNDS, 2)))
    idle = np.exp(generator.normal(0.0, IDLE, (2, ROUNDS, 2)))
    return PairTimes(_rounds(base), _rounds(candidate), _rounds(idle[0]), _rounds(idle[1]), 2)


def _one_run(
    generator: Generator, layout: str, spread: float, change: float, most: int
) -> tuple[ComparisonVerdict, int]:
    """Return the verdict of one run of at most `most` pairs, and how many it took."""
    pairs: list[PairTimes] = []
    for look in (*(look for look in LOOKS if look < most), min(most, LOOKS[-1])):
        while len(pairs) < look:
            pairs.append(draw_pair(generator, layout, spread, change))
        found = judge_pairs(pairs, threshold=THRESHOLD, seed=look, resamples=RESAMPLES)
        if found.verdict != "inconclusive":
            return found.verdict, look
    return "inconclusive", len(pairs)


def _rounds(values: Floats) -> tuple[tuple[float, float], ...]:
    return tuple((float(one), float(other)) for one, other in values)


def text_of(report: Report) -> str:
    """Return the report as Markdown."""
    rows = [
        (
            f"{case.change:.0%}",
            case.layout,
            f"{case.spread:.0%}",
            *(
                f"{100 * count / case.runs:.3g} %"
                for count in (case.first_red, case.regression, case.improved, case.unchanged, case.inconclusive)
            ),
            f"{case.mean_pairs:.1f}",
        )
        for case in report.cases
    ]
    columns = (
        "truly slower by", "layouts", "spread s", "first run red", "regression", "improved", "unchanged",
        "inconclusive", "pairs, mean",
    )  # fmt: skip
    return "\n".join(
        [
            "# How often the rule of tsexport compare errs, by simulation",
            "",
            f"Threshold {report.threshold:.0%}, {report.cases[0].runs} simulated comparisons of each case, "
            f"{WITHIN:.0%} noise in every block.  Nothing was timed.",
            "",
            table(columns, rows),
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
