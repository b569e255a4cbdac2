"""What one server takes at most.  Everything that could grow with the number or the size of requests has a bound here.

A model's queue holds `max_queue` requests; what comes on top is answered 429, before its body is read where the queue
is full already.  The bodies of all requests in flight together hold at most `MAX_HELD_BYTES`, and what would hold more
is answered 429 too.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tsexport.errors import UsageError

MIB = 2**20
MAX_HELD_BYTES = 256 * MIB
"""Of the bodies in flight, each as long as it says, and as long as it may be where that is not known."""
LEAST_HELD_BYTES = 64 * 1024
"""What a request counts at least: so much is read ahead.  4,096 requests in flight reach the limit."""
MAX_DRAIN_S = 6.0
"""After SIGTERM, what is in flight has this long; closing takes up to 2.6 s more, and 10 s are allowed for all."""
MIN_DRAIN_S = 0.5
"""So long a server that is shutting down says so (503), where a closed port would be a refused connection."""


@dataclass(frozen=True)
class Limits:
    """The bounds of a server.

    Attributes:
        max_batch: rows that are computed together, and rows that one request may have.
        max_queue: requests that wait for a model; one more is answered 429.
        batch_delay_ms: how long a request waits for others to be computed with; 0 takes what waits already.
        timeout_s: from the first byte of a request to its answer, else 408.
        max_request_bytes: of a body, also after decompression, else 413.
        max_json_bytes: of its JSON; parsing it holds up every other request, some 15 ms a MiB.
    """

    max_batch: int = 32
    max_queue: int = 64
    batch_delay_ms: float = 0.0
    timeout_s: float = 30.0
    max_request_bytes: int = 16 * MIB
    max_json_bytes: int = 4 * MIB

    def __post_init__(self) -> None:
        for name, least in (("max_batch", 1), ("max_queue", 1), ("max_request_bytes", 1), ("max_json_bytes", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}, allowed are {least} and more")
        if not (self.batch_delay_ms >= 0 and math.isfinite(self.batch_delay_ms)):
            raise UsageError(f"batch_delay_ms is {self.batch_delay_ms:g}, allowed are 0 and more")
        if not (self.timeout_s > 0 and math.isfinite(self.timeout_s)):
            raise UsageError(f"timeout_s is {self.timeout_s:g}, allowed is any time above 0")

    def max_held_bytes(self) -> int:
        """Return what the bodies in flight may hold together: one may always be as large as is allowed."""
        return max(MAX_HELD_BYTES, self.max_request_bytes)

    def held_bytes(self, headers: Iterable[tuple[bytes, bytes]]) -> int:
        """Return what the body of a request with these headers counts, as ASGI gives them."""
        length, known = b"", True
        for name, value in headers:
            length = value if name == b"content-length" else length
            # A body that comes in chunks may announce a length all the same, which says nothing then (RFC 9112, 6.3).
            known = known and name not in (b"content-encoding", b"transfer-encoding")
        known = known and length.isdigit()
        return min(self.max_request_bytes, max(LEAST_HELD_BYTES, int(length))) if known else self.max_request_bytes
