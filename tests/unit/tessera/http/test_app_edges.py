"""What an application does when clients go away, answers break off, or servers behave differently."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from structlog.testing import capture_logs

from tessera.http import app as app_module
from tessera.http.app import MatrixApp, create_app
from tessera.http.bodies import read_body
from tessera.http.errors import Forbidden
from tessera.http.replies import json_reply
from tessera.ids import IdSource
from tessera.telemetry import RequestMetrics

Send = Callable[[Any], Awaitable[None]]


async def read_all(request: Request) -> Response:
    return json_reply({"length": len(await read_body(request))})


async def break_off(_request: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError("the disk is gone")

    return StreamingResponse(chunks())


async def long_answer(_request: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x"

    return StreamingResponse(chunks())


async def refuse(_request: Request) -> Response:
    raise Forbidden("no")


async def read_and_refuse(request: Request) -> Response:
    await read_body(request)
    raise Forbidden("no")


async def name(request: Request) -> Response:
    return json_reply(request.path_params)


def make_app(registry: CollectorRegistry | None = None, *, log_requests: bool = False) -> MatrixApp:
    return create_app(
        routes=[
            Route("/read", read_all, methods=["POST"]),
            Route("/refuse", refuse, methods=["POST"]),
            Route("/read-and-refuse", read_and_refuse, methods=["POST"]),
            Route("/broken", break_off, methods=["GET"]),
            Route("/long", long_answer, methods=["GET"]),
            Route("/names/{name}", name, methods=["GET"]),
        ],
        state={},
        ids=IdSource.seeded(1),
        metrics=None if registry is None else RequestMetrics(registry),
        log_requests=log_requests,
    )


async def call(
    app: MatrixApp,
    path: str,
    *,
    method: str = "GET",
    body: Iterable[bytes] = (),
    send: Send | None = None,
    **scope: Any,
) -> list[Any]:
    """Every message that the application sent to a client that goes away after its body."""
    sent: list[Any] = []

    async def keep(message: Any) -> None:
        sent.append(message)

    chunks = iter(body)

    async def receive() -> Any:
        chunk = next(chunks, None)
        if chunk is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": chunk != b""}

    request = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": [], **scope}
    await app(request, receive, send or keep)
    return sent


async def test_a_client_that_goes_away_is_no_error() -> None:
    registry = CollectorRegistry()
    with capture_logs() as logs:
        assert await call(make_app(registry), "/read", method="POST") == []
    assert logs == []
    assert 'operation="read_all",status="499"' in generate_latest(registry).decode()


async def test_half_an_answer_is_cut_and_counted() -> None:
    registry = CollectorRegistry()
    with capture_logs() as logs, pytest.raises((RuntimeError, ExceptionGroup)):
        await call(make_app(registry), "/broken")
    assert [line["operation"] for line in logs] == ["break_off"]
    assert 'operation="break_off"' in generate_latest(registry).decode()


async def test_a_client_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "SEND_STALL_SECONDS", 0.01)

    async def stall(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async with asyncio.timeout(5):
        await call(make_app(), "/long", send=stall)


CLOSE = (b"connection", b"close")
LONG = [(b"content-length", b"9000000000")]


async def test_a_refused_long_body_costs_its_connection() -> None:
    (start, answer, end) = await call(make_app(), "/refuse", method="POST", headers=LONG, body=[b"x" * 1000] * 3)
    assert start["status"] == 403
    assert CLOSE in start["headers"]
    assert b"M_FORBIDDEN" in answer["body"]
    assert (answer["more_body"], end.get("more_body", False)) == (True, False)
    (start, _, _) = await call(make_app(), "/refuse", method="POST", headers=[(b"transfer-encoding", b"chunked")])
    assert CLOSE in start["headers"]


async def test_short_bodies_and_those_that_were_read_leave_it_open() -> None:
    short = [(b"content-length", b"1000")]
    assert CLOSE not in (await call(make_app(), "/refuse", method="POST", headers=short))[0]["headers"]
    chunked = [(b"transfer-encoding", b"chunked")]
    messages = await call(make_app(), "/read-and-refuse", method="POST", headers=chunked, body=[b"x", b""])
    assert messages[0]["status"] == 403
    assert CLOSE not in messages[0]["headers"]


async def test_only_so_much_of_a_refused_body_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"x" * 1024

    monkeypatch.setattr(app_module, "LINGER_BYTES", 10 * 1024)
    messages = await call(make_app(), "/refuse", method="POST", headers=LONG, body=endless())
    assert messages[0]["status"] == 403
    assert taken == 10


async def test_servers_without_a_raw_path() -> None:
    for path in ("/names/100%25", "/names/a b", "/names/é"):
        messages = await call(make_app(), path)
        assert messages[0]["status"] == 200
    assert b'"100%25"' in (await call(make_app(), "/names/100%25"))[1]["body"]


async def test_head_has_the_headers_of_get() -> None:
    messages = await call(make_app(), "/names/x", method="HEAD")
    assert messages[0]["status"] == 200
    assert (b"content-length", b"12") in messages[0]["headers"]


async def test_requests_are_logged_only_on_demand_and_without_paths() -> None:
    with capture_logs() as logs:
        await call(make_app(), "/names/secret", query_string=b"access_token=x")
    assert logs == []
    with capture_logs() as logs:
        await call(make_app(log_requests=True), "/names/secret", query_string=b"access_token=x")
    (line,) = logs
    assert (line["operation"], line["method"], line["status"]) == ("name", "GET", 200)
    assert "secret" not in str(line)
    assert "access_token" not in str(line)


async def test_lifespan_and_websockets_are_answered() -> None:
    inbox = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def receive() -> Any:
        return inbox.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await make_app()({"type": "lifespan"}, receive, send)
    await make_app()({"type": "websocket"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]
