"""One batch size of a torch module on a GPU: buffers that stay where they are, and a captured CUDA graph.

A captured graph is launched as one piece, so that the host's time for each kernel falls away; it reads and writes the
same memory at every replay, so inputs are copied into it and outputs out of it.  Before the capture the module runs a
few times on a side stream, where libraries make their choices and allocate what they keep.  What cannot be captured
(a copy to the host, a choice that depends on data) is launched kernel by kernel, and `refusal` says why.

Two times are taken of a call, each after the call before it has ended:

    device_ms   between two events on the stream, around the launches; no copies from or to the host.  The gaps in which
                the stream waits for the host's next launch count, as they do for whoever waits for the answer.
    wall_ms     of `TorchCudaSession.run`: checks, copies to the device, launches, copies back

Source: torch's notes on CUDA graphs.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tsexport.errors import reason_of

WARMUP_RUNS = 3

Answer = tuple[Tensor, ...]
Flatten = Callable[[object], Answer]


class DeviceCall:
    """A module at one batch size.  `inputs` are its buffers on the device; `launch` computes `outputs` from them.

    `graph` is None where launches go kernel by kernel; `refusal` says why although a graph was asked for.
    """

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor], flatten: Flatten, *, graphed: bool) -> None:
        """Warm up and capture.

        Args:
            module: on the device, in eval mode.
            inputs: example tensors on the device, which become the buffers.
            flatten: makes the module's answer a tuple of tensors, or raises.
            graphed: whether to capture a graph; only on a CUDA device.

        Raises:
            RuntimeError: the module fails on these inputs, also without a graph.
        """
        self._module, self._flatten = module, flatten
        self.inputs = tuple(inputs)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.refusal = ""
        with torch.inference_mode():
            if graphed and self.on_gpu:
                self._warm_up_aside()
                self._capture()
            else:
                for _ in range(WARMUP_RUNS):
                    self._outputs = self._run()

    @property
    def on_gpu(self) -> bool:
        """Whether the buffers lie on a CUDA device."""
        return all(tensor.is_cuda for tensor in self.inputs)

    def launch(self) -> Answer:
        """Compute the outputs from what lies in `inputs`; the next launch of a graph overwrites them."""
        if self.graph is not None:
            self.graph.replay()
            return self._outputs
        with torch.inference_mode():
            self._outputs = self._run()
        return self._outputs

    def device_ms(self) -> float:
        """Launch once and return the milliseconds between two events around it, on a stream that was idle before."""
        begin, end = _event(), _event()
        torch.cuda.synchronize()
        begin.record()
        self.launch()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    def _run(self) -> Answer:
        return self._flatten(self._module(*self.inputs))

    def _warm_up_aside(self) -> None:
        side = _side_stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUP_RUNS):
                self._outputs = self._run()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._outputs = self._run()
        except RuntimeError as error:
            self.refusal = reason_of(error)
            torch.cuda.synchronize()
            self._outputs = self._run()  # raises where the failure is the module's own
            return
        self.graph = graph
        graph.replay()
        torch.cuda.synchronize()


@functools.cache
def _side_stream() -> torch.cuda.Stream:
    """Return the stream that warms up, one for all: cuBLAS keeps a workspace for each that it is called on."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
