"""Fixtures of the models' tests: shared public data where it is there, small factories, saved programs."""

import os
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent.parent
SHARED = Path(os.environ.get("TSEXPORT_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def public_checkpoints() -> Path:
    folder = SHARED / "data" / "checkpoints"
    if not folder.is_dir():
        pytest.skip(f"the public checkpoints are not in {folder}")
    return folder


@pytest.fixture(scope="session")
def etth1() -> Path:
    path = SHARED / "data" / "ETTh1.csv"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    return path


@pytest.fixture(scope="session")
def factories() -> Path:
    return Path(__file__).parent / "factories"


@pytest.fixture(scope="session")
def random_weights():
    """Build a module with every weight random, so that none hides a mistake by being zero or one."""

    def run(build, config, spread: float) -> nn.Module:
        torch.manual_seed(0)
        module = build(config).eval()
        for value in module.parameters():
            value.data.uniform_(-spread, spread)
        return module.requires_grad_(False)

    return run


@pytest.fixture
def trace():
    """Trace a module as users do, without torch's note that tracing is deprecated."""

    def run(module: nn.Module, *example: torch.Tensor) -> torch.jit.ScriptModule:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit")
            return torch.jit.trace(module, example)

    return run


@pytest.fixture
def save_program(trace):
    """Trace a module and save it as TorchScript."""

    def run(path: Path, module: nn.Module, *example: torch.Tensor) -> Path:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit")
            torch.jit.save(trace(module, *example), path)
        return path

    return run


@pytest.fixture
def save_onnx():
    """Write an ONNX model whose graph is given as ONNX text."""

    def run(path: Path, text: str) -> Path:
        import onnx

        onnx.save(onnx.parser.parse_model(text), path)
        return path

    return run
