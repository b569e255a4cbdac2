"""`tsexport sign`: an Ed25519 signature over a bundle's SHA256SUMS."""

from pathlib import Path

import click

from tsexport.cli.output import echo, print_json


@click.command("sign", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", required=True, type=click.Path(path_type=Path), help="A PEM file, an Ed25519 private key.")
@click.option("--force", is_flag=True, help="Replace a signature that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
def sign(bundle: Path, key: Path, force: bool, as_json: bool) -> None:
    """Sign BUNDLE, a folder, so that `tsexport verify BUNDLE --key PUBLIC` says whether it is still what was signed.

    The signature covers every file outside measurements/ and the report.  `openssl genpkey -algorithm ed25519` makes a
    key.

    \b
    Exit codes: 0 signed, 2 the bundle is damaged, or the key cannot be used.
    """
    from tsexport.bundles.signing import sign_bundle

    signed = sign_bundle(bundle, key, force=force)
    if as_json:
        from tsexport.codec import to_plain

        print_json(to_plain(signed))
    else:
        echo(f"signed {signed.files} files of {signed.bundle} in {signed.file} by the key {signed.key}")
