"""The routes.  Each reads its body itself: FastAPI's own parsing would build a record of every number.

An answer is made on the event loop, unless its request is large: then on another thread.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from tsexport import __version__
from tsexport.errors import UsageError, did_you_mean
from tsexport.serving import openapi, openapi_models, plain, protocol
from tsexport.serving.batcher import Answer
from tsexport.serving.bodies import LARGE_BYTES, read_body, too_large
from tsexport.serving.datatypes import datatype_of, shape_of
from tsexport.serving.gate import Gate
from tsexport.serving.json_tensors import json_bytes
from tsexport.serving.limits import Limits
from tsexport.serving.metrics import METRICS_CONTENT_TYPE, Metrics
from tsexport.serving.observing import HEALTH, LIVE, METRICS, READY, Observed, seen_of
from tsexport.serving.refusals import Refusal, unfit
from tsexport.serving.served import VERSION, ServedModel
from tsexport.types import Array, TensorSpec

EXTENSIONS = ("binary_tensor_data",)
_JSON, _BINARY = "application/json", "application/octet-stream"
_CLIENT_GONE = 499
"""Nginx's status for a client that left; nobody receives it, and logs and metrics show it."""
_REFUSALS = (400, 404, 408, 413, 415, 422, 429, 503)
_MODEL, _VERSION = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"

Result = TypeVar("Result")


def create_app(models: Mapping[str, ServedModel], limits: Limits, gate: Gate, metrics: Metrics) -> Observed:
    """Return the ASGI application that serves these models."""
    api = FastAPI(title="tsexport", version=__version__, docs_url=None, redoc_url=None)
    routes = _Routes(models, limits, gate, metrics)

    def get(path: str, route: Callable[..., Any], schema: dict[str, Any], *refusals: int) -> None:
        responses = openapi.answers(schema, *refusals)
        api.add_api_route(path, route, methods=["GET"], response_class=Response, responses=responses)

    def post(path: str, route: Callable[..., Any], body: dict[str, Any], responses: openapi.Answers) -> None:
        api.add_api_route(
            path, route, methods=["POST"], response_class=Response, responses=responses, openapi_extra=body
        )

    get(HEALTH, routes.health, openapi.HEALTH_ANSWER, 503)
    get(LIVE, routes.live, openapi.LIVE_ANSWER)
    get(READY, routes.ready, openapi.READY_ANSWER, 503)
    get("/v2", routes.server, openapi.SERVER_ANSWER, 503)
    get(_MODEL, routes.metadata, openapi.MODEL_ANSWER, 404, 503)
    get(_VERSION, routes.metadata_of_version, openapi.MODEL_ANSWER, 404, 503)
    get(f"{_MODEL}/ready", routes.model_ready, openapi.MODEL_READY_ANSWER, 404, 503)
    get(f"{_VERSION}/ready", routes.version_ready, openapi.MODEL_READY_ANSWER, 404, 503)
    api.add_api_route(METRICS, routes.prometheus, methods=["GET"], response_class=Response, include_in_schema=False)
    inputs = {name: model.description.inputs for name, model in models.items()}
    plain_body = openapi.body_of(openapi_models.predict_request(inputs, limits.max_batch))
    post("/predict", routes.predict, plain_body, openapi.answers(openapi.PREDICT_ANSWER, *_REFUSALS))
    infer_body = openapi.body_of(openapi_models.infer_request(inputs), binary=True)
    infer_answers = openapi.answers(openapi.INFER_ANSWER, *_REFUSALS, binary=True)
    post(f"{_MODEL}/infer", routes.infer, infer_body, infer_answers)
    post(f"{_VERSION}/infer", routes.infer_version, infer_body, infer_answers)
    api.add_exception_handler(Refusal, _refused)
    api.add_exception_handler(HTTPException, _http_error)
    openapi_models.name_parameters(api.openapi(), {"model": list(models), "version": [VERSION]})
    return Observed(api, limits, gate, metrics)


class _Routes:
    """One method a route."""

    def __init__(self, models: Mapping[str, ServedModel], limits: Limits, gate: Gate, metrics: Metrics) -> None:
        self._models, self._limits, self._gate, self._metrics = models, limits, gate, metrics

    async def health(self) -> Response:
        """Say whether the server answers, and for which models."""
        status = "shutting down" if self._gate.draining else "healthy"
        return self._state({"status": status, "models": dict.fromkeys(self._models, "active")})

    async def live(self) -> Response:
        """Say that the process lives, also while it shuts down."""
        return _json({"live": True})

    async def ready(self) -> Response:
        """Say whether requests are taken: always, until the server shuts down."""
        return self._state({"ready": not self._gate.draining})

    async def server(self) -> Response:
        """Say what serves, and which extensions of the protocol it has."""
        return _json({"name": "tsexport", "version": __version__, "extensions": EXTENSIONS})

    async def metadata(self, model: str) -> Response:
        """Say what a model takes and gives."""
        return self._metadata(model, VERSION)

    async def metadata_of_version(self, model: str, version: str) -> Response:
        """Say what a version of a model takes and gives."""
        return self._metadata(model, version)

    async def model_ready(self, model: str) -> Response:
        """Say whether a model takes requests."""
        return self._model_ready(model, VERSION)

    async def version_ready(self, model: str, version: str) -> Response:
        """Say whether a version of a model takes requests."""
        return self._model_ready(model, version)

    async def infer(self, request: Request, model: str) -> Response:
        """Answer an inference request, in JSON or with binary tensors."""
        return await self._within_time(request, self._infer(request, model, VERSION))

    async def infer_version(self, request: Request, model: str, version: str) -> Response:
        """Answer an inference request to a version of a model."""
        return await self._within_time(request, self._infer(request, model, version))

    async def predict(self, request: Request) -> Response:
        """Answer nested lists with nested lists."""
        return await self._within_time(request, self._predict(request))

    async def prometheus(self) -> Response:
        """Give the metrics in Prometheus's text format."""
        return Response(self._metrics.text(), media_type=METRICS_CONTENT_TYPE)

    # --- what stands behind them ---

    async def _infer(self, request: Request, model_name: str, version: str) -> Response:
        model = self._find(model_name, version)
        seen_of(request.scope).model = model.name
        model.batcher.check_room()
        inputs, outputs = model.description.inputs, model.description.outputs
        body = await read_body(request, self._limits.max_request_bytes)
        header_length = protocol.header_length_of(request.headers.get(protocol.HEADER_LENGTH), len(body))
        self._check_json(len(body) if header_length is None else header_length)
        large = len(body) > LARGE_BYTES
        asked = await _run(large, lambda: protocol.parse_request(body, header_length, inputs, outputs))
        seen_of(request.scope).request_id = asked.request_id or ""
        answer = await self._ask(model, asked.feeds, asked.rows, asked.timeout_s)
        encoded = await _run(
            _is_large(answer), lambda: protocol.encode_answer(model.name, VERSION, asked, answer.outputs, outputs)
        )
        if encoded.header_length is None:
            return Response(encoded.body, media_type=_JSON)
        length = {protocol.HEADER_LENGTH: str(encoded.header_length)}
        return Response(encoded.body, media_type=_BINARY, headers=length)

    async def _predict(self, request: Request) -> Response:
        started_s = time.perf_counter()
        if len(self._models) == 1:
            self._named(None).batcher.check_room()
        body = await read_body(request, self._limits.max_request_bytes)
        self._check_json(len(body))
        large = len(body) > LARGE_BYTES
        asked = await _run(large, lambda: plain.parse_predict(body))
        model = self._named(asked.model)
        seen_of(request.scope).model = model.name
        fed = await _run(large, lambda: plain.feeds_of(asked.inputs, model.description.inputs))
        answer = await self._ask(model, fed.feeds, fed.rows, None)

        def encode() -> bytes:
            return plain.encode_predict(model.name, answer.outputs, 1000 * (time.perf_counter() - started_s))

        return Response(await _run(_is_large(answer), encode), media_type=_JSON)

    async def _within_time(self, request: Request, work: Any) -> Response:
        """Wait for an answer as long as a request may take.

        Raises:
            Refusal: 408, it took longer.
        """
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                response: Response = await work
                return response
        except TimeoutError:
            raise _too_late(self._limits.timeout_s) from None
        except ClientDisconnect:
            seen_of(request.scope).error = "the client left before its request was whole"
            return Response(status_code=_CLIENT_GONE)

    async def _ask(self, model: ServedModel, feeds: dict[str, Array], rows: int, timeout_s: float | None) -> Answer:
        """Return a model's answer.

        Raises:
            Refusal: 408, 429 or 503; 422, more rows than allowed, or values that the runtime refuses.
        """
        if rows > self._limits.max_batch:
            raise unfit(f"the batch is {rows}; this server takes at most {self._limits.max_batch}: send it in parts")
        future = asyncio.wrap_future(model.batcher.submit(feeds, rows))
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            assert timeout_s is not None, "the server's own limit cancels from outside"
            raise _too_late(timeout_s) from None
        except UsageError as error:
            raise unfit(error.message) from None

    def _find(self, name: str, version: str) -> ServedModel:
        """Return a model.

        Raises:
            Refusal: 404, no model of that name, or no such version of it.
        """
        model = self._models.get(name)
        if model is None:
            raise Refusal(HTTPStatus.NOT_FOUND, self._unknown(name))
        if version != VERSION:
            raise Refusal(HTTPStatus.NOT_FOUND, f"{name} has no version {version[:40]!r}; its only one is {VERSION}")
        return model

    def _named(self, name: str | None) -> ServedModel:
        """Return the model that a body names, or the only one.

        Raises:
            Refusal: 422, none of that name, or none named where there are several.
        """
        if name is None and len(self._models) == 1:
            return next(iter(self._models.values()))
        if name is None:
            raise unfit(f'"model" is missing, and several are served: {", ".join(self._models)}')
        if name not in self._models:
            raise unfit(self._unknown(name))
        return self._models[name]

    def _unknown(self, name: str) -> str:
        return f"no model {name[:80]!r}{did_you_mean(name[:80], self._models)}; served are {', '.join(self._models)}"

    def _metadata(self, name: str, version: str) -> Response:
        model = self._find(name, version).description
        return _json(
            {
                "name": model.name,
                "versions": [VERSION],
                "platform": f"{model.runtime}_{model.format}",
                "inputs": [_spec(spec) for spec in model.inputs],
                "outputs": [_spec(spec) for spec in model.outputs],
            }
        )

    def _model_ready(self, name: str, version: str) -> Response:
        return _json({"name": self._find(name, version).name, "ready": True})

    def _state(self, document: Mapping[str, Any]) -> Response:
        status = HTTPStatus.SERVICE_UNAVAILABLE if self._gate.draining else HTTPStatus.OK
        return Response(json_bytes(document), status, media_type=_JSON)

    def _check_json(self, size_bytes: int) -> None:
        if size_bytes > self._limits.max_json_bytes:
            refusal = too_large(f"the JSON has {size_bytes} bytes", self._limits.max_json_bytes)
            raise Refusal(refusal.status, f"{refusal.message} of it; send the tensors as binary data")


async def _run(large: bool, work: Callable[[], Result]) -> Result:
    return await asyncio.to_thread(work) if large else work()


def _is_large(answer: Answer) -> bool:
    return sum(array.nbytes for array in answer.outputs.values()) > LARGE_BYTES


def _too_late(seconds: float) -> Refusal:
    return Refusal(HTTPStatus.REQUEST_TIMEOUT, f"no answer within {seconds:g} s")


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype_of(spec), "shape": shape_of(spec)}


def _json(document: Mapping[str, Any]) -> Response:
    return Response(json_bytes(document), media_type=_JSON)


async def _refused(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    seen_of(request.scope).error = refusal.message
    body = json_bytes({"error": refusal.message})
    return Response(body, int(refusal.status), headers=refusal.headers, media_type=_JSON)


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer what the router refuses (an unknown path, another method) as the protocol's errors are."""
    assert isinstance(error, HTTPException)
    seen_of(request.scope).error = str(error.detail)
    return Response(json_bytes({"error": error.detail}), error.status_code, headers=error.headers, media_type=_JSON)
