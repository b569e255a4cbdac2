"""The options and tables of `tsexport bench --scenario`."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tsexport.bench.affinity import threads_text
from tsexport.cli.output import echo, print_json, print_table, say

if TYPE_CHECKING:
    from tsexport.bench.scenario_records import Memory, Offline, ScenarioRecord, Server, SingleStream
    from tsexport.scenarios import ScenarioOptions

Command = TypeVar("Command", bound=Callable[..., Any])
MIB = 1 << 20
_SCENARIOS = ("single-stream", "offline", "server", "memory")
_OWNERS = {
    "qps": ("server",),
    "p99_ms": ("server",),
    "max_batch": ("server",),
    "seed": ("server",),
    "growth_calls": ("memory",),
    "runtime": _SCENARIOS,
}
"""The scenarios that an option is for; no scenario takes those of `_PLAIN_ONLY`."""
_PLAIN_ONLY = frozenset(("table", "commit", "junit", "summary", "container"))
_OPTIONS = (
    click.option("--scenario", help="In place of all that: single-stream, offline, server or memory."),
    click.option("--qps", type=float, help="server: this rate alone; else the highest valid one is looked for."),
    click.option("--p99-ms", type=float, help="server: the bound; by default the published latency of the model."),
    click.option("--max-batch", type=int, default=1, help="server: answer so many waiting queries together at most."),
    click.option("--runtime", help="scenarios: this runtime's fastest artifact in place of the selected one."),
    click.option("--growth-calls", type=int, default=10_000, help="memory: calls over which growth is measured."),
    click.option("--seed", type=int, default=0, help="server: of the arrivals."),
)


def scenario_options(command: Command) -> Command:
    """Add the options of scenarios to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def refuse_misplaced(context: click.Context, scenario: str | None) -> None:
    """Refuse options that say nothing of what was asked for, since they would be ignored.

    Raises:
        click.UsageError: an option of scenarios without --scenario, of another scenario, or of the plain measurement
            with --scenario.
    """
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        option, owners = parameter.opts[-1], _OWNERS.get(name, ())
        if scenario is None and owners:
            raise click.UsageError(f"{option} is for {_scenarios(owners)} alone; give it with that, or leave it out")
        if scenario is not None and name in _PLAIN_ONLY:
            raise click.UsageError(f"{option} is for a measurement without --scenario alone; leave one of the two out")
        if scenario in _SCENARIOS and owners and scenario not in owners:
            raise click.UsageError(f"{option} is for {_scenarios(owners)} alone, and --scenario is {scenario}")
        if scenario == "memory" and name == "seconds":
            raise click.UsageError("--seconds is not for --scenario memory; it is as long as --growth-calls are many")


def _scenarios(owners: Sequence[str]) -> str:
    return f"--scenario {owners[0]}" if len(owners) == 1 else "--scenario"


def run_scenarios(
    context: click.Context,
    bundles: Sequence[Path],
    scenario: str,
    options: "ScenarioOptions",
    batches: Sequence[int],
    record: Path | None,
    as_json: bool,
) -> None:
    """Run a scenario on each bundle, print what it gave, and exit with 4 where memory grows or no rate is valid."""
    from tsexport.bundles import open_bundle
    from tsexport.codec import to_plain
    from tsexport.scenarios import failure_of, run_scenario

    if len(batches) > 1 or (batches and scenario != "memory"):
        raise click.UsageError(
            "--batch with --scenario is for memory, and one: offline measures 1, 2, 4, ... 64 itself"
        )
    if batches:
        options = replace(options, batch=batches[0])
    with ExitStack() as stack:
        opened = [stack.enter_context(open_bundle(path)) for path in bundles]  # all, before minutes go to the first
        results = [run_scenario(bundle, scenario, options, record=record, say=say) for bundle in opened]
    if as_json:
        print_json(
            {"scenario": scenario, "bundles": [{"name": one.bundle, "record": to_plain(one)} for one in results]}
        )
    else:
        for one in results:
            show_scenario(one)
    failures = [f"{one.bundle}: {why}" for one in results if (why := failure_of(one))]
    for line in failures:
        echo(line, err=True)
    context.exit(4 if failures else 0)


def show_scenario(record: "ScenarioRecord") -> None:
    """Print one record as tables."""
    where = f"{record.artifact} on {record.runtime}, {threads_text(record.threads)}"
    title = f"{record.bundle}, {record.scenario}: {where}"
    if record.single_stream is not None:
        _show_single_stream(record.single_stream, title)
    if record.offline is not None:
        _show_offline(record.offline, title)
    if record.server is not None:
        _show_server(record.server, title)
    if record.memory is not None:
        _show_memory(record.memory, title)


def _ms(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f} ms"


def _short(long_enough: bool) -> None:
    if not long_enough:
        say("note: shorter than the 600 s (Offline: and 24,576 samples) of MLPerf Inference; no MLPerf result")


def _show_single_stream(found: "SingleStream", title: str) -> None:
    print_table(
        ("queries", "seconds", "mean", "p50", "p90", "p99"),
        [
            (
                f"{found.queries:,}",
                f"{found.seconds:.1f}",
                *map(_ms, (found.mean_ms, found.p50_ms, found.p90_ms, found.p99_ms)),
            )
        ],
        title=title,
    )
    _short(found.long_enough)


def _show_offline(found: "Offline", title: str) -> None:
    print_table(
        ("batch", "calls", "p50 of a call", "p90 of a call", "samples/s"),
        [
            (str(one.batch), f"{one.calls:,}", _ms(one.p50_ms), _ms(one.p90_ms), f"{one.samples_per_s:,.1f}")
            for one in found.points
        ],
        title=title,
    )
    echo(f"Offline: {found.samples_per_s:,.1f} samples/s at batch {found.best_batch}, {found.samples:,} samples")
    _short(found.long_enough)


def _show_server(found: "Server", title: str) -> None:
    print_table(
        ("queries/s", "queries", "mean batch", "p50", "p90", "p99", "over the bound", ""),
        [
            (
                f"{run.qps:.4g}",
                f"{run.answered:,} of {run.queries:,}",
                f"{run.mean_batch:.2f}",
                *map(_ms, (run.p50_ms, run.p90_ms, run.p99_ms)),
                f"{run.over_bound:,}",
                "valid" if run.valid else "cut short" if run.cut_short else "not valid",
            )
            for run in found.runs
        ],
        title=f"{title}; p99 within {found.p99_bound_ms:g} ms ({found.bound_from}), from the scheduled arrival",
    )
    if found.max_qps is not None:
        echo(f"Server: {found.max_qps:.4g} queries/s is the highest valid rate that was tried")
    _short(all(run.long_enough for run in found.runs))


def _show_memory(found: "Memory", title: str) -> None:
    peak, growth = found.peak, found.growth
    print_table(
        ("batch", "idle session", "peak", "above idle", "calls", "at half", "at the end", "growth"),
        [
            (
                str(found.batch),
                *(f"{size / MIB:,.1f} MiB" for size in (peak.idle_bytes, peak.peak_bytes, peak.above_idle_bytes)),
                f"{growth.calls:,}",
                *(f"{size / MIB:,.2f} MiB" for size in (growth.half_bytes, growth.end_bytes)),
                f"{growth.growth_bytes / MIB:+.2f} MiB",
            )
        ],
        title=title,
    )
    if not growth.trimmed:
        say("note: this C library gives no free memory back on request, so what is free counts as held")
