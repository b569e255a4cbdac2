"""One server process: its socket, its models, uvicorn, and the end of it.

The port is taken first and listened on last: what is wrong with it is known before models are loaded, and until they
are, a connection is refused.  After SIGTERM or SIGINT the server is not ready and answers 503 to what is new, finishes
what is in flight, and closes; a second signal closes at once.

One process and one event loop: what bounds a server is the model, not the HTTP.  The number of connections that only
stay open is not bounded, and there is no TLS: on a network that is not trusted, a proxy belongs before it.
"""

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from tsexport.errors import UsageError
from tsexport.serving.app import create_app
from tsexport.serving.gate import Gate
from tsexport.serving.limits import Limits
from tsexport.serving.logs import JsonLines, ServerLog, log_event, start_logging
from tsexport.serving.metrics import Metrics
from tsexport.serving.observing import Observed
from tsexport.serving.served import Choice, ModelDescription, ServedModel, load_models

_CLOSE_S = 1
"""For uvicorn to close its connections, and then for an inference that still runs: two of the seconds after SIGTERM."""
_KEEP_ALIVE_S = 75
_BACKLOG = 1024


@dataclass(frozen=True)
class Listening:
    """What a server says when it takes requests."""

    url: str
    models: tuple[ModelDescription, ...]


def serve_bundles(
    paths: Sequence[str | Path],
    *,
    host: str,
    port: int,
    choice: Choice,
    limits: Limits,
    announce: Callable[[Listening], None],
    log_level: int = logging.INFO,
) -> None:
    """Serve bundles until SIGTERM or SIGINT.

    Args:
        port: 0 takes a free one.
        announce: called once requests are taken.

    Raises:
        UsageError: the address cannot be used; else as `load_models`.
    """
    logs = start_logging(sys.stderr, log_level)
    bound = bind(host, port)
    try:
        metrics = Metrics()
        models = load_models(paths, choice, limits, metrics)
        gate = Gate(limits.max_held_bytes())
        metrics.watch_in_flight(lambda: gate.in_flight)
        metrics.watch_lost_logs(lambda: logs.lost)
        listening = Listening(url_of(bound, host), tuple(model.description for model in models.values()))
        listen(bound, host, port)
        app = create_app(models, limits, gate, metrics)
        _DrainingServer(_config(app), gate, listening, announce).run([bound])
    finally:
        bound.close()
    _end(models, listening, logs)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that has the address, and does not listen yet.

    Raises:
        UsageError: no such host, or the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise _unusable(host, port, error) from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _unusable(host, port, error) from None
    return bound


def listen(bound: socket.socket, host: str, port: int) -> None:
    """Begin to take connections.

    Raises:
        UsageError: another process began to, on the same port, while the models were loaded.
    """
    try:
        bound.listen(_BACKLOG)
    except OSError as error:
        raise _unusable(host, port, error) from None


def url_of(bound: socket.socket, host: str) -> str:
    """Return where a socket is reached."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{bound.getsockname()[1]}"


class _DrainingServer(uvicorn.Server):
    """uvicorn, which would close its port at the first signal; this one drains first."""

    def __init__(
        self, config: uvicorn.Config, gate: Gate, listening: Listening, announce: Callable[[Listening], None]
    ) -> None:
        super().__init__(config)
        self._gate, self._listening, self._announce = gate, listening, announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._log("ready")
        self._announce(self._listening)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._gate.draining:
            self.should_exit = self.force_exit = True
        self._gate.begin_drain()

    async def on_tick(self, counter: int) -> bool:
        if self._gate.draining and not self._told:
            self._told = True
            self._log("shutting down")
        return self._gate.drained or await super().on_tick(counter)

    _told = False

    def _log(self, event: str) -> None:
        log_event(logging.INFO, event, _server_log(self._listening, self._gate.in_flight))


def _config(app: Observed) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_CLOSE_S,
    )


def _end(models: Mapping[str, ServedModel], listening: Listening, logs: JsonLines) -> None:
    """Free the models.  Where an inference still runs the process ends under it: it cannot be cut short otherwise."""
    deadline_s = time.monotonic() + _CLOSE_S
    running = [m.name for m in models.values() if not m.close(max(0.0, deadline_s - time.monotonic()))]
    log_event(logging.INFO, "closed", _server_log(listening, len(running)))
    logs.end(_CLOSE_S / 2)
    if running:
        sys.stdout.flush()
        os._exit(0)


def _server_log(listening: Listening, in_flight: int) -> ServerLog:
    return ServerLog(tuple(model.name for model in listening.models), listening.url, in_flight)


def _unusable(host: str, port: int, error: Exception) -> UsageError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UsageError(
        f"the server cannot listen on {host}, port {port}: {reason}",
        next_step="give another --host or --port; --port 0 takes a free one",
    )
