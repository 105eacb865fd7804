"""One request and its answer on an HTTP/1.1 connection: the server's side of ASGI.

Beside `receive` and `send` an exchange offers `reply`, a whole answer in one call and one write to the socket. The
application finds it in the scope under `REPLY`; whoever wraps `send` to change answers takes it out of the scope.
"""

import asyncio
import re
from http import HTTPStatus
from typing import Any, Protocol

import orjson
import structlog
from starlette.types import ASGIApp, Message, Scope

log = structlog.get_logger(__name__)

REPLY = "tessera.reply"
EXCHANGE = "tessera.exchange"

# Above it a connection is read no further until the application takes what there is.
MAX_WAITING_BODY = 64 * 1024
# Up to so many bytes a head and its body are copied together for one write; above, the copy costs more.
MAX_JOINED = 32 * 1024

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NO_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_CLOSE_LINE = b"connection: close\r\n"
_WITHOUT_BODY = (204, 304)


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


STATUS_LINES = {status: _status_line(status) for status in range(100, 600)}


def refusal(status: int, errcode: str, error: str) -> bytes:
    """A whole answer that no application made; the connection must be closed after it."""
    body = orjson.dumps({"errcode": errcode, "error": error})
    lines = b"content-type: application/json\r\naccess-control-allow-origin: *\r\ncontent-length: %d\r\n" % len(body)
    return b"".join((STATUS_LINES[status], lines, _CLOSE_LINE, b"\r\n", body))


class Carrier(Protocol):
    """What an exchange needs of its connection."""

    transport: asyncio.Transport
    write_paused: bool

    async def drain(self) -> None:
        """Return when the peer has taken enough of what was written."""

    def resume_reading(self) -> None:
        """Let more of a body come."""

    def on_answered(self, exchange: "Exchange") -> None:
        """The answer is written."""

    def on_ended(self, exchange: "Exchange") -> None:
        """The application has returned."""


class Exchange:
    """A request, as the connection reads it, and its answer, as the application makes it.

    Attributes:
        keep_alive: whether the connection goes on after the answer.
        is_disconnected: nobody is left to answer.
        is_begun: a part of the answer is written.
        is_answered: all of it is.
        ends_with_client: the application is cancelled when the client goes, as suits one that only waits.
    """

    __slots__ = (
        "_body",
        "_expects_continue",
        "_headers",
        "_is_chunked",
        "_is_taken",
        "_left",
        "_more_body",
        "_news",
        "_status",
        "carrier",
        "ends_with_client",
        "is_answered",
        "is_begun",
        "is_disconnected",
        "keep_alive",
        "scope",
        "task",
    )

    def __init__(self, carrier: Carrier, scope: Scope, *, keep_alive: bool, expects_continue: bool) -> None:
        self.carrier = carrier
        self.scope = scope
        self.keep_alive = keep_alive
        self.is_disconnected = False
        self.is_begun = False
        self.is_answered = False
        self.ends_with_client = False
        self.task: asyncio.Task[None] | None = None
        self._expects_continue = expects_continue
        self._body: bytearray | None = None
        self._more_body = True
        self._is_taken = False
        self._news: asyncio.Future[None] | None = None
        self._status = 0
        self._headers: Any = ()
        self._is_chunked = False
        self._left: int | None = None

    async def run(self, app: ASGIApp) -> None:
        """Have the application answer; what it leaves undone ends the connection."""
        try:
            await app(self.scope, self.receive, self.send)
            if not self.is_answered and not self.is_disconnected:
                log.error("a request was not answered to its end")
                self._fail()
        except asyncio.CancelledError:
            if not self.is_disconnected:
                self._fail()
                raise
        except Exception:  # half an answer may be out: cut the connection, so that nobody takes it for whole
            log.exception("an application failed")
            self._fail()
        finally:
            self.carrier.on_ended(self)

    # What the connection tells.

    def add_body(self, body: bytes) -> int:
        """A piece of the body has come; how much of it waits."""
        if self._body is None:
            self._body = bytearray(body)
        else:
            self._body += body
        self._tell()
        return len(self._body)

    def end_body(self) -> None:
        """The request is whole."""
        self._more_body = False
        self._tell()

    def disconnect(self) -> None:
        """The client has gone."""
        if self.is_answered or self.is_disconnected:
            return
        self.is_disconnected = True
        self._tell()
        if self.ends_with_client and self.task is not None:
            self.task.cancel()

    # What the application calls.

    def reply(self, status: int, lines: bytes, body: bytes) -> bool:
        """Answer at once.

        Args:
            lines: the header lines, Content-Length among them, each with its line end; none of a client's making.

        Returns:
            False if it has to be sent the long way.
        """
        carrier = self.carrier
        transport = carrier.transport
        if self.is_disconnected or transport.is_closing():
            return True
        if self._status or carrier.write_paused:
            return False
        if not self.keep_alive:
            lines += _CLOSE_LINE
        self._status = status
        self.is_begun = True
        if self.scope["method"] == "HEAD":
            body = b""
        if len(body) <= MAX_JOINED:
            transport.write(b"".join((STATUS_LINES[status], lines, b"\r\n", body)))
        else:
            transport.writelines((STATUS_LINES[status], lines, b"\r\n", body))
        self._answered()
        return True

    async def send(self, message: Message) -> None:
        """ASGI's send. The head waits for the first piece of the body, so that both go out in one write."""
        if self.is_disconnected:
            return
        if self.carrier.write_paused:
            await self.carrier.drain()
        if self.is_disconnected or self.carrier.transport.is_closing():
            return
        if not self._status:
            if message["type"] != "http.response.start":
                raise RuntimeError(f"an answer cannot begin with {message['type']}")
            self._status = message["status"]
            self._headers = message.get("headers", ())
            return
        if self.is_answered or message["type"] != "http.response.body":
            raise RuntimeError(f"{message['type']} is out of place")
        self._send_body(message.get("body", b""), more=message.get("more_body", False))

    async def receive(self) -> Message:
        """ASGI's receive."""
        if self._expects_continue and not self.carrier.transport.is_closing():
            self._expects_continue = False
            if not self.is_begun:
                self.carrier.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self.is_disconnected and not self.is_answered:
            if self._body or not (self._more_body or self._is_taken):
                body = b"" if self._body is None else bytes(self._body)
                self._body = None
                self._is_taken = not self._more_body  # whoever asks again waits for the client to go
                return {"type": "http.request", "body": body, "more_body": self._more_body}
            self.carrier.resume_reading()
            await self._wait()
        return {"type": "http.disconnect"}

    def _send_body(self, body: bytes, *, more: bool) -> None:
        pieces = [] if self.is_begun else [self._head()]
        if self.scope["method"] == "HEAD" or self._status in _WITHOUT_BODY:
            self._left = None
        elif self._is_chunked:
            if body:
                pieces += [b"%x\r\n" % len(body), body, b"\r\n"]
            if not more:
                pieces.append(b"0\r\n\r\n")
        else:
            if self._left is not None:
                self._left -= len(body)
                if self._left < 0 or (self._left and not more):
                    raise RuntimeError("the body has another length than Content-Length says")
            pieces.append(body)
        self.is_begun = True
        if len(body) <= MAX_JOINED:
            self.carrier.transport.write(b"".join(pieces))
        else:
            self.carrier.transport.writelines(pieces)
        if not more:
            self._answered()

    def _head(self) -> bytes:
        """The answer's head; sets how the body is framed.

        Raises:
            RuntimeError: a header that would break the head, as one with a line end.
        """
        lines = [STATUS_LINES[self._status]]
        is_framed = self._status in _WITHOUT_BODY or self.scope["method"] == "HEAD"
        says_close = False
        for raw_name, value in self._headers:
            name = raw_name.lower()
            if _NAME.fullmatch(name) is None or _NO_VALUE.search(value) is not None:
                raise RuntimeError("not a header")
            if name == b"content-length":
                self._left = int(value)
                is_framed = True
            elif name == b"transfer-encoding":
                continue  # framing is done here
            elif name == b"connection" and b"close" in value.lower():
                self.keep_alive = False
                says_close = True
            lines += (name, b": ", value, b"\r\n")
        if not is_framed:
            if self.scope["http_version"] == "1.0":
                self.keep_alive = False  # the end of the connection is the end of the body
            else:
                self._is_chunked = True
                lines.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive and not says_close:
            lines.append(_CLOSE_LINE)
        lines.append(b"\r\n")
        return b"".join(lines)

    def _answered(self) -> None:
        self.is_answered = True
        self._tell()
        self.carrier.on_answered(self)

    def _fail(self) -> None:
        transport = self.carrier.transport
        if not self.is_begun and not self.is_disconnected and not transport.is_closing():
            transport.write(refusal(500, "M_UNKNOWN", "Internal server error"))
        transport.close()

    async def _wait(self) -> None:
        self._news = asyncio.get_running_loop().create_future()
        try:
            await self._news
        finally:
            self._news = None

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
