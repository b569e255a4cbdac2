"""The simple endpoint, `/predict`.

In: `{"inputs": {name: nested list}}`, with `"model"` where several are served.  Out: `{"outputs": {name: nested list},
"model": ..., "latency_ms": ...}`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tsexport.errors import did_you_mean
from tsexport.serving.datatypes import describe
from tsexport.serving.json_tensors import array_of, json_bytes, kind_of, listed, parse_object
from tsexport.serving.protocol import check_fit
from tsexport.serving.refusals import unfit
from tsexport.types import Array, TensorSpec

_KEYS = ("inputs", "model")


@dataclass(frozen=True)
class PredictRequest:
    """A body of `/predict`, read: the model it names, None for the only one, and its inputs, not looked at yet."""

    model: str | None
    inputs: Mapping[str, Any]


@dataclass(frozen=True)
class PredictFeeds:
    """Arrays that fit a model, and the rows they have."""

    feeds: dict[str, Array]
    rows: int


def parse_predict(body: bytes) -> PredictRequest:
    """Return what a body asks.

    Raises:
        Refusal: 400, it is no JSON object; 422, unknown or missing keys, or values of another kind.
    """
    document = parse_object(body)
    for key in document:
        if key not in _KEYS:
            raise unfit(f"unknown key {key!r}{did_you_mean(key, _KEYS)}; allowed are {', '.join(_KEYS)}")
    model, inputs = document.get("model"), document.get("inputs")
    if "model" in document and type(model) is not str:
        raise unfit(f"model is {kind_of(model)}, needed is a text")
    if type(inputs) is not dict:
        missing = "missing" if "inputs" not in document else kind_of(inputs)
        raise unfit(f"inputs are {missing}, needed is an object of name: nested list")
    return PredictRequest(model, inputs)


def feeds_of(given: Mapping[str, Any], inputs: tuple[TensorSpec, ...]) -> PredictFeeds:
    """Return nested lists as the arrays that a model takes.

    Raises:
        Refusal: 422, other names, shapes or values.
    """
    specs = {spec.name: spec for spec in inputs}
    takes = f"the model takes {', '.join(map(describe, inputs))}"
    for name in given:
        if name not in specs:
            raise unfit(f"unknown input {name!r}{did_you_mean(name, specs)}; {takes}")
    feeds = {name: array_of(value, specs[name].dtype, name) for name, value in given.items()}
    return PredictFeeds(feeds, check_fit(inputs, feeds))


def encode_predict(model: str, answer: Mapping[str, Array], latency_ms: float) -> bytes:
    """Return the body that answers.

    Args:
        latency_ms: from the request's arrival to its answer, reading and waiting included.

    Raises:
        Refusal: 422, NaN or infinity in an output.
    """
    outputs = {name: listed(array, name) for name, array in answer.items()}
    return json_bytes({"outputs": outputs, "model": model, "latency_ms": round(latency_ms, 3)})
