"""What is in flight, and whether the server is shutting down."""

import time
from http import HTTPStatus

from tsexport.serving.limits import MAX_DRAIN_S, MIB, MIN_DRAIN_S
from tsexport.serving.refusals import Refusal


class Gate:
    """Counts the requests in flight and what they hold; lets no more in than allowed, and none while shutting down.

    Used by the event loop alone, but for `begin_drain`, which a signal may call.
    """

    def __init__(self, max_held_bytes: int) -> None:
        self._max_held_bytes = max_held_bytes
        self._in_flight = self._held_bytes = 0
        self._drain_began_s: float | None = None

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def draining(self) -> bool:
        return self._drain_began_s is not None

    def enter(self, size_bytes: int) -> None:
        """Let a request in that holds so much; `leave` must follow.

        Raises:
            Refusal: 503, the server is shutting down; 429, the requests in flight would hold too much.
        """
        if self.draining:
            raise closing()
        if self._held_bytes + size_bytes > self._max_held_bytes:
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{self._in_flight} requests in flight hold {self._held_bytes / MIB:.0f} MiB; try again later",
            )
        self._in_flight += 1
        self._held_bytes += size_bytes

    def leave(self, size_bytes: int) -> None:
        """A request was answered."""
        self._in_flight -= 1
        self._held_bytes -= size_bytes

    def begin_drain(self) -> None:
        """Let no more requests in."""
        if self._drain_began_s is None:
            self._drain_began_s = time.monotonic()

    @property
    def drained(self) -> bool:
        """Whether the server may close: all is answered, and it was said for a moment; or the time is over."""
        if self._drain_began_s is None:
            return False
        passed_s = time.monotonic() - self._drain_began_s
        return passed_s >= MAX_DRAIN_S or (self._in_flight == 0 and passed_s >= MIN_DRAIN_S)


def closing() -> Refusal:
    """Return the refusal of a server that is shutting down."""
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the server is shutting down")
