"""The command line: one table of commands, imported when they run, and one error policy for all of them.

Exit codes: 0 done; 2 usage or bad input; 3 to 6 as `tsexport.errors` says; 130 interrupted; 143 ended by SIGTERM, which
cleans up as an interrupt does.  Anything else that is raised is a bug in tsexport, keeps its traceback and ends with 1.
Results go to stdout, everything else to stderr.
"""

import contextlib
import importlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

import click

from tsexport import __version__
from tsexport.cli.output import Verbosity
from tsexport.errors import TsexportError, did_you_mean
from tsexport.surroundings import own_temporary_folder, surroundings_explained

EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 128 + signal.SIGTERM
_OF_CLICK = (click.ClickException, click.exceptions.Exit, click.Abort)
GLOBAL_FLAGS = ("--quiet", "--verbose")


@dataclass(frozen=True)
class CommandEntry:
    """One row: where the command is ("module:attribute") and what `tsexport --help` says of it without importing it."""

    path: str
    summary: str


COMMANDS: dict[str, CommandEntry] = {
    "build": CommandEntry("tsexport.cli.build:build", "Build a verified, measured bundle from a trained checkpoint."),
    "verify": CommandEntry(
        "tsexport.cli.verify:verify", "Check a bundle's digests and golden outputs on this machine."
    ),
    "sign": CommandEntry("tsexport.cli.sign:sign", "Sign a bundle, so that verify --key says whose it is."),
    "bench": CommandEntry("tsexport.cli.bench:bench", "Measure bundles and judge them against the latency tables."),
    "compare": CommandEntry(
        "tsexport.cli.compare:compare", "Say whether one bundle is slower than another, here and now."
    ),
    "history": CommandEntry("tsexport.cli.history:history", "Show recorded results over time, and where they changed."),
    "check": CommandEntry(
        "tsexport.cli.check:check", "Say whether a target's TensorRT takes an ONNX file, node by node."
    ),
    "diff": CommandEntry("tsexport.cli.diff:diff", "Say what differs between two bundles, and why."),
    "estimate": CommandEntry(
        "tsexport.cli.estimate:estimate", "Estimate memory, and the largest batch that fits, before building."
    ),
    "attach": CommandEntry("tsexport.cli.attach:attach", "Bring what the device kit measured back into its bundle."),
    "report": CommandEntry("tsexport.cli.report:report", "Write one self-contained page with tables and plots."),
    "serve": CommandEntry("tsexport.cli.serve:serve", "Serve bundles over HTTP (KServe V2, /predict, /health)."),
    "models": CommandEntry("tsexport.cli.models:models", "List the models that build knows by name."),
    "targets": CommandEntry("tsexport.cli.lists:targets", "List the targets, and which of them this machine can run."),
    "runtimes": CommandEntry("tsexport.cli.lists:runtimes", "List the runtimes, and how to install what is missing."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for, and which holds the error policy."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command, or return None for an unknown name."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.path.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or fail with the closest one's name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(
                f"unknown command {args[0]!r}{did_you_mean(args[0], COMMANDS)}; commands are {', '.join(COMMANDS)}"
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands and their summaries from the table, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the global flags wherever they stand before a "--", since people write them last."""
        end = args.index("--") if "--" in args else len(args)
        flags = [arg for arg in args[:end] if arg in GLOBAL_FLAGS]
        rest = [arg for arg in args[:end] if arg not in GLOBAL_FLAGS]
        return super().parse_args(ctx, [*flags, *rest, *args[end:]])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an interrupt becomes one line and exit 130, SIGTERM one line and exit 143."""
        try:
            with _sigterm_raises(), surroundings_explained(*_OF_CLICK), own_temporary_folder():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except _Terminated:
            click.echo("terminated", err=True)
            ctx.exit(EXIT_TERMINATED)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and exit with its code; without `standalone_mode`, raise what was raised."""

        arguments = sys.argv[1:] if args is None else list(args)

        def run() -> Any:
            return click.Group.main(
                self,
                arguments,
                prog_name,
                complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )

        return _exit_with_policy(run, verbose="--verbose" in arguments) if standalone_mode else run()


class _Terminated(BaseException):
    """SIGTERM, on its way to the command line as KeyboardInterrupt is."""


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM clean up; a second one ends the process at once.  A command may handle it otherwise (`serve`)."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise _Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit_with_policy(run: Callable[[], Any], *, verbose: bool) -> NoReturn:
    """Run a command, print what went wrong, and exit with the code that says what kind of thing it was."""
    try:
        code = run()  # an int that a command returns, or gives to ctx.exit, is its exit code
    except TsexportError as error:
        if verbose:
            traceback.print_exc()
        click.echo(f"error: {error.message}", err=True)
        if error.next_step:
            click.echo(error.next_step, err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_USAGE)  # click's own code 1 for unreadable files would say "a bug in tsexport"
    except click.Abort:  # an interrupt before the command ran, or a prompt that was left
        click.echo("interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except Exception:
        traceback.print_exc()
        click.echo(f"this is a bug in tsexport {__version__}; please report it with the traceback above", err=True)
        sys.exit(EXIT_BUG)
    sys.exit(code if type(code) is int else 0)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quiet", is_flag=True, help="Print results and errors only.")
@click.option("--verbose", is_flag=True, help="Print every step, and where an error came from.")
@click.version_option(__version__, prog_name="tsexport")
@click.pass_context
def main(ctx: click.Context, quiet: bool, verbose: bool) -> None:
    """From a trained time-series checkpoint to a measured, verified bundle for a device."""
    if quiet and verbose:
        raise click.UsageError("--quiet and --verbose exclude each other")
    ctx.obj = Verbosity(quiet=quiet, verbose=verbose)
