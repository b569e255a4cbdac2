"""TorchScript through torch.

torch has one number of threads for the process: every run sets it to the session's own where it differs, and leaves it
there.  TorchScript's executor profiles before it optimizes, so its first two calls are 10 to 100 times slower than the
rest; the session makes them at load, on random feeds of batch 1.  Another batch size needs no further ones (measured
on a
transformer: the first call of a new batch costs less than twice a later one).
"""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from tsexport.errors import UsageError
from tsexport.runtimes.sessions import ArtifactSession, Infer
from tsexport.types import Array, Artifact, random_feeds

WARMUP_RUNS = 3


class TorchScriptSession(ArtifactSession):
    """A TorchScript file in torch.  Its arguments are the artifact's inputs by position."""

    runtime = "torchscript"
    failures = (RuntimeError,)

    def __init__(self, artifact: Artifact, threads: int) -> None:
        super().__init__(artifact, threads)
        torch.set_num_threads(threads)
        self._module: torch.jit.ScriptModule | None = None
        try:
            with warnings.catch_warnings():
                # torch calls its own format deprecated at every load; it is one of the formats that users ask for.
                warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
                module = torch.jit.load(str(artifact.path), map_location="cpu")  # type: ignore[no-untyped-call]
            self._module = module.eval()
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
        return [np.array(tensor.detach().numpy(), order="C") for tensor in self._tensors(answer)]

    def _tensors(self, answer: object) -> list[torch.Tensor]:
        """Return the module's answer as tensors in the order of the artifact's outputs."""
        if isinstance(answer, torch.Tensor):
            answer = (answer,)
        if isinstance(answer, dict):
            self.require_names("output", self.outputs, list(answer))
            answer = [answer[spec.name] for spec in self.outputs]
        if not isinstance(answer, (tuple, list)) or not all(isinstance(value, torch.Tensor) for value in answer):
            raise UsageError(f"{self.artifact.path} returns something else than tensors, or a tuple or dict of them")
        if len(answer) != len(self.outputs):
            expected = ", ".join(map(str, self.outputs))
            raise UsageError(f"{self.artifact.path} returns {len(answer)} tensors; expected {expected}")
        return list(answer)

    def _release(self) -> None:
        self._module = None

    def reason(self, error: Exception) -> str:
        """Return the line that says why: the last one where the interpreter prints its own traceback first."""
        if "Traceback of TorchScript" in str(error):
            return str(error).strip().splitlines()[-1]
        return super().reason(error)


def _tensor(array: Array) -> torch.Tensor:
    """Return a tensor over an array's memory; a read-only array is copied, since torch has no read-only tensors."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
