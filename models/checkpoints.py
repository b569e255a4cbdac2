"""Trained weights from `.pth`, `.pt` and `.safetensors` files: read without running code, unwrapped, loaded strictly.

torch files are read with `weights_only=True`: a pickle that names any other function or class is refused, and the error
says which.  torch's own words are never shown, since they advise to load the file with its code.

Training frameworks wrap state dicts; what is recognised is named in `Checkpoint.wrapping`:

- keys: `state_dict`, `model_state_dict`, `model` (one inside the other, too); what lies beside them is ignored
- prefixes of all names: `module.` (DataParallel), `model.` (Lightning), `_orig_mod.` (torch.compile)
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tsexport.errors import CheckpointError
from tsexport.types import file_sha256

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".pth", ".pt", ".safetensors")
WRAPPER_KEYS = ("state_dict", "model_state_dict", "model")
WRAPPER_PREFIXES = ("module.", "model.", "_orig_mod.")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_SAVE_WEIGHTS = (
    "Save the weights alone, with torch.save(model.state_dict(), ...) or safetensors.torch.save_file, "
    "and pass that file."
)
_REFUSED_NAME = re.compile(r"GLOBAL ([\w.]+)")


@dataclass(frozen=True)
class Checkpoint:
    """A state dict as read: names without wrapping, tensors on the CPU, all finite.

    `wrapping` names what was taken off, outermost first: keys ("state_dict"), then prefixes, which end in a dot
    ("module.").
    """

    path: Path
    sha256: str
    state: Mapping[str, "Tensor"]
    wrapping: tuple[str, ...]

    @property
    def prefixes(self) -> tuple[str, ...]:
        return tuple(part for part in self.wrapping if part.endswith("."))


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the weights in a file.

    Raises:
        CheckpointError: the file is missing, of another kind, damaged, holds code, or holds something else than finite
            tensors.
    """
    check_file(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    content, keys = _unwrap_keys(content)
    state = _require_tensors(path, content)
    state, prefixes = _strip_prefixes(state)
    _require_finite(path, state)
    return Checkpoint(path, file_sha256(path), state, keys + prefixes)


def check_file(path: Path) -> None:
    """Raise CheckpointError for what can be told from outside: no file, a folder, a wrong suffix, an LFS pointer."""
    if path.is_dir():
        raise CheckpointError(f"the checkpoint {path} is a folder", next_step="Name the file in it.")
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path.name} does not end as a checkpoint does; allowed are {', '.join(SUFFIXES)}")
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {error.strerror}") from None
    if not start:
        raise CheckpointError(f"the checkpoint {path} is empty", next_step="Download or save it again.")
    if start == _LFS_POINTER:
        raise CheckpointError(
            f"{path} is a git-lfs pointer, not the checkpoint itself", next_step="Run `git lfs pull` where it is from."
        )


def torch_archive_kind(path: Path) -> str:
    """Return what a file holds by its archive members: "torchscript", "pt2", "state" (a torch.save), or "other"."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [PurePosixPath(name).parts[1:] for name in archive.namelist()]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):  # no archive, or a damaged one
        return "other"
    if ("constants.pkl",) in members:
        return "torchscript"
    if any(member[:1] == ("models",) for member in members) or ("archive_format",) in members:
        return "pt2"
    return "state" if ("data.pkl",) in members else "other"


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file: {error}", next_step="Download or save it again."
        ) from error


def _read_torch(path: Path) -> object:
    kind = torch_archive_kind(path)
    if kind in ("torchscript", "pt2"):
        what = "TorchScript program" if kind == "torchscript" else "torch.export program"
        raise CheckpointError(
            f"{path} is a whole {what}, not a checkpoint",
            next_step=f"Build it as the model itself: tsexport build {path.name} ...",
        )
    import torch

    try:
        with warnings.catch_warnings():
            # A note that pickles of another protocol may not load; whether this one does is seen at once.
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises for a damaged file depends on where the damage is
        name = refused_name(error)
        raise _damaged(path) if name is None else _holds_code(path, name) from None


def refused_name(error: Exception) -> str | None:
    """Return the function or class that torch refused to load; None where a file failed for another reason."""
    found = _REFUSED_NAME.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
    return found.group(1) if found else None


def _holds_code(path: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{path} holds code, which is not run: its pickle asks for {name}; allowed are tensors and plain values",
        next_step=_SAVE_WEIGHTS,
    )


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged or not a torch checkpoint; allowed is what torch.save writes of a state dict",
        next_step="Download or save it again; weights in a .safetensors file are taken too.",
    )


def _unwrap_keys(content: object) -> tuple[object, tuple[str, ...]]:
    taken: tuple[str, ...] = ()
    while isinstance(content, Mapping):
        key = next((key for key in WRAPPER_KEYS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        content, taken = content[key], (*taken, key)
    return content, taken


def _require_tensors(path: Path, content: object) -> dict[str, "Tensor"]:
    import torch

    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not named tensors", next_step=_SAVE_WEIGHTS)
    if not content:
        raise CheckpointError(f"{path} holds no tensors at all", next_step=_SAVE_WEIGHTS)
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{path} holds {name!r}, a {type(value).__name__}, where named tensors are expected; "
                f"recognised wrappings are {', '.join(WRAPPER_KEYS)}",
                next_step=_SAVE_WEIGHTS,
            )
        if value.is_quantized or value.layout != torch.strided:
            raise CheckpointError(f"{name} in {path} is a quantized or sparse tensor; weights must be plain tensors")
    return dict(content)


def _strip_prefixes(state: dict[str, "Tensor"]) -> tuple[dict[str, "Tensor"], tuple[str, ...]]:
    taken: tuple[str, ...] = ()
    while prefix := next((p for p in WRAPPER_PREFIXES if all(n.startswith(p) and n != p for n in state)), None):
        state, taken = {name.removeprefix(prefix): value for name, value in state.items()}, (*taken, prefix)
    return state, taken


def _require_finite(path: Path, state: Mapping[str, "Tensor"]) -> None:
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            bad = int((~value.isfinite()).sum())
            raise CheckpointError(
                f"{name} in {path} has {bad} of {value.numel()} values that are NaN or infinite",
                next_step="Use a checkpoint from before the training diverged.",
            )
