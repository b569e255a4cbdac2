"""Around every request: may it come in, how long did it take, what became of it.

Counts, logs, and turns what a route did not expect into a 500 with its traceback in the log: a bug, and the only 5xx
beside the 503 of a server that shuts down.
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tsexport.serving.gate import Gate, closing
from tsexport.serving.json_tensors import json_bytes
from tsexport.serving.limits import Limits
from tsexport.serving.logs import LOGGER, RequestLog, log_event
from tsexport.serving.metrics import Metrics
from tsexport.serving.refusals import Refusal

LIVE, READY, HEALTH, METRICS = "/v2/health/live", "/v2/health/ready", "/health", "/metrics"
_ANSWERED_WHILE_DRAINING = (LIVE, READY, HEALTH, METRICS)
_SEEN = "tsexport.seen"
_UNKNOWN_ROUTE = "other"
_MAX_ID = 128


@dataclass
class Seen:
    """What is known of one request so far; routes fill it in."""

    model: str = ""
    request_id: str = ""
    error: str = ""
    status: int = 0


def seen_of(scope: Scope) -> Seen:
    """Return what is known of the request of a scope."""
    seen: Seen = scope[_SEEN]
    return seen


class Observed:
    """An ASGI application around the routes."""

    def __init__(self, routes: ASGIApp, limits: Limits, gate: Gate, metrics: Metrics) -> None:
        self._routes, self._limits, self._gate, self._metrics = routes, limits, gate, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        started_s = time.perf_counter()
        scope[_SEEN] = seen = Seen()

        async def send_and_see(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
            await send(message)

        failure: Exception | None = None
        try:
            await self._admit(scope, receive, send_and_see)
        except Refusal as refusal:
            seen.error = refusal.message
            await send_refusal(refusal, send_and_see)
        except asyncio.CancelledError:  # the server closes, and waits no longer; this task has nothing else to do
            seen.error = closing().message
            if not seen.status:
                await send_refusal(closing(), send_and_see)
        except Exception as error:
            failure, seen.error = error, f"{type(error).__name__}: {error}"
            if not seen.status:
                bug = Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "a bug in tsexport; its log has the traceback")
                await send_refusal(bug, send_and_see)
        self._tell(scope, seen, time.perf_counter() - started_s, failure)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            if self._gate.draining and scope["path"] not in _ANSWERED_WHILE_DRAINING:
                raise closing()
            await self._routes(scope, receive, send)
            return
        size_bytes = self._limits.held_bytes(scope["headers"])
        self._gate.enter(size_bytes)
        try:
            await self._routes(scope, receive, send)
        finally:
            self._gate.leave(size_bytes)

    def _tell(self, scope: Scope, seen: Seen, seconds: float, failure: Exception | None) -> None:
        route = getattr(scope.get("route"), "path", _UNKNOWN_ROUTE)
        self._metrics.answered(route, seen.model, seen.status, seconds)
        if failure is not None:
            logging.getLogger(LOGGER).error("bug", exc_info=failure)
        log_event(
            logging.INFO if seen.status < 500 else logging.WARNING,
            "request",
            RequestLog(
                method=scope["method"][:16],
                route=route,
                status=seen.status,
                duration_ms=round(1000 * seconds, 3),
                model=seen.model,
                id=seen.request_id[:_MAX_ID],
                error=seen.error,
            ),
        )


async def send_refusal(refusal: Refusal, send: Send) -> None:
    """Answer with the status of a refusal, and its message as the protocol's error."""
    body = json_bytes({"error": refusal.message})
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **refusal.headers}
    start: dict[str, Any] = {
        "type": "http.response.start",
        "status": int(refusal.status),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }
    await send(start)
    await send({"type": "http.response.body", "body": body})
