"""What `/openapi.json` says of the models that are served: their names, what `/predict` takes, and an example of each.

JSON Schema has no word for a batch that every input shares, or for a list as long as a shape says: what fits the schema
may still be refused (422).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tsexport.serving.datatypes import datatype_of
from tsexport.serving.openapi import INFER_REQUEST, PREDICT_REQUEST
from tsexport.types import TensorSpec

MAX_EXAMPLE_VALUES = 4096
"""A model whose inputs have more values at batch 1 has no example: the document would be nothing else."""
Inputs = Mapping[str, tuple[TensorSpec, ...]]
"""The inputs of each model, by the model's name."""


def name_parameters(document: dict[str, Any], values: Mapping[str, list[str]]) -> None:
    """Write which values the parameters of the paths take, for example the models' names, into an OpenAPI document."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in values:
                    parameter["schema"]["enum"] = values[parameter["name"]]


def predict_request(models: Inputs, max_batch: int) -> dict[str, Any]:
    """Return the schema of `/predict`'s body for these models: one for each, where they are several."""
    schemas = [_predict_of(name, inputs, max_batch, len(models) > 1) for name, inputs in models.items()]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    examples = [
        {"model": name, "inputs": {spec.name: _zeros(spec).tolist() for spec in inputs}}
        for name, inputs in models.items()
        if _is_small(inputs)
    ]
    return schema | ({"examples": examples} if examples else {})


def infer_request(models: Inputs) -> dict[str, Any]:
    """Return the schema of an inference request, with an example for each model."""
    examples = [
        {
            "inputs": [
                {
                    "name": spec.name,
                    "datatype": datatype_of(spec),
                    "shape": list(spec.with_batch(1)),
                    "data": _zeros(spec).ravel().tolist(),
                }
                for spec in inputs
            ]
        }
        for inputs in models.values()
        if _is_small(inputs)
    ]
    return INFER_REQUEST | ({"examples": examples} if examples else {})


def _predict_of(name: str, inputs: tuple[TensorSpec, ...], max_batch: int, named: bool) -> dict[str, Any]:
    tensors = {
        "type": "object",
        "properties": {spec.name: _nested(spec, max_batch) for spec in inputs},
        "required": [spec.name for spec in inputs],
        "additionalProperties": False,
    }
    return PREDICT_REQUEST | {
        "properties": {"inputs": tensors, "model": {"type": "string", "enum": [name]}},
        "required": ["inputs", "model"] if named else ["inputs"],
    }


def _nested(spec: TensorSpec, max_batch: int) -> dict[str, Any]:
    """Return the schema of a tensor as nested lists."""
    schema = _value(spec.dtype)
    for dim in reversed(spec.shape):
        least, most = (dim, dim) if isinstance(dim, int) else (1, max_batch)
        schema = {"type": "array", "items": schema, "minItems": least, "maxItems": most}
    return schema


def _value(dtype: str) -> dict[str, Any]:
    kind = np.dtype(dtype).kind
    if kind == "b":
        return {"type": "boolean"}
    if kind == "f":  # without bounds: what is a little too large rounds to the largest number that there is
        return {"type": "number"}
    bounds = np.iinfo(dtype)
    return {"type": "integer", "minimum": bounds.min, "maximum": bounds.max}


def _is_small(inputs: tuple[TensorSpec, ...]) -> bool:
    return sum(math.prod(spec.with_batch(1)) for spec in inputs) <= MAX_EXAMPLE_VALUES


def _zeros(spec: TensorSpec) -> Any:
    return np.zeros(spec.with_batch(1), spec.dtype)
