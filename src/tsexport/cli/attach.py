"""`tsexport attach`: measurements of the device kit, into the bundle they belong to."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tsexport.cli.output import echo, print_json, print_table

if TYPE_CHECKING:
    from tsexport.device.attaching import AttachedResults


@click.command("attach", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
@click.pass_context
def attach(context: click.Context, bundle: Path, results: Path, as_json: bool) -> None:
    """Bring RESULTS, the folder that the device kit's measure.sh wrote on a device, into BUNDLE.

    The results are checked against the bundle, judged against the latency tables on that device, and kept in
    measurements/ and in the report.  Nothing else in the bundle changes.

    \b
    Exit codes: 0 attached, 2 damaged results or those of another bundle, device or version (the bundle is unchanged),
    4 attached, and a published row is missed on that device.
    """
    from tsexport.device.attaching import attach_results

    attached = attach_results(bundle, results)
    if as_json:
        from tsexport.codec import to_plain

        print_json({"bundle": attached.bundle, "file": attached.file, "record": to_plain(attached.record)})
    else:
        _print(attached)
    context.exit(attached.exit_code)


def _print(attached: "AttachedResults") -> None:
    from tsexport.bench.rows import device_rows, verdict_rows

    record = attached.record
    echo(f"attached to {attached.bundle} as {attached.file}: {record.artifact} on {record.device}")
    print_table(
        ("artifact", "precision", "batch", "samples", "p50", "p90", "p99", "mean", "computing", "copies"),
        [
            (m.artifact, m.precision, m.batch, m.samples, m.p50, m.p90, m.p99, m.mean, m.computing, m.transfers)
            for m in device_rows(record)
        ],
        title=f"measured by trtexec on {record.device}",
    )
    print_table(
        ("budget", "device", "precision", "batch", "published", "value", "status", "reason"),
        [
            (v.budget, v.device, v.precision, v.batch, v.published, v.value, v.status, v.reason)
            for v in verdict_rows(record.verdicts)
        ],
        title="against the published tables",
    )
