"""What every session on a torch module shares: reading a TorchScript file, and what a module may answer."""

import hashlib
import io
import warnings

import torch
from torch import Tensor

from tsexport.errors import UsageError, reason_of
from tsexport.runtimes.sessions import ArtifactSession
from tsexport.types import Artifact


def read_torchscript(artifact: Artifact, device: str) -> torch.jit.ScriptModule:
    """Return the module of a TorchScript artifact, in eval mode, on a device.

    Such a file can run code when it is loaded.  So it is read once, and torch gets the bytes whose digest was compared,
    whatever is written in the file's place meanwhile.

    Raises:
        RuntimeError: the file cannot be read, is not the artifact's, or torch refuses it.
    """
    try:
        content = artifact.path.read_bytes()
    except OSError as error:
        raise RuntimeError(f"it cannot be read: {error.strerror}") from None
    # What a bundle holds has a digest; what was only made to measure with may have none.
    if artifact.sha256 and hashlib.sha256(content).hexdigest() != artifact.sha256:
        raise RuntimeError("it is not the artifact's file, by its SHA-256")
    with warnings.catch_warnings():
        # torch calls its own format deprecated at every load; it is one of the formats that users ask for.
        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
        try:
            module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
                io.BytesIO(content), map_location=device
            )
        except Exception as error:  # torch raises many kinds on damaged programs
            raise RuntimeError(reason_of(error)) from error
    return module.eval()


class TorchAnswers(ArtifactSession):
    """A session on a torch module, whose answers are tensors or a tuple, list or dict of them."""

    def tensors_of(self, answer: object, origin: str) -> tuple[Tensor, ...]:
        """Return a module's answer as tensors in the order of the artifact's outputs.

        Args:
            origin: what answered, for the message: a path or a name.

        Raises:
            UsageError: something else than tensors, or others than the artifact's outputs.
        """
        if isinstance(answer, Tensor):
            answer = (answer,)
        if isinstance(answer, dict):
            self.require_names("output", self.outputs, list(answer))
            answer = [answer[spec.name] for spec in self.outputs]
        if not isinstance(answer, (tuple, list)) or not all(isinstance(value, Tensor) for value in answer):
            raise UsageError(f"{origin} returns something else than tensors, or a tuple or dict of them")
        if len(answer) != len(self.outputs):
            expected = ", ".join(map(str, self.outputs))
            raise UsageError(f"{origin} returns {len(answer)} tensors; expected {expected}")
        return tuple(answer)
