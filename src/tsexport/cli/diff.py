"""`tsexport diff`: what differs between two bundles, and why."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tsexport.cli.output import echo, print_json, print_table

if TYPE_CHECKING:
    from tsexport.bundles.diff_records import BundleDiff, Change, GraphChange

_ABSENT = "-"


@click.command("diff", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
def diff(a: Path, b: Path, as_json: bool) -> None:
    """Say what differs between the bundles A and B: operators, precision of layers, accuracy, latency, versions,
    licences, settings, and which files for which reason.

    A and B are folders, or a .tar, .tar.gz or .zip of one.  Nothing in them is run.  Latencies are those that each
    bundle holds; whether B is slower is for `tsexport compare` to say.

    \b
    Exit codes: 0 compared (whether anything differs or not), 2 a bundle is damaged.
    """
    from tsexport.bundles.diffing import diff_bundles

    found = diff_bundles(a, b)
    if as_json:
        from tsexport.codec import to_plain

        print_json(to_plain(found))
    else:
        _print(found)


def _print(found: "BundleDiff") -> None:
    echo(f"A is {found.a}, B is {found.b}")
    if found.same_bytes:
        echo("every file outside measurements/ and the report has the same bytes")
    else:
        print_table(("file", "", "why"), [(one.path, one.status, one.why) for one in found.files], title="files")
    _print_changes("settings and inputs", "setting", found.settings)
    _print_changes("candidates", "candidate", found.candidates)
    _print_graphs("operators, by how often each stands in the file", "operator", found.operators)
    _print_graphs("precision of layers", "layer", found.layers)
    if found.accuracy:
        print_table(
            ("artifact", "runtime", "output error A", "output error B", "degradation A", "degradation B"),
            [
                (one.artifact, one.runtime, *map(_percent, (one.output_error_a, one.output_error_b)),
                 *map(_percent, (one.degradation_a, one.degradation_b)))
                for one in found.accuracy
            ],
            title="accuracy against the source model",
        )  # fmt: skip
    if found.latency:
        print_table(
            ("artifact", "runtime", "batch", "threads", "machine", "A, p50 ms", "B, p50 ms", "B / A"),
            [
                (one.artifact, one.runtime, str(one.batch), _text(one.threads), one.machine, _figure(one.a_ms),
                 _figure(one.b_ms), _figure(one.ratio))
                for one in found.latency
            ],
            title="latency, measured where each bundle says; not interleaved, so `tsexport compare` decides",
        )  # fmt: skip
    _print_changes("versions of tools", "tool", found.versions)
    _print_changes("licences", "component", found.licences)
    for text in found.not_compared:
        echo(f"not compared: {text}")


def _print_changes(title: str, what: str, changes: Sequence["Change"]) -> None:
    if changes:
        rows = [(change.what, _text(change.a), _text(change.b)) for change in changes]
        print_table((what, "A", "B"), rows, title=title)


def _print_graphs(title: str, what: str, changes: Sequence["GraphChange"]) -> None:
    if changes:
        rows = [(change.artifact, change.what, _text(change.a), _text(change.b)) for change in changes]
        print_table(("artifact", what, "A", "B"), rows, title=title)


def _text(value: object) -> str:
    return _ABSENT if value is None else str(value)


def _figure(value: float | None) -> str:
    return _ABSENT if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return _ABSENT if value is None else f"{100 * value:.3g} %"
