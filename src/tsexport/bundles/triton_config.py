"""A model's configuration for NVIDIA's Triton Inference Server, as the text of its `config.pbtxt`.

The text is protobuf's text format of the message `ModelConfig` (https://github.com/triton-inference-server/common,
protobuf/model_config.proto), written here without protobuf.  Its rules are those that Triton's core and its backends
check when they load a model (core: src/model_config_utils.cc; each backend's README).  Three of them decide much:

- `dims` leave the batch out where `max_batch_size` is above 0.  A tensor that has the batch alone is given as `[1]`,
  with an empty reshape, since dims may not be empty; a scalar where nothing is batched as `[1]` alone.
- The ONNX Runtime and OpenVINO backends turn dynamic batching on by themselves where `max_batch_size` is above 1, and
  the former raises a `max_batch_size` of 0.  Only 1 keeps requests apart.
- Warm-up data are zeros: Triton's random data are random bytes, which as floats are NaN and denormal numbers, and as
  integers no valid index.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

TRITON = "triton"
"""The folder of the bundle that is a model repository."""
CONFIG, VERSION = "config.pbtxt", "1"
"""In a model's folder: the configuration, and the folder of the one version."""

Kind = Literal["KIND_CPU", "KIND_GPU"]

DATA_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
}
"""numpy's names of dtypes, and Triton's."""

ANY_SIZE = -1
"""A dimension of any size, in `dims`."""


@dataclass(frozen=True)
class TritonTensor:
    """One input or output: `dims` without the batch where the model is batched; empty for a scalar."""

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class TritonConfig:
    """What a `config.pbtxt` says.

    `platform` is "" where the backend has none.  `preferred_batch_sizes` are those that requests are gathered to, ()
    where they are kept apart.  `instances` copies of the model run side by side, on a processor of `kind`.
    `warm_up_sizes` are the batches that the server runs, `warm_up_runs` times each, before the model is ready.
    `graph_level` is Triton's number for how far ONNX Runtime optimizes the graph, None for all it can.
    """

    name: str
    backend: str
    platform: str
    model_file: str
    max_batch_size: int
    inputs: tuple[TritonTensor, ...]
    outputs: tuple[TritonTensor, ...]
    preferred_batch_sizes: tuple[int, ...]
    instances: int
    kind: Kind
    parameters: tuple[tuple[str, str], ...]
    warm_up_sizes: tuple[int, ...]
    warm_up_runs: int = 1
    graph_level: int | None = None


def config_text(config: TritonConfig) -> str:
    """Return config.pbtxt's text.  Equal configurations give equal text."""
    lines = [f"name: {_quoted(config.name)}", f"backend: {_quoted(config.backend)}"]
    if config.platform:
        lines.append(f"platform: {_quoted(config.platform)}")
    lines += [f"default_model_filename: {_quoted(config.model_file)}", f"max_batch_size: {config.max_batch_size}"]
    for field, tensors in (("input", config.inputs), ("output", config.outputs)):
        for tensor in tensors:
            lines += _message(field, _tensor_lines(tensor, batched=config.max_batch_size > 0))
    if config.preferred_batch_sizes:
        sizes = ", ".join(map(str, config.preferred_batch_sizes))
        lines += _message("dynamic_batching", [f"preferred_batch_size: [ {sizes} ]"])
    lines += _message("instance_group", [f"count: {config.instances}", f"kind: {config.kind}"])
    if config.graph_level is not None:
        lines += _message("optimization", _message("graph", [f"level: {config.graph_level}"]))
    for key, value in config.parameters:
        lines += _message("parameters", [f"key: {_quoted(key)}", f"value {{ string_value: {_quoted(value)} }}"])
    for size in config.warm_up_sizes:
        lines += _message("model_warmup", _warm_up_lines(config, size))
    return "\n".join(lines) + "\n"


def _tensor_lines(tensor: TritonTensor, *, batched: bool) -> list[str]:
    lines = [f"name: {_quoted(tensor.name)}", f"data_type: {tensor.data_type}"]
    lines.append(f"dims: [ {_numbers(tensor.dims or (1,))} ]")
    return [*lines, "reshape { shape: [ ] }"] if batched and not tensor.dims else lines


def _warm_up_lines(config: TritonConfig, size: int) -> list[str]:
    lines = [f"name: {_quoted(f'batch of {size}')}", f"batch_size: {size}", f"count: {config.warm_up_runs}"]
    for tensor in config.inputs:
        dims = tuple(1 if dim == ANY_SIZE else dim for dim in tensor.dims) or (1,)
        data = f"data_type: {tensor.data_type} dims: [ {_numbers(dims)} ] zero_data: true"
        lines += _message("inputs", [f"key: {_quoted(tensor.name)}", f"value {{ {data} }}"])
    return lines


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _message(field: str, lines: Iterable[str]) -> list[str]:
    return [f"{field} {{", *(f"  {line}" for line in lines), "}"]


def _quoted(text: str) -> str:
    """Return a string literal of the text format: escaped as C does, and UTF-8 as it is."""
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(c) or (c if c.isprintable() else _octal(c)) for c in text) + '"'


def _octal(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in character.encode())
