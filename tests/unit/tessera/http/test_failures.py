"""What clients are told, through an application whose one route raises it."""

import asyncio

import httpx
import pytest
from fastapi import APIRouter, Body
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from matrixcore import canonical_json
from matrixcore.identifiers import parse_user_id
from tessera.http.app import create_app
from tessera.http.deadlines import deadline
from tessera.http.errors import (
    BadJson,
    Forbidden,
    GuestAccessForbidden,
    InvalidParam,
    InvalidUsername,
    LimitExceeded,
    MatrixError,
    MissingParam,
    MissingToken,
    NotFound,
    NotJson,
    TooLarge,
    Unavailable,
    UnknownToken,
    Unrecognized,
    UserInUse,
    UserLocked,
)
from tessera.http.replies import json_reply
from tessera.ids import IdSource
from tessera.room_commands import CommandUnanswered
from tessera.storage.database import DatabaseUnavailable


def client_of(*routes: Route, routers: tuple[APIRouter, ...] = (), deadline_seconds: float = 90.0) -> httpx.AsyncClient:
    app = create_app(
        routes=routes, routers=routers, state={}, ids=IdSource.seeded(1), deadline_seconds=deadline_seconds
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


async def answer_to(error: Exception, *, body: bytes = b"") -> httpx.Response:
    async def raising(_request: Request) -> Response:
        raise error

    async with client_of(Route("/x", raising, methods=["POST"])) as client:
        return await client.post("/x", content=body)


@pytest.mark.parametrize(
    ("error", "status", "errcode"),
    [
        (MatrixError("x"), 400, "M_UNKNOWN"),
        (Forbidden("x"), 403, "M_FORBIDDEN"),
        (NotFound(), 404, "M_NOT_FOUND"),
        (MissingToken(), 401, "M_MISSING_TOKEN"),
        (UnknownToken(soft_logout=True), 401, "M_UNKNOWN_TOKEN"),
        (UserLocked(), 401, "M_USER_LOCKED"),
        (GuestAccessForbidden(), 403, "M_GUEST_ACCESS_FORBIDDEN"),
        (NotJson("x"), 400, "M_NOT_JSON"),
        (BadJson("x"), 400, "M_BAD_JSON"),
        (InvalidParam("x"), 400, "M_INVALID_PARAM"),
        (MissingParam("x"), 400, "M_MISSING_PARAM"),
        (TooLarge("x"), 413, "M_TOO_LARGE"),
        (Unrecognized(), 404, "M_UNRECOGNIZED"),
        (UserInUse(), 400, "M_USER_IN_USE"),
        (InvalidUsername("x"), 400, "M_INVALID_USERNAME"),
        (LimitExceeded(20), 429, "M_LIMIT_EXCEEDED"),
        (Unavailable(), 503, "M_UNKNOWN"),
        (DatabaseUnavailable("x"), 503, "M_UNKNOWN"),
        (canonical_json.NotJson("x"), 400, "M_NOT_JSON"),
        (canonical_json.BadJson("x"), 400, "M_BAD_JSON"),
        (TimeoutError(), 500, "M_UNKNOWN"),
    ],
)
async def test_every_error_has_its_answer(error: Exception, status: int, errcode: str) -> None:
    reply = await answer_to(error)
    assert (reply.status_code, reply.json()["errcode"]) == (status, errcode)
    assert isinstance(reply.json()["error"], str)
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["access-control-allow-origin"] == "*"


async def test_an_identifier_that_is_none_is_a_wrong_parameter() -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 -- the type is what the application sees
        parse_user_id("alice")
    reply = await answer_to(caught.value)
    assert (reply.status_code, reply.json()["errcode"]) == (400, "M_INVALID_PARAM")


async def test_an_unanswered_command_says_when_to_try_again() -> None:
    reply = await answer_to(CommandUnanswered(2500))
    assert reply.status_code == 503
    assert reply.json()["retry_after_ms"] == 2500
    assert reply.headers["retry-after"] == "3"


async def test_further_fields_and_headers_are_told() -> None:
    reply = await answer_to(MatrixError("no", errcode="M_X", status=418, fields={"a": 1}, headers={"X-Y": "z"}))
    assert reply.status_code == 418
    assert reply.json() == {"errcode": "M_X", "error": "no", "a": 1}
    assert reply.headers["x-y"] == "z"
    assert (await answer_to(UnknownToken(soft_logout=True))).json()["soft_logout"] is True


class Wanted(BaseModel):
    name: str
    count: int = 0


@pytest.mark.parametrize(
    ("path", "body", "errcode", "field"),
    [
        ("/model?since=1", b'{"count":1}', "M_MISSING_PARAM", "name"),
        ("/model?since=1", b'{"name":"a","count":"many"}', "M_BAD_JSON", "count"),
        ("/model?since=1", b"{", "M_NOT_JSON", ""),
        ("/model", b'{"name":"a"}', "M_MISSING_PARAM", "since"),
        ("/model?since=later", b'{"name":"a"}', "M_INVALID_PARAM", "since"),
    ],
)
async def test_fastapis_own_checks_name_the_field(path: str, body: bytes, errcode: str, field: str) -> None:
    router = APIRouter()

    @router.post("/model")
    async def take(since: int, wanted: Wanted = Body()) -> Response:  # noqa: B008 -- FastAPI's way
        return json_reply({})

    async with client_of(routers=(router,)) as client:
        reply = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert (reply.status_code, reply.json()["errcode"]) == (400, errcode)
    assert field in reply.json()["error"]


async def forever(_request: Request) -> Response:
    await asyncio.Event().wait()
    raise AssertionError


@deadline(None)
async def patient(_request: Request) -> Response:
    await asyncio.sleep(0.05)
    return json_reply({"done": True})


@deadline(0.01)
async def impatient(request: Request) -> Response:
    return await forever(request)


async def test_a_handler_has_a_deadline() -> None:
    router = APIRouter()

    @router.get("/typed")
    async def typed() -> Response:
        await asyncio.Event().wait()
        raise AssertionError

    routes = [Route("/forever", forever), Route("/patient", patient)]
    async with client_of(*routes, routers=(router,), deadline_seconds=0.01) as client:
        for path in ("/forever", "/typed"):
            reply = await client.get(path)
            assert (reply.status_code, reply.json()["errcode"]) == (504, "M_UNKNOWN")
        assert (await client.get("/patient")).json() == {"done": True}
    async with client_of(Route("/impatient", impatient)) as client:
        assert (await client.get("/impatient")).status_code == 504
