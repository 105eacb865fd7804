"""The ASGI application of an HTTP service.

Plain Starlette routes and FastAPI routers share one index of routes. A plain route costs its
handler and little else; a FastAPI one solves its dependencies. Everything around them happens
here, once: CORS, preflight requests, encoding of paths, errors, figures.

Spec: C-S API §API Standards, §Web Browser Clients.
"""

import time
from collections.abc import Iterable, Mapping, Sequence

import structlog
from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tessera.http.errors import (
    BadJson,
    InvalidParam,
    MatrixError,
    MissingParam,
    NotJson,
    Unavailable,
    Unrecognized,
    error_reply,
)
from tessera.http.route_index import InvalidPath, RouteIndex, WrongMethod, check_query, split_path
from tessera.ids import IdSource
from tessera.storage.database import DatabaseUnavailable
from tessera.telemetry import RequestMetrics

log = structlog.get_logger(__name__)

CORS_HEADERS = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS"),
    (b"access-control-allow-headers", b"X-Requested-With, Content-Type, Authorization, Date"),
    (b"access-control-expose-headers", b"Retry-After, ETag, Location"),
)
_UNMATCHED = "unmatched"


class MatrixApp:
    """An ASGI application; handlers find `state` at `request.app.state`."""

    def __init__(self, routes: Sequence[Route], ids: IdSource, metrics: RequestMetrics | None) -> None:
        # FastAPI's own application is there for request.app; its middleware and router stay unused.
        self._fastapi = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
        self._index = RouteIndex(routes)
        self._handlers = {id(route): _asgi_of(route) for route in routes}
        self._ids = ids
        self._metrics = metrics
        self.routes = tuple(routes)

    @property
    def state(self) -> State:
        """What handlers find at `request.app.state`."""
        return self._fastapi.state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _serve_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        scope["app"] = self._fastapi
        status = 0

        async def send_with_cors(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *CORS_HEADERS]
            await send(message)

        try:
            await self._dispatch(scope, receive, send_with_cors)
        except ClientDisconnect:
            status = status or 499
        except Exception as error:  # the edge: whatever went wrong, the client gets an answer
            reply = self._error_reply(error, scope)
            if status:
                raise  # half an answer is out: cut the connection, so that nobody takes it for whole
            await reply(scope, receive, send_with_cors)
        if self._metrics is not None:
            operation = scope.get("tessera.operation", _UNMATCHED)
            method = scope["method"] if operation is not _UNMATCHED else ""
            self._metrics.observe(operation, method, status, time.perf_counter() - started)

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "OPTIONS":
            await Response(status_code=204)(scope, receive, send)
            return
        raw_path: bytes = scope.get("raw_path") or scope["path"].encode("utf-8")
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

    def _error_reply(self, error: Exception, scope: Scope) -> Response:
        if isinstance(error, MatrixError):
            return error_reply(error)
        if isinstance(error, RequestValidationError):
            return error_reply(_describe_validation(error))
        if isinstance(error, HTTPException):
            return error_reply(_describe_http_exception(error))
        if isinstance(error, DatabaseUnavailable):
            log.warning("database unavailable", operation=scope.get("tessera.operation"), error=str(error))
            return error_reply(Unavailable())
        reference = self._ids.letters(10)
        log.error(
            "request failed", operation=scope.get("tessera.operation", _UNMATCHED), reference=reference, exc_info=error
        )
        return error_reply(
            MatrixError(f"Internal server error (reference {reference})", errcode="M_UNKNOWN", status=500)
        )


def create_app(
    *,
    routes: Iterable[BaseRoute],
    routers: Iterable[APIRouter] = (),
    state: Mapping[str, object],
    ids: IdSource,
    metrics: RequestMetrics | None = None,
) -> MatrixApp:
    """Put an application together.

    Args:
        routes: plain Starlette routes, whose handlers take a Request and return a Response.
        routers: FastAPI routers; their routes answer with Responses of their own, no response models.
        state: becomes the attributes of `request.app.state`; `authenticator` is one of them.

    Raises:
        ValueError: two routes have the same path and method.
    """
    everything: list[Route] = []
    for route in [*routes, *(route for router in routers for route in router.routes)]:
        if not isinstance(route, Route):
            raise ValueError(f"{route!r} is no route for HTTP requests")
        everything.append(route)
    app = MatrixApp(everything, ids, metrics)
    for name, value in state.items():
        setattr(app.state, name, value)
    return app


def _asgi_of(route: Route) -> ASGIApp:
    if isinstance(route, APIRoute):
        return AsyncExitStackMiddleware(route.app)
    endpoint = route.endpoint

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        response: Response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)

    return call


async def _serve_lifespan(receive: Receive, send: Send) -> None:
    """Say yes to servers that ask; what lives as long as the process is owned by its main function."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return


def _describe_validation(error: RequestValidationError) -> MatrixError:
    """Name the first thing that FastAPI could not use."""
    problem = error.errors()[0]
    place, *names = (str(part) for part in problem["loc"])
    field = ".".join(names) or place
    if problem["type"] == "missing":
        return MissingParam(f"{field} is missing")
    if problem["type"] == "json_invalid":
        return NotJson("Content is not JSON")
    message = f"{field}: {problem['msg']}"
    return BadJson(message) if place == "body" else InvalidParam(message)


def _describe_http_exception(error: HTTPException) -> MatrixError:
    if error.status_code in (404, 405):
        return Unrecognized(status=error.status_code)
    return MatrixError(str(error.detail), errcode="M_UNKNOWN", status=error.status_code, headers=error.headers)
