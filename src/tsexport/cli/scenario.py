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
    from tsexport.bench.scenario_records import ScenarioRecord
    from tsexport.measurements.scenarios import ScenarioOptions

Command = TypeVar("Command", bound=Callable[..., Any])
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
_PROFILE = frozenset(("bundles", "batches", "threads", "profile", "attach", "as_json"))
"""All that --profile takes."""
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


def refuse_misplaced(context: click.Context, scenario: str | None, profile: bool) -> None:
    """Refuse options that say nothing of what was asked for, since they would be ignored.

    Raises:
        click.UsageError: an option of scenarios without --scenario, of another scenario, or of the plain measurement
            with --scenario, one that --profile does not take, or --attach without either.
    """
    if profile and scenario is not None:
        raise click.UsageError("--profile and --scenario are two commands; leave one of the two out")
    if context.params["attach"] and not profile and scenario is None:
        raise click.UsageError("--attach is for --scenario or --profile alone; give it with one, or leave it out")
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        option, owners = parameter.opts[-1], _OWNERS.get(name, ())
        if profile and name not in _PROFILE:
            raise click.UsageError(f"{option} is not for --profile; leave one of the two out")
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
    attach: bool,
    as_json: bool,
) -> None:
    """Run a scenario on each bundle, print what it gave, and exit with 4 where memory grows or no rate is valid."""
    from tsexport.bundles.bundle import open_bundle
    from tsexport.codec import to_plain
    from tsexport.measurements.scenarios import run_scenario

    if len(batches) > 1 or (batches and scenario != "memory"):
        raise click.UsageError(
            "--batch with --scenario is for memory, and one: offline measures 1, 2, 4, ... 64 itself"
        )
    if batches:
        options = replace(options, batch=batches[0])
    with ExitStack() as stack:
        opened = [stack.enter_context(open_bundle(path)) for path in bundles]  # all, before minutes go to the first
        results = [run_scenario(bundle, scenario, options, record=record, attach=attach, say=say) for bundle in opened]
    if as_json:
        print_json(
            {"scenario": scenario, "bundles": [{"name": one.bundle, "record": to_plain(one)} for one in results]}
        )
    else:
        for one in results:
            show_scenario(one)
    failures = [f"{one.bundle}: {why}" for one in results if (why := one.failure)]
    for line in failures:
        echo(line, err=True)
    context.exit(4 if failures else 0)


def show_scenario(record: "ScenarioRecord") -> None:
    """Print one record as a table, its figure below it, and what a reader must know as notes."""
    from tsexport.bench.scenario_rows import scenario_table

    table = scenario_table(record)
    where = f"{record.artifact} on {record.runtime}, {threads_text(record.threads)}"
    print_table(table.columns, table.rows, title=f"{record.bundle}, {record.scenario}: {where}; {table.conditions}")
    echo(table.figure)
    for note in table.notes:
        say(f"note: {note}")
