"""What commands print with: results on stdout, progress and notes on stderr, one JSON document where asked for.

Text goes through `say`, `detail` and `Table` cells as it is: rich's markup is off, since it would swallow the "[tract]"
of a pip command.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:  # rich costs 50 ms, which `--help` does not pay
    from rich.console import Console

SCHEMA_VERSION = 1
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, what overrides the direction of text, and lone surrogates."""
_PIPE_WIDTH = 200  # where stdout is no terminal rich would assume 80 columns and cut cells


@dataclass(frozen=True)
class Verbosity:
    """The global flags."""

    quiet: bool = False
    verbose: bool = False


def verbosity() -> Verbosity:
    """Return the global flags of the command that runs; the defaults outside of one."""
    context = click.get_current_context(silent=True)
    found = context.find_root().obj if context else None
    return found if isinstance(found, Verbosity) else Verbosity()


def print_json(document: Mapping[str, Any]) -> None:
    """Print the one JSON document of a command on stdout, `schema_version` first.

    Raises:
        ValueError: NaN or infinity, which JSON does not have.
    """
    click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **document}, indent=2, allow_nan=False))


def plain(text: str) -> str:
    """Return text for a terminal: what could move its cursor, turn text around or not be printed is shown as "\\x1b".

    Names and reasons come out of bundles, and a bundle may come from anywhere.
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def echo(message: str, *, err: bool = False) -> None:
    """Print a line of plain text, on stdout unless `err`."""
    click.echo(plain(message), err=err)


def say(message: str) -> None:
    """Print a line of progress or a note on stderr, unless --quiet."""
    if not verbosity().quiet:
        echo(message, err=True)


def detail(message: str) -> None:
    """Print a line on stderr with --verbose only."""
    if verbosity().verbose:
        echo(message, err=True)


def stdout_console() -> "Console":
    """Return a console for results on stdout, markup off."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    return console if console.is_terminal else Console(markup=False, highlight=False, width=_PIPE_WIDTH)


def stderr_console() -> "Console":
    """Return a console for progress on stderr, markup off, silent with --quiet."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, quiet=verbosity().quiet)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """Print a table of plain text on stdout; long cells are folded, never cut."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown_title = Text(plain(title)) if title else None
    table = Table(title=shown_title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(Text(plain(column)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    stdout_console().print(table)
