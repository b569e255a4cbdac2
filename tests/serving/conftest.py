"""Two small real bundles, and real servers of them, each a process of its own.

`tiny`: y = x @ W + b in fp32, and dynamically quantized, which is selected and whose rows depend on each other.
`busy`: three inputs of three types; `steps` says how long an inference takes, so that tests can make it take long.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tsexport.bundles.entries import artifact_entry
from tsexport.bundles.golden import write_golden
from tsexport.bundles.manifest import (
    Golden,
    GoldenTolerance,
    Manifest,
    Provenance,
    RankedArtifact,
    SelectedArtifact,
    Selection,
    manifest_text,
    selection_text,
)
from tsexport.bundles.staging import staged_bundle
from tsexport.targets import Target
from tsexport.types import AccuracyBudget, Artifact, ModelSpec, TensorSpec, files_sha256

TINY_INPUTS = (TensorSpec("x", "float32", ("batch", 4)),)
TINY_OUTPUTS = (TensorSpec("y", "float32", ("batch", 3)),)
BUSY_INPUTS = (
    TensorSpec("x", "float32", ("batch", 4)),
    TensorSpec("steps", "int64", ("batch", 1)),
    TensorSpec("flag", "bool", ("batch", 1)),
)
BUSY_OUTPUTS = (
    TensorSpec("y", "float32", ("batch", 4)),
    TensorSpec("twice", "int64", ("batch", 1)),
    TensorSpec("not_flag", "bool", ("batch", 1)),
)
# y = exp(x), which overflows to infinity, after max(steps) softmaxes of a matrix.  Steps below -1 are an index that the
# table of one entry does not have: the runtime fails.
BUSY = """
<ir_version: 8, opset_import: ["" : 17]>
busy (float[batch, 4] x, int64[batch, 1] steps, bool[batch, 1] flag)
  => (float[batch, 4] y, int64[batch, 1] twice, bool[batch, 1] not_flag)
{
  longest = ReduceMax <keepdims = 0> (steps)
  size = Constant <value = int64[2] {128, 128}> ()
  start = ConstantOfShape <value = float[1] {1.0}> (size)
  on = Constant <value = bool {1}> ()
  h = Loop (longest, on, start) <body = step (int64 i, bool go, float[128, 128] a) => (bool go_on, float[128, 128] b) {
    go_on = Identity(go)
    product = MatMul(a, a)
    b = Softmax <axis = -1> (product)
  }>
  total = ReduceMean <keepdims = 0> (h)
  nothing = Sub(total, total)
  grown = Exp(x)
  y = Add(grown, nothing)
  sum = Add(steps, steps)
  table = Constant <value = int64[1] {0}> ()
  index = Min(steps, table)
  picked = Gather(table, index)
  twice = Add(sum, picked)
  not_flag = Not(flag)
}"""
START_SECONDS = 300.0


def artifact_of(path, precision, inputs, outputs):
    return Artifact(
        name=f"{precision}-onnx", path=path, format="onnx", precision=precision, inputs=inputs, outputs=outputs,
        files=(path,), sha256=files_sha256((path,)), size_bytes=path.stat().st_size, opset=17,
        runtimes=("onnxruntime",), provenance=("onnx.parser",),
    )  # fmt: skip


def write_bundle(destination, model, files, inputs, outputs, feeds):
    """Write a bundle; `files` are (path, precision, whether its rows depend on each other), the selected one last."""
    import onnxruntime

    golden = onnxruntime.InferenceSession(str(files[0][0])).run(None, feeds)
    samples = len(golden[0])
    with staged_bundle(destination, force=False) as root:
        (root / "artifacts").mkdir()
        entries = []
        for path, precision, dependent in files:
            shutil.copy(path, root / "artifacts")
            artifact = artifact_of(root / "artifacts" / path.name, precision, inputs, outputs)
            tolerance = (
                GoldenTolerance("int8", "measured error, doubled", max_relative_rms=0.2)
                if precision == "int8"
                else GoldenTolerance("fp32", "single precision", 1e-5, 1e-5)
            )
            entries.append(artifact_entry(artifact, root, tolerance, batch_dependent=dependent))
        selected = entries[-1].name
        manifest = Manifest(
            schema_version=1, name=destination.name,
            model=ModelSpec(model, "linear", "forecast", inputs, outputs), config={},
            target=Target("cpu4-fp32", "cpu4", "fp32", 4, "avx2", "4-core CPU without a GPU"),
            artifacts=tuple(entries), absent_formats=(), selected=SelectedArtifact(selected, "onnxruntime", "tests"),
            provenance=Provenance(None, None, None, 0, {}), golden=Golden(samples, 2),
            budget=AccuracyBudget("mse", 0.05, 0.05), parity=(), accuracy=(), candidates=(), rewrites=(), caveats=(),
            notes=(),
        )  # fmt: skip
        selection = Selection(
            schema_version=1, artifact=selected, runtime="onnxruntime", why="tests", candidate=selected, recipe={},
            layers_left_in_float=(), order=tuple(RankedArtifact(entry.name, "onnxruntime") for entry in entries),
            threads=1, triton_batch_sizes=(1, 8),
        )  # fmt: skip
        write_golden(root, feeds, {spec.name: array for spec, array in zip(outputs, golden, strict=True)})
        (root / "manifest.json").write_text(manifest_text(manifest))
        (root / "selection.json").write_text(selection_text(selection))
    return destination


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, model_files):
    files = [(model_files.fp32, "fp32", False), (model_files.int8, "int8", True)]
    x = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)
    return write_bundle(tmp_path_factory.mktemp("b") / "tiny", "tiny", files, TINY_INPUTS, TINY_OUTPUTS, {"x": x})


@pytest.fixture(scope="session")
def busy(tmp_path_factory):
    import onnx
    import onnx.parser

    folder = tmp_path_factory.mktemp("b")
    onnx.save(onnx.parser.parse_model(BUSY), folder / "busy.onnx")
    x = np.random.default_rng(2).standard_normal((3, 4)).astype(np.float32)
    feeds = {"x": x, "steps": np.array([[1], [2], [0]]), "flag": np.array([[True], [False], [True]])}
    return write_bundle(
        folder / "busy", "busy", [(folder / "busy.onnx", "fp32", False)], BUSY_INPUTS, BUSY_OUTPUTS, feeds
    )


@dataclass(frozen=True)
class Running:
    """A server: its process, what it said on stdout, and the file of its log."""

    process: subprocess.Popen
    document: dict
    log_file: Path

    @property
    def url(self):
        return self.document["url"]

    @property
    def address(self):
        """Host and port, as tritonclient wants them."""
        return self.url.removeprefix("http://")

    def log(self):
        whole, _, _ = self.log_file.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def wait_for_line(self, wanted):
        """Return the last line of the log that is wanted; lines are written a moment after the answer."""
        for _ in range(1200):
            if found := [line for line in self.log() if wanted(line)]:
                return found[-1]
            time.sleep(0.05)
        raise AssertionError(self.log_file.read_text())


@contextlib.contextmanager
def server_of(folder, *arguments):
    """Start a server on a free port, and end it with the block."""
    log_file = folder / f"{time.monotonic_ns()}.log"
    command = [sys.executable, "-m", "tsexport", "serve", *map(str, arguments), "--port", "0", "--json"]
    with log_file.open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # A shell starts what runs in the background with SIGINT ignored, and that is inherited.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
    try:
        text = ""
        while not text.endswith("\n}\n") and (line := process.stdout.readline()):
            text += line
        assert text, log_file.read_text()
        yield Running(process, json.loads(text), log_file)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    return lambda *arguments: server_of(folder, *arguments)


@pytest.fixture(scope="session")
def server(serve, tiny, busy):
    """A server of both bundles, for tests that leave it as it was."""
    with serve(tiny, busy, "--max-request-mib", "1", "--max-json-mib", "0.25") as running:
        yield running


@pytest.fixture(scope="session")
def command_line():
    """Run `tsexport serve` where it is expected to end by itself."""

    def run(*arguments, prelude=""):
        code = f"import sys\n{prelude}\nfrom tsexport.cli import main\nmain(sys.argv[1:], prog_name='tsexport')"
        command = [sys.executable, "-c", code, "serve", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, env=dict(os.environ))

    return run
