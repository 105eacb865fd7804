"""The ASGI application of an HTTP service.

Plain Starlette routes and FastAPI routers share one index of routes. A plain route costs its
handler and little else; a FastAPI one solves its dependencies. Everything around them happens
here, once: CORS, preflight requests, encoding of paths, errors, figures.

Spec: C-S API §API Standards, §Web Browser Clients.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import structlog
from fastapi import APIRouter, FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute
from starlette.datastructures import State
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Message, Receive, Scope, Send

from tessera import tracing
from tessera.http.deadlines import DEFAULT_DEADLINE_SECONDS, Deadline, deadline_of
from tessera.http.errors import InvalidParam, MatrixError, Unrecognized, error_reply
from tessera.http.exchange import REPLY
from tessera.http.failures import matrix_error_of
from tessera.http.replies import JSON_TYPE, JsonReply
from tessera.http.route_index import InvalidPath, RouteIndex, WrongMethod, check_query
from tessera.ids import IdSource
from tessera.telemetry import RequestMetrics
from tessera.tracing import RequestSpan

log = structlog.get_logger(__name__)
access_log = structlog.get_logger("tessera.access")

CORS_HEADERS = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS"),
    (b"access-control-allow-headers", b"X-Requested-With, Content-Type, Authorization, Date, If-Match, If-None-Match"),
    (b"access-control-expose-headers", b"Retry-After, ETag, Location"),
)
# A browser asks before each request with a token; this lets it remember the answer for a day (by path).
PREFLIGHT_HEADERS = {"Access-Control-Max-Age": "86400"}

# A refused request whose unread body may be longer than this costs its connection, so that nobody sends us gigabytes.
MAX_UNREAD_BYTES = 64 * 1024
# So much of it is still thrown away first: closing at once could destroy the answer before a busy sender reads it.
LINGER_SECONDS = 2.0
LINGER_BYTES = 16 * 1024 * 1024
# A client that takes no byte of a long answer for so long is gone.
SEND_STALL_SECONDS = 60.0
CLIENT_GONE = 499  # in figures and logs only: nobody was left to answer

_UNMATCHED = "unmatched"
# The lines of every answer that is JSON and nothing else.
_JSON_LINES = b"".join(b"%b: %b\r\n" % header for header in (JSON_TYPE, *CORS_HEADERS))

Handler = Callable[[Scope, Receive, Send], Awaitable[Response | None]]


class MatrixApp:
    """An ASGI application; handlers find `state` at `request.app.state`."""

    def __init__(
        self,
        routes: Sequence[Route],
        ids: IdSource,
        metrics: RequestMetrics | None = None,
        *,
        deadline_seconds: float = DEFAULT_DEADLINE_SECONDS,
        log_requests: bool = False,
    ) -> None:
        # FastAPI's own application is there for request.app; its middleware and router stay unused.
        self._fastapi = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
        self._index = RouteIndex(routes)
        deadlines: dict[float, Deadline] = {}
        self._handlers = {id(route): _handler_of(route, deadline_seconds, deadlines) for route in routes}
        self._ids = ids
        self._metrics = metrics
        self._log_requests = log_requests
        self.routes = tuple(routes)

    @property
    def state(self) -> State:
        """What handlers find at `request.app.state`."""
        return self._fastapi.state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if tracing.is_on():
                with tracing.request_span() as span:
                    await self._serve(scope, receive, send, span)
            else:
                await self._serve(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _serve_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    async def _serve(self, scope: Scope, receive: Receive, send: Send, span: RequestSpan | None = None) -> None:
        started = time.perf_counter()
        scope["app"] = self._fastapi
        watch = _Watch(receive, send)
        try:
            response = await self._dispatch(scope, watch)
            if response is not None:
                await watch.answer(response, scope)
        except ClientDisconnect:
            watch.status = watch.status or CLIENT_GONE
        except Exception as error:  # the edge: whatever went wrong, the client gets an answer
            answer = self._answer_for(error, scope)
            if watch.status:
                raise  # half an answer is out: cut the connection, so that nobody takes it for whole
            if watch.body_ended or not _body_may_be_long(scope):
                await watch.answer(error_reply(answer), scope)
            else:
                await _answer_and_close(answer, receive, watch.send)
        except asyncio.CancelledError:
            watch.status = watch.status or CLIENT_GONE
            raise
        finally:
            self._note(scope, watch.status, time.perf_counter() - started)
            if span is not None:
                span.finish(scope.get("tessera.operation", _UNMATCHED), scope["method"], watch.status)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        operation = scope.get("tessera.operation", _UNMATCHED)
        if self._metrics is not None:
            # Anybody can make up methods; those of unknown paths are not counted apart.
            self._metrics.observe(operation, "" if operation is _UNMATCHED else scope["method"], status, seconds)
        if self._log_requests:
            access_log.info(
                "request", operation=operation, method=scope["method"], status=status, ms=round(seconds * 1000, 2)
            )

    async def _dispatch(self, scope: Scope, watch: "_Watch") -> Response | None:
        """The answer, or None if it has been sent."""
        method = scope["method"]
        if method == "OPTIONS":
            return Response(status_code=204, headers=PREFLIGHT_HEADERS)
        raw_path: bytes = scope.get("raw_path") or quote(scope["path"]).encode("ascii")
        try:
            check_query(scope["query_string"])
            found = self._index.find(raw_path, method)
        except InvalidPath as error:
            raise InvalidParam(str(error)) from None
        if found is None:
            raise Unrecognized
        if isinstance(found, WrongMethod):
            raise Unrecognized("This endpoint does not take this method", status=405)
        route = found.route
        scope["path_params"] = found.path_params
        scope["endpoint"] = route.endpoint
        scope["route"] = route
        scope["tessera.operation"] = route.name
        return await self._handlers[id(route)](scope, watch.receive, watch.send)

    def _answer_for(self, error: Exception, scope: Scope) -> MatrixError:
        answer = matrix_error_of(error)
        if answer is not None:
            return answer
        reference = self._ids.letters(10)
        log.error(
            "request failed", operation=scope.get("tessera.operation", _UNMATCHED), reference=reference, exc_info=error
        )
        return MatrixError(f"Internal server error (reference {reference})", errcode="M_UNKNOWN", status=500)


def create_app(
    *,
    routes: Iterable[BaseRoute],
    routers: Iterable[APIRouter] = (),
    state: Mapping[str, object],
    ids: IdSource,
    metrics: RequestMetrics | None = None,
    deadline_seconds: float = DEFAULT_DEADLINE_SECONDS,
    log_requests: bool = False,
) -> MatrixApp:
    """Put an application together.

    Args:
        routes: plain Starlette routes, whose handlers take a Request and return a Response.
        routers: FastAPI routers; their routes answer with Responses of their own, no response models.
        state: becomes the attributes of `request.app.state`; `authenticator` is one of them.
        deadline_seconds: for handlers without a `tessera.http.deadlines.deadline` of their own.
        log_requests: one line for each request, with the handler's name in place of the path.

    Raises:
        ValueError: two routes have the same path and method.
    """
    everything: list[Route] = []
    for route in [*routes, *(route for router in routers for route in router.routes)]:
        if not isinstance(route, Route):
            raise ValueError(f"{route!r} is no route for HTTP requests")
        everything.append(route)
    app = MatrixApp(everything, ids, metrics, deadline_seconds=deadline_seconds, log_requests=log_requests)
    for name, value in state.items():
        setattr(app.state, name, value)
    return app


class _Watch:
    """What is to be known of a request when its handler fails: whether its body has ended, and an answer begun."""

    __slots__ = ("_receive", "_send", "body_ended", "status")

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.body_ended = False
        self.status = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):
            self.body_ended = True
        return message

    async def send(self, message: Message) -> None:
        """Send a part of an answer, with the headers that all answers have."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *CORS_HEADERS]
        elif message.get("more_body", False):
            await _send_unless_stalled(self._send, message)
            return
        await self._send(message)

    async def answer(self, response: Response, scope: Scope) -> None:
        """Send an answer, in one piece where the server can."""
        if type(response) is JsonReply and response.is_plain:
            reply = scope.get(REPLY)
            lines = b"%bcontent-length: %d\r\n" % (_JSON_LINES, len(response.body))
            if reply is not None and reply(response.status_code, lines, response.body):
                self.status = response.status_code
                return
        await response(scope, self.receive, self.send)


def _handler_of(route: Route, default_seconds: float, deadlines: dict[float, Deadline]) -> Handler:
    """What serves a route. The deadline covers the handler, not the sending of what it made."""
    endpoint = route.endpoint
    seconds = deadline_of(endpoint, default_seconds)
    limit = None if seconds is None else deadlines.setdefault(seconds, Deadline(seconds))
    if isinstance(route, APIRoute):
        app = AsyncExitStackMiddleware(route.app)

        async def call_solved(scope: Scope, receive: Receive, send: Send) -> Response | None:
            # FastAPI sends the response itself; its answers are short, so the deadline may cover that too.
            call = app(scope, receive, send)
            await (call if limit is None else limit.within(call))
            return None

        return call_solved

    async def call(scope: Scope, receive: Receive, send: Send) -> Response | None:
        work: Coroutine[Any, Any, Response] = endpoint(Request(scope, receive, send))
        return await (work if limit is None else limit.within(work))

    return call


async def _send_unless_stalled(send: Send, message: Message) -> None:
    try:
        async with asyncio.timeout(SEND_STALL_SECONDS):
            await send(message)
    except TimeoutError:
        raise ClientDisconnect from None


async def _answer_and_close(answer: MatrixError, receive: Receive, send: Send) -> None:
    """Refuse a request whose body is still coming: answer at once, let the sender notice, close the connection."""
    answer.headers["Connection"] = "close"
    reply = error_reply(answer)
    await send({"type": "http.response.start", "status": reply.status_code, "headers": reply.raw_headers})
    await send({"type": "http.response.body", "body": reply.body, "more_body": True})
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            size = 0
            while size < LINGER_BYTES:
                message = await receive()
                if not message.get("more_body", False):
                    break
                size += len(message["body"])
    await send({"type": "http.response.body", "body": b""})


def _body_may_be_long(scope: Scope) -> bool:
    """Whether a request's body is long or of unknown length."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return not value.isdigit() or len(value) > 18 or int(value) > MAX_UNREAD_BYTES
        if name == b"transfer-encoding":
            return True
    return False


async def _serve_lifespan(receive: Receive, send: Send) -> None:
    """Say yes to servers that ask; what lives as long as the process is owned by its main function."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return
