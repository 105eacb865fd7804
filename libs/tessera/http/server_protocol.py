"""uvicorn's HTTP/1.1 with bounds on what it lets pass unbounded: the size of heads and the time that they take.

Bodies are bounded where they are read (`tessera.http.bodies`). Heads, the trailers of chunked bodies and the
framing between chunks never reach a handler, so they are bounded here.
"""

import asyncio
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# A sync token and a filter may stand in one query, percent-encoded.
MAX_HEAD_BYTES = 256 * 1024
HEAD_DEADLINE_SECONDS = 30.0

_BAD_REQUEST = "400 Bad Request"
_TIMED_OUT = "408 Request Timeout"
_HEAD_TOO_LARGE = "431 Request Header Fields Too Large"


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. `_waiting_bytes` counts what came since the parser last finished something."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._waiting_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Expect the first head."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_DEADLINE_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and look at what is left unfinished."""
        self._waiting_bytes += len(data)
        super().data_received(data)
        if self._waiting_bytes == 0:
            self._stop_timer()
        elif self.transport.is_closing():
            return
        elif self._waiting_bytes > MAX_HEAD_BYTES:
            self._refuse(_HEAD_TOO_LARGE, "M_TOO_LARGE", f"The head of the request exceeds {MAX_HEAD_BYTES} bytes")
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_DEADLINE_SECONDS, self._give_up)

    def on_headers_complete(self) -> None:
        """A head is whole."""
        self._waiting_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of a body is there."""
        self._waiting_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._waiting_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; uvicorn's own answer is plain text."""
        self._refuse(_BAD_REQUEST, "M_UNKNOWN", msg)

    def _give_up(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refuse(_TIMED_OUT, "M_UNKNOWN", "The request did not arrive in time")

    def _refuse(self, status: str, errcode: str, message: str) -> None:
        # In the middle of an answer a second one would be taken for a part of it.
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = orjson.dumps({"errcode": errcode, "error": message})
            head = (
                f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                "Access-Control-Allow-Origin: *\r\nConnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self._stop_timer()
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
