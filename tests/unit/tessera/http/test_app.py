import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from prometheus_client import CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from matrixcore.identifiers import UserId
from tessera.clock import FakeClock
from tessera.http.app import MatrixApp, create_app
from tessera.http.authentication import CurrentRequester, Requester, access_token_of, authenticate
from tessera.http.bodies import read_json_object
from tessera.http.errors import LimitExceeded, NotFound
from tessera.http.replies import json_reply
from tessera.http.requester_cache import RequesterCache
from tessera.ids import IdSource
from tessera.storage.database import DatabaseUnavailable
from tessera.telemetry import RequestMetrics, observability_routes

router = APIRouter()


@router.get("/fast/{room_id}/typed")
async def typed(room_id: str, limit: int = 3) -> Response:
    return json_reply({"room_id": room_id, "limit": limit})


@router.get("/fast/whoami")
async def whoami(requester: CurrentRequester) -> Response:
    return json_reply({"user_id": requester.user_id})


@router.get("/fast/missing")
async def missing() -> Response:
    raise NotFound("no such thing")


async def plain(request: Request) -> Response:
    return json_reply(dict(request.path_params))


async def echo(request: Request) -> Response:
    return json_reply(await read_json_object(request, 1000))


async def limited(request: Request) -> Response:
    await authenticate(request)
    raise LimitExceeded(1500)


async def broken(_request: Request) -> Response:
    raise RuntimeError("a secret")


async def no_database(_request: Request) -> Response:
    raise DatabaseUnavailable("gone")


class TokenTable:
    """An authenticator with one token."""

    def __init__(self) -> None:
        self._cache = RequesterCache(FakeClock(), self._find)

    async def authenticate(self, request: Request) -> Requester:
        return await self._cache.get(access_token_of(request))

    async def _find(self, tokens: Sequence[str]) -> dict[str, Requester]:
        return {token: Requester(UserId("@a:x"), "DEV") for token in tokens if token == "good"}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def app(registry: CollectorRegistry) -> MatrixApp:
    async def ready() -> None:
        return None

    async def unready() -> None:
        raise ConnectionError("down")

    return create_app(
        routes=[
            Route("/rooms/{room_id}/event/{event_id}", plain, methods=["GET"]),
            Route("/rooms/{room_id}/state/{event_type}/", plain, methods=["GET"]),
            Route("/rooms/{room_id}/special/{key}", plain, methods=["DELETE"], name="generic"),
            Route("/rooms/{room_id}/special/name", plain, methods=["GET"], name="named"),
            Route("/files/{server}/{name:path}", plain, methods=["GET"]),
            Route("/echo", echo, methods=["POST"]),
            Route("/limited", limited, methods=["GET"]),
            Route("/broken", broken, methods=["GET"]),
            Route("/nodb", no_database, methods=["GET"]),
            *observability_routes(registry, {"postgres": ready, "redis": unready}),
        ],
        routers=[router],
        state={"authenticator": TokenTable()},
        ids=IdSource.seeded(1),
        metrics=RequestMetrics(registry),
    )


@pytest.fixture
async def client(app: MatrixApp) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        yield client


async def test_encoded_slashes_stay_in_their_segment(client: httpx.AsyncClient) -> None:
    reply = await client.get("/rooms/!a%2Fb:x/event/%24k%2Fz%20%C3%A9%2525")
    assert reply.json() == {"room_id": "!a/b:x", "event_id": "$k/z é%25"}
    reply = await client.get("/fast/%23a%2Fb:x/typed", params={"limit": "7"})
    assert reply.json() == {"room_id": "#a/b:x", "limit": 7}
    reply = await client.get("/files/x.org/a/b%20c")
    assert reply.json() == {"server": "x.org", "name": "a/b c"}


async def test_a_trailing_slash_is_an_empty_segment(client: httpx.AsyncClient) -> None:
    assert (await client.get("/rooms/!a:x/state/m.room.name/")).status_code == 200
    assert (await client.get("/rooms/!a:x/state/m.room.name")).status_code == 404
    assert (await client.get("/rooms//event/x")).status_code == 404


async def test_a_parameter_takes_what_the_literal_does_not(client: httpx.AsyncClient) -> None:
    assert (await client.get("/rooms/!a:x/special/name")).json() == {"room_id": "!a:x"}
    assert (await client.delete("/rooms/!a:x/special/name")).json() == {"room_id": "!a:x", "key": "name"}
    assert (await client.get("/rooms/!a:x/special/other")).status_code == 405


@pytest.mark.parametrize("path", ["/nothing", "/", "/rooms/!a:x", "/echo/"])
async def test_unknown_paths_are_unrecognized(client: httpx.AsyncClient, path: str) -> None:
    reply = await client.get(path)
    assert reply.status_code == 404
    assert reply.json()["errcode"] == "M_UNRECOGNIZED"
    assert reply.headers["access-control-allow-origin"] == "*"


async def test_wrong_method_is_405(client: httpx.AsyncClient) -> None:
    reply = await client.put("/echo")
    assert (reply.status_code, reply.json()["errcode"]) == (405, "M_UNRECOGNIZED")


async def call_raw(app: MatrixApp, raw_path: bytes, query: bytes = b"", method: str = "GET") -> int:
    """Call with bytes that clients such as httpx would not send."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": "/",
        "raw_path": raw_path,
        "query_string": query,
        "headers": [],
    }
    await app(scope, receive, send)
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("path", "query"),
    [
        (b"/rooms/%zz/event/x", b""),
        (b"/rooms/%/event/x", b""),
        (b"/rooms/%ff/event/x", b""),
        (b"/rooms/a%00b/event/x", b""),
        (b"/rooms/\xff/event/x", b""),
        (b"/rooms/%ed%a0%80/event/x", b""),
        (b"/rooms/a/event/x", b"since=%00"),
        (b"/rooms/a/event/x", b"since=%f"),
        (b"/rooms/a/event/x", b"since=%ff"),
    ],
)
async def test_bad_encoding_is_refused(app: MatrixApp, path: bytes, query: bytes) -> None:
    assert await call_raw(app, path, query) == 400


async def test_options_runs_nothing(client: httpx.AsyncClient) -> None:
    for path in ("/broken", "/limited", "/unknown"):
        reply = await client.request("OPTIONS", path)
        assert reply.status_code == 204
        assert "PUT" in reply.headers["access-control-allow-methods"]
        assert "Authorization" in reply.headers["access-control-allow-headers"]
        assert "If-Match" in reply.headers["access-control-allow-headers"]


async def test_unexpected_errors_tell_a_reference_only(client: httpx.AsyncClient) -> None:
    reply = await client.get("/broken")
    assert reply.status_code == 500
    assert reply.json()["errcode"] == "M_UNKNOWN"
    assert "secret" not in reply.text
    assert "reference" in reply.text
    assert reply.headers["access-control-allow-origin"] == "*"


async def test_an_unreachable_database_is_503(client: httpx.AsyncClient) -> None:
    reply = await client.get("/nodb")
    assert reply.status_code == 503
    assert reply.json()["retry_after_ms"] == 1000


async def test_limits_and_tokens(client: httpx.AsyncClient) -> None:
    reply = await client.get("/limited")
    assert (reply.status_code, reply.json()["errcode"]) == (401, "M_MISSING_TOKEN")
    reply = await client.get("/limited", headers={"Authorization": "Bearer bad"})
    assert reply.status_code == 401
    assert reply.json() == {"errcode": "M_UNKNOWN_TOKEN", "error": "Unknown access token", "soft_logout": False}
    reply = await client.get("/limited?access_token=good")
    assert reply.status_code == 429
    assert reply.json()["retry_after_ms"] == 1500
    assert reply.headers["retry-after"] == "2"
    reply = await client.get("/fast/whoami", headers={"authorization": "bearer good"})
    assert reply.json() == {"user_id": "@a:x"}
    reply = await client.get("/fast/whoami")
    assert reply.status_code == 401


async def test_fastapi_routes_answer_in_the_same_way(client: httpx.AsyncClient) -> None:
    reply = await client.get("/fast/missing")
    assert (reply.status_code, reply.json()) == (404, {"errcode": "M_NOT_FOUND", "error": "no such thing"})
    reply = await client.get("/fast/a/typed", params={"limit": "many"})
    assert (reply.status_code, reply.json()["errcode"]) == (400, "M_INVALID_PARAM")
    assert reply.json()["error"].startswith("limit: ")


@pytest.mark.parametrize(
    ("body", "status", "errcode"),
    [
        (b"nope", 400, "M_NOT_JSON"),
        (b"", 400, "M_NOT_JSON"),
        (b"[]", 400, "M_BAD_JSON"),
        (b'{"a":1.5}', 400, "M_BAD_JSON"),
        (b'{"a":1,"a":2}', 400, "M_BAD_JSON"),
        (b"[" * 900, 400, "M_NOT_JSON"),
        (b'{"a":"' + b"x" * 1000 + b'"}', 413, "M_TOO_LARGE"),
    ],
)
async def test_bad_bodies(client: httpx.AsyncClient, body: bytes, status: int, errcode: str) -> None:
    reply = await client.post("/echo", content=body)
    assert (reply.status_code, reply.json()["errcode"]) == (status, errcode)


async def test_a_body_without_length_is_bounded_too(client: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * 100

    reply = await client.post("/echo", content=chunks())
    assert reply.status_code == 413


async def test_a_slow_body_is_given_up() -> None:
    async def receive() -> Any:
        await asyncio.Event().wait()

    request = Request({"type": "http", "headers": [], "method": "POST", "path": "/"}, receive)
    from tessera.http.bodies import read_body
    from tessera.http.errors import MatrixError

    with pytest.raises(MatrixError) as caught:
        await read_body(request, deadline_seconds=0.01)
    assert caught.value.status == 408


async def test_figures_and_readiness(client: httpx.AsyncClient, registry: CollectorRegistry) -> None:
    assert (await client.get("/health")).status_code == 200
    reply = await client.get("/ready")
    assert reply.status_code == 503
    assert reply.json() == {"ready": False, "checks": {"postgres": True, "redis": False}}
    await client.get("/rooms/a/special/name")
    await client.get("/no/such/path")
    text = (await client.get("/metrics")).text
    assert 'tessera_http_requests_total{method="GET",operation="named",status="200"} 1.0' in text
    assert 'operation="unmatched",status="404"' in text
    assert "/no/such" not in generate_latest(registry).decode()


def test_two_routes_for_one_path_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="two routes"):
        create_app(
            routes=[Route("/a/{x}", plain, methods=["GET"]), Route("/a/{y}", plain, methods=["GET"])],
            state={},
            ids=IdSource.seeded(1),
        )
