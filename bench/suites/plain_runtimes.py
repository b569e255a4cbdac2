"""What a user gets without tsexport, as runtimes that the benchmark's measuring processes can load.

They are registered as a third party would: through the entry point group `tsexport.runtimes`, in a temporary
distribution that the measuring processes find by PYTHONPATH.  A call does what a user's own line would do and nothing
else: feeds are not checked, the batch is not fixed, no option but the number of threads is set.

eager                 the module in torch: eval mode, inference mode, fast path of nn.TransformerEncoder on
plain-torchscript     torch.jit.load of a trace, called in inference mode
plain-onnxruntime     onnxruntime.InferenceSession, all options but the threads as they come
plain-openvino        openvino.Core().compile_model of the ONNX file with its dynamic batch, hints as they come
plain-openvino-ir     openvino.Core().compile_model of an IR file (.xml), hints as they come
plain-openvino-f32    plain-openvino with INFERENCE_PRECISION_HINT=f32, for CPUs where OpenVINO would compute in bf16
"""

import contextlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsexport.types import Array, Artifact, Closing, Feeds, Format, RuntimeStatus, TensorSpec

if TYPE_CHECKING:
    from torch import nn

_MODULE = "tsexport.bench.suites.plain_runtimes"


@dataclass(frozen=True)
class EagerSource:
    """How to open the source model again in another process; written as JSON beside the exports."""

    model: str
    settings: Mapping[str, Any]
    seed: int
    checkpoint: str | None = None

    def write(self, path: Path) -> None:
        document = {
            "model": self.model, "settings": dict(self.settings), "seed": self.seed, "checkpoint": self.checkpoint,
        }  # fmt: skip
        path.write_text(json.dumps(document))

    @classmethod
    def read(cls, path: Path) -> "EagerSource":
        return cls(**json.loads(path.read_text()))

    def module(self) -> "nn.Module":
        """Return the source model, in eval mode."""
        from tsexport.models.sources import identify, open_source

        checkpoint = Path(self.checkpoint) if self.checkpoint else None
        identity = identify(self.model, checkpoint=checkpoint, settings=self.settings, seed=self.seed)
        module = open_source(identity).module
        assert module is not None, f"{self.model} has no torch module"
        return module.eval()


class PlainSession(Closing):
    """Implements `tsexport.types.Session`, without its checks; `_call` takes the arrays by the inputs' names."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        self._artifact, self.threads = artifact, threads

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._artifact.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._artifact.outputs

    def run(self, feeds: Feeds) -> dict[str, Array]:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to do: the process ends with its session."""


class _TorchSession(PlainSession):
    def __init__(self, artifact: Artifact, threads: int, module: Any) -> None:
        import torch

        super().__init__(artifact, threads)
        torch.set_num_threads(threads)
        torch.backends.mha.set_fastpath_enabled(True)
        self._module = module
        self._inputs = [spec.name for spec in artifact.inputs]
        self._outputs = [spec.name for spec in artifact.outputs]

    def run(self, feeds: Feeds) -> dict[str, Array]:
        import torch

        with torch.inference_mode():
            answer = self._module(*(torch.from_numpy(feeds[name]) for name in self._inputs))
        answers = (answer,) if isinstance(answer, torch.Tensor) else tuple(answer)
        return {name: value.numpy() for name, value in zip(self._outputs, answers, strict=True)}


def _eager(artifact: Artifact, threads: int) -> PlainSession:
    return _TorchSession(artifact, threads, EagerSource.read(artifact.path).module())


def _torchscript(artifact: Artifact, threads: int) -> PlainSession:
    import torch

    with warnings.catch_warnings():
        # torch calls its own format deprecated at every load; it is one of the contestants
        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
        module = torch.jit.load(str(artifact.path))  # type: ignore[no-untyped-call]
    return _TorchSession(artifact, threads, module)


class _OnnxRuntimeSession(PlainSession):
    def __init__(self, artifact: Artifact, threads: int) -> None:
        import onnxruntime

        super().__init__(artifact, threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(artifact.path), options, providers=["CPUExecutionProvider"])
        self._outputs = [spec.name for spec in artifact.outputs]

    def run(self, feeds: Feeds) -> dict[str, Array]:
        return dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))


class _OpenVinoSession(PlainSession):
    def __init__(self, artifact: Artifact, threads: int, hints: Mapping[str, str]) -> None:
        import openvino

        super().__init__(artifact, threads)
        core = openvino.Core()
        self._model = core.compile_model(artifact.path, "CPU", {"INFERENCE_NUM_THREADS": threads, **hints})
        self._outputs = [spec.name for spec in artifact.outputs]

    def run(self, feeds: Feeds) -> dict[str, Array]:
        results = self._model(feeds)
        return {name: results[name] for name in self._outputs}


def _openvino(artifact: Artifact, threads: int) -> PlainSession:
    return _OpenVinoSession(artifact, threads, {})


def _openvino_f32(artifact: Artifact, threads: int) -> PlainSession:
    return _OpenVinoSession(artifact, threads, {"INFERENCE_PRECISION_HINT": "f32"})


_LOADERS = {
    "eager": _eager,
    "plain-torchscript": _torchscript,
    "plain-onnxruntime": _OnnxRuntimeSession,
    "plain-openvino": _openvino,
    "plain-openvino-ir": _openvino,
    "plain-openvino-f32": _openvino_f32,
}


@dataclass(frozen=True)
class PlainRuntime:
    """Implements `tsexport.types.Runtime`."""

    name: str
    formats: tuple[Format, ...]
    package: str

    def check(self) -> RuntimeStatus:
        import importlib.metadata

        version = importlib.metadata.version(self.package)
        return RuntimeStatus(self.name, True, version, self.formats, f"pip install {self.package}")

    def load(self, artifact: Artifact, *, threads: int) -> PlainSession:
        return _LOADERS[self.name](artifact, threads)


# A source that is opened again counts as "torchscript": torch runs it, and records know no other format of torch.
eager = PlainRuntime("eager", ("torchscript",), "torch")
torchscript = PlainRuntime("plain-torchscript", ("torchscript",), "torch")
onnxruntime = PlainRuntime("plain-onnxruntime", ("onnx",), "onnxruntime")
openvino = PlainRuntime("plain-openvino", ("onnx",), "openvino")
openvino_ir = PlainRuntime("plain-openvino-ir", ("openvino",), "openvino")
openvino_f32 = PlainRuntime("plain-openvino-f32", ("onnx",), "openvino")

_ENTRY_POINTS = {one: name for name, one in list(globals().items()) if isinstance(one, PlainRuntime)}


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Register the runtimes, in this process and in those it starts meanwhile."""
    before = os.environ.get("PYTHONPATH")
    with tempfile.TemporaryDirectory(prefix="tsexport-plain-") as folder:
        info = Path(folder) / "tsexport_plain_runtimes-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tsexport-plain-runtimes\nVersion: 1\n")
        lines = [f"{one.name} = {_MODULE}:{attribute}" for one, attribute in _ENTRY_POINTS.items()]
        (info / "entry_points.txt").write_text("\n".join(["[tsexport.runtimes]", *lines, ""]))
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, *([before] if before else [])])
        sys.path.insert(0, folder)
        try:
            yield
        finally:
            sys.path.remove(folder)
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before
