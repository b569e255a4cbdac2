"""Logs as JSON lines on stderr, one an event: `{"time": ..., "level": ..., "event": ..., ...}`.

Lines are written by a thread of their own, from a bounded queue: a stderr that nobody reads would otherwise hold up
every request.  What does not fit is dropped and counted.
"""

import json
import logging
import queue
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from typing import Any, TextIO

LOGGER = "tsexport.serving"
_UVICORN = ("uvicorn", "uvicorn.error")
_MAX_LINES = 10_000
_FIELDS = "fields"


@dataclass(frozen=True)
class RequestLog:
    """A request, answered.  `error` is why it was refused, `id` the client's own, cut to 128 characters."""

    method: str
    route: str
    status: int
    duration_ms: float
    model: str = ""
    id: str = ""
    error: str = ""


@dataclass(frozen=True)
class ServerLog:
    """A step in the life of a server."""

    models: tuple[str, ...]
    url: str
    in_flight: int = 0


def log_event(level: int, event: str, fields: RequestLog | ServerLog) -> None:
    """Log a record; what is empty in it is left out."""
    logging.getLogger(LOGGER).log(level, event, extra={_FIELDS: fields})


class JsonLines(logging.Handler):
    """Formats records as JSON lines, and has them written by a thread."""

    def __init__(self, stream: TextIO, max_lines: int = _MAX_LINES) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(max_lines)
        self._lost = 0
        self._thread = threading.Thread(target=self._write, name="logs", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Lines that were dropped."""
        return self._lost

    def emit(self, record: logging.LogRecord) -> None:
        """Put a record into the queue."""
        try:
            self._lines.put_nowait(line_of(record))
        except queue.Full:
            self._lost += 1

    def end(self, grace_s: float) -> None:
        """Write what is left, as far as the time allows."""
        try:
            self._lines.put(None, timeout=grace_s)
        except queue.Full:
            return
        self._thread.join(grace_s)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line)
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):  # stderr was closed: there is nobody to tell
                self._lost += 1


def line_of(record: logging.LogRecord) -> str:
    """Return a record as one line of JSON, in ASCII."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    document: dict[str, Any] = {
        "time": f"{now}.{int(record.msecs):03d}Z",
        "level": record.levelname.lower(),
        "event": record.getMessage(),
    }
    fields = getattr(record, _FIELDS, None)
    if fields is not None:
        document |= {key: value for key, value in asdict(fields).items() if value not in ("", ())}
    else:
        document["logger"] = record.name
    if record.exc_info and record.exc_info[0] is not None:
        document["traceback"] = "".join(traceback.format_exception(*record.exc_info))
    return json.dumps(document) + "\n"


def start_logging(stream: TextIO, level: int) -> JsonLines:
    """Send the logs of the server, and uvicorn's, to a stream."""
    handler = JsonLines(stream)
    for name, least in ((LOGGER, level), *((name, max(level, logging.WARNING)) for name in _UVICORN)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(least)
    logging.getLogger("uvicorn.error").handlers = []  # its parent, "uvicorn", has the handler
    logging.getLogger("uvicorn.error").propagate = True
    return handler
