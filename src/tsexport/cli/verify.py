"""`tsexport verify`: digests, and golden inputs and outputs through the runtimes on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tsexport.cli.output import echo, print_json, print_table

if TYPE_CHECKING:
    from tsexport.bundles.verification import GoldenCheck, VerificationReport


@click.command("verify", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--key", type=click.Path(path_type=Path), help="The Ed25519 public key, a PEM file, that BUNDLE must be signed by."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
def verify(bundle: Path, key: Path | None, as_json: bool) -> None:
    """Check that BUNDLE is as it was built and answers here as it did there.

    BUNDLE is a folder, or a .tar, .tar.gz or .zip of one.  With --key it must be signed by that key.  Every file is
    held against its SHA-256; then every artifact answers the golden inputs on every installed runtime.

    \b
    Exit codes: 0 all well, 2 tampered or damaged, 3 golden outputs missed,
    6 no runtime is installed for any artifact.
    """
    from tsexport.bundles.verification import examine_bundle
    from tsexport.codec import to_plain

    report = examine_bundle(bundle, key=key)
    if as_json:
        print_json({"passed": report.passed, **to_plain(report)})
    else:
        _print(report)
    report.raise_unless_passed()


def _print(report: "VerificationReport") -> None:
    echo(f"{report.bundle}: the SHA-256 of {report.files} files hold")
    if report.key is not None:
        echo(f"signed by the key {report.key}; that covers all but measurements/ and the report")
    elif report.signature == "not checked":
        echo("signed, which was not checked: give the public key with --key")
    print_table(
        ("artifact", "runtime", "result", "relative RMS error", "largest error", "tolerance"),
        [(check.artifact, check.runtime, check.status, *_errors(check)) for check in report.checks],
        title=f"{report.samples} golden samples, {report.batch} at a time",
    )
    for check in report.checks:
        if check.status == "not checked":
            echo(f"not checked: {check.artifact} on {check.runtime}: {check.reason}")
    for status in report.missing_runtimes:
        echo(f"to check on {status.name} too: {status.pip_command}")


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
