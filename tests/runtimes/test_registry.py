"""The table of runtimes: names, statuses, what is missing, and third parties' rows."""

import importlib.metadata
import sys
import tomllib
from pathlib import Path

import pytest

from tsexport.errors import MissingDependencyError, UsageError
from tsexport.runtimes import registry

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILT_IN = (*registry.RUNTIMES, *registry.GPU_RUNTIMES)
ROWS = pytest.mark.parametrize("row", BUILT_IN, ids=lambda row: row.name)
PLUGIN = """
from tsexport.types import RuntimeStatus

class Echo:
    name = "echo"
    formats = ("onnx",)
    def check(self):
        return RuntimeStatus("echo", True, "1.0", ("onnx",), "pip install echo-runtime")
    def load(self, artifact, *, threads):
        return f"a session on {artifact.name} with {threads} threads"

runtime = Echo()
"""


def test_names():
    assert registry.runtime_names()[:4] == ("torchscript", "onnxruntime", "openvino", "tract")
    assert registry.runtime_names()[4:6] == ("torch-cuda", "tensorrt")  # last, for they need a GPU


def test_a_build_counts_on_no_runtime_that_needs_a_gpu():
    names = [status.name for status in registry.bundle_statuses()]
    assert names[:4] == [row.name for row in registry.RUNTIMES]
    assert not {row.name for row in registry.GPU_RUNTIMES} & set(names)


def test_unknown_runtime():
    with pytest.raises(
        UsageError, match=r"unknown runtime 'onxruntime' \(did you mean 'onnxruntime'\?\); runtimes are t"
    ):
        registry.get_runtime("onxruntime")


@ROWS
def test_status_of_an_installed_runtime(row):
    status = registry.get_runtime(row.name).check()
    if row in registry.GPU_RUNTIMES and not status.available:
        pytest.skip(status.reason)
    assert status.available
    assert status.version == importlib.metadata.version(row.package)
    assert status.formats == row.formats
    assert status in registry.list_statuses()


# `sys.modules[name] = None` is Python's own way to say that a name cannot be imported: `import` raises and `find_spec`
# answers None, exactly as on a machine without the package.  Uninstalling a package in a test is no alternative.


@ROWS
def test_a_missing_runtime(monkeypatch, small, row):
    monkeypatch.setitem(sys.modules, row.package, None)
    status = registry.get_runtime(row.name).check()
    assert not status.available
    assert status.version is None
    assert status.reason == f"the package {row.package} is not installed"
    with pytest.raises(MissingDependencyError, match=f"the runtime {row.name} needs {row.package}") as caught:
        registry.load(small.artifacts[row.formats[0]], row.name, threads=1)
    assert caught.value.next_step == row.pip_command == status.pip_command


def test_a_runtime_that_is_installed_and_broken(monkeypatch, tmp_path, small):
    (tmp_path / "tract.py").write_text("raise ImportError('libtract.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("tract", "tsexport.runtimes.tract"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(MissingDependencyError, match=r"tract cannot be imported: libtract\.so"):
        registry.load(small.artifacts["onnx"], "tract", threads=1)


@ROWS
def test_pip_commands_install_what_the_project_pins(row):
    wanted = row.pip_command.removeprefix("pip install ").partition(" --index-url")[0].strip('"')
    extras = PROJECT["optional-dependencies"]
    if wanted.startswith("tsexport["):
        requirements = extras[wanted.removeprefix("tsexport[").removesuffix("]")]
        assert len(requirements) == 1 + len(row.also)
        assert requirements[0].startswith(row.package)
    else:
        assert wanted in extras["build"]
        assert wanted.startswith(row.package)


def test_a_format_that_the_runtime_does_not_load(monkeypatch, small):
    monkeypatch.setitem(sys.modules, "tract", None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UsageError) as caught:
        registry.load(small.artifacts["onnx"], "torchscript", threads=1)
    assert caught.value.message == "the runtime torchscript loads torchscript; artifact model is onnx"
    assert caught.value.next_step == "use onnxruntime or openvino or tract (not installed) or tensorrt (not installed)"


# --- third parties: a real distribution on sys.path, as pip would leave it --------------------------------------------


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a distribution of one module, which registers `runtime` under a name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, code: str) -> None:
        module = f"plugin_{name}"
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{name}_runtime-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-runtime\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[tsexport.runtimes]\n{name} = {module}:runtime\n")
        monkeypatch.delitem(sys.modules, module, raising=False)

    return write


def test_a_third_party_runtime(install, small):
    install("echo", PLUGIN)
    assert registry.runtime_names()[-1] == "echo"
    assert registry.list_statuses()[-1].version == "1.0"
    assert registry.load(small.artifacts["onnx"], "echo", threads=2) == "a session on model with 2 threads"
    with pytest.raises(UsageError, match="the runtime echo loads onnx; artifact small is torchscript"):
        registry.load(small.artifacts["torchscript"], "echo", threads=1)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise OSError('no device')", "OSError: no device"),
        ("runtime = object()", "it has no name, formats, check, load"),
        ("", r"AttributeError: .*runtime"),
    ],
)
def test_a_broken_third_party_runtime_hides_no_other(install, code, reason):
    install("broken", code)
    with pytest.raises(UsageError, match=f"the runtime broken of broken-runtime cannot be used: {reason}"):
        registry.get_runtime("broken")
    *others, last = registry.list_statuses()
    assert len(others) >= 4
    assert (last.name, last.available) == ("broken", False)
    assert "cannot be used" in last.reason
    assert last.pip_command == "pip install --force-reinstall broken-runtime"


def test_a_third_party_cannot_replace_a_built_in_runtime(install):
    install("tract", PLUGIN)
    assert registry.runtime_names().count("tract") == 1
    assert isinstance(registry.get_runtime("tract"), registry.BuiltInRuntime)
