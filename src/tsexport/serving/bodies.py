"""Reading a body: never more than the limit, also after decompression, and never in the way of other requests.

gzip and deflate (the zlib format, as RFC 9110 says and `tritonclient` sends) are taken.  What is large is decompressed
on another thread, where zlib lets the others go on.
"""

import asyncio
import zlib
from http import HTTPStatus

from starlette.requests import Request

from tsexport.serving.limits import MIB
from tsexport.serving.refusals import Refusal, unreadable

LARGE_BYTES = 256 * 1024
"""From here on the work on a body goes to another thread."""
_DISCARDED = 4
"""A body of up to so many times the limit is read to its end, and not kept: a client that writes all of it before it
reads the answer would otherwise see a broken connection, and not why."""
_WINDOW_BITS = {"gzip": 31, "deflate": 15}


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """Return the body of a request, decompressed.

    Raises:
        Refusal: 413, larger than the limit; 415, an unknown encoding; 400, damaged compressed data.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", *_WINDOW_BITS):
        raise Refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"content-encoding is {encoding[:40]!r}, allowed are identity, {', '.join(_WINDOW_BITS)}",
        )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > _DISCARDED * limit_bytes:
        raise too_large(f"the body has {announced[:20]} bytes", limit_bytes)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > _DISCARDED * limit_bytes:
            break
        if size <= limit_bytes:
            parts.append(part)
    if size > limit_bytes:
        raise too_large("the body is larger", limit_bytes)
    body = b"".join(parts)
    if encoding == "identity":
        return body
    if len(body) > LARGE_BYTES:
        return await asyncio.to_thread(decompress, body, encoding, limit_bytes)
    return decompress(body, encoding, limit_bytes)


def decompress(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    """Return what a compressed body holds, never making more than the limit of it.

    Raises:
        Refusal: 400, damaged, cut off, or followed by something else; 413, more than the limit.
    """
    reader = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        plain = reader.decompress(body, limit_bytes + 1)
    except zlib.error as error:
        raise unreadable(f"the body is no {encoding} data: {error}") from None
    if len(plain) > limit_bytes:
        raise too_large("the body, decompressed, is larger", limit_bytes)
    if not reader.eof or reader.unused_data:
        raise unreadable(f"the body is no whole {encoding} data: " + ("cut off" if not reader.eof else "more follows"))
    return plain


def too_large(what: str, limit_bytes: int) -> Refusal:
    """Return the refusal of a body that is larger than it may be."""
    return Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{what}; this server takes at most {limit_bytes / MIB:g} MiB")
