"""HTTP/1.1 connections for uvicorn's server: parsed by httptools, with bounds on what would be unbounded.

Bodies are bounded where they are read (`tessera.http.bodies`). Heads, the trailers of chunked bodies, the framing
between chunks and requests that were sent before their answers never reach a handler, so they are bounded here.

What each request costs counts: uvicorn's own protocol takes a timer, an event and two writes for each.
"""

import asyncio
from collections import deque
from typing import Any
from urllib.parse import unquote

import httptools
import structlog
from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from tessera.http.exchange import EXCHANGE, MAX_WAITING_BODY, REPLY, Exchange, refusal

log = structlog.get_logger(__name__)

# A sync token and a filter may stand in one query, percent-encoded.
MAX_HEAD_BYTES = 256 * 1024
HEAD_DEADLINE_SECONDS = 30.0
MAX_PIPELINED = 100

_ASGI = {"version": "3.0", "spec_version": "2.3"}


class BoundedHttpProtocol(asyncio.Protocol):
    """One connection.

    `_waiting_bytes` counts what came since the parser last finished something. `_reading` is the exchange whose
    request is being read, `_answering` the one whose answer is being made; requests between them wait.
    """

    transport: asyncio.Transport

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self.loop = _loop or asyncio.get_running_loop()
        self.write_paused = False
        self._app: ASGIApp = config.loaded_app
        self._app_state = app_state
        self._root_path: str = config.root_path
        self._keep_alive_seconds: float = config.timeout_keep_alive
        self._server_state = server_state
        self._connection_scope: dict[str, Any] = {}
        self._parser = httptools.HttpRequestParser(self)
        # So that the first of several pipelined requests is answered, whatever follows it.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._waiting_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._idle_since: float | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None
        self._is_reading_paused = False
        self._is_lost = False
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._expects_continue = False
        self._reading: Exchange | None = None
        self._answering: Exchange | None = None
        self._pipeline: deque[Exchange] = deque()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Expect the first head."""
        self.transport = transport
        self._server_state.connections.add(self)  # type: ignore[arg-type]  # uvicorn only calls `shutdown`
        self._connection_scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "1.1",
            "server": get_local_addr(transport),
            "client": get_remote_addr(transport),
            "scheme": "https" if is_ssl(transport) else "http",
            "root_path": self._root_path,
        }
        self._head_timer = self.loop.call_later(HEAD_DEADLINE_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever is still answering."""
        self._is_lost = True
        self._server_state.connections.discard(self)
        self._stop_head_timer()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        self.resume_writing()
        for exchange in (self._answering, self._reading, *self._pipeline):
            if exchange is not None:
                exchange.disconnect()
        self._pipeline.clear()
        self._reading = self._answering = None
        del self._parser  # it knows us: a circle that would wait for the garbage collector
        self.transport.close()

    def eof_received(self) -> None:
        """A client that will send nothing more gets no answer either: the connection closes."""

    def data_received(self, data: bytes) -> None:
        """Parse, and look at what is left unfinished."""
        self._idle_since = None
        self._waiting_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # no other protocol is spoken here; the request is answered as one of HTTP/1.1
        except httptools.HttpParserError:
            self._refuse(400, "M_UNKNOWN", "Invalid HTTP request received.")
            return
        if self._waiting_bytes == 0:
            self._stop_head_timer()
        elif self.transport.is_closing():
            return
        elif self._waiting_bytes > MAX_HEAD_BYTES:
            self._refuse(431, "M_TOO_LARGE", f"The head of the request exceeds {MAX_HEAD_BYTES} bytes")
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_DEADLINE_SECONDS, self._give_up)

    def pause_writing(self) -> None:
        """The peer takes slowly what was written."""
        self.write_paused = True

    def resume_writing(self) -> None:
        """The peer has taken it."""
        self.write_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # The parser's callbacks

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url = b""
        self._headers = []
        self._expects_continue = False

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header is whole."""
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._expects_continue = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """A head is whole: its answer can be begun."""
        self._waiting_bytes = 0
        if self.transport.is_closing():
            return
        parser = self._parser
        version = parser.get_http_version()
        url = httptools.parse_url(self._url)
        raw_path = url.path
        path = raw_path.decode("ascii")
        scope = self._connection_scope.copy()
        scope["method"] = parser.get_method().decode("ascii")
        scope["path"] = self._root_path + (unquote(path) if "%" in path else path)
        scope["raw_path"] = self._root_path.encode("ascii") + raw_path if self._root_path else raw_path
        scope["query_string"] = url.query or b""
        scope["headers"] = self._headers
        if version != "1.1":
            scope["http_version"] = version
        if self._app_state:
            scope["state"] = self._app_state.copy()
        exchange = Exchange(
            self,
            scope,
            keep_alive=version != "1.0" and parser.should_keep_alive(),
            expects_continue=self._expects_continue,
        )
        scope[EXCHANGE] = exchange
        scope[REPLY] = exchange.reply
        self._reading = exchange
        if self._answering is None:
            self._begin(exchange)
            return
        if len(self._pipeline) >= MAX_PIPELINED:
            self.transport.close()
            return
        self._pause_reading()
        self._pipeline.append(exchange)

    def on_body(self, body: bytes) -> None:
        """A piece of a body is there."""
        self._waiting_bytes = 0
        exchange = self._reading
        if exchange is not None and not exchange.is_answered and exchange.add_body(body) > MAX_WAITING_BODY:
            self._pause_reading()

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._waiting_bytes = 0
        exchange, self._reading = self._reading, None
        if exchange is not None:
            exchange.end_body()

    # What exchanges and the server call

    async def drain(self) -> None:
        """Return when the peer has taken enough of what was written."""
        while self.write_paused:
            if self._drained is None or self._drained.done():
                self._drained = self.loop.create_future()
            await asyncio.shield(self._drained)

    def resume_reading(self) -> None:
        """Let more of a body come."""
        if self._is_reading_paused:
            self._is_reading_paused = False
            if not self._is_lost:
                self.transport.resume_reading()

    def on_answered(self, exchange: Exchange) -> None:
        """Go on to the next request, or wait for one."""
        self._server_state.total_requests += 1
        self._answering = None
        if not exchange.keep_alive:
            self.transport.close()
        if self.transport.is_closing():
            return
        if self._pipeline:
            self._begin(self._pipeline.popleft())
        if not self._pipeline:
            self.resume_reading()
        if self._answering is None:
            self._idle_since = self.loop.time()
            if self._idle_timer is None:
                self._idle_timer = self.loop.call_later(self._keep_alive_seconds, self._look_whether_idle)

    def on_ended(self, exchange: Exchange) -> None:
        """A handler has returned."""
        if exchange.task is not None:
            self._server_state.tasks.discard(exchange.task)
            exchange.task = None

    def shutdown(self) -> None:
        """Finish what was begun, and close."""
        if self._answering is None:
            self.transport.close()
        else:
            self._answering.keep_alive = False

    def _begin(self, exchange: Exchange) -> None:
        self._answering = exchange
        exchange.task = self.loop.create_task(exchange.run(self._app))
        self._server_state.tasks.add(exchange.task)

    def _pause_reading(self) -> None:
        if not self._is_reading_paused:
            self._is_reading_paused = True
            self.transport.pause_reading()

    def _look_whether_idle(self) -> None:
        """One timer for many requests: it is set again as often as it finds that there was one."""
        self._idle_timer = None
        if self._idle_since is None:
            return
        left = self._idle_since + self._keep_alive_seconds - self.loop.time()
        if left > 0:
            self._idle_timer = self.loop.call_later(left, self._look_whether_idle)
        else:
            self.transport.close()

    def _give_up(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refuse(408, "M_UNKNOWN", "The request did not arrive in time")

    def _refuse(self, status: int, errcode: str, error: str) -> None:
        # In the middle of an answer a second one would be taken for a part of it.
        if (self._answering is None or not self._answering.is_begun) and not self.transport.is_closing():
            self.transport.write(refusal(status, errcode, error))
        self._stop_head_timer()
        self.transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
