"""What other people's code may rely on: `tsexport.__all__`, and that everything imports quickly and quietly."""

import ast
import importlib.util
import inspect
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tsexport
from tsexport import cli
from tsexport.errors import TsexportError

ROOT = Path(__file__).resolve().parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
IMPORT_SECONDS = 0.1
MAX_LINES = 400
FUNCTIONS = [name for name in tsexport.__all__ if inspect.isfunction(getattr(tsexport, name))]
NEED_TENSORRT = {"tsexport.runtimes.tensorrt", "tsexport.runtimes.tensorrt_memory"}


def modules():
    """Return (dotted name, path) of every module that is installed."""
    return [
        (f"tsexport{suffix}" + ("" if path.stem == "__init__" else f".{path.stem}"), path)
        for package in SETUPTOOLS["packages"]
        for suffix in [package.removeprefix("tsexport")]
        for path in sorted(folder_of(package).glob("*.py"))
    ]


def folder_of(package):
    if package in SETUPTOOLS["package-dir"]:
        return ROOT / SETUPTOOLS["package-dir"][package]
    parent, _, name = package.rpartition(".")
    return folder_of(parent) / name


MODULES = modules()


def fresh(code, *options):
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- names -----------------------------------------------------------------------------------------------------------


def test_the_public_names():
    """The contract's, as far as they are built; this list changes with a line in CHANGELOG.md."""
    assert tsexport.__all__ == [
        "Bundle", "Session", "TensorSpec", "TsexportError", "__version__", "attach", "benchmark", "build", "build_plan",
        "check", "compare", "diff", "estimate", "history", "list_models", "list_runtimes", "list_targets", "load",
        "report", "sign", "verify",
    ]  # fmt: skip


def test_all_is_complete_and_everything_in_it_is_there():
    assert set(tsexport.__all__) == {*tsexport._PUBLIC, "__version__"}
    assert dir(tsexport) == sorted(tsexport.__all__)
    for name in tsexport.__all__:
        assert getattr(tsexport, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'biuld'"):
        _ = tsexport.biuld


def test_type_checkers_see_the_same_names():
    """Names that are imported on first use are imported for type checkers too."""
    tree = ast.parse((ROOT / "src/tsexport/__init__.py").read_text())
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: statement.module
        for statement in guarded.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert seen == tsexport._PUBLIC


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_says_what_it_raises(name):
    function = getattr(tsexport, name)
    assert inspect.getdoc(function), name
    assert "Raises" in inspect.getdoc(function)
    assert "return" in inspect.get_annotations(function)


def test_public_functions_take_nothing_they_do_not_name():
    for name in FUNCTIONS:
        kinds = {parameter.kind for parameter in inspect.signature(getattr(tsexport, name)).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds, f"{name} passes **kwargs through"


def test_the_keywords_of_build_are_the_long_options():
    command = cli.main.get_command(None, "build")
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    keywords = {"--" + name.replace("_", "-") for name in inspect.signature(tsexport.build).parameters}
    # --input is `inputs` (records, not text); --dry-run and --json are about the terminal, --quiet is a global flag.
    of_plans = {"--plan", "--executor", "--jobs", "--scheduler"}  # of build_plan
    assert options - keywords == {"--input", "--dry-run", "--json"} | of_plans
    assert {option.removeprefix("--") for option in of_plans} < set(inspect.signature(tsexport.build_plan).parameters)
    assert keywords - options == {"--model", "--inputs", "--series", "--quiet"}


def test_no_module_bears_a_public_functions_name():
    """`tsexport.build` would be the module once it is imported, and the function before."""
    beside = {path.stem for path in (ROOT / "src/tsexport").iterdir() if path.suffix == ".py" or path.is_dir()}
    rooms = {name.removeprefix("tsexport.") for name in SETUPTOOLS["package-dir"]}
    assert not (beside | rooms) & {*FUNCTIONS}


def test_a_bundle_has_what_the_contract_names(bundle):
    assert bundle.path.is_dir()
    assert bundle.manifest.schema_version == 1
    assert bundle.verify().passed


def test_every_error_is_in_the_docstring_of_the_tree():
    from tsexport import errors

    text = errors.__doc__
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, TsexportError):
            (line,) = [line for line in text.splitlines() if name in line.split() or f"── {name} " in line]
            assert name == "TsexportError" or str(value.exit_code) in line.split(), line


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_commands_exit_codes_stand_in_its_help(name):
    """Lists always end with 0; every other command says which codes it ends with."""
    text = cli.main.get_command(None, name).help
    assert name in ("models", "targets", "runtimes") or "Exit codes: 0" in text


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_prints_json(name):
    options = {option for parameter in cli.main.get_command(None, name).params for option in parameter.opts}
    assert "--json" in options


# --- imports ---------------------------------------------------------------------------------------------------------


def test_importing_tsexport_loads_nothing_else():
    code = "import sys; before = set(sys.modules); import tsexport; print(*set(sys.modules) - before)"
    loaded = {name for name in fresh(code).split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert loaded == {"tsexport"}


def test_importing_tsexport_takes_less_than_0_1_s():
    code = "import time; start = time.process_time(); import tsexport; print(time.process_time() - start)"
    times = [float(fresh(code)) for _ in range(3)]  # CPU seconds, the best of three
    assert min(times) < IMPORT_SECONDS, times


def test_loading_imports_only_the_runtime_it_needs(bundle_folder):
    code = (
        f"import sys, json, tsexport; tsexport.load({str(bundle_folder)!r}).close();"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    loaded = set(json.loads(fresh(code)))
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "onnx", "openvino", "tract", "nncf", "pyarrow", "jinja2", "click"}


@pytest.mark.slow
def test_every_module_imports_without_a_warning():
    names = [name for name, _ in MODULES if not name.endswith("__main__")]
    if importlib.util.find_spec("tensorrt") is None:  # its packages are the only ones that CI cannot install
        names = [name for name in names if name not in NEED_TENSORRT]
    assert len(names) > 80
    code = f"""
import importlib, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for name in {names!r}:
        importlib.import_module(name)
for one in caught:
    print(one.filename, one.category.__name__, one.message)
"""
    assert fresh(code) == ""


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", sorted(SETUPTOOLS["package-dir"].values()))
def test_files_are_short(folder):
    for path in (ROOT / folder).rglob("*.py"):
        lines = path.read_text().count("\n")
        assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines; split it by what its parts do"


@pytest.mark.parametrize("path", [path for _, path in MODULES], ids=[name for name, _ in MODULES])
def test_a_module_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text()))
