"""Which part of tsexport may import which (see CONTRIBUTING: "Layers")."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DIRS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
BASE = {"types", "errors", "targets"}
MAY_IMPORT = {
    "models": BASE,
    "runtimes": BASE,
    "exporters": BASE | {"models", "runtimes"},
    "calibration": BASE | {"runtimes"},
    "bench": BASE | {"runtimes"},
    "quantize": BASE | {"calibration", "exporters", "runtimes", "bench"},
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


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_imports_point_down(layer):
    room = ROOT / DIRS[f"tsexport.{layer}"]
    for path in room.rglob("*.py"):
        if {room / "suites", room / "training"} & set(path.parents):  # scripts, not in the wheel
            continue
        for line, part in parts_imported(ast.parse(path.read_text())):
            assert part in MAY_IMPORT[layer] | {layer}, f"{path.name}:{line} imports tsexport.{part}"


def test_cli_import_is_light():
    code = "import sys, tsexport.cli; print(*{'torch', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""
