"""One small model with two inputs and two outputs, as every format that the runtimes load, and its answer in numpy."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tsexport.types import Artifact, Feeds, Format, TensorSpec, files_sha256

INPUTS = (TensorSpec("x", "float32", ("batch", 3, 4)), TensorSpec("ids", "int64", ("batch", 2)))
OUTPUTS = (TensorSpec("y", "float32", ("batch", 3, 5)), TensorSpec("z", "float32", ("batch", 4)))
# `z` is written first: sessions must order outputs by the artifact, not by the file.
TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
small (float[batch, 3, 4] x, int64[batch, 2] ids) => (float[batch, 4] z, float[batch, 3, 5] y)
<float[batch, 3, 5] h>
{
    rows = Gather<axis = 0>(table, ids)
    z = ReduceMean<axes = [1], keepdims = 0>(rows)
    h = MatMul(x, w)
    y = Tanh(h)
}
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs on a GPU: every test with a runtime that needs one."""
    from tsexport.runtimes.registry import GPU_RUNTIMES

    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and callspec.params.get("runtime") in {row.name for row in GPU_RUNTIMES}:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def the_runtime_is_here(request: pytest.FixtureRequest) -> None:
    """Skip, and say so, what asks for a runtime whose package is not installed."""
    from tsexport.runtimes.registry import get_runtime, runtime_names

    callspec = getattr(request.node, "callspec", None)
    name = callspec.params.get("runtime") if callspec is not None else None
    if name in runtime_names():
        status = get_runtime(name).check()
        if not status.available:
            pytest.skip(f"{name} cannot be used here: {status.reason}")


@dataclass(frozen=True)
class SmallModel:
    """The model's artifact in each format, and what it answers."""

    artifacts: dict[Format, Artifact]
    expected: Callable[[Feeds], dict[str, np.ndarray]]


def artifact_of(
    path: Path,
    artifact_format: Format,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    files: tuple[Path, ...] = (),
) -> Artifact:
    files = files or (path,)
    return Artifact(
        name=path.stem,
        path=path,
        format=artifact_format,
        precision="fp32",
        inputs=inputs,
        outputs=outputs,
        files=files,
        sha256=files_sha256(files),
        size_bytes=sum(file.stat().st_size for file in files),
    )


@pytest.fixture(scope="session")
def onnx_artifact(tmp_path_factory) -> Callable[..., Artifact]:
    """Return a function that writes ONNX text, with initializers by name, as an artifact."""
    import onnx
    import onnx.parser

    def write(text, inputs, outputs, **initializers) -> Artifact:
        model = onnx.parser.parse_model(text)
        model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in initializers.items())
        onnx.checker.check_model(model, full_check=True)
        path = tmp_path_factory.mktemp("onnx") / "model.onnx"
        onnx.save(model, path)
        return artifact_of(path, "onnx", inputs, outputs)

    return write


@pytest.fixture(scope="session")
def small(onnx_artifact, tmp_path_factory) -> SmallModel:
    generator = np.random.default_rng(7)
    w = generator.standard_normal((4, 5)).astype(np.float32)
    table = generator.standard_normal((6, 4)).astype(np.float32)
    onnx_file = onnx_artifact(TEXT, INPUTS, OUTPUTS, w=w, table=table)
    folder = tmp_path_factory.mktemp("small")
    return SmallModel(
        artifacts={
            "onnx": onnx_file,
            "openvino": _write_ir(onnx_file.path, folder),
            "torchscript": _write_torchscript(w, table, folder),
        },
        expected=lambda feeds: {"y": np.tanh(feeds["x"] @ w), "z": table[feeds["ids"]].mean(axis=1)},
    )


def _write_ir(onnx_path: Path, folder: Path) -> Artifact:
    import openvino

    # read_model, not convert_model: the same frontend, without its telemetry.
    openvino.save_model(openvino.Core().read_model(onnx_path), folder / "small.xml", compress_to_fp16=False)
    files = (folder / "small.xml", folder / "small.bin")
    return artifact_of(files[0], "openvino", INPUTS, OUTPUTS, files)


def _write_torchscript(w: np.ndarray, table: np.ndarray, folder: Path) -> Artifact:
    import torch

    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.from_numpy(w))
            self.table = torch.nn.Parameter(torch.from_numpy(table))

        def forward(self, x, ids):
            return torch.tanh(x @ self.w), self.table[ids].mean(1)

    example = (torch.zeros(2, 3, 4), torch.zeros(2, 2, dtype=torch.int64))
    with warnings.catch_warnings(), torch.no_grad():
        # torch calls its own format deprecated; users ask for it.
        warnings.filterwarnings("ignore", "`torch.jit.* is deprecated", DeprecationWarning)
        torch.jit.trace(Small().eval(), example).save(folder / "small.pt")
    return artifact_of(folder / "small.pt", "torchscript", INPUTS, OUTPUTS)


@pytest.fixture
def small_feeds() -> Callable[[int], dict[str, np.ndarray]]:
    """Return a function from a batch to feeds of the small model."""

    def feeds(batch: int) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(batch)
        return {
            "x": generator.standard_normal((batch, 3, 4)).astype(np.float32),
            "ids": generator.integers(0, 6, (batch, 2)),
        }

    return feeds
