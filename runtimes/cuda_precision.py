"""A torch module in fp16 or bf16 for a GPU: its weights are cast once, and what must stay in fp32 does.

A cast module, not autocast: autocast casts weights anew in every call (and in every replay of a captured graph), and
writes normalized activations in fp32 between the products.  What autocast protects is safe here as well: torch's CUDA
kernels of softmax, LayerNorm and BatchNorm read fp16 and bf16 and compute in fp32, and products accumulate in fp32
(`exact_products` turns the reduced accumulation of cuBLAS off).

Inputs and outputs of the whole stay in fp32.  `keep` names modules, as their parent calls them, that stay in fp32:
their inputs are cast up and their outputs down.  `within` names children outside of which everything stays in fp32,
for a model that prepares its own inputs: the mean of a window of prices has no 11 bits to spare.

`torch.fft` and complex products: cuFFT has half precision for sizes that are powers of two alone, it has none in bf16,
and torch multiplies no matrices of complex halves.  A layer that transforms belongs to `keep`.
"""

import copy
import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from tsexport.errors import ConfigurationError, did_you_mean
from tsexport.types import Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Narrowed(nn.Module):
    """A module whose floating inputs are cast to a dtype, and whose floating outputs are cast to fp32."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner, dtype

    def forward(self, *inputs: Tensor) -> Any:
        return cast_floats(self.inner(*cast_floats(inputs, self.dtype)), torch.float32)


def narrowed(
    module: nn.Module, precision: Precision, *, keep: Collection[str] = (), within: Collection[str] = ()
) -> nn.Module:
    """Return a copy of a module in eval mode that computes in a precision; fp32 is a plain copy.

    Args:
        module: takes and returns tensors, or tuples of them; floating ones in fp32.
        keep: names of modules, wherever they stand in it, that stay in fp32.
        within: names of direct children that alone are cast; by default all of the module is.

    Raises:
        ConfigurationError: a precision that torch has no arithmetic for, or a name that no module bears.
    """
    if precision not in DTYPES:
        raise ConfigurationError(
            f"torch on a GPU computes in {', '.join(DTYPES)}; given {precision}",
            next_step="build an int8 artifact for TensorRT instead",
        )
    copied = copy.deepcopy(module).eval().requires_grad_(False)
    if precision == "fp32":
        return copied
    dtype = DTYPES[precision]
    _require_names(copied, keep, {name.rpartition(".")[2] for name, _ in copied.named_modules()} - {""})
    _require_names(copied, within, {name for name, _ in copied.named_children()})
    if not within:
        return Narrowed(_cast(copied, dtype, keep), dtype)
    for name in within:
        setattr(copied, name, Narrowed(_cast(copied.get_submodule(name), dtype, keep), dtype))
    return copied


def narrowed_model(
    module: nn.Module, precision: Precision, *, keep: Collection[str] = (), within: Collection[str] = ()
) -> nn.Module:
    """As `narrowed`, for a model or a part of it: names of `keep` that a part does not have are passed over."""
    held = {name.rpartition(".")[2] for name, _ in module.named_modules()}
    return narrowed(module, precision, keep=[name for name in keep if name in held], within=within)


def exact_products() -> None:
    """Turn TF32 off, and the accumulation of cuBLAS in less than fp32, for this process.

    fp32 is then fp32, with 24 bits: torch lets convolutions round their inputs to TF32's 11 unless told otherwise.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to rename these switches, and keeps them meanwhile
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def cast_floats(value: Any, dtype: torch.dtype) -> Any:
    """Return a tensor, or a tuple, list or dict of them, with the floating ones cast; other values as they are."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)([cast_floats(one, dtype) for one in value])
    if isinstance(value, dict):
        return {name: cast_floats(one, dtype) for name, one in value.items()}
    return value


def _cast(module: nn.Module, dtype: torch.dtype, keep: Collection[str]) -> nn.Module:
    """Cast a module's floating weights in place, but for those of the kept modules, which cast what passes them."""
    kept = [part for name, part in module.named_modules() if name and name.rpartition(".")[2] in keep]
    module.to(dtype)
    for part in kept:
        part.to(torch.float32)
        part.register_forward_pre_hook(_widen)
        part.register_forward_hook(_Narrow(dtype))
    return module


def _widen(_: nn.Module, inputs: tuple[Any, ...]) -> Any:
    return cast_floats(inputs, torch.float32)


class _Narrow:
    """The forward hook of a kept module: its outputs go on in the dtype around it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> Any:
        return cast_floats(outputs, self.dtype)


def _require_names(module: nn.Module, names: Collection[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigurationError(
                f"{type(module).__name__} has no module {name!r}{did_you_mean(name, sorted(known))}; "
                f"it has {', '.join(sorted(known))}"
            )
