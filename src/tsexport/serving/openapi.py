"""What `/openapi.json` says of bodies and answers: routes read them themselves, so FastAPI cannot derive it."""

from typing import Any

from tsexport.serving.datatypes import DATATYPES

Answers = dict[int | str, dict[str, Any]]

_JSON = "application/json"
_BINARY = "application/octet-stream"
_PARAMETERS = {"type": ["object", "null"], "additionalProperties": True}
_SHAPE = {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 16}
_DATATYPE = {"type": "string", "enum": sorted(DATATYPES.values())}
_SPEC = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "datatype": _DATATYPE,
        "shape": {"type": "array", "items": {"type": "integer", "minimum": -1}},
    },
    "required": ["name", "datatype", "shape"],
}
_TENSOR = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "datatype": _DATATYPE,
        "shape": _SHAPE,
        "data": {"type": "array"},
        "parameters": _PARAMETERS,
    },
    "required": ["name", "datatype", "shape"],
}
_ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
_REASONS = {
    400: "The request cannot be read.",
    404: "There is no such model or version.",
    408: "It took longer than the server, or the request's own parameter, allows.",
    413: "The body is too large.",
    415: "The body is compressed in another way than gzip or deflate.",
    422: "It was read, and is not what the model takes.",
    429: "Too many requests wait; see Retry-After.",
    503: "The server is shutting down.",
}

PREDICT_REQUEST = {
    "type": "object",
    "properties": {
        "inputs": {"type": "object", "additionalProperties": {"type": "array"}},
        "model": {"type": "string", "description": "Needed where the server has several models."},
    },
    "required": ["inputs"],
    "additionalProperties": False,
}
PREDICT_ANSWER = {
    "type": "object",
    "properties": {
        "outputs": {"type": "object", "additionalProperties": {"type": "array"}},
        "model": {"type": "string"},
        "latency_ms": {"type": "number"},
    },
    "required": ["outputs", "model", "latency_ms"],
}
HEALTH_ANSWER = {
    "type": "object",
    "properties": {
        "status": {"type": "string"},
        "models": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["status", "models"],
}
LIVE_ANSWER = {"type": "object", "properties": {"live": {"type": "boolean"}}, "required": ["live"]}
READY_ANSWER = {"type": "object", "properties": {"ready": {"type": "boolean"}}, "required": ["ready"]}
MODEL_READY_ANSWER = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "ready": {"type": "boolean"}},
    "required": ["name", "ready"],
}
SERVER_ANSWER = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "version": {"type": "string"},
        "extensions": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "version", "extensions"],
}
MODEL_ANSWER = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "versions": {"type": "array", "items": {"type": "string"}},
        "platform": {"type": "string"},
        "inputs": {"type": "array", "items": _SPEC},
        "outputs": {"type": "array", "items": _SPEC},
    },
    "required": ["name", "versions", "platform", "inputs", "outputs"],
}
INFER_REQUEST = {
    "type": "object",
    "properties": {
        "id": {"type": ["string", "null"]},
        "parameters": _PARAMETERS,
        "inputs": {"type": "array", "items": _TENSOR, "minItems": 1},
        "outputs": {
            "type": ["array", "null"],
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "parameters": _PARAMETERS},
                "required": ["name"],
            },
        },
    },
    "required": ["inputs"],
}
INFER_ANSWER = {
    "type": "object",
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": _TENSOR},
    },
    "required": ["model_name", "model_version", "outputs"],
}


def body_of(schema: dict[str, Any], *, binary: bool = False) -> dict[str, Any]:
    """Return what a route adds to its operation: the body it reads."""
    content = {_JSON: {"schema": schema}}
    if binary:
        content[_BINARY] = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"required": True, "content": content}}


def answers(schema: dict[str, Any], *refusals: int, binary: bool = False) -> Answers:
    """Return a route's answers: that of 200, and the statuses with which it refuses."""
    good: dict[str, Any] = {_JSON: {"schema": schema}}
    if binary:
        good[_BINARY] = {"schema": {"type": "string", "format": "binary"}}
    return {
        200: {"description": "Answered.", "content": good},
        **{status: {"description": _REASONS[status], "content": {_JSON: {"schema": _ERROR}}} for status in refusals},
    }
