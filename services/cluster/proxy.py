"""The proxy in front of a small cluster: by path to a service, by access token to one sync process.

A request that a process did not take goes to another one; one that may have been begun is repeated only if that is
harmless (in this API every PUT is). Bodies stream both ways.
"""

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

import aiohttp
import structlog
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from services.cluster.plan import service_for
from tessera.config.services import ServiceName

log = structlog.get_logger(__name__)

MAX_HEAD_BYTES = 256 * 1024  # as the services themselves: a sync token and a filter may stand in one query
MAX_KEPT_BYTES = 1 << 20  # bodies up to this size are kept, so that they can be sent once more
ATTEMPTS = 4
RETRY_SECONDS = 0.1  # between attempts, while nobody is ready
PATIENCE_SECONDS = 10.0  # so long a request waits for a process that takes it
CONNECT_SECONDS = 2.0
STALL_SECONDS = 90.0  # longer than any long-poll
PIECE_BYTES = 64 * 1024
_HARMLESS = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "host", "expect"}
)
_NO_BODY = frozenset({204, 304})


@dataclass(slots=True, eq=False)
class Backend:
    """A process that requests may go to.

    Attributes:
        is_ready: whether it wants requests, as far as is known.
        suspect: told that it did not take a connection.
    """

    name: str
    service: ServiceName
    url: str
    is_ready: Callable[[], bool]
    suspect: Callable[[], None]
    in_flight: int = 0


class NotTaken(Exception):
    """The process did not take the request, or it may safely be sent once more."""


class Lost(Exception):
    """The connection was lost while the process may have been working on it."""


class Proxy:
    """Answers every request with what a process answers."""

    def __init__(self, backends: Sequence[Backend], http: aiohttp.ClientSession, *, scheme: str) -> None:
        self._by_service: dict[str, list[Backend]] = {}
        for backend in backends:
            self._by_service.setdefault(backend.service, []).append(backend)
        self._http = http
        self._scheme = scheme

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Pass a request on, to another process if one does not take it."""
        if not request.raw_path.startswith("/"):
            return _refusal(400, "The request target must be a path")
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        service = service_for(request.path)
        body = await _Body.of(request)
        tried: set[Backend] = set()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS) as patience:
                backend = await self._pick(service, request, tried)
                for attempt in range(ATTEMPTS):
                    # The patience is for finding a process; what it does then may take its time.
                    tried.add(backend)
                    patience.reschedule(None)
                    try:
                        return await self._pass_on(request, backend, body)
                    except NotTaken as error:
                        log.info("not taken", process=backend.name, error=str(error))
                        if attempt == ATTEMPTS - 1 or not body.can_repeat:
                            break
                    patience.reschedule(asyncio.get_running_loop().time() + PATIENCE_SECONDS)
                    backend = await self._pick(service, request, tried)
                return _refusal(502, "The server did not take the request")
        except TimeoutError:
            return _refusal(503, "The server is not ready")
        except Lost:
            return _refusal(502, "The connection to the server was lost")

    async def _pick(self, service: ServiceName, request: web.BaseRequest, tried: set[Backend]) -> Backend:
        while True:
            everybody = self._by_service.get(service, [])
            ready = [backend for backend in everybody if backend.is_ready()]
            if fresh := [backend for backend in ready if backend not in tried]:
                if service == "sync":
                    return stick(fresh, access_token_of(request))
                return min(fresh, key=lambda backend: backend.in_flight)
            tried.clear()
            await asyncio.sleep(RETRY_SECONDS)

    async def _pass_on(self, request: web.BaseRequest, backend: Backend, body: "_Body") -> web.StreamResponse:
        url = URL(f"{backend.url}{request.raw_path}", encoded=True)  # joined as texts: `//host` stays a path
        backend.in_flight += 1
        started: web.StreamResponse | None = None
        try:
            async with self._http.request(
                request.method,
                url,
                headers=_request_headers(request, self._scheme),
                data=body.content(),
                allow_redirects=False,
                skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept", "Content-Type"),
            ) as answer:
                started = web.StreamResponse(status=answer.status, reason=answer.reason)
                started.headers.extend(_answer_headers(answer))
                await _send_answer(request, started, answer)
                return started
        except aiohttp.ClientConnectorError as error:
            backend.suspect()
            raise NotTaken(str(error)) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            if started is not None and started.prepared:
                # Half an answer is out: the connection is cut, so that nobody takes it for whole.
                if request.transport is not None:
                    request.transport.abort()
                return started
            if request.method in _HARMLESS:
                raise NotTaken(repr(error)) from error
            raise Lost(repr(error)) from error
        finally:
            backend.in_flight -= 1


def stick(backends: Sequence[Backend], key: bytes) -> Backend:
    """One of the backends, the same for the same key as long as it is there (rendezvous hashing)."""
    return max(backends, key=lambda backend: hashlib.blake2b(key, key=backend.name.encode()[:64]).digest())


def access_token_of(request: web.BaseRequest) -> bytes:
    """What the polls of one device have in common."""
    header = request.headers.get("Authorization")
    return (header.partition(" ")[2] if header else request.query.get("access_token", "")).encode()


@dataclass(slots=True)
class _Body:
    """The body of a request: whole if it is short, else to be read once."""

    whole: bytes | None
    stream: aiohttp.StreamReader | None

    @classmethod
    async def of(cls, request: web.BaseRequest) -> "_Body":
        if not request.body_exists:
            return cls(b"", None)
        length = request.content_length
        if length is None or length > MAX_KEPT_BYTES:
            return cls(None, request.content)
        return cls(await request.content.readexactly(length), None)

    @property
    def can_repeat(self) -> bool:
        """Whether nothing of it is gone."""
        return self.stream is None or self.stream.total_bytes == 0

    def content(self) -> "bytes | AsyncIterator[bytes] | None":
        """What is sent."""
        return self.stream.iter_chunked(PIECE_BYTES) if self.stream is not None else self.whole or None


def _request_headers(request: web.BaseRequest, scheme: str) -> Mapping[str, str]:
    headers: CIMultiDict[str] = CIMultiDict(
        (name, value) for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP
    )
    headers["Host"] = request.host
    headers["X-Forwarded-For"] = request.remote or ""
    headers["X-Forwarded-Proto"] = scheme
    return headers


def _answer_headers(answer: aiohttp.ClientResponse) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP)


async def _send_answer(request: web.BaseRequest, started: web.StreamResponse, answer: aiohttp.ClientResponse) -> None:
    has_body = request.method != "HEAD" and answer.status not in _NO_BODY
    length = answer.content_length
    if has_body and length is not None and length <= PIECE_BYTES:
        # Read first: as long as nothing went out, the request may still go to somebody else.
        whole = await answer.read()
        await started.prepare(request)
        await started.write_eof(whole)
        return
    await started.prepare(request)
    if has_body:
        async for piece in answer.content.iter_chunked(PIECE_BYTES):
            await started.write(piece)
    await started.write_eof()


def _refusal(status: int, text: str) -> web.Response:
    body: dict[str, object] = {"errcode": "M_UNKNOWN", "error": text}
    headers = {"Access-Control-Allow-Origin": "*"}
    if status == 503:
        body["retry_after_ms"] = 1000
        headers["Retry-After"] = "1"
    return web.json_response(body, status=status, headers=headers)


def open_session() -> aiohttp.ClientSession:
    """Connections to the processes: kept open, as many as there are requests."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=STALL_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        max_line_size=MAX_HEAD_BYTES,
        max_field_size=MAX_HEAD_BYTES,
    )


def make_server(proxy: Proxy) -> web.Server:
    """The HTTP server of a proxy; a client that goes away ends what was begun for it."""
    return web.Server(
        proxy.handle,
        max_line_size=MAX_HEAD_BYTES,
        max_field_size=MAX_HEAD_BYTES,
        handler_cancellation=True,
        access_log=None,
    )


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """The TLS that clients meet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context
