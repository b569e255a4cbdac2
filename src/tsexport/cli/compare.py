"""`tsexport compare`: whether one bundle is slower than another, here and now."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tsexport.cli.output import echo, print_json, print_table, say

if TYPE_CHECKING:
    from tsexport.bench.compare_records import ComparisonResult


@click.command("compare", short_help="Say whether one bundle is slower than another, here and now.")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("candidate", type=click.Path(path_type=Path))
@click.option("--threshold", default="5%", show_default=True, help="The change that matters, written 5% or 0.05.")
@click.option("--threads", type=int, default=1, show_default=True, help="Of both sides, each bound to as many CPUs.")
@click.option("--batch", type=int, default=1, show_default=True, help="Samples of one call.")
@click.option("--max-seconds", type=float, default=120.0, show_default=True, help="For everything, the second run too.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
@click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), help="Write the result as JUnit XML.")
@click.option(
    "--summary", type=click.Path(path_type=Path, dir_okay=False),
    help="Write a Markdown summary; $GITHUB_STEP_SUMMARY gets one anyway.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
@click.pass_context
def compare(
    context: click.Context,
    base: Path,
    candidate: Path,
    threshold: str,
    threads: int,
    batch: int,
    max_seconds: float,
    seed: int,
    junit: Path | None,
    summary: Path | None,
    as_json: bool,
) -> None:
    """Time the selected artifacts of BASE and CANDIDATE against each other, in pairs of fresh processes.

    A regression is an interval of the ratio of medians that lies above the threshold and above the noise of the run,
    found twice, in two independent runs.

    \b
    Exit codes: 0 improved or unchanged, 2 the bundles cannot be compared, 4 a regression, 6 inconclusive, or one of
    them does not run here.
    """
    from tsexport.measurements.comparing import compare_bundles
    from tsexport.measurements.gating import compare_report, publish, require_writable

    require_writable(junit=junit, summary=summary)
    result = compare_bundles(
        base,
        candidate,
        threshold=threshold,
        threads=threads,
        batch=batch,
        max_seconds=max_seconds,
        seed=seed,
        progress=lambda what, fraction: say(f"{fraction:4.0%} {what}"),
    )
    if as_json:
        from tsexport.codec import to_plain

        print_json(to_plain(result))
    else:
        show(result)
    publish(compare_report(result), junit=junit, summary=summary)
    context.exit(result.exit_code)


def show(result: "ComparisonResult") -> None:
    """Print both sides, the runs, the verdict, and what it was measured on."""
    from tsexport.bench.affinity import cpus_text, threads_text

    print_table(
        ("side", "bundle", "artifact", "runtime", "median", "processes"),
        [
            (name, side.bundle, side.artifact, side.runtime, f"{side.median_ms:.4g} ms", str(len(side.medians_ms)))
            for name, side in (("base", result.base), ("candidate", result.candidate))
            if side.medians_ms
        ],
        title=f"{result.base.given} against {result.candidate.given}",
    )
    print_table(
        ("run", "pairs", "change", "confidence", "noise of processes", "noise of the machine", "verdict", "took"),
        [
            (
                ("first", "second")[number],
                str(run.processes),
                str(run.ratio),
                *(
                    f"{share:.1%}" if run.looks else "n/a"  # what was not judged has neither
                    for share in (run.ratio.confidence, run.process_floor, run.machine_floor)
                ),
                run.verdict,
                f"{run.seconds:.0f} s",
            )
            for number, run in enumerate(result.runs)
        ],
    )
    echo(f"{result.verdict}: {result.reason}")
    threads = threads_text(result.threads)
    echo(f"measured on {result.machine}, {threads} on {cpus_text(result.cpus)}, batch {result.batch}")
    echo(f"noise: {result.noise}")
