"""Which part of tsexport may import which (see CONTRIBUTING: "Layers")."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
DIRS = SETUPTOOLS["package-dir"]
BASE = {"types", "errors", "devices", "targets", "gpus", "codec", "extras", "npz", "preparation", "work", "locks"}
MAY_IMPORT = {
    "models": BASE,
    "runtimes": BASE,
    "exporters": BASE | {"models", "runtimes"},
    "calibration": BASE | {"runtimes"},
    "bench": BASE | {"runtimes"},
    "quantize": BASE | {"calibration", "exporters", "runtimes", "bench"},
}
# The same for the folders of the front door: what each knows of the others, and of what calls them.
FRONT_DOOR = {
    "bundles": set(),
    "reports": {"bundles"},
    "measurements": {"bundles", "reports"},
    "device": {"bundles", "measurements"},
    "serving": {"bundles"},
    "stages": {"bundles", "device", "reports"},
    "plans": {"bundles", "device", "pipeline", "stages"},
}
CALLERS = {"pipeline", "api", "cli"}
# Scripts beside a room that are not in the wheel: benchmarks against other tools, and the training of the reference
# checkpoints.  They may import anything.
SCRIPTS = {"bench/suites", "models/training"}
HEAVY = {
    *("torch", "torchao", "torch_pruning", "onnx", "onnxruntime", "openvino", "nncf", "neural_compressor", "tract"),
    *("pyarrow", "fastapi", "uvicorn", "prometheus_client", "tensorrt", "cuda", "cyclonedx", "dask", "distributed"),
}


def parts_imported(tree: ast.Module):
    """Yield (line, part) for every `tsexport.part` that a module imports, however it is written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "tsexport":
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tsexport."):
            yield node.lineno, node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "tsexport":
                    yield node.lineno, [*alias.name.split("."), "*"][1]


def modules_of(layer: str):
    """Yield every module of a room, scripts left out."""
    for path in (ROOT / DIRS[f"tsexport.{layer}"]).rglob("*.py"):
        if path.parent.relative_to(ROOT).as_posix() not in SCRIPTS:
            yield path


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_imports_point_down(layer):
    for path in modules_of(layer):
        for line, part in parts_imported(ast.parse(path.read_text())):
            assert part in MAY_IMPORT[layer] | {layer}, f"{path.name}:{line} imports tsexport.{part}"


@pytest.mark.parametrize("folder", FRONT_DOOR)
def test_the_front_doors_folders_know_those_below_them(folder):
    for path in sorted((ROOT / "src/tsexport" / folder).glob("*.py")):
        for line, part in parts_imported(ast.parse(path.read_text())):
            known = FRONT_DOOR[folder] | {folder}
            assert part in known or part not in FRONT_DOOR.keys() | CALLERS, f"{path}:{line} imports tsexport.{part}"


def test_every_folder_of_the_front_door_has_its_row():
    folders = {path.parent.name for path in (ROOT / "src/tsexport").glob("*/__init__.py")}
    assert folders == FRONT_DOOR.keys() | {"cli"}


@pytest.mark.parametrize("module", sorted(BASE))
def test_the_core_knows_only_itself(module):
    for line, part in parts_imported(ast.parse((ROOT / f"src/tsexport/{module}.py").read_text())):
        assert part in BASE, f"{module}.py:{line} imports tsexport.{part}"


def test_scripts_are_no_packages():
    for folder in SCRIPTS:
        assert not (ROOT / folder / "__init__.py").exists()
        assert "tsexport." + folder.replace("/", ".") not in SETUPTOOLS["packages"]


def test_every_room_has_its_row():
    rooms = {name.removeprefix("tsexport.") for name in DIRS if name != "tsexport"}
    assert rooms == set(MAY_IMPORT)


@pytest.mark.parametrize("package", SETUPTOOLS["packages"])
def test_importing_a_package_is_light(package):
    code = f"import sys, {package}; print(*{HEAVY!r} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""
