"""`tsexport report`: bundles on one self-contained page."""

from pathlib import Path

import click

from tsexport.cli.output import echo, print_json


@click.command("report", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE...")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The HTML file to write."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
def report(bundles: tuple[Path, ...], output: Path, as_json: bool) -> None:
    """Write one self-contained page about BUNDLE... with tables and plots.

    Each BUNDLE is a folder, or a .tar, .tar.gz or .zip of one.  The page shows what stands in their manifests and
    measurements, and needs no network.

    \b
    Exit codes: 0 written, 2 a bundle is damaged or the page cannot be written.
    """
    from tsexport.reports.writing import report_bundles

    path = report_bundles(bundles, output)
    if as_json:
        print_json({"path": str(path), "bundles": [str(bundle) for bundle in bundles]})
    else:
        echo(f"wrote {path} ({path.stat().st_size / 1000:.0f} kB)")
