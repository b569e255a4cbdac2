"""Inference requests and answers of the Open Inference Protocol, with its extension for binary tensors.

A body is JSON, or JSON of `Inference-Header-Content-Length` bytes with the tensors' bytes behind it: those whose
`parameters.binary_data_size` says so, in the order of the inputs, little-endian, row-major, one byte a BOOL.

Source: KServe, "Open Inference Protocol (V2)", and Triton Inference Server, "Binary Tensor Data Extension".
What is not taken is refused, where ignoring it would answer something else: shared memory, sequences (no model here has
a state), classification.  Unknown keys and parameters are ignored, as the protocol allows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tsexport.errors import FeedError, did_you_mean
from tsexport.runtimes.sessions import check_feeds
from tsexport.serving.datatypes import BINARY_DATA_SIZE, DATATYPES, datatype_of, describe
from tsexport.serving.json_tensors import flatten, json_bytes, kind_of, listed, parse_object, typed
from tsexport.serving.refusals import unfit, unreadable
from tsexport.types import Array, TensorSpec

HEADER_LENGTH = "Inference-Header-Content-Length"
_REFUSED = ("shared_memory_", "sequence_", "classification")
_MAX_DIMS = 16
_MICROSECONDS = 1_000_000


@dataclass(frozen=True)
class WantedOutput:
    """An output that was asked for, as binary data or as JSON."""

    name: str
    binary: bool


@dataclass(frozen=True)
class InferRequest:
    """What a model is asked: feeds that fit it, the rows they have, and how to answer.

    `timeout_s` is the request's own, from its parameter `timeout` in microseconds.
    """

    request_id: str | None
    feeds: dict[str, Array]
    rows: int
    outputs: tuple[WantedOutput, ...]
    timeout_s: float | None = None


@dataclass(frozen=True)
class EncodedAnswer:
    """A body; `header_length` is that of its JSON where binary data follows."""

    body: bytes
    header_length: int | None


def header_length_of(text: str | None, size_bytes: int) -> int | None:
    """Return the length of the JSON that the header names; None without the header, where all of it is JSON.

    Raises:
        Refusal: 400, no number, or more than the body has.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 16) or not 0 < int(text) <= size_bytes:
        raise unreadable(f"{HEADER_LENGTH} is {text[:40]!r}, allowed are 1 to {size_bytes}, the size of the body")
    return int(text)


def parse_request(
    body: bytes, header_length: int | None, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> InferRequest:
    """Return what a body asks of a model with these tensors.

    Raises:
        Refusal: 400, it cannot be read; 422, it does not fit the model.
    """
    document = parse_object(body if header_length is None else body[:header_length])
    request_id = document.get("id")
    if request_id is not None and type(request_id) is not str:
        raise unfit(f"id is {kind_of(request_id)}, needed is a text")
    parameters = _parameters(document, "the request")
    given = _tensors(document, "inputs")
    if given is None:
        raise unfit(f"inputs are missing; the model takes {_described(inputs)}")
    feeds = _feeds(given, memoryview(b"" if header_length is None else body[header_length:]), inputs)
    rows = check_fit(inputs, feeds)
    return InferRequest(request_id, feeds, rows, _wanted(document, parameters, outputs), _timeout_s(parameters))


def check_fit(inputs: tuple[TensorSpec, ...], feeds: Mapping[str, Array]) -> int:
    """Return the rows of feeds that fit a model, 1 where it has no batch.

    Raises:
        Refusal: 422, other names or shapes.
    """
    try:
        return check_feeds(inputs, feeds)[1] or 1
    except FeedError as error:
        raise unfit(error.message) from None


def encode_answer(
    model: str, version: str, request: InferRequest, answer: Mapping[str, Array], outputs: tuple[TensorSpec, ...]
) -> EncodedAnswer:
    """Return the body that answers a request.

    Raises:
        Refusal: 422, NaN or infinity in an output that was asked for as JSON.
    """
    specs = {spec.name: spec for spec in outputs}
    tensors, blobs = [], []
    for wanted in request.outputs:
        array, spec = answer[wanted.name], specs[wanted.name]
        tensor: dict[str, Any] = {
            "name": wanted.name,
            "datatype": datatype_of(spec),
            "shape": list(array.shape),
        }
        if wanted.binary:
            blobs.append(array.astype(np.dtype(spec.dtype).newbyteorder("<"), copy=False).tobytes())
            tensor["parameters"] = {BINARY_DATA_SIZE: len(blobs[-1])}
        else:
            tensor["data"] = listed(array.ravel(), wanted.name)
        tensors.append(tensor)
    named = {} if request.request_id is None else {"id": request.request_id}
    header = json_bytes({"model_name": model, "model_version": version, **named, "outputs": tensors})
    return EncodedAnswer(b"".join((header, *blobs)), len(header) if blobs else None)


def _tensors(document: Mapping[str, Any], key: str) -> list[dict[str, Any]] | None:
    """Return the list of tensors under a key; None where there is none."""
    given = document.get(key)
    if given is None:
        return None
    if type(given) is not list or any(type(one) is not dict for one in given):
        raise unfit(f"{key} are not a list of objects")
    seen: set[str] = set()
    for one in given:
        name = one.get("name")
        if type(name) is not str:
            raise unfit(f"a name in {key} is {kind_of(name)}, needed is a text")
        if name in seen:
            raise unfit(f"{name!r} stands twice in {key}")
        seen.add(name)
    return given


def _parameters(owner: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the parameters of a request or a tensor, refusing those that would change the answer."""
    parameters = owner.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise unfit(f"the parameters of {what} are {kind_of(parameters)}, needed is an object")
    for name in parameters:
        if name.startswith(_REFUSED):
            raise unfit(f"the parameter {name!r} of {what} is not supported")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise unfit(f"the parameter {name!r} is {kind_of(value)}, needed is true or false")
    return value


def _timeout_s(parameters: Mapping[str, Any]) -> float | None:
    value = parameters.get("timeout")
    if value is None:
        return None
    if type(value) is not int or not 0 < value < 2**63:
        raise unfit("the parameter 'timeout' is no whole number of microseconds above 0")
    return value / _MICROSECONDS


def _wanted(
    document: Mapping[str, Any], parameters: Mapping[str, Any], outputs: tuple[TensorSpec, ...]
) -> tuple[WantedOutput, ...]:
    binary = _flag(parameters, "binary_data_output", False)
    asked = _tensors(document, "outputs")
    if not asked:
        return tuple(WantedOutput(spec.name, binary) for spec in outputs)
    names = [spec.name for spec in outputs]
    found = []
    for one in asked:
        name = one["name"]
        if name not in names:
            raise unfit(f"unknown output {name!r}{did_you_mean(name, names)}; the model gives {_described(outputs)}")
        found.append(WantedOutput(name, _flag(_parameters(one, f"output {name!r}"), "binary_data", binary)))
    return tuple(found)


def _feeds(given: Sequence[Mapping[str, Any]], rest: memoryview, inputs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """Return the arrays of a request; each tensor takes its bytes from the front of `rest`."""
    specs = {spec.name: spec for spec in inputs}
    feeds = {}
    for one in given:
        name = one["name"]
        if name not in specs:
            raise unfit(f"unknown input {name!r}{did_you_mean(name, specs)}; the model takes {_described(inputs)}")
        spec = specs[name]
        datatype = one.get("datatype")
        if datatype != datatype_of(spec):
            known = type(datatype) is str and datatype in DATATYPES.values()
            stated = datatype if known else kind_of(datatype) if type(datatype) is not str else repr(datatype[:40])
            raise unfit(f"the datatype of {name!r} is {stated}, needed is {datatype_of(spec)}: {describe(spec)}")
        shape = _shape(one.get("shape"), name)
        size = _parameters(one, f"input {name!r}").get(BINARY_DATA_SIZE)
        if size is None:
            feeds[name] = _from_json(one, spec, shape)
        else:
            if "data" in one:
                raise unfit(f"input {name!r} has both data and {BINARY_DATA_SIZE}; give one of them")
            feeds[name] = _from_bytes(rest, size, spec, shape)
            rest = rest[size:]
    if len(rest):
        raise unreadable(f"{len(rest)} bytes follow the JSON that no input's {BINARY_DATA_SIZE} takes")
    return feeds


def _shape(value: Any, name: str) -> tuple[int, ...]:
    dims = value if type(value) is list else None
    if dims is None or len(dims) > _MAX_DIMS or any(type(dim) is not int or not 0 <= dim < 2**63 for dim in dims):
        raise unfit(f"the shape of {name!r} is no list of at most {_MAX_DIMS} whole numbers from 0 on")
    return tuple(dims)


def _from_json(tensor: Mapping[str, Any], spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    if "data" not in tensor:
        raise unfit(f"input {spec.name!r} has no data, and no parameter {BINARY_DATA_SIZE}")
    flat, nested = flatten(tensor["data"], spec.name)
    if len(nested) > 1 and nested != shape:
        raise unfit(f"the lists of {spec.name!r} have shape {list(nested)}, and its shape says {list(shape)}")
    if len(flat) != math.prod(shape):
        raise unfit(f"{spec.name!r} has {len(flat)} values; its shape {list(shape)} needs {math.prod(shape)}")
    return _shaped(typed(flat, spec.dtype, spec.name), shape, spec.name)


def _from_bytes(rest: memoryview, size: Any, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    dtype = np.dtype(spec.dtype)
    needed = math.prod(shape) * dtype.itemsize
    if type(size) is not int or size != needed:
        stated = str(size) if type(size) is int and abs(size) < 2**63 else kind_of(size)
        raise unfit(f"{BINARY_DATA_SIZE} of {spec.name!r} is {stated}; its shape {list(shape)} needs {needed} bytes")
    if size > len(rest):
        raise unreadable(f"{len(rest)} bytes are left for {spec.name!r}, which needs {size}; see {HEADER_LENGTH}")
    if dtype.kind == "b":
        raw = np.frombuffer(rest[:size], np.uint8)
        if (raw > 1).any():
            raise unfit(f"{spec.name!r} holds bytes above 1; BOOL takes 0 and 1")
        return _shaped(raw.astype(dtype), shape, spec.name)
    # A copy: the bytes may lie at any address, and are not to be written to, which runtimes do not all bear.
    return _shaped(np.frombuffer(rest[:size], dtype.newbyteorder("<")).astype(dtype, copy=True), shape, spec.name)


def _shaped(flat: Array, shape: tuple[int, ...], name: str) -> Array:
    """Return as many values as a shape says in that shape; beside a 0, its other dimensions may be beyond numpy's."""
    try:
        return flat.reshape(shape)
    except ValueError:
        raise unfit(f"the shape of {name!r} is {list(shape)}, which no array can have") from None


def _described(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(map(describe, specs))
