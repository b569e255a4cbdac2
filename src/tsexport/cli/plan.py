"""`tsexport build --plan`: many builds, and one table of what became of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsexport.cli.output import echo, print_json, print_table, say, verbosity

if TYPE_CHECKING:
    from tsexport.plans.records import PlanResult, Row
    from tsexport.plans.running import HowToBuild

_COLUMNS = ("model", "target", "status", "selected", "accuracy", "latency", "seconds", "reason")


def run_plan_file(path: Path, values: Mapping[str, Any], how: "HowToBuild", *, dry_run: bool, as_json: bool) -> int:
    """Build a plan, or show what would be built; return the exit code."""
    from tsexport.plans.running import run_plan, show_plan

    over = {key: value for key, value in values.items() if value is not None and key != "force"}
    result = show_plan(path, over, how) if dry_run else run_plan(path, over, how, quiet=verbosity().quiet, say=say)
    if as_json:
        from tsexport.codec import to_plain

        plain = to_plain(result)
        print_json({**plain, "exit_code": result.exit_code, "dry_run": dry_run})
    else:
        show(result, dry_run=dry_run)
    return result.exit_code


def show(result: "PlanResult", *, dry_run: bool) -> None:
    """Print the table, and below it what to do about each failure."""
    title = "dry run: nothing is built" if dry_run else f"{result.plan}: {len(result.rows)} builds"
    print_table(_COLUMNS, [_cells(row) for row in result.rows], title=title)
    for row in result.rows:
        if row.next_step:
            say(f"{row.name or f'{row.model} for {row.target}'}: {row.next_step}")
        if row.status == "failed" and row.log:
            say(f"{row.name}: all that its process wrote is in {row.log}")
    counts = [f"{result.count(status)} {status}" for status in _STATUSES if result.count(status)]
    code = f"; exit code {result.exit_code}, the smallest of a row that is not 0" if result.exit_code else ""
    echo(", ".join(counts) + code)


_STATUSES: tuple[Any, ...] = ("built", "there already", "to build", "failed")


def _cells(row: "Row") -> tuple[str, ...]:
    from tsexport.plans.headlines import accuracy_text, latency_text

    target = row.target if row.device == "host" else f"{row.target} {row.device}"
    found = row.headline
    selected = f"{found.selected} on {found.runtime}" if found is not None else "-"
    return (
        row.model,
        target,
        row.status,
        selected,
        accuracy_text(found) if found is not None else "-",
        latency_text(found) if found is not None else "-",
        f"{row.seconds:.1f}" if row.seconds else "-",
        f"exit code {row.exit_code}: {row.reason}" if row.exit_code else row.reason or "-",
    )
