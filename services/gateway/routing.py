"""How the gateway's routes are made: both paths of the client-server API, bodies and requesters as types.

Spec: C-S API §API Standards.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tessera.http.authentication import CurrentRequester, Requester, authenticate
from tessera.http.bodies import MAX_JSON_BYTES, read_json_object

__all__ = [
    "ClientAddress",
    "CurrentRequester",
    "JsonObject",
    "LooseJsonObject",
    "Requester",
    "absolute_router",
    "client_router",
    "client_routes",
    "json_object_of",
    "mounted",
    "requester_of",
]

# r0 is what all clients before 2021 speak, and some libraries still.
CLIENT_PREFIXES = ("/_matrix/client/v3", "/_matrix/client/r0")
# What was added later has a version of its own.
V1_PREFIXES = ("/_matrix/client/v1",)

requester_of = authenticate


def client_router() -> APIRouter:
    """A router whose paths are relative to the client-server API's version; see `mounted`."""
    return APIRouter(default_response_class=Response)


def absolute_router() -> APIRouter:
    """A router whose paths are whole, for what is not of the client-server API."""
    return APIRouter(default_response_class=Response)


def mounted(router: APIRouter, prefixes: Sequence[str] = CLIENT_PREFIXES) -> APIRouter:
    """The routes of a `client_router` under v3 and r0 or other prefixes, as routes of their own."""
    both = APIRouter(default_response_class=Response)
    for route in router.routes:
        assert isinstance(route, APIRoute)
        for prefix in prefixes:
            both.add_api_route(prefix + route.path, route.endpoint, methods=list(route.methods or ()), name=route.name)
    return both


def client_routes(
    path: str, endpoint: Callable[[Request], Awaitable[Response]], *, methods: Sequence[str]
) -> list[Route]:
    """A plain route, without FastAPI's work for each request, under v3 and r0."""
    return [Route(prefix + path, endpoint, methods=list(methods)) for prefix in CLIENT_PREFIXES]


async def json_object_of(request: Request) -> dict[str, Any]:
    """The body as a JSON object without floats; `optional_body` is for bodies that may be left out.

    Raises:
        NotJson, BadJson, TooLarge
    """
    return await read_json_object(request, MAX_JSON_BYTES)


async def _loose_json_object_of(request: Request) -> dict[str, Any]:
    return await read_json_object(request, MAX_JSON_BYTES, allow_floats=True)


async def _address_of(request: Request) -> str:
    return "" if request.client is None else request.client.host


JsonObject = Annotated[dict[str, Any], Depends(json_object_of)]

# JSON that never becomes part of an event, in which floats are harmless: account data, tags.
LooseJsonObject = Annotated[dict[str, Any], Depends(_loose_json_object_of)]

ClientAddress = Annotated[str, Depends(_address_of)]
