"""examples/: each runs against real bundles with numpy and its one runtime, and says so where answers differ."""

import ast
import contextlib
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from tsexport.npz import read_arrays, write_arrays
from tsexport.runtimes.registry import RUNTIMES

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
IMPORTS = {
    "use_with_onnxruntime.py": {"onnxruntime"},
    "use_with_openvino.py": {"openvino"},
    "use_with_tract.py": {"tract"},
    "call_v2_server.py": {"tritonclient"},
}
OTHERS = {"tsexport", "torch", "onnx", *(row.package for row in RUNTIMES)}
BLOCKED = """
import runpy, sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
START_SECONDS = 600.0
LOCAL = [name for name in IMPORTS if name.startswith("use_with")]
RUNS = [
    *((name, "fp32") for name in LOCAL),
    *(pytest.param(name, kind, marks=pytest.mark.slow) for name in LOCAL for kind in ("int8", "pruned", "prepared")),
    pytest.param("use_with_onnxruntime.py", "jetson", marks=pytest.mark.slow),
]


def run_example(name, *arguments):
    """Run an example where tsexport, torch and every runtime but its own cannot be imported."""
    blocked = ",".join(sorted(OTHERS - IMPORTS[name]))
    command = [sys.executable, "-W", "error", "-c", BLOCKED, blocked, EXAMPLES / name, *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=START_SECONDS)


def with_other_answers(bundle, folder):
    """Return a copy of a bundle whose golden outputs are another model's."""
    copy = folder / bundle.path.name
    shutil.copytree(bundle.path, copy)
    path = copy / "golden/outputs.npz"
    write_arrays(path, {name: array + 0.1 * np.abs(array).max() for name, array in read_arrays(path).items()})
    return copy


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(IMPORTS)


@pytest.mark.parametrize("name", IMPORTS)
def test_an_example_needs_numpy_and_its_runtime_alone(name):
    tree = ast.parse((EXAMPLES / name).read_text())
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    top = {module.partition(".")[0] for module in found}
    assert top - set(sys.stdlib_module_names) == {"numpy"} | IMPORTS[name]


@pytest.mark.parametrize(("name", "kind"), RUNS)
def test_an_example_answers_as_the_source_model(bundle_of, name, kind):
    bundle = bundle_of(kind)
    done = run_example(name, bundle.path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    artifact = bundle.manifest.artifact(lines[0].partition(":")[0])
    samples = bundle.manifest.golden.samples
    assert lines == [f"{artifact.name}: {spec.name} {spec.with_batch(samples)} agrees" for spec in artifact.outputs]
    runtime = name.removeprefix("use_with_").removesuffix(".py")
    assert runtime in artifact.runtimes


@pytest.mark.parametrize("name", LOCAL)
def test_an_example_says_where_answers_differ(bundle_of, tmp_path, name):
    done = run_example(name, with_other_answers(bundle_of("fp32"), tmp_path))
    assert done.returncode == 1
    assert done.stdout.endswith(" DIFFERS\n")


@pytest.mark.parametrize("name", LOCAL)
def test_an_example_opens_no_file_that_was_changed(bundle_of, tmp_path, name):
    bundle = bundle_of("fp32")
    copy = tmp_path / bundle.path.name
    shutil.copytree(bundle.path, copy)
    for path in (copy / "artifacts").iterdir():
        path.write_bytes(path.read_bytes() + b"\0")
    done = run_example(name, copy)
    assert done.returncode == 1
    assert done.stderr.endswith("is not the file that was built\n")


def test_an_example_whose_runtime_the_bundle_has_nothing_for(bundle_folder):
    done = run_example("use_with_tract.py", bundle_folder)
    assert done.returncode == 1
    assert done.stderr == "the bundle has nothing for tract\n"


# --- a V2 client -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(bundle):
    """Serve a bundle's folder on a free port; give the address."""
    command = [sys.executable, "-m", "tsexport", "serve", str(bundle), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        text = ""
        while not text.endswith("\n}\n") and (line := process.stdout.readline()):
            text += line
        yield json.loads(text)["url"].removeprefix("http://")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize(
    "kind", ["fp32", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("int8", "prepared", "jetson"))]
)
def test_a_v2_client_gets_the_answers_of_the_source_model(bundle_of, kind):
    bundle = bundle_of(kind)
    with served(bundle.path) as address:
        done = run_example("call_v2_server.py", bundle.path, address)
    assert done.returncode == 0, done.stdout + done.stderr
    names = [spec.name for spec in bundle.manifest.model.outputs]
    assert [line.split()[1] for line in done.stdout.splitlines()] == names
    assert done.stdout.endswith(" agrees\n")


def test_a_v2_client_says_what_differs_and_what_is_not_served(bundle_of, tmp_path):
    bundle = bundle_of("fp32")
    with served(bundle.path) as address:
        differs = run_example("call_v2_server.py", with_other_answers(bundle, tmp_path), address)
        other = shutil.copytree(bundle.path, tmp_path / "other")
        not_served = run_example("call_v2_server.py", other, address)
    assert (differs.returncode, not_served.returncode) == (1, 1)
    assert differs.stdout.endswith(" DIFFERS\n")
    assert not_served.stderr == f"{address} serves no model other\n"


# --- environments that have nothing else -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("package", ["onnxruntime", "openvino", "tract"])
def test_a_fresh_environment_with_numpy_and_one_runtime(fresh_environment, bundle_of, tmp_path, package):
    python = fresh_environment("numpy", f"{package}=={version(package)}")

    def run(*arguments):
        # Isolated, and elsewhere: nothing of this checkout is in sight.
        return subprocess.run([python, "-I", "-W", "error", *arguments], capture_output=True, text=True, cwd=tmp_path)

    code = "import importlib.metadata as m; print(*(one.metadata['Name'].lower() for one in m.distributions()))"
    installed = set(run("-c", code).stdout.split())
    assert {"numpy", package} <= installed
    assert not (OTHERS - {package}) & installed
    done = run(EXAMPLES / f"use_with_{package}.py", bundle_of("fp32").path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(" agrees\n")
