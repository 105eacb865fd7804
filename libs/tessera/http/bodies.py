"""Reading request bodies within bounds of size and time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.requests import ClientDisconnect, Request

from matrixcore import canonical_json
from tessera.http.errors import InvalidParam, MatrixError, TooLarge
from tessera.http.failures import of_invalid_json

MAX_JSON_BYTES = 1024 * 1024  # of most endpoints; an event may have 64 KiB
BODY_DEADLINE_SECONDS = 30.0


async def read_body(
    request: Request, max_bytes: int = MAX_JSON_BYTES, *, deadline_seconds: float = BODY_DEADLINE_SECONDS
) -> bytes:
    """The whole body.

    Raises:
        TooLarge: longer than `max_bytes`; decided from Content-Length where there is one.
        MatrixError: 408, it did not come in time.
        ClientDisconnect: nobody is left to answer.
    """
    declared = declared_length(request)
    if declared is not None and declared > max_bytes:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    receive = request.receive
    try:
        async with asyncio.timeout(deadline_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk: bytes = message.get("body", b"")
                if not message.get("more_body", False):
                    if size + len(chunk) > max_bytes:
                        raise _too_large(max_bytes)
                    return b"".join((*chunks, chunk)) if chunks else chunk
                size += len(chunk)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                chunks.append(chunk)
    except TimeoutError:
        raise _overdue() from None


async def read_json_object(
    request: Request,
    max_bytes: int = MAX_JSON_BYTES,
    *,
    allow_floats: bool = False,
    allow_empty: bool = False,
) -> dict[str, Any]:
    """The body as a JSON object, whatever its Content-Type says.

    Args:
        allow_floats: for JSON that does not become an event.
        allow_empty: no body counts as {}, as some clients send on endpoints without required fields.

    Raises:
        NotJson, BadJson, TooLarge, and what `read_body` raises.
    """
    body = await read_body(request, max_bytes)
    if allow_empty and not body:
        return {}
    return parse_json_object(body, allow_floats=allow_floats)


def parse_json_object(body: bytes, *, allow_floats: bool = False) -> dict[str, Any]:
    """`matrixcore.canonical_json.parse_json_object` with its errors as answers."""
    try:
        return canonical_json.parse_json_object(body, allow_floats=allow_floats)
    except canonical_json.InvalidJson as error:
        raise of_invalid_json(error) from None


async def stream_body(
    request: Request, *, idle_seconds: float = BODY_DEADLINE_SECONDS, total_seconds: float = 3600.0
) -> AsyncIterator[bytes]:
    """The body in chunks, for uploads; the reader bounds their sum.

    Raises:
        MatrixError: 408, no chunk came for `idle_seconds` or not all within `total_seconds`.
        ClientDisconnect: nobody is left to answer.
    """
    end = asyncio.get_running_loop().time() + total_seconds
    async with aclosing(request.stream()) as stream:
        while True:
            wait = min(idle_seconds, end - asyncio.get_running_loop().time())
            try:
                async with asyncio.timeout(wait):
                    chunk = await anext(stream, None)
            except TimeoutError:
                raise _overdue() from None
            if chunk is None:
                return
            if chunk:
                yield chunk


def declared_length(request: Request) -> int | None:
    """Content-Length, None if there is none.

    Raises:
        InvalidParam: it is no number.
    """
    text = request.headers.get("content-length")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidParam("Content-Length is not a number")
    return int(text)


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"The body is larger than {max_bytes} bytes")


def _overdue() -> MatrixError:
    return MatrixError(
        "The body did not arrive in time", errcode="M_UNKNOWN", status=408, headers={"Connection": "close"}
    )
