"""Whether torch can compute on a GPU here, decided without importing torch.

The version file of an installed torch says for which CUDA it was built; the driver's own tool says whether there is a
GPU.  Importing torch takes seconds, and a listing of runtimes asks for this.
"""

import importlib.util
import re
from pathlib import Path

from tsexport.gpus import list_gpus

NO_GPU = "this machine has no NVIDIA GPU that nvidia-smi or the driver shows"
_BUILT_FOR = re.compile(r"^cuda\b[^=]*=\s*'([^']+)'", re.MULTILINE)


def cuda_of_torch(folder: Path | None = None) -> str | None:
    """Return the CUDA that torch was built for, such as "13.0"; None for a build without CUDA, or no torch.

    Args:
        folder: torch's package folder; by default that of this environment.
    """
    folder = folder or _torch_folder()
    if folder is None:
        return None
    try:
        found = _BUILT_FOR.search((folder / "version.py").read_text(encoding="utf-8"))
    except OSError:
        return None
    return found[1] if found else None


def cuda_obstacle(folder: Path | None = None) -> str:
    """Return why an installed torch cannot compute on a GPU here, "" where it can; `folder` as for `cuda_of_torch`."""
    if cuda_of_torch(folder) is None:
        return "the installed torch is a build without CUDA"
    if not list_gpus():
        return NO_GPU
    return ""


def _torch_folder() -> Path | None:
    try:
        found = importlib.util.find_spec("torch")
    except (ImportError, ValueError):
        return None
    return Path(found.origin).parent if found and found.origin else None
