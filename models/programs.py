"""Models that come as programs: TorchScript archives and `.pt2` files of torch.export.

TorchScript is interpreted by torch and runs no Python.  A `.pt2` may hold pickles, which torch loads with code and all,
so its members are checked before torch opens it: every pickle must load with `weights_only=True`, symbolic expressions
must be plain arithmetic, and compiled libraries and the older layout are refused.
"""

import io
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsexport.errors import UsageError, reason_of
from tsexport.models.checkpoints import refused_name
from tsexport.types import BATCH, TensorSpec

if TYPE_CHECKING:
    from torch import nn

# An expression is sympy's srepr, such as Symbol('s31', positive=True, integer=True) + Integer(1), or plain s31 + 1.
_QUOTED_SYMBOL = re.compile(r"'[a-z]+\d+'")
_ARITHMETIC = re.compile(r"(?:[\w\s+\-*/(),<=>&|~%]|(?<=\d)\.(?=\d))*")
_WORD = re.compile(r"[A-Za-z_]\w*")
_ALLOWED_WORD = re.compile(r"[a-z]+\d+|[A-Z][A-Za-z]+|floor|ceiling|zoo|oo|positive|nonnegative|nonzero|integer")


def load_torchscript(path: Path) -> "nn.Module":
    """Return a TorchScript program on the CPU, in eval mode.

    Raises:
        UsageError: torch cannot load it.
    """
    import torch

    with warnings.catch_warnings():
        # Deprecated since torch 2.13 in favour of torch.export; it is still the format users have.
        warnings.filterwarnings("ignore", message=".*torch.jit.* is deprecated", category=DeprecationWarning)
        try:
            module: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
        except Exception as error:  # torch raises many kinds on damaged programs
            raise UsageError(
                f"{path} is not a TorchScript program this torch can load: {reason_of(error)}",
                next_step="Save it again with torch.jit.save.",
            ) from error
    return module.eval()


def load_pt2(path: Path) -> tuple["nn.Module", tuple[TensorSpec, ...]]:
    """Return a torch.export program as a module, and its inputs as it declares them.

    Raises:
        UsageError: it is damaged, holds code, or was exported with a fixed batch or other dynamic dimensions.
    """
    import torch

    check_pt2(path)
    try:
        program = torch.export.load(path)
    except Exception as error:  # torch raises many kinds on damaged programs
        raise UsageError(
            f"{path} is not a torch.export program this torch can load: {reason_of(error)}",
            next_step="Save it again with torch.export.save.",
        ) from error
    fed = set(program.graph_signature.user_inputs)
    values = [(n.name, n.meta["val"]) for n in program.graph.nodes if n.op == "placeholder" and n.name in fed]
    for name, value in values:
        if not isinstance(value, torch.Tensor):
            raise UsageError(f"input {name} of {path.name} is a {type(value).__name__}; only tensors can be fed")
    inputs = tuple(
        _pt2_input(path, name, tuple(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in values
    )
    return _without_modes(program.module()), inputs


def _without_modes(module: "nn.Module") -> "nn.Module":
    """Let `eval` and `train` do nothing: the mode was fixed when the program was exported, and torch raises there."""

    def stay(mode: bool = True) -> "nn.Module":
        return module

    module.eval = module.train = stay  # type: ignore[method-assign]
    return module


def check_pt2(path: Path) -> None:
    """Raise UsageError unless torch can open a `.pt2` without running anything but the program itself."""
    import torch

    try:
        reader = torch._C.PyTorchFileReader(str(path))  # the parser that torch itself uses
        names = reader.get_all_records()
    except RuntimeError as error:
        raise UsageError(f"{path} is damaged or no .pt2 archive", next_step="Save it again.") from error
    if len({name.lower() for name in names}) != len(names):
        raise UsageError(f"{path} holds two members of one name")
    if "archive_format" not in names or not any(name.startswith("models/") for name in names):
        raise UsageError(f"{path} has the layout of an older torch", next_step="Save it again with torch.export.save.")
    for name in names:
        content = reader.get_record(name)
        if name.startswith(("data/aotinductor", "data/executorch", "xl_model_weights")) or "opaque_obj_" in name:
            raise UsageError(f"{path} holds {name}: compiled or opaque code, which is not run")
        if name.startswith("data/") and (name.endswith(".pt") or "custom_obj_" in name):
            _require_plain_pickle(path, name, content)
        elif name.startswith("models/"):
            _require_arithmetic(path, _parse(path, name, content))
        elif name.endswith("_config.json"):
            _require_plain_payloads(path, name, _parse(path, name, content), reader)


def _require_plain_payloads(path: Path, name: str, config: Any, reader: Any) -> None:
    entries = config.get("config", {}) if isinstance(config, Mapping) else {}
    for entry in entries.values():
        member = f"{name.rpartition('/')[0]}/{entry['path_name']}"
        if entry.get("use_pickle"):
            _require_plain_pickle(path, member, reader.get_record(member))


def _require_plain_pickle(path: Path, name: str, content: bytes) -> None:
    import torch

    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # without its cause: torch advises to load the file with its code
        code = refused_name(error)
        raise UsageError(
            f"{path} holds a damaged {name}"
            if code is None
            else f"{path} holds code in {name}, which is not run: its pickle asks for {code}",
            next_step="Export the model again with tensors only as example inputs and constants.",
        ) from None


def _require_arithmetic(path: Path, node: object) -> None:
    for text in _expressions(node):
        bare = _QUOTED_SYMBOL.sub("s0", text)
        if not _ARITHMETIC.fullmatch(bare) or not all(_ALLOWED_WORD.fullmatch(word) for word in _WORD.findall(bare)):
            raise UsageError(f"{path} holds an expression that is not plain arithmetic: {text[:80]!r}")


def _expressions(node: object) -> Iterator[str]:
    """Yield the texts that torch hands to sympy, which evaluates them as Python."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "expr_str" and isinstance(value, str):
                yield value
            else:
                yield from _expressions(value)
    elif isinstance(node, list):
        for item in node:
            yield from _expressions(item)


def _parse(path: Path, name: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise UsageError(f"{name} in {path} is not JSON", next_step="Save the program again.") from error


def _pt2_input(path: Path, name: str, shape: tuple[Any, ...], dtype: str) -> TensorSpec:
    first, *others = shape or (0,)
    if isinstance(first, int):
        raise UsageError(
            f"input {name} of {path.name} is {list(shape)}: its batch is fixed",
            next_step="Export with dynamic_shapes={0: torch.export.Dim('batch')} for every input.",
        )
    if not all(isinstance(dimension, int) for dimension in others):
        raise UsageError(
            f"input {name} of {path.name} is [{', '.join(map(str, shape))}]: only the first dimension may be dynamic",
            next_step="Export it again with the other dimensions fixed.",
        )
    return TensorSpec(name, dtype, (BATCH, *others))
