"""TorchScript through torch.

torch has one number of threads for the process: every run sets it to the session's own where it differs, and leaves it
there.  TorchScript's executor profiles before it optimizes, so its first two calls are 10 to 100 times slower than the
rest; the session makes them at load, on random feeds of batch 1.  Another batch size needs no further ones (measured
on a
transformer: the first call of a new batch costs less than twice a later one).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from tsexport.runtimes.sessions import Infer
from tsexport.runtimes.torch_answers import TorchAnswers, read_torchscript
from tsexport.types import Array, Artifact, random_feeds

WARMUP_RUNS = 3


class TorchScriptSession(TorchAnswers):
    """A TorchScript file in torch.  Its arguments are the artifact's inputs by position."""

    runtime = "torchscript"
    failures = (RuntimeError,)

    def __init__(self, artifact: Artifact, threads: int) -> None:
        super().__init__(artifact, threads)
        torch.set_num_threads(threads)
        self._module: torch.jit.ScriptModule | None = None
        try:
            self._module = read_torchscript(artifact, "cpu")
            feeds = random_feeds(artifact.inputs, batch=1, seed=0)
            for _ in range(WARMUP_RUNS):
                self._infer(feeds)
        except self.failures as error:
            raise self.cannot_load(error) from error

    def _infer_for(self, batch: int | None) -> Infer:
        return self._infer

    def _infer(self, feeds: Mapping[str, Array]) -> Sequence[Array]:
        assert self._module is not None, "run() refuses a closed session"
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            answer = self._module(*(_tensor(feeds[spec.name]) for spec in self.inputs))
        # Copied: a module may return its input, a view of it, or a weight.
        return [
            np.array(tensor.detach().numpy(), order="C") for tensor in self.tensors_of(answer, str(self.artifact.path))
        ]

    def _release(self) -> None:
        self._module = None


def _tensor(array: Array) -> torch.Tensor:
    """Return a tensor over an array's memory; a read-only array is copied, since torch has no read-only tensors."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
