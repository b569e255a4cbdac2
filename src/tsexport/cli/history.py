"""`tsexport history`: recorded results over time, their change points, and the baseline they are held against."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tsexport.bench.affinity import threads_text
from tsexport.cli.output import echo, print_json, print_table, say
from tsexport.wording import count_text

if TYPE_CHECKING:
    from tsexport.bench.kept_records import Baseline
    from tsexport.measurements.history_files import SkippedFile
    from tsexport.measurements.history_series import History, HistoryChange, HistoryPoint, HistorySeries

_DIGITS = 10


class _Fraction(click.ParamType[float]):
    """A fraction, or a percentage: 0.05 or 5%."""

    name = "fraction"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value)
        try:
            return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"{value!r} is neither a fraction such as 0.05 nor a percentage such as 5%", param, ctx)


@click.command("history", short_help="Show recorded results over time, and where they changed.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--bundle", help="This bundle alone.")
@click.option("--machine", help="The machines alone whose id begins so.")
@click.option("--min-change", type=_Fraction(), default=0.05, show_default="5%", help="Smaller changes are not shown.")
@click.option("--last", type=click.IntRange(min=1), default=20, show_default=True, help="Recordings shown of a series.")
@click.option("--set-baseline", metavar="WHICH", help="Make this the baseline: latest, a commit, or a file's name.")
@click.option(
    "--write-budgets", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.toml",
    help="Write the baselines' p90, with the margin, as a table for `bench --table`.",
)  # fmt: skip
@click.option("--margin", type=_Fraction(), default=0.10, show_default="10%", help="What budgets allow beyond it.")
@click.option("--force", is_flag=True, help="Replace a table that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
def history(
    folder: Path,
    bundle: str | None,
    machine: str | None,
    min_change: float,
    last: int,
    set_baseline: str | None,
    write_budgets: Path | None,
    margin: float,
    force: bool,
    as_json: bool,
) -> None:
    """Show what `tsexport bench --record DIR` kept, oldest first, and where it changed.

    A series is an artifact on a runtime at a batch size on a machine.  Changes are found by E-divisive with a
    permutation test: a series without a change shows one with a chance of 1 %.  Two options write, nothing else does:
    --set-baseline the baseline that results are shown against, --write-budgets a latency table.

    \b
    Exit codes: 0 done, 2 no recordings, or bad input.
    """
    if set_baseline is not None and write_budgets is not None:
        raise click.UsageError("--set-baseline and --write-budgets exclude each other: set the baseline first")
    if set_baseline is not None:
        _set_baseline(folder, set_baseline, bundle, machine, as_json)
    elif write_budgets is not None:
        _write_budgets(folder, write_budgets, margin, bundle, machine, force, as_json)
    else:
        _show(folder, bundle, machine, min_change, last, as_json)


def _set_baseline(folder: Path, which: str, bundle: str | None, machine: str | None, as_json: bool) -> None:
    from tsexport.codec import to_plain
    from tsexport.measurements.history_baselines import set_baselines

    result = set_baselines(folder, which, bundle=bundle, machine=machine)
    if as_json:
        print_json({"baselines": to_plain(result.done), "unchanged": to_plain(result.unchanged)})
        return
    for one in result.done:
        before = f", before {_named(one.replaced)}" if one.replaced else ""
        echo(f"{one.baseline.bundle} on {one.baseline.machine_id}: baseline {_named(one.baseline)}{before}")
    for name, machine_id in result.unchanged:
        say(f"{name} on {machine_id}: no recording {which!r}, its baseline stays")


def _write_budgets(
    folder: Path, output: Path, margin: float, bundle: str | None, machine: str | None, force: bool, as_json: bool
) -> None:
    from tsexport.codec import to_plain
    from tsexport.measurements.history_baselines import write_budgets

    written = write_budgets(folder, output, margin=margin, bundle=bundle, machine=machine, force=force)
    if as_json:
        print_json({"budgets": to_plain(written)})
        return
    echo(f"wrote {count_text(written.rows, 'budget')} to {written.path}")
    for one in written.left_out:
        say(f"no budget for {one}: a p90 needs 64")


def _show(folder: Path, bundle: str | None, machine: str | None, min_change: float, last: int, as_json: bool) -> None:
    from tsexport.codec import to_plain
    from tsexport.measurements.history_series import read_history

    found = read_history(folder, bundle=bundle, machine=machine, min_change=min_change)
    if as_json:
        print_json({"history": to_plain(found)})
        return
    machines = {one.machine_id: str(one) for one in found.machines}
    for one in found.series:
        _print_series(one, machines[one.machine_id], last)
    _print_overview(found)
    for baseline in found.baselines:
        say(f"{baseline.bundle} on {baseline.machine_id}: baseline {_named(baseline)}, set {baseline.set_at}")
    _say_skipped(found.skipped)
    say(
        f"changes of {100 * found.min_change:g} % or more; a series without a change shows one with a chance of "
        f"{100 * found.significance:g} %"
    )
    if any(len(one.points) > found.most_points for one in found.series):
        say(f"changes are looked for in the newest {found.most_points} recordings of a series")


def _print_series(one: "HistorySeries", machine: str, last: int) -> None:
    from tsexport.bench.rows import milliseconds

    changed = {change.first_after.file: change for change in one.changes}
    print_table(
        ("recorded", "commit", "p50", "p90", "samples", "against baseline", "change"),
        [
            (
                point.recorded_at,
                _commit(point),
                milliseconds(point.median_ms),
                milliseconds(point.p90_ms),
                str(point.samples),
                "" if one.baseline is None else _percent(point.median_ms / one.baseline.median_ms),
                _change(changed[point.file]) if point.file in changed else "",
            )
            for point in one.points[-last:]
        ],
        title=f"{_title(one)}, {machine} ({one.machine_id})"
        + (f"; the last {last} of {len(one.points)} recordings" if len(one.points) > last else ""),
    )


def _print_overview(found: "History") -> None:
    from tsexport.bench.rows import milliseconds

    print_table(
        ("series", "machine", "recordings", "last p50", "against baseline", "changes"),
        [
            (
                _title(one),
                one.machine_id,
                str(len(one.points)),
                milliseconds(one.points[-1].median_ms),
                "no baseline" if one.against_baseline is None else _percent(one.against_baseline),
                one.not_searched
                or "\n".join(
                    f"{_change(change)} between {_commit(change.last_before)} and {_commit(change.first_after)}"
                    for change in one.changes
                )
                or "none",
            )
            for one in found.series
        ],
        title=f"history of {found.folder}",
    )


def _say_skipped(skipped: "tuple[SkippedFile, ...]") -> None:
    for one in skipped:
        say(f"skipped {one.path}: {one.reason}")


def _title(one: "HistorySeries") -> str:
    return f"{one.bundle}: {one.artifact} on {one.runtime}, batch {one.batch}, {threads_text(one.threads)}"


def _change(change: "HistoryChange") -> str:
    return f"{_percent(change.ratio)} {change.direction} (p = {change.p_value:.3g})"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def _commit(point: "HistoryPoint") -> str:
    return (point.commit or "-")[:_DIGITS] + ("+" if point.modified else "")


def _named(baseline: "Baseline") -> str:
    return f"{baseline.commit[:_DIGITS] if baseline.commit else 'without a commit'} of {baseline.recorded_at}"
