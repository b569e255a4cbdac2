"""`tsexport bench`: latency, throughput and memory of bundles on this machine, against the published tables."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tsexport.cli.output import print_json, print_table, say
from tsexport.cli.scenario import run_scenarios, scenario_options

if TYPE_CHECKING:
    from tsexport.benchmarking import BenchmarkResult


@click.command("bench", short_help="Measure bundles and judge them against the latency tables.")
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--batch", "batches", type=int, multiple=True, help="A batch size; by default 1, 10 and 32.")
@click.option("--threads", type=int, help="By default as many as the bundle was built with, at most the cores here.")
@click.option("--seconds", type=float, default=8.0, help="At most, for each artifact, runtime and batch size.")
@click.option("--record", type=click.Path(path_type=Path), help="Keep the results in this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
@scenario_options
@click.pass_context
def bench(
    context: click.Context,
    bundles: tuple[Path, ...],
    batches: tuple[int, ...],
    threads: int | None,
    seconds: float,
    record: Path | None,
    as_json: bool,
    scenario: str | None,
    qps: float | None,
    p99_ms: float | None,
    max_batch: int,
    runtime: str | None,
    growth_calls: int,
    seed: int,
) -> None:
    """Measure every artifact of each BUNDLE on every runtime that is here, in fresh processes.

    \b
    Exit codes: 0 done, 4 a published row is missed, 6 none could be judged here.
    With --scenario: 4 where memory grows or no rate holds the bound.
    """
    if scenario is not None:
        from tsexport.scenarios import ScenarioOptions

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
        run_scenarios(context, bundles, scenario, given, batches, record, as_json)
        return
    from tsexport.bench.measure import BATCHES
    from tsexport.benchmarking import benchmark_bundle

    results = []
    for path in bundles:
        say(f"measuring {path}")
        results.append(
            benchmark_bundle(
                path,
                batches=batches or BATCHES,
                threads=threads,
                max_seconds=seconds,
                record=record,
                progress=lambda what, fraction: say(f"{fraction:4.0%} {what}"),
            )
        )
    if as_json:
        from tsexport.codec import to_plain

        print_json({"bundles": [{"name": one.bundle, "record": to_plain(one.record)} for one in results]})
    else:
        for one in results:
            show(one)
    codes = {one.exit_code for one in results}
    context.exit(4 if 4 in codes else 6 if 6 in codes and 0 not in codes else 0)


def show(result: "BenchmarkResult") -> None:
    """Print the measurements and the judged rows of one bundle."""
    from tsexport.bench.rows import measurement_rows, verdict_rows

    machine = result.record.machine
    print_table(
        ("artifact", "runtime", "batch", "threads", "p50", "p90", "p99", "throughput", "load", "peak memory"),
        [
            (m.artifact, m.runtime, m.batch, m.threads, m.p50, m.p90, m.p99, m.throughput, m.load, m.peak_memory)
            for m in measurement_rows(result.record.measurements)
        ],
        title=f"{result.bundle} on {machine.cpu_model}, {machine.instruction_set}",
    )
    print_table(
        ("budget", "device", "precision", "batch", "published", "value", "status", "reason"),
        [
            (v.budget, v.device, v.precision, v.batch, v.published, v.value, v.status, v.reason)
            for v in verdict_rows(result.record.verdicts)
        ],
        title="against the published tables",
    )
