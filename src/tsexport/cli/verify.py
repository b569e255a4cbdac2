"""`tsexport verify`: digests, and golden inputs and outputs through the runtimes on this machine."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tsexport.verification import GoldenCheck, VerificationReport

_STYLES = {"passed": "green", "failed": "bold red", "not checked": "yellow"}


@click.command("verify", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
def verify(bundle: Path, as_json: bool) -> None:
    """Check that BUNDLE is as it was built and answers here as it did there.

    BUNDLE is a folder, or a .tar, .tar.gz or .zip of one.  Every file is held against its SHA-256; then every artifact
    answers the golden inputs on every installed runtime.

    \b
    Exit codes: 0 all well, 2 tampered or damaged, 3 golden outputs missed,
    6 no runtime is installed for any artifact.
    """
    from tsexport.verification import examine_bundle

    report = examine_bundle(bundle)
    if as_json:
        click.echo(json.dumps(_document(report), indent=2, ensure_ascii=False))
    else:
        _print(report)
    report.raise_unless_passed()


def _document(report: "VerificationReport") -> dict[str, object]:
    from tsexport.codec import to_plain

    return {"schema_version": 1, "passed": report.passed, **to_plain(report)}


def _print(report: "VerificationReport") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"{report.bundle}: the SHA-256 of {report.files} files hold", highlight=False, markup=False)
    table = Table(title=f"{report.samples} golden samples, {report.batch} at a time", title_justify="left")
    for heading in ("artifact", "runtime", "result", "relative RMS error", "largest error", "tolerance"):
        table.add_column(heading, overflow="fold")
    for check in report.checks:
        style = _STYLES[check.status]
        table.add_row(check.artifact, check.runtime, f"[{style}]{check.status}[/{style}]", *_errors(check))
    console.print(table)
    for check in report.checks:
        if check.status == "not checked":
            line = f"not checked: {check.artifact} on {check.runtime}: {check.reason}"
            console.print(line, highlight=False, markup=False)
    for status in report.missing_runtimes:
        console.print(f"to check on {status.name} too: {status.pip_command}", highlight=False, markup=False)


def _errors(check: "GoldenCheck") -> tuple[str, str, str]:
    """Return the worst relative RMS and absolute error over the outputs, and the tolerance's name, for a table."""
    cells = []
    for values in (
        [output.relative_rms for output in check.outputs],
        [output.max_abs_error for output in check.outputs],
    ):
        finite = [value for value in values if value is not None]
        cells.append(f"{max(finite):.2e}" if finite and len(finite) == len(values) else "-")
    return cells[0], cells[1], check.tolerance.name
