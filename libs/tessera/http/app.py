"""The ASGI application of an HTTP service.

Plain Starlette routes and FastAPI routers share one index of routes. A plain route costs its
handler and little else; a FastAPI one solves its dependencies. Everything around them happens
here, once: CORS, preflight requests, encoding of paths, errors, figures.

Spec: C-S API §API Standards, §Web Browser Clients.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from urllib.parse import quote

import structlog
from fastapi import APIRouter, FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute
from starlette.datastructures import State
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tessera import tracing
from tessera.http.deadlines import DEFAULT_DEADLINE_SECONDS, deadline_of
from tessera.http.errors import InvalidParam, MatrixError, Unrecognized, error_reply
from tessera.http.failures import matrix_error_of
from tessera.http.route_index import InvalidPath, RouteIndex, WrongMethod, check_query, split_path
from tessera.ids import IdSource
from tessera.telemetry import RequestMetrics
from tessera.tracing import RequestSpan

log = structlog.get_logger(__name__)
access_log = structlog.get_logger("tessera.access")

CORS_HEADERS = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS"),
    (b"access-control-allow-headers", b"X-Requested-With, Content-Type, Authorization, Date"),
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
        self._handlers = {id(route): _asgi_of(route, deadline_seconds) for route in routes}
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
        status = 0
        body_ended = False

        async def watched_receive() -> Message:
            nonlocal body_ended
            message = await receive()
            body_ended = body_ended or not message.get("more_body", False)
            return message

        async def send_with_cors(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *CORS_HEADERS]
            elif message.get("more_body", False):
                await _send_unless_stalled(send, message)
                return
            await send(message)

        try:
            await self._dispatch(scope, watched_receive, send_with_cors)
        except ClientDisconnect:
            status = status or CLIENT_GONE
        except Exception as error:  # the edge: whatever went wrong, the client gets an answer
            answer = self._answer_for(error, scope)
            if status:
                raise  # half an answer is out: cut the connection, so that nobody takes it for whole
            if body_ended or not _body_may_be_long(scope):
                await error_reply(answer)(scope, receive, send_with_cors)
            else:
                await _answer_and_close(answer, receive, send_with_cors)
        finally:
            self._note(scope, status, time.perf_counter() - started)
            if span is not None:
                span.finish(scope.get("tessera.operation", _UNMATCHED), scope["method"], status)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        operation = scope.get("tessera.operation", _UNMATCHED)
        if self._metrics is not None:
            # Anybody can make up methods; those of unknown paths are not counted apart.
            self._metrics.observe(operation, "" if operation is _UNMATCHED else scope["method"], status, seconds)
        if self._log_requests:
            access_log.info(
                "request", operation=operation, method=scope["method"], status=status, ms=round(seconds * 1000, 2)
            )

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "OPTIONS":
            await Response(status_code=204, headers=PREFLIGHT_HEADERS)(scope, receive, send)
            return
        raw_path: bytes = scope.get("raw_path") or quote(scope["path"]).encode("ascii")
        try:
            segments = split_path(raw_path.partition(b"?")[0])
            check_query(scope["query_string"])
        except InvalidPath as error:
            raise InvalidParam(str(error)) from None
        found = self._index.find(segments, scope["method"])
        if found is None:
            raise Unrecognized
        if isinstance(found, WrongMethod):
            raise Unrecognized("This endpoint does not take this method", status=405)
        route = found.route
        scope["path_params"] = found.path_params
        scope["endpoint"] = route.endpoint
        scope["route"] = route
        scope["tessera.operation"] = route.name
        await self._handlers[id(route)](scope, receive, send)

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


def _asgi_of(route: Route, default_seconds: float) -> ASGIApp:
    """The application of one route. The deadline covers the handler, not the sending of what it made."""
    endpoint = route.endpoint
    seconds = deadline_of(endpoint, default_seconds)
    if isinstance(route, APIRoute):
        app = AsyncExitStackMiddleware(route.app)
        return app if seconds is None else _within(app, seconds)

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if seconds is None:
            response: Response = await endpoint(Request(scope, receive, send))
        else:
            try:
                async with asyncio.timeout(seconds) as limit:
                    response = await endpoint(Request(scope, receive, send))
            except TimeoutError:
                if not limit.expired():
                    raise
                raise _overdue() from None
        await response(scope, receive, send)

    return call


def _within(app: ASGIApp, seconds: float) -> ASGIApp:
    """FastAPI sends the response itself; its answers are short, so the deadline may cover that too."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(seconds) as limit:
                await app(scope, receive, send)
        except TimeoutError:
            if not limit.expired():
                raise
            raise _overdue() from None

    return call


def _overdue() -> MatrixError:
    return MatrixError("The request took too long", errcode="M_UNKNOWN", status=504)


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
