"""What is installed: the package list, the wheel's exact contents, the extras, and an installation without torch."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tsexport import extras
from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import seal
from tsexport.bundles.sbom import write_sbom
from tsexport.errors import MissingDependencyError
from tsexport.runtimes.registry import RUNTIMES

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]


def folder_of(package):
    """Return the folder of an import package: its own row in package-dir, else inside that of its parent."""
    if package in SETUPTOOLS["package-dir"]:
        return ROOT / SETUPTOOLS["package-dir"][package]
    parent, _, name = package.rpartition(".")
    return folder_of(parent) / name


FOLDERS = {package: folder_of(package) for package in SETUPTOOLS["packages"]}
HEAVY = ("torch", "onnx", "onnxscript", "onnx_ir", "openvino", "nncf", "pyarrow", "safetensors", "jinja2", "tract",
         "cyclonedx", "fastapi", "starlette", "uvicorn", "prometheus_client")  # fmt: skip


def run(*command, cwd=None):
    """Run a command that sees installed packages only, whatever PYTHONPATH says here."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd, env=environment)


def output(*command, cwd=None):
    """Run a command that must succeed; return what it printed on stdout."""
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def names(requirements):
    return {re.match(r"[\w.-]+", requirement).group() for requirement in requirements}


# --- the wheel -------------------------------------------------------------------------------------------------------


def test_every_package_folder_is_listed():
    found = {
        ".".join((name, *init.parent.relative_to(ROOT / folder).parts))
        for name, folder in SETUPTOOLS["package-dir"].items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert sorted(found) == sorted(SETUPTOOLS["packages"])


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel of a clean copy: what lies in a checkout's build/ from before may not get in."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for folder in sorted({Path(folder).parts[0] for folder in SETUPTOOLS["package-dir"].values()}):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    target = tmp_path_factory.mktemp("wheel")
    output(sys.executable, "-m", "pip", "wheel", copy, "--no-deps", "--no-build-isolation", "--quiet", "-w", target)
    (built,) = target.glob("*.whl")
    return built


def test_the_wheel_holds_every_module_and_data_file_and_nothing_else(wheel):
    expected = set()
    for package, folder in FOLDERS.items():
        place = package.replace(".", "/")
        globs = ["*.py", *SETUPTOOLS["package-data"].get(package, [])]
        expected |= {f"{place}/{path.relative_to(folder)}" for glob in globs for path in folder.glob(glob)}
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == expected
    assert {
        "tsexport/py.typed",
        "tsexport/templates/report.html.j2",
        "tsexport/templates/README.md.j2",
        "tsexport/bench/data/latency-tables.toml",
        "tsexport/models/checkpoints/patchtst-cpu.safetensors",
        "tsexport/exporters/rewrites/encoder.py",
    } <= found
    assert not [name for name in found if {"suites", "training", "results", "tests"} & set(Path(name).parts)]


def test_every_data_file_of_a_room_is_installed():
    """A file that is not Python, lies in a package and is not in package-data is missing after `pip install`."""
    listed = {
        path
        for package, globs in SETUPTOOLS["package-data"].items()
        for glob in globs
        for path in FOLDERS[package].glob(glob)
    }
    lying = {
        path
        for folder in FOLDERS.values()
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix not in (".py", ".pyc")
        and not {"suites", "training", "results"} & set(path.parts)
        if not any(part.endswith(".egg-info") for part in path.parts)
    }
    assert lying == listed


# --- core and extras -------------------------------------------------------------------------------------------------


def test_the_core_is_light():
    assert names(PROJECT["dependencies"]) == {"click", "numpy", "platformdirs", "psutil", "py-cpuinfo", "rich"}


def test_the_extras_are_those_of_the_readme():
    assert set(PROJECT["optional-dependencies"]) == {
        *("build", "quantize", "openvino", "tract", "tensorrt", "report", "serve", "sign", "dask", "dev")
    }
    readme = (ROOT / "README.md").read_text()
    for extra in PROJECT["optional-dependencies"]:
        assert f"`{extra}`" in readme


def test_torch_is_one_version_everywhere():
    assert "torch==2.13.0" in PROJECT["optional-dependencies"]["build"]
    (command,) = [row.pip_command for row in RUNTIMES if row.package == "torch"]
    assert '"torch==2.13.0"' in command


def test_a_runtimes_pip_command_installs_the_version_of_the_extras():
    wanted = {requirement for group in PROJECT["optional-dependencies"].values() for requirement in group}
    for row in RUNTIMES:
        given = row.pip_command.removeprefix("pip install ").strip('"')
        extra = re.fullmatch(r"tsexport\[(\w+)\]", given)
        assert given in wanted if extra is None else row.package in names(PROJECT["optional-dependencies"][extra[1]])


@pytest.mark.parametrize(
    "name",
    sorted(
        names(
            requirement
            for extra in ("build", "serve", "dask")
            for requirement in PROJECT["optional-dependencies"][extra]
        )
    ),
)
def test_a_distribution_of_an_extra_is_imported_by_the_name_that_extras_looks_for(name):
    assert find_spec(extras.module_of(name)) is not None


def test_only_its_own_extra_pulls_tensorrt():
    """Its wheels are gigabytes from an index of NVIDIA's, and serve GPUs alone."""
    groups = {"core": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    gpu = {"tensorrt", "cuda-bindings"}
    assert {group for group, wanted in groups.items() if names(wanted) & gpu} == {"tensorrt"}
    assert names(groups["tensorrt"]) == gpu
    assert "tensorrt>=8.6,<12" in groups["tensorrt"]


def test_extras_are_read_from_the_metadata():
    assert set(extras.packages_of("build")) == names(PROJECT["optional-dependencies"]["build"])
    assert extras.packages_of("tract") == ("tract",)
    assert extras.packages_of("nonsense") == ()


def test_a_complete_extra_is_no_error():
    extras.require("build", "a test")


def test_what_is_missing_of_an_extra_is_named_with_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(MissingDependencyError, match="a test needs nncf, onnx-ir, not installed here") as caught:
        extras.require("build", "a test")
    assert caught.value.next_step == 'pip install "tsexport[build]"'


def test_without_metadata_nothing_is_known_to_be_missing(monkeypatch):
    def absent(name):
        raise extras.PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", absent)
    assert extras.packages_of("build") == ()


# --- with the core alone: first by refusing the imports, which is quick, then for real --------------------------------

BLOCKED = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
from tsexport.cli import main
main(sys.argv[2:], prog_name="tsexport")
"""
NEEDS_AN_EXTRA = (
    ("build", ["build", "patchtst-cpu", "--target", "cpu4-int8", "-o", "dist"]),
    ("report", ["report", "BUNDLE", "-o", "page.html"]),
    ("serve", ["serve", "BUNDLE", "--port", "0"]),
)


def without(blocked, *arguments, cwd):
    command = [sys.executable, "-c", BLOCKED, ",".join(blocked), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize(("extra", "command"), NEEDS_AN_EXTRA)
def test_a_command_that_needs_an_extra_names_it(extra, command, measured_folder, tmp_path):
    arguments = [str(measured_folder) if word == "BUNDLE" else word for word in command]
    done = without((*HEAVY, "onnxruntime"), *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith(f'pip install "tsexport[{extra}]"\n')
    assert done.stdout == ""
    assert not (tmp_path / "page.html").exists()
    assert sorted(path.name for path in tmp_path.glob("dist/*")) == [measured_folder.name]


@pytest.mark.parametrize("command", ["models", "targets", "runtimes"])
def test_lists_need_no_extra(command, tmp_path):
    done = without((*HEAVY, "onnxruntime"), command, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[command]


def test_a_bundle_is_verified_with_onnx_runtime_alone(bundle_folder, tmp_path):
    write_sbom(bundle_folder, open_bundle(bundle_folder).manifest)
    seal(bundle_folder)
    done = without(HEAVY, "verify", bundle_folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


USE = """
import importlib.metadata, importlib.resources, sys
import numpy as np
import tsexport
bundle = sys.argv[1]
assert "site-packages" in tsexport.__file__, tsexport.__file__
golden = [dict(np.load(f"{bundle}/golden/{name}.npz")) for name in ("inputs", "outputs")]
with tsexport.load(bundle, precision="fp32") as session:
    answer = session.run(golden[0])
for name, expected in golden[1].items():
    np.testing.assert_allclose(answer[name], expected, atol=1e-5, rtol=1e-5)
assert tsexport.load(bundle).run(golden[0]).keys() == golden[1].keys()
assert tsexport.verify(bundle).passed
root = importlib.resources.files("tsexport")
for data in ("py.typed", "templates/report.html.j2", "templates/README.md.j2", "bench/data/latency-tables.toml",
             "models/checkpoints/patchtst-cpu.safetensors"):
    with importlib.resources.as_file(root / data) as path:
        assert path.is_file(), data
from tsexport.bench.tables import load_tables
assert len(load_tables()) > 80
assert not {"torch", "onnx", "openvino"} & set(sys.modules)
print(*sorted(one.metadata["Name"].lower() for one in importlib.metadata.distributions()))
"""


@pytest.fixture(scope="session")
def core_only(wheel, fresh_environment):
    """The Python of a fresh environment: the wheel, its core dependencies and ONNX Runtime, from a package index."""
    (command,) = [row.pip_command for row in RUNTIMES if row.package == "onnxruntime"]
    return fresh_environment(wheel, command.removeprefix("pip install ").strip('"'))


@pytest.mark.slow
def test_an_installation_without_torch_loads_runs_and_verifies_a_bundle(core_only, bundle_folder, tmp_path):
    installed = output(core_only, "-c", USE, bundle_folder, cwd=tmp_path).split()
    assert not {"torch", "onnx", "openvino", "nncf", "jinja2", "pyarrow"} & set(installed)
    out = output(core_only, "-m", "tsexport", "verify", bundle_folder, cwd=tmp_path)
    assert "int8-onnx" in out


@pytest.mark.slow
@pytest.mark.parametrize(("extra", "command"), NEEDS_AN_EXTRA)
def test_an_installation_without_an_extra_names_it(core_only, extra, command, measured_folder, tmp_path):
    arguments = [str(measured_folder) if word == "BUNDLE" else word for word in command]
    done = run(core_only, "-m", "tsexport", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.endswith(f'pip install "tsexport[{extra}]"\n')
    for command in ("models", "targets", "runtimes"):
        assert json.loads(output(core_only, "-m", "tsexport", command, "--json", cwd=tmp_path))[command]


@pytest.mark.slow
def test_an_installation_without_torch_measures_a_bundle(core_only, bundle_folder, tmp_path):
    options = ["--batch", "1", "--seconds", "0.5", "--json"]
    done = run(core_only, "-m", "tsexport", "bench", bundle_folder, *options, cwd=tmp_path)
    assert done.returncode == 6, done.stderr  # no published row names this model: nothing could be judged
    (result,) = json.loads(done.stdout)["bundles"]
    assert {one["artifact"] for one in result["record"]["measurements"]} == {"fp32-onnx", "int8-onnx"}
