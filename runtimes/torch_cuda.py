"""TorchScript, and any torch module, on a GPU with torch alone: one captured CUDA graph for each batch size.

The precision is the module's: a TorchScript file that was traced of a module in bf16 (`runtimes.cuda_precision`) runs
in bf16, and its tensors may be fp32 outside.  fp32 is fp32: TF32 is off.

Arrays go through pinned host memory to the device and back.  A session has one set of buffers for each batch size, so
its calls take turns.  `threads` says nothing here; it is kept as given.

Limits: the first GPU.  A trace that holds the device of the machine that made it (`torch.zeros(..., device="cpu")`)
fails on another; the error says so.
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from tsexport.runtimes.cuda_graphs import Answer, DeviceCall
from tsexport.runtimes.cuda_precision import exact_products
from tsexport.runtimes.sessions import BatchSpecialised, Infer
from tsexport.runtimes.torch_answers import TorchAnswers, read_torchscript
from tsexport.types import Array, Artifact, Precision, TensorSpec, random_feeds

DEVICE = "cuda"
REHEARSAL = "cpu"
"""The device of a session that only shows that all but the capture works."""


class ModuleSession(TorchAnswers, BatchSpecialised):
    """A torch module as a session; `graphed=False` launches kernel by kernel, as eager torch does.

    A dynamic batch has no graph: buffers have one size.
    """

    runtime = "torch-cuda"
    failures = (RuntimeError,)

    def __init__(
        self,
        artifact: Artifact,
        threads: int,
        module: nn.Module,
        *,
        device: str = DEVICE,
        graphed: bool = True,
        first_batch: int = 1,
    ) -> None:
        self.first_batch = first_batch
        self._module: nn.Module | None = module
        self._device, self._graphed = torch.device(device), graphed
        self._turn = threading.Lock()
        self._calls: dict[int | None, DeviceCall] = {}
        exact_products()
        super().__init__(artifact, threads)

    def refusals(self) -> dict[int, str]:
        """Return, for each batch size whose graph could not be captured, the reason."""
        return {batch: call.refusal for batch, call in self._calls.items() if batch is not None and call.refusal}

    def device_call(self, batch: int) -> DeviceCall:
        """Return what runs a batch size on the device, to be timed there; it is made where there is none yet."""
        self._infer_for(batch)
        return self._calls[batch]

    def device_ms(self, batch: int) -> float:
        """Return the milliseconds that one launch takes on the device (see `DeviceCall.device_ms`)."""
        call = self.device_call(batch)
        with self._turn:
            return call.device_ms()

    def _compile(self, batch: int | None) -> Infer:
        if batch is None:
            return self._dynamic
        feeds = random_feeds(self.inputs, batch=batch, seed=0)
        call = self._prepare(feeds, graphed=self._graphed)
        self._calls[batch] = call
        staged = [_pinned(tensor) for tensor in call.inputs]
        return lambda arrays: self._answer(call, staged, arrays)

    def _prepare(self, feeds: Mapping[str, Array], *, graphed: bool) -> DeviceCall:
        assert self._module is not None, "run() refuses a closed session"
        inputs = [torch.from_numpy(np.array(feeds[spec.name])).to(self._device) for spec in self.inputs]
        return DeviceCall(self._module, inputs, self._tensors, graphed=graphed)

    def _answer(self, call: DeviceCall, staged: Sequence[Tensor], arrays: Mapping[str, Array]) -> Sequence[Array]:
        with self._turn:
            for spec, host, buffer in zip(self.inputs, staged, call.inputs, strict=True):
                host.numpy()[...] = arrays[spec.name]
                buffer.copy_(host, non_blocking=True)
            return [_array(tensor) for tensor in call.launch()]

    def _dynamic(self, arrays: Mapping[str, Array]) -> Sequence[Array]:
        assert self._module is not None, "run() refuses a closed session"
        with self._turn, torch.inference_mode():
            inputs = [torch.from_numpy(np.array(arrays[spec.name])).to(self._device) for spec in self.inputs]
            return [_array(tensor) for tensor in self._tensors(self._module(*inputs))]

    def _tensors(self, answer: object) -> Answer:
        """Return the module's answer as tensors in the order of the artifact's outputs."""
        return self.tensors_of(answer, self.artifact.name)

    def _release(self) -> None:
        super()._release()
        self._calls.clear()
        self._module = None


class TorchCudaSession(ModuleSession):
    """A TorchScript file on a GPU.  Its arguments are the artifact's inputs by position."""

    def __init__(
        self, artifact: Artifact, threads: int, *, device: str = DEVICE, graphed: bool = True, first_batch: int = 1
    ) -> None:
        self.artifact = artifact  # what a refusal names
        try:
            module = read_torchscript(artifact, device)
        except self.failures as error:
            raise self.cannot_load(error) from error
        super().__init__(artifact, threads, module, device=device, graphed=graphed, first_batch=first_batch)


def compiled(module: nn.Module) -> nn.Module:
    """Return what torch.compile makes of a module, for one batch size after the other.

    A graph is captured by the session and not by torch.compile's own mode: so it is one, wherever the compiler breaks.
    """
    # torch.compile counts how often one class was compiled, and gives up silently after a few.
    torch._dynamo.reset()
    return cast(nn.Module, torch.compile(module, dynamic=False))


def module_session(
    module: nn.Module,
    name: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    precision: Precision,
    *,
    device: str = DEVICE,
    graphed: bool = True,
    first_batch: int = 1,
) -> ModuleSession:
    """Return a session on a module in eval mode, compiled or not, which is moved to the device.

    Args:
        module: takes tensors in the order of `inputs`.
        first_batch: the batch size that is prepared at once, in place of 1.
    """
    artifact = Artifact(
        name=name, path=Path(name), format="torchscript", precision=precision, inputs=inputs, outputs=outputs,
        files=(), sha256="", size_bytes=sum(p.numel() * p.element_size() for p in module.parameters()),
    )  # fmt: skip
    return ModuleSession(artifact, 1, module.to(device), device=device, graphed=graphed, first_batch=first_batch)


def _pinned(buffer: Tensor) -> Tensor:
    """Return host memory of a buffer's size, pinned where that is on a GPU."""
    return torch.empty(buffer.shape, dtype=buffer.dtype, pin_memory=buffer.is_cuda)


def _array(tensor: Tensor) -> Array:
    """Return a copy of a tensor on the host; waits for it."""
    return np.array(tensor.detach().cpu().numpy(), order="C")
