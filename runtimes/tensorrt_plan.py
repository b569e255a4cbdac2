"""What a build of a TensorRT engine asks for, by version: decided here without TensorRT, so that it is tested anywhere.

The facts were read from NVIDIA's headers and Python bindings (https://github.com/NVIDIA/TensorRT, include/NvInfer.h and
python/src of the branches release/8.6 to release/11.1) and from the bindings that NVIDIA publishes (8.6.1, 10.3.0 and
11.4.0, see tests/runtimes/data/tensorrt_names.json):

- a network has an explicit batch by a flag up to 9; from 10 on there is no other, and 11 has no such flag;
- STRONGLY_TYPED is there from 9.0 on: tensors have the types of the ONNX file, and no flag for a precision is allowed.
  11 has no other network;
- before, flags allow precisions (FP16, INT8), and layers whose type matters are held to it;
- INT64 and BF16 tensors are there from 9.0 on: before, the parser narrows INT64 to INT32.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tsexport.devices import BF16_FROM, version_key
from tsexport.errors import FeedError, UnsupportedError, UsageError
from tsexport.types import Array, Precision, TensorSpec

FIRST, LAST = "8.6", "11"
"""The versions that are taken: FIRST by major and minor number, LAST by its major number."""
STRONGLY_TYPED_FROM = "9.0"
IMPLICIT_BATCH_UNTIL = "9"
NODE_NAMES_FROM = "10.0"
"""The parser's errors name the node by methods of their own from this version on; before, in their text."""
MOST_WORKSPACE_BYTES = 4 * 2**30
_PRECISION_FLAGS: dict[Precision, tuple[str, ...]] = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8",), "bf16": ()}
_NUMPY_OF = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""numpy's name of each TensorRT DataType that numpy has."""


def short_version(version: str) -> str:
    """Return major and minor number: "10.3" of "10.3.0.post1".

    Raises:
        UsageError: text that is no version.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        raise UsageError(f"TensorRT says its version is {version!r}; expected a number such as 10.3.0")
    return f"{found[1]}.{found[2]}"


def refusal_of_version(version: str) -> str:
    """Return why a version of TensorRT is not taken, "" where it is."""
    try:
        short = version_key(short_version(version))
    except UsageError as error:
        return error.message
    if version_key(FIRST) <= short and short[:1] <= version_key(LAST):
        return ""
    return f"tensorrt {version} is installed; supported are {FIRST} to {LAST}"


@dataclass(frozen=True)
class BuildPlan:
    """The flags of a build, by the names of TensorRT's enumerations.

    network: `NetworkDefinitionCreationFlag`s.  set, cleared: `BuilderFlag`s.
    holds_fp32: whether layers that the file computes in fp32 are held to it one by one.
    """

    network: tuple[str, ...]
    set: tuple[str, ...]
    cleared: tuple[str, ...]
    holds_fp32: bool

    @property
    def strongly_typed(self) -> bool:
        """Whether tensors have the types of the ONNX file, whatever would be faster."""
        return "STRONGLY_TYPED" in self.network


def plan_build(version: str, precision: Precision) -> BuildPlan:
    """Return the flags with which a version builds an engine of a precision.

    fp32 means fp32: TF32, which TensorRT allows itself, is cleared for it.

    Raises:
        UsageError: a version that is not taken.
        UnsupportedError: the version does not compute in the precision.
    """
    refusal = refusal_of_version(version)
    if refusal:
        raise UsageError(refusal, next_step='pip install "tsexport[tensorrt]"')
    short = version_key(short_version(version))
    cleared = ("TF32",) if precision == "fp32" else ()
    explicit = ("EXPLICIT_BATCH",) if short[:1] <= version_key(IMPLICIT_BATCH_UNTIL) else ()
    if short >= version_key(STRONGLY_TYPED_FROM):
        return BuildPlan((*explicit, "STRONGLY_TYPED"), (), cleared, holds_fp32=False)
    if precision == "bf16":
        raise UnsupportedError(
            f"TensorRT {short_version(version)} does not compute in bf16; that begins with {BF16_FROM}",
            next_step="use the fp16 artifact, or a later TensorRT",
        )
    flags = _PRECISION_FLAGS[precision]
    holds = precision == "fp16"
    return BuildPlan(explicit, (*flags, *(("OBEY_PRECISION_CONSTRAINTS",) if holds else ())), cleared, holds)


@dataclass(frozen=True)
class ProfileRow:
    """The range of one input's shape in an optimization profile, and the shape that kernels are chosen for."""

    name: str
    smallest: tuple[int, ...]
    best: tuple[int, ...]
    largest: tuple[int, ...]

    def __str__(self) -> str:
        shapes = ("x".join(map(str, shape)) for shape in (self.smallest, self.best, self.largest))
        return " ".join((self.name, *shapes))


def plan_profile(inputs: Iterable[TensorSpec], batches: Sequence[int]) -> tuple[ProfileRow, ...]:
    """Return the optimization profile for the batches asked for: from 1 to the largest, tuned for the first.

    Inputs whose shape is frozen need no row; where none has a batch there is no profile at all.

    Args:
        inputs: of the artifact.
        batches: the batch sizes that will be run, the most important first.

    Raises:
        UsageError: no batch, or one below 1.
    """
    if not batches or min(batches) < 1:
        raise UsageError(f"batches are {list(batches)}; needed is at least one, and whole numbers from 1 on")
    return tuple(
        ProfileRow(spec.name, spec.with_batch(1), spec.with_batch(batches[0]), spec.with_batch(max(batches)))
        for spec in inputs
        if any(isinstance(dim, str) for dim in spec.shape)
    )


def batches_with(batches: Sequence[int], met: int) -> tuple[int, ...]:
    """Return the batches for which an engine is built when a batch beyond its profile is met.

    The new batch comes first, so that kernels are chosen for it, and the largest is the next power of two: a series of
    growing batches then costs a few builds, each of minutes, and not one for every size.
    """
    return (met, *(batch for batch in batches if batch != met), 1 << (met - 1).bit_length())


def workspace_bytes(device_bytes: int) -> int:
    """Return the memory that the builder may use as workspace: a quarter of the device's, at most 4 GiB."""
    return min(device_bytes // 4, MOST_WORKSPACE_BYTES)


def device_dtype(spec: TensorSpec, data_type: str) -> str:
    """Return numpy's name of the type in which a tensor of the artifact lies on the device.

    Args:
        spec: the tensor as the artifact has it.
        data_type: the name of the engine's `DataType` for it, such as "HALF".

    Raises:
        UnsupportedError: a type that numpy has not, or that the artifact's values do not fit into as they are.
    """
    found = _NUMPY_OF.get(data_type, "")
    narrowed = spec.dtype == "int64" and found == "int32"  # what TensorRT does before 9.0, and the check judges
    if not found or (found != spec.dtype and not narrowed):
        raise UnsupportedError(
            f"the engine has {spec.name!r} as {data_type}, and the artifact as {spec.dtype}; allowed are the same "
            "type, and INT32 for int64",
            next_step="build the engine again of this artifact's ONNX file",
        )
    return found


def to_device(name: str, array: Array, dtype: str) -> Array:
    """Return an input as its engine takes it, contiguous.

    Raises:
        FeedError: a value of an int64 input that INT32 cannot hold.
    """
    if array.dtype == np.dtype(dtype):
        return np.ascontiguousarray(array).reshape(array.shape)
    bounds = np.iinfo(dtype)
    if array.size and (array.min() < bounds.min or array.max() > bounds.max):
        raise FeedError(
            f"input {name!r} holds {array.min()} to {array.max()}; this version of TensorRT computes int64 as INT32, "
            f"which holds {bounds.min} to {bounds.max}",
            next_step="give smaller values, or use TensorRT 10 or later",
        )
    return np.ascontiguousarray(array.astype(dtype)).reshape(array.shape)


def describe_node_error(description: str, index: int, name: str, operator: str) -> str:
    """Return one error of the ONNX parser, with its node where it names one.

    Args:
        index: the node's place in the graph, negative where the error concerns none.
        name, operator: "" where the version of TensorRT does not say them.
    """
    text = " ".join(description.split()) or "no reason given"
    if name or operator:
        return f"node {name or index} ({operator or 'unknown operator'}): {text}"
    return f"node number {index}: {text}" if index >= 0 else text
