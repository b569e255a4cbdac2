"""`tsexport bench`: latency, throughput and memory of bundles on this machine, against the published tables."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tsexport.cli.output import echo, print_json, print_table, say
from tsexport.cli.profile import run_profiles
from tsexport.cli.scenario import refuse_misplaced, run_scenarios, scenario_options

if TYPE_CHECKING:
    from tsexport.measurements.benchmarking import BenchmarkResult
    from tsexport.types import Verdict

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("bench", short_help="Measure bundles and judge them against the latency tables.")
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--batch", "batches", type=int, multiple=True, help="A batch size; by default 1, 10 and 32.")
@click.option("--threads", type=int, help="By default as many as the bundle was built with, at most the cores here.")
@click.option(
    "--seconds", type=float, default=8.0, help="At most, for each artifact, runtime and batch size; a scenario's least."
)
@click.option("--table", type=_FILE, help="A latency table of your own, in place of the published ones.")
@click.option("--record", type=click.Path(path_type=Path), help="Keep the results in this folder, for `history`.")
@click.option("--commit", help="Keep them under this commit, not that of the git repository here.")
@click.option("--junit", type=_FILE, help="Write the judged rows as JUnit XML.")
@click.option("--summary", type=_FILE, help="Write a Markdown summary; $GITHUB_STEP_SUMMARY gets one anyway.")
@click.option("--container", is_flag=True, help="Within the published limits of cpu4: 3.5 CPUs and 12 GiB.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
@click.option("--profile", is_flag=True, help="In place of all that: where the time of a call goes, node by node.")
@click.option("--attach", is_flag=True, help="Keep what --scenario or --profile gave in the bundle, and on its report.")
@scenario_options
@click.pass_context
def bench(
    context: click.Context,
    bundles: tuple[Path, ...],
    batches: tuple[int, ...],
    threads: int | None,
    seconds: float,
    table: Path | None,
    record: Path | None,
    commit: str | None,
    junit: Path | None,
    summary: Path | None,
    container: bool,
    as_json: bool,
    profile: bool,
    attach: bool,
    scenario: str | None,
    qps: float | None,
    p99_ms: float | None,
    max_batch: int,
    runtime: str | None,
    growth_calls: int,
    seed: int,
) -> None:
    """Measure every artifact of each BUNDLE on every runtime that is here, in fresh processes.

    The rows of the latency tables are judged, and each artifact is held against the use cases: real-time,
    near-real-time and batch.  Of several bundles, ensembles of their models are judged too.

    Each process is bound to as many CPUs as it has threads, where the operating system can.  --container puts it into a
    cgroup with the published limits, and is refused where the machine has less, or no cgroup can be made.

    \b
    Exit codes: 0 done, 2 bad input, 4 a published row is missed, 6 none could be judged here, or no such container can
    be made.  With --scenario: 4 where memory grows or no rate holds the bound.  With --profile: 6 where no runtime here
    tells what its nodes take.
    """
    refuse_misplaced(context, scenario, profile)
    if profile:
        run_profiles(context, bundles, batches, threads, attach, as_json)
        return
    if scenario is not None:
        from tsexport.measurements.scenarios import ScenarioOptions

        given = ScenarioOptions(
            seconds=seconds,
            qps=qps,
            p99_ms=p99_ms,
            max_batch=max_batch,
            growth_calls=growth_calls,
            threads=threads,
            runtime=runtime,
            seed=seed,
        )
        run_scenarios(context, bundles, scenario, given, batches, record, attach, as_json)
        return
    from tsexport.bench.ensembles import Member, judge_ensembles
    from tsexport.bench.measure import BATCHES
    from tsexport.bench.tables import load_tables
    from tsexport.bench.verdicts import CPU4
    from tsexport.bundles.bundle import open_bundle
    from tsexport.measurements.benchmarking import benchmark_bundle
    from tsexport.measurements.gating import bench_report, publish, require_writable

    tables = load_tables(table)
    require_writable(junit=junit, summary=summary)
    results = []
    with ExitStack() as stack:
        opened = [stack.enter_context(open_bundle(path)) for path in bundles]  # all, before minutes go to the first
        for bundle in opened:
            say(f"measuring {bundle.source}")
            results.append(
                benchmark_bundle(
                    bundle,
                    batches=batches or BATCHES,
                    threads=threads,
                    max_seconds=seconds,
                    table=table,
                    record=record,
                    commit=commit,
                    in_container=container,
                    progress=lambda what, fraction: say(f"{fraction:4.0%} {what}"),
                )
            )
            if results[-1].kept is not None:
                say(f"kept as {results[-1].kept}")
    ensembles = judge_ensembles(
        tables, [Member(one.model, one.record.measurements) for one in results if one.device == CPU4]
    )
    if as_json:
        from tsexport.codec import to_plain

        document = [
            {
                "name": one.bundle,
                "device": one.device,
                "record": to_plain(one.record),
                "use_cases": to_plain(one.use_cases),
                "figures": to_plain(one.figures),
                "kept": None if one.kept is None else str(one.kept),
            }
            for one in results
        ]
        print_json({"bundles": document, "ensembles": to_plain(ensembles)})
    else:
        for one in results:
            show(one)
        if ensembles:
            show_verdicts(ensembles, "ensembles of these models")
    publish(bench_report(results, ensembles), junit=junit, summary=summary)
    codes = {one.exit_code for one in results}
    missed = any(one.status == "missed" for one in ensembles)
    context.exit(4 if missed or 4 in codes else 6 if 6 in codes and 0 not in codes else 0)


def show(result: "BenchmarkResult") -> None:
    """Print the measurements, what they are fast enough for, and the judged rows of one bundle."""
    from tsexport.bench.rows import measurement_rows
    from tsexport.bench.use_cases import use_case_rows, use_case_titles

    rows = measurement_rows(result.record.measurements)
    print_table(
        ("artifact", "runtime", "batch", "threads", "p50", "p90", "p99", "throughput", "load", "peak memory"),
        [
            (m.artifact, m.runtime, m.batch, m.threads, m.p50, m.p90, m.p99, m.throughput, m.load, m.peak_memory)
            for m in rows
        ],
        title=result.title,
    )
    if any(m.device_ms for m in result.record.measurements):
        print_table(
            ("artifact", "runtime", "batch", "device p50", "device p90", "whole call p50"),
            [(m.artifact, m.runtime, m.batch, m.device_p50, m.device_p90, m.p50) for m in rows],
            title="between two events on the GPU's stream, without copies; a whole call has both copies",
        )
    if result.use_cases:
        print_table(
            ("artifact", "runtime", "batch", "p90", "samples", *use_case_titles(result.use_cases)),
            use_case_rows(result.use_cases),
            title="fast enough for, by the p90 of a call of that batch",
        )
    show_verdicts(result.record.verdicts, "against the tables")
    _show_figures(result)
    if result.record.container is not None:
        echo(f"measured in a container of {result.record.container}")
    echo(f"noise: {result.record.noise}")


def show_verdicts(verdicts: "Sequence[Verdict]", title: str) -> None:
    """Print judged rows: pass, miss, or why not."""
    from tsexport.bench.rows import verdict_rows

    print_table(
        ("of", "budget", "device", "precision", "batch", "published", "value", "status", "reason"),
        [
            (
                f"{v.model} {v.component}".rstrip(),
                v.budget,
                v.device,
                v.precision,
                v.batch,
                v.published,
                v.value,
                v.status,
                v.reason,
            )
            for v in verdict_rows(verdicts)
        ],
        title=title,
    )


def _show_figures(result: "BenchmarkResult") -> None:
    from tsexport.bench.figures import figure_text
    from tsexport.bench.rows import status_word

    if result.figures:
        print_table(
            ("what", "published", "device", "precision", "value", "status", "reason"),
            [
                (
                    str(one.figure),
                    figure_text(one.figure),
                    one.figure.device or "",
                    one.figure.precision or "any",
                    "n/a" if one.value is None else f"{one.value:.4g} {one.figure.unit}".rstrip(),
                    status_word(one.status),
                    one.reason,
                )
                for one in result.figures
            ],
            title="sizes, memory and gains of the tables",
        )
