"""The command line as a whole: help without heavy imports, global flags, and the error policy with its exit codes."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tsexport import __version__, cli, errors

HEAVY = {"torch", "onnx", "onnxruntime", "openvino", "nncf", "tract", "pyarrow", "plotly", "fastapi", "uvicorn"}
HELP_SECONDS = 0.3
EVERY_COMMAND = pytest.mark.parametrize("name", cli.COMMANDS)
PROBE = """
import sys
from tsexport.cli import main
try:
    main(sys.argv[1:], prog_name="tsexport")
finally:
    print(*sys.modules, file=sys.stderr)
"""


def run_fresh(*arguments: str) -> tuple[str, set[str]]:
    """Run the command line in a fresh interpreter; return its stdout and the modules it imported."""
    out = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True)
    return out.stdout, set(out.stderr.split())


def run(*arguments: str):
    return CliRunner().invoke(cli.main, arguments, prog_name="tsexport")


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_lists_every_command_and_imports_next_to_nothing():
    out, modules = run_fresh("--help")
    for name, entry in cli.COMMANDS.items():
        assert f"{name} " in out
        assert entry.summary in " ".join(out.split())
    assert not modules & (HEAVY | {"numpy", "rich"})
    assert not {name for name in modules if name.startswith("tsexport.cli.")} - {"tsexport.cli.output"}


def test_help_takes_less_than_0_3_s():
    def cpu_seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    times = []
    for _ in range(3):  # the best of three, in CPU time: other processes on the machine are not tsexport's doing
        before = cpu_seconds()
        subprocess.run([sys.executable, "-m", "tsexport", "--help"], stdout=subprocess.DEVNULL, check=True)
        times.append(cpu_seconds() - before)
    assert min(times) < HELP_SECONDS, times


@EVERY_COMMAND
def test_a_command_has_help_and_shows_it_without_heavy_imports(name):
    out, modules = run_fresh(name, "-h")
    assert out.startswith(f"Usage: tsexport {name} ")
    assert not modules & HEAVY
    command = cli.main.get_command(click.Context(cli.main), name)
    assert command is not None
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name}: {parameter.opts[0]} has no help"


@EVERY_COMMAND
def test_a_summary_is_one_short_sentence(name):
    summary = cli.COMMANDS[name].summary
    assert summary.endswith(".")
    assert len(summary) <= 68, "it must fit on one line of an 80-column terminal"


def test_version():
    assert run("--version").output == f"tsexport, version {__version__}\n"


def test_python_m_tsexport():
    out = subprocess.run([sys.executable, "-m", "tsexport", "-h"], capture_output=True, text=True, check=True)
    assert out.stdout.startswith("Usage: tsexport ")


# --- usage errors ----------------------------------------------------------------------------------------------------


def test_an_unknown_command_names_the_closest():
    result = run("runtims")
    assert result.exit_code == 2
    assert "unknown command 'runtims' (did you mean 'runtimes'?); commands are build," in result.stderr
    assert result.stdout == ""


def test_an_unknown_option_is_exit_2():
    result = run("runtimes", "--jsn")
    assert result.exit_code == 2
    assert "--jsn" in result.stderr


def test_quiet_and_verbose_exclude_each_other():
    result = run("--quiet", "runtimes", "--verbose")
    assert result.exit_code == 2
    assert "--quiet and --verbose exclude each other" in result.stderr


# --- the error policy: a real module with commands, found through the table as all others are ------------------------

PROBES = '''
import signal
import click
from tsexport import errors
from tsexport.cli import output

@click.command()
@click.argument("kind")
@click.option("--json", "as_json", is_flag=True)
def fail(kind, as_json):
    """Fail in a way."""
    if kind == "interrupt":
        signal.raise_signal(signal.SIGINT)
    if kind == "terminate":
        signal.raise_signal(signal.SIGTERM)
    if kind == "full":
        raise OSError(28, "No space left on device", "/elsewhere/file")
    if kind == "file":
        raise click.FileError("data.npz", "unreadable")
    if kind == "exit":
        click.get_current_context().exit(4)
    if kind == "return":
        return 6
    if kind == "bug":
        raise ZeroDivisionError("seven by nought")
    if kind != "fine":
        raise getattr(errors, kind)("given a, allowed b", next_step="do c")

@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1)
def flags(words):
    """Show the global flags."""
    output.say("said")
    output.detail("in detail")
    output.stderr_console().print("on the console [tract]")
    click.echo(f"{output.verbosity()} {words}")
'''


@pytest.fixture
def probes(tmp_path, monkeypatch):
    (tmp_path / "cli_probes.py").write_text(PROBES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cli_probes", raising=False)
    monkeypatch.setitem(cli.COMMANDS, "fail", cli.CommandEntry("cli_probes:fail", "Fail."))
    monkeypatch.setitem(cli.COMMANDS, "flags", cli.CommandEntry("cli_probes:flags", "Show flags."))


def every_error(base=errors.TsexportError):
    yield base  # only those of tsexport.errors: the probe finds them there by name
    for child in (c for c in base.__subclasses__() if c.__module__ == errors.__name__):
        yield from every_error(child)


@pytest.mark.usefixtures("probes")
@pytest.mark.parametrize("error", sorted(every_error(), key=lambda e: e.__name__), ids=lambda e: e.__name__)
def test_errors_of_the_tree_are_two_lines_and_their_code(error):
    result = run("fail", error.__name__, "--json")
    assert result.exit_code == error.exit_code
    assert result.stderr == "error: given a, allowed b\ndo c\n"
    assert result.stdout == ""


@pytest.mark.usefixtures("probes")
def test_verbose_shows_where_an_error_came_from():
    result = run("fail", "UsageError", "--verbose")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("error: given a, allowed b\ndo c\n")


@pytest.mark.usefixtures("probes")
@pytest.mark.parametrize(("kind", "code"), [("fine", 0), ("exit", 4), ("return", 6), ("file", 2)])
def test_exit_codes(kind, code):
    assert run("fail", kind).exit_code == code


@pytest.fixture
def interruptible():
    """A shell starts what runs in the background with SIGINT ignored, and tests may run there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("probes", "interruptible")
def test_an_interrupt_is_one_line_and_130():
    result = run("fail", "interrupt")
    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"


@pytest.mark.usefixtures("probes")
def test_sigterm_is_one_line_and_143():
    before = signal.getsignal(signal.SIGTERM)
    result = run("fail", "terminate")
    assert result.exit_code == 143
    assert result.stderr == "terminated\n"
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.usefixtures("probes")
def test_a_full_disk_is_no_bug():
    result = run("fail", "full")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: /elsewhere/file cannot be written: no space left\nfree some space, and do it again\n"
    )


@pytest.mark.usefixtures("probes")
def test_a_bug_keeps_its_traceback():
    result = run("fail", "bug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "ZeroDivisionError: seven by nought" in result.stderr
    assert f"this is a bug in tsexport {__version__}" in result.stderr
    assert result.stdout == ""


@pytest.mark.usefixtures("probes")
@pytest.mark.parametrize(
    ("arguments", "flags", "stderr"),
    [
        (["flags"], "quiet=False, verbose=False", "said\non the console [tract]\n"),
        (["--quiet", "flags"], "quiet=True, verbose=False", ""),
        (["flags", "--quiet"], "quiet=True, verbose=False", ""),
        (["flags", "--verbose"], "quiet=False, verbose=True", "said\nin detail\non the console [tract]\n"),
    ],
)
def test_global_flags_stand_before_or_after_the_command(arguments, flags, stderr):
    result = run(*arguments)
    assert result.stdout == f"Verbosity({flags}) ()\n"
    assert result.stderr == stderr


@pytest.mark.usefixtures("probes")
def test_what_follows_two_dashes_is_not_a_flag():
    assert run("flags", "--", "--quiet").stdout == "Verbosity(quiet=False, verbose=False) ('--quiet',)\n"


def test_a_closed_pipe_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        out = subprocess.run(
            [sys.executable, "-m", "tsexport", "runtimes", "--json"], stdout=closed, stderr=subprocess.PIPE, text=True
        )
    assert "Traceback" not in out.stderr


def test_commands_print_plain_text_alone():
    """Names and reasons come out of bundles and files; `click.echo` would pass on what moves a terminal's cursor."""
    folder = Path(cli.__file__).parent
    direct = {path.name for path in folder.glob("*.py") if "click.echo(" in path.read_text()}
    assert direct == {"output.py", "__init__.py"}
