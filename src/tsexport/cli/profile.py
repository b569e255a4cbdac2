"""The tables of `tsexport bench --profile`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tsexport.bench.affinity import threads_text
from tsexport.cli.output import echo, print_json, print_table, say

if TYPE_CHECKING:
    from tsexport.bench.profile_records import ProfileRecord

SHOWN = 10
"""So many nodes and kinds of operators are printed; --json and the report have more."""


def run_profiles(
    context: click.Context,
    bundles: Sequence[Path],
    batches: Sequence[int],
    threads: int | None,
    attach: bool,
    as_json: bool,
) -> None:
    """Profile each bundle, print where its time goes, and exit with 6 where no runtime could tell."""
    from tsexport.codec import to_plain
    from tsexport.measurements.profiles import profile_bundle

    if len(batches) > 1:
        raise click.UsageError("--profile takes one --batch; without it, it is 1")
    batch = batches[0] if batches else 1
    results = [profile_bundle(path, batch=batch, threads=threads, attach=attach, say=say) for path in bundles]
    for one in results:
        for path in one.kept:
            say(f"kept in {one.bundle} as {path}")
    if as_json:
        document = [{"name": one.bundle, "profiles": to_plain(one.profiles), "kept": one.kept} for one in results]
        print_json({"bundles": document})
    else:
        for one in results:
            for record in one.profiles:
                show_profile(record, one.bundle)
    context.exit(0 if any(not record.reason for one in results for record in one.profiles) else 6)


def show_profile(record: "ProfileRecord", bundle: str) -> None:
    """Print the kinds of operators and the nodes that take longest, or why there is no profile."""
    from tsexport.reports.profiles import profile_view

    what = f"{bundle}: {record.artifact} on {record.runtime}, {threads_text(record.threads)}, batch {record.batch}"
    if record.reason:
        echo(f"{what}: no profile, {record.reason}\n")
        return
    view = profile_view(record)
    echo(f"{what}: {record.method}")
    print_table(
        ("operator", "nodes", "share", "time, profiled"),
        [(row.operator, row.nodes, row.share, row.time) for row in view.operators[:SHOWN]],
    )
    if record.nodes:
        print_table(
            ("node", "operator", "kernel", "share", "time, profiled"),
            [(row.name, row.operator, row.kernel, row.share, row.time) for row in view.nodes[:SHOWN]],
            title=f"the {min(SHOWN, len(view.nodes))} nodes that take longest, of {view.node_count}",
        )
    echo(
        f"{record.calls} calls; under the profiler a call took {view.profiled}, without it {view.plain}: times are "
        "shares, not latencies\n"
    )
